"""Layers of which only the connections exist: values on a graph, no dense matrix anywhere."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.sparse_product import Structure, compressed, row_indices, sparse_linear, structure_of
from synaptome.synapses.wiring import Axis, Kind
from synaptome.topology import graphs

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TOPOLOGIES = ("erdos-renyi", "small-world")
DISTRIBUTIONS = ("uniform", "erk")
REWIRING = 0.1  # of small worlds, unless told otherwise

# Above this density a training step of a dense layer is faster, on one core and for layers that are not small.
CROSSOVER = 0.4
SMALL = 2**18

Edges = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sparse(Kind):
    """The choice of sparse storage, for `rewire`: how many connections, and how they are shared among layers.

    Args:
        density: connections of all converted layers together, as a share of their places, in (0, 1].
        distribution: `uniform`, the same density for each layer, or `erk`, densities proportional to
            `(n_in + n_out) / (n_in n_out)`, full layers clipped (see `synaptome.topology.densities`).

    Raises:
        ConfigurationError: one of them is none of the above.
    """

    density: float
    distribution: str = "uniform"
    axis: ClassVar[Axis] = "storage"

    def __post_init__(self) -> None:
        graphs.check_density(self.density)
        if self.distribution not in DISTRIBUTIONS:
            raise unknown("distribution", self.distribution, DISTRIBUTIONS)


class SparseLinear(nn.Module):
    """`torch.nn.Linear` of which only some connections exist: `y[b, o] = Σ_k v[k] x[b, col[k]] + bias[o]`.

    Time and memory of forward, backward and optimizer are proportional to the connections. The weights are one
    Parameter `values` `[nnz]`, in the order of (output, input), which any optimizer takes. The buffers `crow`
    `[out_features + 1]` and `col` `[nnz]` hold the graph in compressed sparse rows, and travel with `state_dict`:
    loading one gives the layer its graph, whatever the number of connections.

    Values and bias are drawn as by `torch.nn.Linear`, with the mean number of connections of an output in place of
    `in_features`: uniformly from `(-b, b)` with `b = sqrt(out_features / nnz)`.

    The output of `[batch, out_features]` is a transposed view of `[out_features, batch]`. Elementwise functions keep
    that, so sparse layers in a row never transpose.

    Give exactly one of:

    Args:
        density: the share of all places that are connected, in (0, 1].
        epsilon: `nnz = epsilon (in_features + out_features)` (Mocanu et al. 2018, equation 2), above 0.
        nnz: the number of connections, from 0 to `in_features * out_features`.
        fan_in: the number of inputs of every output, from 0 to `in_features`.
        edges: outputs and inputs of the connections, two integer tensors `[nnz]` (or one `[2, nnz]`), in any order.

    And:

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`.
        topology: for density, epsilon and nnz: `erdos-renyi`, any places equally likely, or `small-world(p)`, local
            connections of which the share p is rewired (see `synaptome.topology.graphs`); `small-world` has p = 0.1.

    Raises:
        ConfigurationError: none or several of density ... edges are given, one is out of range, or an edge is out of
            range or given twice.
    """

    crow: Tensor
    col: Tensor
    ccol: Tensor
    row: Tensor
    permutation: Tensor
    values: nn.Parameter
    bias: nn.Parameter | None

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = {"density": density, "epsilon": epsilon, "nnz": nnz, "fan_in": fan_in, "edges": edges}
        given = {name: value for name, value in size.items() if value is not None}
        if len(given) != 1:
            raise ConfigurationError(
                f"a SparseLinear takes exactly one of {', '.join(size)}; given {' and '.join(given) or 'none'}"
            )
        row, col = _graph(in_features, out_features, topology, *given.popitem())
        super().__init__()
        values = torch.empty(len(col), device=device, dtype=dtype)
        self._build(in_features, out_features, row, col, values, values.new_empty(out_features) if bias else None)
        self.reset_parameters()

    def _build(
        self, in_features: int, out_features: int, row: Tensor, col: Tensor, values: Tensor, bias: Tensor | None
    ) -> None:
        """Everything but the numbers; row and col are sorted, and a Parameter stays the same object."""
        self.in_features, self.out_features = in_features, out_features
        self.values = values if isinstance(values, nn.Parameter) else nn.Parameter(values)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)
        for name in Structure._fields:
            self.register_buffer(name, None, persistent=name in ("crow", "col"))
        self._connect(compressed(row, out_features), col)
        if self.density > CROSSOVER and in_features * out_features > SMALL:
            _warn_dense(self.density)

    def _connect(self, crow: Tensor, col: Tensor) -> None:
        """Take a graph in compressed sparse rows, and derive what the transposed product needs."""
        largest = max(len(col), self.in_features, self.out_features)
        index = torch.int32 if largest < 2**31 else torch.int64
        device = self.values.device
        structure = structure_of(crow.to(device, index), col.to(device, index), self.in_features)
        for name, tensor in structure._asdict().items():
            setattr(self, name, tensor)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw values and bias anew, on the device, by torch's generator."""
        bound = self._bound()
        self.values.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def initial_values(self, row: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values `[m]` for new connections of the outputs `row` `[m]`, drawn as those of a new layer.

        Args:
            row: all outputs draw from the same distribution.
            generator: of the CPU; torch's own if None.
        """
        bound = self._bound()
        drawn = torch.rand(len(row), dtype=self.values.dtype, generator=generator)
        return (drawn * (2 * bound) - bound).to(self.values.device)

    def _bound(self) -> float:
        return math.sqrt(self.out_features / self.nnz) if self.nnz else 1.0

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

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        structure = Structure(self.crow, self.col, self.ccol, self.row, self.permutation)
        return sparse_linear(x, self.values, self.bias, structure)

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
        places, order = self._new_places(row, col).sort()
        kept = (~dropped).nonzero().view(-1)
        old_row = self.row_of
        occupied = (old_row.long() * self.in_features + self.col).index_select(0, kept)
        before = torch.searchsorted(occupied, places)
        doubled = torch.zeros_like(places, dtype=torch.bool)
        doubled[1:] = places[1:] == places[:-1]
        if len(occupied):
            doubled |= occupied[before.clamp_max(len(occupied) - 1)] == places
        if doubled.any():
            o, i = divmod(int(places[doubled][0]), self.in_features)
            raise ConfigurationError(f"there is a connection from input {i} to output {o} already; each exists once")
        where_new = before + torch.arange(len(places), device=places.device)
        is_old = torch.ones(len(kept) + len(places), dtype=torch.bool, device=places.device)
        is_old[where_new] = False
        pick = torch.empty(len(is_old), dtype=torch.int64, device=places.device)  # among the kept and then the new ones
        pick[is_old.nonzero().view(-1)] = torch.arange(len(kept), device=places.device)
        pick[where_new] = order + len(kept)

        def merged(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat((old.index_select(0, kept), new.to(old))).index_select(0, pick)

        source = torch.cat((kept, torch.full_like(order, -1))).index_select(0, pick)
        new_row, new_col = merged(old_row, row), merged(self.col, col)
        gradient = None if self.values.grad is None else merged(self.values.grad, torch.zeros_like(fresh))
        self._give_values(merged(self.values, fresh))
        self.values.grad = gradient
        self._connect(compressed(new_row, self.out_features), new_col)
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Check the graph that comes with a state, and take it with its numbers."""
        parts: tuple[Any, ...] = tuple(state_dict.get(prefix + name) for name in ("crow", "col", "values"))
        crow, col, values = parts
        if crow is not None or col is not None:
            wrong = _what_is_wrong(crow, col, values, self.out_features, self.in_features)
            if wrong:
                name = prefix.rstrip(".") or "this layer"
                raise ConfigurationError(f"the connections of {name} are corrupt: {wrong}")
            if len(col) != self.nnz:
                self._give_values(self.values.new_empty(len(col)))
                self.col = self.col.new_empty(len(col))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._connect(self.crow, self.col)

    @classmethod
    def _of(
        cls, in_features: int, out_features: int, row: Tensor, col: Tensor, values: Tensor, bias: Tensor | None
    ) -> SparseLinear:
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(in_features, out_features, row, col, values, bias)
        return layer

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> SparseLinear:
        """A sparse layer with the weights of `layer` at the connections of `mask`, and its very bias.

        The values are a new Parameter: make the optimizer afterwards.

        Args:
            layer: any Linear.
            mask: bool `[out_features, in_features]`; by default where the weight is not 0.

        Raises:
            ConfigurationError: the mask does not fit.
        """
        weight = layer.weight.detach()
        mask = weight != 0 if mask is None else mask
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ConfigurationError(
                f"mask is bool {list(weight.shape)}, as the weight; given {mask.dtype} {list(mask.shape)}"
            )
        row, col = mask.to(weight.device).nonzero().unbind(1)
        values = nn.Parameter(weight[row, col], layer.weight.requires_grad)
        return cls._of(layer.in_features, layer.out_features, row, col, values, layer.bias).train(layer.training)

    def to_dense(self) -> nn.Linear:
        """A `torch.nn.Linear` with these weights, 0 where there is no connection, and the very bias of this layer."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = self.values.detach().new_zeros(self.out_features, self.in_features)
        weight[self.row_of, self.col] = self.values.detach()
        dense.weight = nn.Parameter(weight, self.values.requires_grad)
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
        keep = largest(self.values.detach(), nnz)
        row, col = self.row_of[keep], self.col[keep]
        values = nn.Parameter(self.values.detach()[keep], self.values.requires_grad)
        return self._of(self.in_features, self.out_features, row, col, values, self.bias).train(self.training)

    def check_prunable(self, nnz: int) -> None:
        """Refuse a number of connections that is larger than there are: a ConfigurationError."""
        if not 0 <= nnz <= self.nnz:
            raise ConfigurationError(
                f"a sparse layer of {self.nnz} connections cannot keep {nnz} of them; for more, make it dense first"
            )

    def to_scipy(self) -> csr_array:
        """A copy of the weights as `scipy.sparse.csr_array` `[out_features, in_features]`; values of 0 stay in it."""
        from scipy.sparse import csr_array

        parts = (part.detach().cpu().numpy().copy() for part in (self.values, self.col, self.crow))
        return csr_array(tuple(parts), shape=(self.out_features, self.in_features))

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        bias: Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SparseLinear:
        """A layer with the entries of a SciPy sparse array or matrix `[out_features, in_features]` as connections.

        Entries of 0 that it stores become connections; those that it stores more than once are added up.

        Args:
            matrix: of any format.
            bias: `[out_features]` or None, for no bias.
            device: default torch's.
            dtype: of values and bias; default torch's.
        """
        from scipy.sparse import coo_array

        entries = coo_array(matrix, copy=True)
        entries.sum_duplicates()
        out_features, in_features = entries.shape
        row, col = (torch.from_numpy(index).long() for index in (entries.row, entries.col))
        order = (row * in_features + col).argsort()
        dtype = dtype or torch.get_default_dtype()
        values = torch.as_tensor(entries.data)[order].to(device, dtype)
        if bias is not None and bias.shape != (out_features,):
            raise ConfigurationError(f"bias is [{out_features}], one for each row; given {list(bias.shape)}")
        own = None if bias is None else bias.detach().clone().to(device, dtype)
        return cls._of(in_features, out_features, row[order], col[order], values, own)

    def to_networkx(self) -> Any:
        """The connections as a `networkx.DiGraph`, from nodes `("input", i)` to `("output", o)`, with `weight`.

        Every input and output is a node, connected or not; `bipartite` is 0 for inputs and 1 for outputs.

        Raises:
            ConfigurationError: networkx is not installed.
        """
        try:
            import networkx  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigurationError("to_networkx needs networkx: pip install networkx") from error
        graph = networkx.DiGraph()
        graph.add_nodes_from((("input", i) for i in range(self.in_features)), bipartite=0)
        graph.add_nodes_from((("output", o) for o in range(self.out_features)), bipartite=1)
        edges = zip(self.row_of.tolist(), self.col.tolist(), self.values.tolist(), strict=True)
        graph.add_weighted_edges_from((("input", i), ("output", o), weight) for o, i, weight in edges)
        return graph

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"nnz={self.nnz}, density={self.density:.3g}"
        )


def largest(numbers: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest magnitudes, ascending; of equal ones the first are taken."""
    return numbers.abs().argsort(descending=True, stable=True)[:count].sort().values


def sparsified(layer: nn.Linear, nnz: int) -> SparseLinear:
    """A sparse layer with the `nnz` weights of largest magnitude of a dense one, and its very bias."""
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask.view(-1)[largest(layer.weight.detach().reshape(-1), nnz)] = True
    return SparseLinear.from_dense(layer, mask)


def _graph(in_features: int, out_features: int, topology: str, size: str, value: Any) -> tuple[Tensor, Tensor]:
    """Outputs and inputs of the connections of a new layer, sorted, int64 on the CPU."""
    match = re.fullmatch(r"(erdos-renyi|small-world)(?:\((\d+(?:\.\d+)?)\))?", topology)
    if match is None or (match[2] is not None and match[1] != "small-world"):
        raise unknown("topology", topology, (*TOPOLOGIES, "small-world(p)"))
    if size in ("fan_in", "edges") and match[1] != "erdos-renyi":
        raise ConfigurationError(f"topology {topology} goes with density, epsilon or nnz; given {size}")
    if size == "edges":
        row, col = value
        return graphs.from_edges(out_features, in_features, row, col)
    if size == "fan_in":
        return graphs.fixed_fan_in(out_features, in_features, value)
    if size != "nnz":
        count = graphs.nnz_of_density if size == "density" else graphs.nnz_of_epsilon
        value = count(out_features, in_features, value)
    if match[1] == "small-world":
        return graphs.small_world(out_features, in_features, value, float(match[2] or REWIRING))
    return graphs.erdos_renyi(out_features, in_features, value)


def _what_is_wrong(crow: Any, col: Any, values: Any, out_features: int, in_features: int) -> str | None:
    """What keeps a graph in compressed sparse rows from being one, in words; None if nothing does."""
    for name, part in (("crow", crow), ("col", col), ("values", values)):
        if not isinstance(part, Tensor):
            return f"there is no tensor {name}"
    whole = (torch.int32, torch.int64)
    if crow.dtype not in whole or col.dtype not in whole:
        return f"indices are int32 or int64; given {crow.dtype} and {col.dtype}"
    if crow.shape != (out_features + 1,):
        return f"crow is [{out_features + 1}], one more than the outputs; given {list(crow.shape)}"
    if col.dim() != 1 or values.shape != col.shape:
        return f"col and values are [nnz]; given {list(col.shape)} and {list(values.shape)}"
    if crow[0] != 0 or crow[-1] != len(col) or (crow.diff() < 0).any():
        return f"crow does not ascend from 0 to {len(col)}, the number of connections"
    if ((col < 0) | (col >= in_features)).any():
        return f"col leaves the range from 0 to {in_features - 1}"
    ascends = col.diff() > 0
    starts = crow[1:-1].long()
    ascends[starts[(starts > 0) & (starts < len(col))] - 1] = True  # from one row to the next
    if not ascends.all():
        return "col does not ascend within each row (a connection is out of order, or there twice)"
    return None


@cache
def _warn_dense(density: float) -> None:
    warnings.warn(
        f"a SparseLinear of density {density:.2g} is slower than torch.nn.Linear, which is the faster one above about "
        f"{CROSSOVER:g}; keep this layer dense, or give it fewer connections",
        stacklevel=4,
    )
