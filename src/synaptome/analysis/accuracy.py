"""The share of examples that a classifier gets right."""

from __future__ import annotations

import torch
from torch import nn

from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError

BATCH = 1000  # examples evaluated at once


def check_classes(split: Split) -> None:
    """Refuse targets that are no class indices, int64 `[n]`: a ConfigurationError."""
    if split.targets.dtype != torch.int64 or split.targets.dim() != 1:
        raise ConfigurationError(
            f"accuracy is of class indices, int64 [n]; given {split.targets.dtype} targets {list(split.targets.shape)}"
        )


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """The share of the examples for which the class of the largest output is the target, in [0, 1].

    Args:
        model: from inputs `[n, ...]` to one score a class `[n, classes]`, in the mode in which it is to be tested.
        split: with class indices as targets, on the device of the model.
    """
    correct = sum(int((model(batch.inputs).argmax(1) == batch.targets).sum()) for batch in split.batches(BATCH))
    return correct / len(split)
