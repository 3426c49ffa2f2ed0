"""What is asked of a layer whose connections change."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn


class SparseLayer(Protocol):
    """What is asked of a layer whose connections change; `synaptome.SparseLinear` is one.

    Attributes:
        values: its weights `[nnz]`, in the order of (row, col), without repetition.
        row_of, col: output and input of each connection, integers `[nnz]`.
    """

    in_features: int
    out_features: int
    values: nn.Parameter

    @property
    def row_of(self) -> Tensor: ...  # noqa: D102
    @property
    def col(self) -> Tensor: ...  # noqa: D102

    def replace(self, dropped: Tensor, row: Tensor, col: Tensor, fresh: Tensor) -> Tensor:
        """Remove the connections `dropped`, bool `[nnz]`, and insert others with the values `fresh` `[m]`.

        The Parameter stays the same object; its gradient follows.

        Returns:
            For each connection of the new order its index in the old one, -1 for a new one: int64 `[nnz']`.
        """
        ...

    def initial_values(self, row: Tensor, generator: torch.Generator) -> Tensor:
        """Values `[m]` from the distribution from which those of a new layer are drawn, for outputs `row` `[m]`."""
        ...


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The layers of a model whose connections can change, by name; a layer that is used twice once."""
    return {
        name: cast(SparseLayer, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "values", None), nn.Parameter) and callable(getattr(module, "replace", None))
    }


def occupied(layer: SparseLayer) -> Tensor:
    """The places `row * in_features + col` of a layer's connections, sorted, int64 `[nnz]`."""
    return layer.row_of.to(torch.int64, copy=True).mul_(layer.in_features).add_(layer.col)


def places_of(layer: SparseLayer) -> int:
    """How many places a layer has, occupied or not."""
    return layer.out_features * layer.in_features
