"""Sparse connections among the neurons of one population, none of them from a neuron to itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.sparse_product import row_indices, sparse_linear
from synaptome.synapses import sparse_conversion
from synaptome.synapses.sparse import Edges
from synaptome.synapses.sparse_weight import SparseWeight
from synaptome.topology.initial import initial_graph
from synaptome.topology.ranges import is_whole


class SparseRecurrent(SparseWeight):
    """`y[b, j] = Σ_k v[k] x[b, col[k]]` over the connections k of neuron j, whose inputs are other neurons.

    As `synaptome.SparseLinear` it holds values and a graph, and nothing of the size of a matrix; its graph never has a
    connection from a neuron to itself. It has no bias.

    Values start from `N(0, radius² / fan_in)`, with the mean number of connections of a neuron in place of its fan-in.
    By the circular law, which holds for sparse matrices too (Wood 2012), the eigenvalues of such a weight fill a disc
    of this radius. Below 1, activity that goes around dies out by itself.

    Give exactly one of density, nnz and edges:

    Args:
        neurons: at least 2.
        density: the share of all `neurons (neurons - 1)` places that are connected, in (0, 1].
        nnz: the number of connections, from 0 to that many.
        edges: targets and sources of the connections, two lists of integers `[nnz]` (or one `[2, nnz]`), in any order.
        radius: above 0.
        device, dtype: as for `torch.nn.Linear`.

    Raises:
        ConfigurationError: none or several of density ... edges are given, one is out of range, or an edge is out of
            range, given twice or from a neuron to itself.
    """

    bias: None

    def __init__(
        self,
        neurons: int,
        *,
        density: float | None = None,
        nnz: int | None = None,
        edges: Edges | None = None,
        radius: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not (is_whole(neurons) and neurons >= 2):
            raise ConfigurationError(
                f"neurons that are connected with others are at least 2, a whole number; given {neurons!r}"
            )
        if not 0 < radius < torch.inf:  # also refuses NaN
            raise ConfigurationError(f"radius is that of a disc of eigenvalues, a number above 0; given {radius}")
        # Each neuron has a place for every other one: without its own, sources are counted up from 0 in each row.
        others = neurons if edges is not None else neurons - 1
        sizes = {"density": density, "nnz": nnz, "edges": edges}
        row, col = initial_graph("SparseRecurrent", (neurons, others), "erdos-renyi", sizes)
        if edges is None:
            col = col + (col >= row)
        super().__init__()
        self._take(neurons, row, col, torch.empty(len(col), device=device, dtype=dtype))
        self.draw_normal(radius * (neurons / max(1, len(col))) ** 0.5)

    def _take(self, neurons: int, row: Tensor, col: Tensor, values: Tensor) -> None:
        self._hold(neurons, neurons, row, col, values)
        self.register_parameter("bias", None)

    def _connect(self, crow: Tensor, col: Tensor) -> None:
        if crow.device.type != "meta":
            _refuse_loops(row_indices(crow, len(col)), col)
        super()._connect(crow, col)

    def _new_places(self, row: Tensor, col: Tensor) -> Tensor:
        _refuse_loops(row, col)
        return super()._new_places(row, col)

    @property
    def density(self) -> float:
        """The share of all places that are connected; a neuron has none for itself."""
        return self.nnz / (self.in_features * (self.in_features - 1))

    @property
    def barred(self) -> Tensor:
        """The places of loops, int64 `[neurons]`, of which an evolution takes none."""
        return torch.arange(self.in_features, device=self.col.device) * (self.in_features + 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., neurons]` to `[..., neurons]`."""
        return sparse_linear(x, self.values, None, self.structure)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> SparseRecurrent:
        """Connections with the weights of `layer` where a mask is, or by default where these are not 0.

        The values are a new Parameter: make the optimizer afterwards.

        Args:
            layer: from neurons to the same neurons, without a bias.
            mask: bool `[neurons, neurons]`, from column to row, nowhere on the diagonal.

        Raises:
            ConfigurationError: the layer is not square or has a bias, or the mask does not fit.
        """
        if layer.in_features != layer.out_features or getattr(layer, "bias", None) is not None:
            raise ConfigurationError(
                f"neurons are connected with one another by a square weight without a bias; given {layer}"
            )
        parts = sparse_conversion.of_dense(layer, mask)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(parts.in_features, parts.row, parts.col, parts.values)
        return made.train(layer.training)

    def to_dense(self) -> nn.Linear:
        """A `torch.nn.Linear` without a bias and with these weights, 0 where there is no connection."""
        dense = nn.Linear(self.in_features, self.in_features, bias=False, device="meta")
        dense.weight = nn.Parameter(sparse_conversion.to_dense(self), self.values.requires_grad)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"neurons={self.in_features}, nnz={self.nnz}, density={self.density:.3g}"


def _refuse_loops(row: Tensor, col: Tensor) -> None:
    loops = (row == col).nonzero().flatten()
    if len(loops):
        raise ConfigurationError(
            f"no connection goes from a neuron to itself; given {int(row[loops[0]])} to {int(row[loops[0]])}"
        )
