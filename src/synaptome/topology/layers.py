"""What is asked of a layer whose connections change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError


class SparseLayer(Protocol):
    """What is asked of a layer whose connections change; `synaptome.SparseLinear` is one.

    A layer where some places stay empty for ever says so by `barred`, these places, sorted, int64.

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
        """Values `[m]` from the distribution from which those of a new layer are drawn, for outputs `row` `[m]`.

        Asked for where new connections start from that distribution only.
        """
        ...


def label(name: str) -> str:
    """What a layer is called in a message, by its dotted name; the model itself has none."""
    return f"layer {name!r}" if name else "the model"


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The layers of a model whose connections can change, by name; a layer that is used twice once."""
    return {
        name: cast(SparseLayer, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "values", None), nn.Parameter) and callable(getattr(module, "replace", None))
    }


def layers_to_evolve(model: nn.Module, needed: tuple[str, ...]) -> dict[str, SparseLayer]:
    """The sparse layers of a model whose values are not frozen, by name.

    Args:
        model: any.
        needed: what each must have beside values and `replace`.

    Raises:
        ConfigurationError: there is none, one lacks something that is needed, or two hold the same values.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ConfigurationError(
            "the model has no layer whose connections can change; give it sparse ones, such as SparseLinear"
        )
    layers = {name: layer for name, layer in layers.items() if layer.values.requires_grad}
    if not layers:
        raise ConfigurationError(
            "the values of every sparse layer of the model are frozen (requires_grad is False), and frozen layers do "
            "not evolve; call requires_grad_() on the values of those that shall"
        )
    for name, layer in layers.items():
        missing = [attribute for attribute in needed if not hasattr(layer, attribute)]
        if missing:
            raise ConfigurationError(
                f"{label(name)} is a {type(layer).__name__}, which lacks {', '.join(missing)}; see "
                f"synaptome.topology.layers.SparseLayer for what is asked of a layer whose connections change"
            )
    return holders(model, {name: layer.values for name, layer in layers.items()})


def holders(model: nn.Module, values: Mapping[str, nn.Parameter]) -> dict[str, SparseLayer]:
    """The layers that hold these very values now, whatever they were when they got their names.

    Args:
        model: any.
        values: by the names under which the layers are to be returned.

    Raises:
        ConfigurationError: no layer of the model holds some of these values any more, or several do.
    """
    now: dict[int, dict[str, SparseLayer]] = {}
    for name, layer in sparse_layers(model).items():
        now.setdefault(id(layer.values), {})[name] = layer
    found = {}
    for name, parameter in values.items():
        holding = now.get(id(parameter), {})
        if not holding:
            raise ConfigurationError(
                f"the model no longer holds the values of {label(name)} with which this evolution began; make a new "
                f"optimizer and a new Evolution of the model as it is now"
            )
        if len(holding) > 1:
            raise ConfigurationError(
                f"{' and '.join(map(label, holding))} hold the same values, which cannot follow two graphs; use one "
                f"layer in both places"
            )
        (found[name],) = holding.values()
    return found


def replace(name: str, layer: SparseLayer, dropped: Tensor, row: Tensor, col: Tensor, fresh: Tensor) -> Tensor:
    """`layer.replace`, of whose result an optimizer's state depends.

    Raises:
        ConfigurationError: it did not do as `SparseLayer.replace` says.
    """
    values = layer.values
    source = layer.replace(dropped, row, col, fresh)
    who = f"replace() of {label(name)}, a {type(layer).__name__},"
    if layer.values is not values:
        raise ConfigurationError(
            f"{who} made another Parameter; `values` must stay the object that the optimizer holds"
        )
    if not isinstance(source, Tensor) or source.dtype != torch.int64 or source.shape != values.shape:
        given = f"{source.dtype} {list(source.shape)}" if isinstance(source, Tensor) else repr(source)
        raise ConfigurationError(
            f"{who} must return for each connection its index before, -1 for a new one: int64 {list(values.shape)}; "
            f"it returned {given}"
        )
    return source


def occupied(layer: SparseLayer) -> Tensor:
    """The places `row * in_features + col` of a layer's connections, sorted, int64 `[nnz]`."""
    return layer.row_of.to(torch.int64, copy=True).mul_(layer.in_features).add_(layer.col)


def barred(layer: SparseLayer) -> Tensor:
    """The places where a layer never has a connection, sorted, int64; most layers have none of these."""
    places: Tensor | None = getattr(layer, "barred", None)
    return layer.col.new_empty(0, dtype=torch.int64) if places is None else places


def places_of(layer: SparseLayer) -> int:
    """How many places a layer has, occupied or not."""
    return layer.out_features * layer.in_features
