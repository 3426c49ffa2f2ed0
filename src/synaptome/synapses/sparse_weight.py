"""A weight of which only the connections exist: values on a graph, which may be replaced by others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.graph import merged, rearranged
from synaptome.kernels.sparse_product import Structure, compressed, row_indices, structure_of
from synaptome.topology.compressed import what_is_wrong
from synaptome.topology.layers import label


class SparseWeight(nn.Module):
    """What sparse layers have in common: one Parameter of values, the graph that they are on, and its changes.

    As a matrix the weight is `[out_features, in_features]`. The Parameter `values` `[nnz]` is in the order of
    (output, input). The buffers `crow` `[out_features + 1]` and `col` `[nnz]` hold the graph in compressed sparse rows
    and travel with `state_dict`, beside the `shape` of the weight; the other parts of a `Structure` are derived from
    them.

    Values and bias are drawn uniformly from `(-b, b)` with `b = sqrt(out_features / nnz)`: as those of a dense layer,
    with the mean number of connections of an output in place of `in_features`. `draw_normal` chooses another
    distribution, for these values and for those of connections that are born later.

    A subclass calls `_hold` once, and registers its `bias`.
    """

    in_features: int
    out_features: int
    values: nn.Parameter
    bias: nn.Parameter | None
    crow: Tensor
    col: Tensor
    ccol: Tensor
    row: Tensor
    permutation: Tensor

    def _hold(self, in_features: int, out_features: int, row: Tensor, col: Tensor, values: Tensor) -> None:
        """Take sorted connections and their values; a Parameter stays the same object."""
        self.in_features, self.out_features = in_features, out_features
        self._normal: float | None = None  # of the distribution of new values, where that is a normal one
        self.values = values if isinstance(values, nn.Parameter) else nn.Parameter(values)
        for name in Structure._fields:
            self.register_buffer(name, None, persistent=name in ("crow", "col"))
        self._connect(compressed(row, out_features), col)

    def _connect(self, crow: Tensor, col: Tensor) -> None:
        """Take a graph in compressed sparse rows, and derive what the transposed product needs."""
        largest = max(len(col), self.in_features, self.out_features)
        index = torch.int32 if largest < 2**31 else torch.int64
        device = self.values.device
        crow, col = crow.to(device, index), col.to(device, index)
        if device.type == "meta":  # tensors without numbers: those of the graph come with a state
            by_columns = (col.new_empty(self.in_features + 1), torch.empty_like(col), torch.empty_like(col))
            structure = Structure(crow, col, *by_columns)
        else:
            structure = structure_of(crow, col, self.in_features)
        for name, tensor in structure._asdict().items():
            setattr(self, name, tensor)

    @property
    def structure(self) -> Structure:
        """The graph, by rows and by columns."""
        return Structure(self.crow, self.col, self.ccol, self.row, self.permutation)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight of a dense layer in its place, `(out, in)` or `(out, in, *kernel)`."""
        return self.out_features, self.in_features

    @property
    def nnz(self) -> int:
        """The number of connections."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """The share of all places that are connected."""
        return self.nnz / max(1, self.in_features * self.out_features)

    @property
    def row_of(self) -> Tensor:
        """The output of each connection, `[nnz]`, in the order of the values (as `col` is its input)."""
        return row_indices(self.crow, self.nnz)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw values and bias anew, on the device, by torch's generator."""
        bound = self._bound()
        self.values.uniform_(-bound, bound)
        self._normal = None
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def draw_normal(self, std: float) -> None:
        """Draw all values from N(0, std²) by torch's generator; the layer's new connections will be drawn alike."""
        self.values.normal_(std=std)
        self._normal = std

    def initial_values(self, row: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values `[m]` for new connections of the outputs `row` `[m]`, drawn as those of a new layer.

        Args:
            row: all outputs draw from the same distribution.
            generator: of the CPU; torch's own if None.
        """
        drawn = torch.empty(len(row), dtype=self.values.dtype)
        if self._normal is None:
            bound = self._bound()
            drawn.uniform_(-bound, bound, generator=generator)
        else:
            drawn.normal_(std=self._normal, generator=generator)
        return drawn.to(self.values.device)

    def _bound(self) -> float:
        return math.sqrt(self.out_features / self.nnz) if self.nnz else 1.0

    @torch.no_grad()
    def replace(self, dropped: Tensor, row: Tensor, col: Tensor, fresh: Tensor) -> Tensor:
        """Remove connections and insert others. The Parameter stays the same object; its gradient follows.

        What survives keeps its value, and its gradient if there is one; a new connection has gradient 0. State that an
        optimizer keeps is the caller's to move, by what is returned.

        Args:
            dropped: bool `[nnz]`, which connections go.
            row, col: int64 `[m]`, outputs and inputs of the new ones, in any order. A place that this very call
                vacates may be taken again.
            fresh: `[m]`, their values.

        Returns:
            int64 `[nnz']`: for each connection of the new order its index in the old one, -1 for a new one.

        Raises:
            ConfigurationError: shapes do not fit, or a new connection is out of range, given twice or there already;
                nothing was changed.
        """
        if dropped.shape != self.values.shape or dropped.dtype != torch.bool:
            raise ConfigurationError(
                f"dropped is bool [{self.nnz}], one for each connection; given {dropped.dtype} {list(dropped.shape)}"
            )
        if not row.shape == col.shape == fresh.shape == (row.numel(),):
            raise ConfigurationError(
                f"row, col and fresh are [m], one for each new connection; given {list(row.shape)}, {list(col.shape)} "
                f"and {list(fresh.shape)}"
            )
        places = self._new_places(row, col)
        if (places[1:] < places[:-1]).any():
            places, order = places.sort()
            fresh = fresh[order]
        crow, col, source = merged(self.crow, self.col, dropped, places, self.in_features)
        gradient = self.values.grad
        if gradient is not None:
            gradient = rearranged(gradient, source, torch.zeros_like(fresh))
        self._give_values(rearranged(self.values, source, fresh))
        self.values.grad = gradient
        self._connect(crow, col)
        return source

    def _new_places(self, row: Tensor, col: Tensor) -> Tensor:
        for name, index, size in (("output", row, self.out_features), ("input", col, self.in_features)):
            wrong = (index < 0) | (index >= size)
            if wrong.any():
                raise ConfigurationError(
                    f"a new connection has {name} {index[wrong][0]}; {name}s go from 0 to {size - 1}"
                )
        return row.long() * self.in_features + col

    def _give_values(self, values: Tensor) -> None:
        """Other numbers for the same Parameter, of whatever length."""
        self.values.grad = None
        if values.shape != self.values.shape:
            # A graph that is still alive holds the node which collects this Parameter's gradient, and that node knows
            # the old length. A change of dtype is what makes torch give it up.
            other = torch.float64 if self.values.dtype != torch.float64 else torch.float32
            self.values.data = values.new_empty(0, dtype=other)
        self.values.data = values

    def check_prunable(self, nnz: int) -> None:
        """Refuse a number of connections that is larger than there are: a ConfigurationError."""
        if not 0 <= nnz <= self.nnz:
            raise ConfigurationError(
                f"a sparse layer of {self.nnz} connections cannot keep {nnz} of them; for more, make it dense first"
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add the shape, by which a graph is known that fits into a layer of another."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "shape"] = torch.tensor(self.weight_shape, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check the graph that comes with a state, and take it with its numbers."""
        parts: tuple[Any, ...] = tuple(state_dict.get(prefix + name) for name in ("crow", "col", "values"))
        crow, col, values = parts
        if crow is not None or col is not None:
            name = label(prefix[:-1]) if prefix else "this layer"
            self._check_shape(name, state_dict.get(prefix + "shape"), crow)
            wrong = what_is_wrong(crow, col, values, self.out_features, self.in_features)
            if wrong:
                raise ConfigurationError(f"the connections of {name} are corrupt: {wrong}")
            if len(col) != self.nnz:
                self._give_values(self.values.new_empty(len(col)))
                self.col = self.col.new_empty(len(col))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "shape" in unexpected_keys:  # which it is to torch: it is no buffer
            unexpected_keys.remove(prefix + "shape")
        self._connect(self.crow, self.col)

    def _check_shape(self, name: str, shape: Any, crow: Any) -> None:
        """Refuse the state of a layer of another shape; a state of old knows the number of outputs only."""
        if isinstance(shape, Tensor) and shape.tolist() != list(self.weight_shape):
            raise ConfigurationError(
                f"the state for {name} is that of a weight {shape.tolist()}, and its own is {list(self.weight_shape)}; "
                f"load it into a layer of the same shape"
            )
        if shape is None and isinstance(crow, Tensor) and crow.dim() == 1 and 0 < len(crow) != self.out_features + 1:
            raise ConfigurationError(
                f"the state for {name} is that of a layer of {len(crow) - 1} outputs, and it has {self.out_features}; "
                f"load it into a layer of the same shape"
            )
