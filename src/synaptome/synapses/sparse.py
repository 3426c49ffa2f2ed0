"""Layers of which only the connections exist: values on a graph, no dense matrix anywhere."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.kernels.sparse_product import sparse_linear
from synaptome.synapses import sparse_conversion
from synaptome.synapses.sparse_conversion import Parts
from synaptome.synapses.sparse_weight import SparseWeight
from synaptome.synapses.sparsity import check_dense_above
from synaptome.topology.initial import initial_graph
from synaptome.topology.layers import occupied

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SMALL = 2**18  # places up to which nobody is warned that a dense layer may be faster

Edges = Any  # two lists of integers, or what torch makes a tensor of


class SparseLinear(SparseWeight):
    """`torch.nn.Linear` of which only some connections exist: `y[b, o] = Σ_k v[k] x[b, col[k]] + bias[o]`.

    Time and memory of forward, backward and optimizer are proportional to the connections. The weights are one
    Parameter `values` `[nnz]`, in the order of (output, input), which any optimizer takes. The buffers `crow`
    `[out_features + 1]` and `col` `[nnz]` hold the graph in compressed sparse rows, and travel with `state_dict`:
    loading one gives the layer its graph, whatever the number of connections. A state whose graph is corrupt is refused
    before this layer changes; in a model, `load_state_dict` goes from layer to layer, and those before it are loaded.

    Values and bias are drawn as by `torch.nn.Linear`, with the mean number of connections of an output in place of
    `in_features`: uniformly from `(-b, b)` with `b = sqrt(out_features / nnz)`.

    A layer of more than 2**18 places (512 x 512) whose density is above 0.4, or 0.75 where connections fail, warns that
    a dense layer is faster, once for a kind of layer and a density; `dense_above` silences that.

    The output of `[batch, out_features]` is a transposed view of `[out_features, batch]`. Elementwise functions keep
    that, so sparse layers in a row never transpose.

    Give exactly one of:

    Args:
        density: the share of all places that are connected, in (0, 1].
        epsilon: `nnz = epsilon (in_features + out_features)` (Mocanu et al. 2018, equation 2), above 0.
        nnz: the number of connections, from 0 to `in_features * out_features`.
        fan_in: the number of inputs of every output, from 0 to `in_features`.
        edges: outputs and inputs of the connections, two lists of integers `[nnz]` (or one `[2, nnz]`), in any order,
            as tensors, arrays or Python's.

    And:

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`.
        topology: for density, epsilon and nnz: `erdos-renyi`, any places equally likely, or `small-world(p)`, local
            connections of which the share p is rewired (see `synaptome.topology.graphs`); `small-world` has p = 0.1.
        dense_above: a density in [0, 1] above which products go through a dense matrix, which every forward fills with
            the values: the cost of a dense layer under a mask. By default None, never.

    Raises:
        ConfigurationError: none or several of density ... edges are given, one is out of range, or an edge is out of
            range or given twice.
    """

    # Above this density a training step of the dense layer is faster, on one core and for layers that are not small.
    crossover: ClassVar[float] = 0.4

    place: Tensor | None  # of each connection in the dense matrix, int64 `[nnz]`, if there is to be one

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float | None = None,
        epsilon: float | None = None,
        nnz: int | None = None,
        fan_in: int | None = None,
        edges: Edges | None = None,
        topology: str = "erdos-renyi",
        dense_above: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = {"density": density, "epsilon": epsilon, "nnz": nnz, "fan_in": fan_in, "edges": edges}
        check_dense_above(dense_above)
        row, col = initial_graph("SparseLinear", (out_features, in_features), topology, size)
        super().__init__()
        values = torch.empty(len(col), device=device, dtype=dtype)
        own = values.new_empty(out_features) if bias else None
        self._build(Parts(in_features, out_features, row, col, values, own), dense_above)
        self.reset_parameters()

    @classmethod
    def from_parts(cls, parts: Parts, *, dense_above: float | None = None) -> SparseLinear:
        """A layer made of given tensors, of which Parameters stay the same objects."""
        check_dense_above(dense_above)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(parts, dense_above)
        return layer

    def _build(self, parts: Parts, dense_above: float | None) -> None:
        self._dense_above = dense_above
        self.register_buffer("place", None, persistent=False)
        bias = parts.bias
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self._hold(parts.in_features, parts.out_features, parts.row, parts.col, parts.values)
        self.register_parameter("bias", bias)
        if dense_above is None and self.density > self.crossover and self.in_features * self.out_features > SMALL:
            _warn_dense(type(self).__name__, self.density, self.crossover)

    def _connect(self, crow: Tensor, col: Tensor) -> None:
        super()._connect(crow, col)
        self._choose_product()

    def _choose_product(self) -> None:
        dense = self.dense_above is not None and self.density > self.dense_above
        self.place = occupied(self) if dense else None

    @property
    def dense_above(self) -> float | None:
        """The density above which products go through a dense matrix; None for never."""
        return self._dense_above

    @dense_above.setter
    def dense_above(self, density: float | None) -> None:
        check_dense_above(density)
        self._dense_above = density
        self._choose_product()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self.place is None:
            return sparse_linear(x, self.values, self.bias, self.structure)
        return F.linear(x, self._dense_weight(self.place), self.bias)

    def _dense_weight(self, place: Tensor) -> Tensor:
        weight = self.values.new_zeros(self.out_features * self.in_features).index_copy_(0, place, self.values)
        return weight.view(self.out_features, self.in_features)

    @classmethod
    def random_like(
        cls,
        layer: nn.Linear | SparseLinear,
        nnz: int,
        *,
        topology: str = "erdos-renyi",
        dense_above: float | None = None,
    ) -> SparseLinear:
        """A layer on a random graph, with new values, the shape of a plain or sparse one and its very bias."""
        weight = layer.values if isinstance(layer, SparseLinear) else layer.weight
        options: Any = {
            "topology": topology,
            "dense_above": dense_above,
            "device": weight.device,
            "dtype": weight.dtype,
        }
        drawn = cls(layer.in_features, layer.out_features, False, nnz=nnz, **options)
        drawn.values.requires_grad_(weight.requires_grad)
        drawn.bias = layer.bias
        return drawn.train(layer.training)

    @classmethod
    def from_dense(
        cls, layer: nn.Linear, mask: Tensor | None = None, *, dense_above: float | None = None
    ) -> SparseLinear:
        """A sparse layer with the weights of `layer` at the connections of `mask`, and its very bias.

        The values are a new Parameter: make the optimizer afterwards.

        Args:
            layer: any Linear.
            mask: bool `[out_features, in_features]`; by default where the weight is not 0.
            dense_above: as for a new layer.

        Raises:
            ConfigurationError: the mask does not fit.
        """
        parts = sparse_conversion.of_dense(layer, mask)
        return cls.from_parts(parts, dense_above=dense_above).train(layer.training)

    def to_dense(self) -> nn.Linear:
        """A `torch.nn.Linear` with these weights, 0 where there is no connection, and the very bias of this layer."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        dense.weight = nn.Parameter(sparse_conversion.to_dense(self), self.values.requires_grad)
        if self.bias is not None:
            dense.bias = self.bias
        return dense.train(self.training)

    def pruned(self, nnz: int) -> SparseLinear:
        """A sparse layer with the `nnz` connections of largest magnitude, and the very bias of this one.

        Of equal magnitudes the first in the order of (output, input) is kept. The values are a new Parameter.

        Raises:
            ConfigurationError: there are not so many connections.
        """
        self.check_prunable(nnz)
        parts = sparse_conversion.of_largest(self, self.bias, nnz)
        return self.from_parts(parts, dense_above=self.dense_above).train(self.training)

    def to_scipy(self) -> csr_array:
        """A copy of the weights as `scipy.sparse.csr_array` `[out_features, in_features]`; values of 0 stay in it."""
        return sparse_conversion.to_scipy(self)

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        bias: Any = None,
        *,
        dense_above: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SparseLinear:
        """A layer with the entries of a SciPy sparse array or matrix `[out_features, in_features]` as connections.

        Entries of 0 that it stores become connections; those that it stores more than once are added up.

        Args:
            matrix: of any format.
            bias: `[out_features]`, a tensor, an array or a list; None for no bias.
            dense_above: as for a new layer.
            device: default torch's.
            dtype: of values and bias; default torch's.

        Raises:
            ConfigurationError: the matrix has not two sides, or the bias does not fit.
        """
        parts = sparse_conversion.of_scipy(matrix, bias, device, dtype)
        return cls.from_parts(parts, dense_above=dense_above)

    def to_networkx(self) -> Any:
        """The connections as a `networkx.DiGraph`, from nodes `("input", i)` to `("output", o)`, with `weight`.

        Every input and output is a node, connected or not; `bipartite` is 0 for inputs and 1 for outputs.

        Raises:
            ConfigurationError: networkx is not installed.
        """
        return sparse_conversion.to_networkx(self)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        threshold = "" if self.dense_above is None else f", dense_above={self.dense_above:g}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"nnz={self.nnz}, density={self.density:.3g}{threshold}"
        )


@cache
def _warn_dense(layer: str, density: float, crossover: float) -> None:
    warnings.warn(
        f"a {layer} of density {density:.2g} is slower than a dense layer, which is the faster one above about "
        f"{crossover:g}; give it dense_above={crossover:g} to compute its products densely, keep this layer dense, or "
        f"give it fewer connections",
        stacklevel=_first_frame_outside(),
    )


def _first_frame_outside() -> int:
    """The `stacklevel` by which the caller's warning points to the line that called this library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("synaptome."):
        level, frame = level + 1, frame.f_back
    return level
