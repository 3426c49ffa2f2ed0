"""Data sets as in-memory tensors. Importing this brings torch and numpy; a loader imports what else it needs."""

from __future__ import annotations

from synaptome.data.dataset import Batch, Dataset, Population, Split, epoch_order
from synaptome.data.fetch import fetch
from synaptome.data.linear import linear_regression
from synaptome.data.locate import search_path
from synaptome.data.registry import DATASETS, Availability, available, load
from synaptome.data.semantic import semantic_hierarchy

__all__ = [
    "DATASETS",
    "Availability",
    "Batch",
    "Dataset",
    "Population",
    "Split",
    "available",
    "epoch_order",
    "fetch",
    "linear_regression",
    "load",
    "search_path",
    "semantic_hierarchy",
]
