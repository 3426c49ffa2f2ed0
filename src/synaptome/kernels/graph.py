"""Operations on connection graphs, each in time and memory of the connections.

A graph is sorted by (row, column) and has no connection twice. It comes in compressed sparse rows (`crow`, `col`; see
`synaptome.kernels.sparse_product.Structure`) or as sorted places, int64, where the place of a connection of an
`[out, in]` weight is the number `row * in + column`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels.backends import implementation, implements


def transposed(crow: Tensor, col: Tensor, in_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """The graph by columns: `ccol`, `row` and `permutation` of a `Structure`, in the dtype of `col`."""
    return _serving(col).transposed(crow, col, in_features)  # type: ignore[no-any-return]


def merged(
    crow: Tensor, col: Tensor, dropped: Tensor, places: Tensor, in_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The graph without some connections and with others.

    Args:
        crow, col: the graph, `[out + 1]` and `[nnz]`.
        dropped: bool `[nnz]`, which connections go.
        places: those of the new connections, ascending, int64 `[m]`, all within the weight.
        in_features: columns of the weight.

    Returns:
        Its `crow`, int64, and `col`, in the dtype of `col`; and for each connection its index in the old graph, -1 for
        a new one: int64 `[nnz']`.

    Raises:
        ConfigurationError: a new connection is given twice or there already.
    """
    *graph, doubled = _serving(col).merged(crow, col, dropped, places, in_features)
    if doubled >= 0:
        o, i = divmod(doubled, in_features)
        raise ConfigurationError(f"there is a connection from input {i} to output {o} already; each exists once")
    return tuple(graph)


def rearranged(numbers: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    """Numbers that follow their connections into the order of a merged graph: `[nnz']`, in the dtype of `numbers`.

    Args:
        numbers: of the old connections, `[nnz]`.
        source: what `merged` returned, int64 `[nnz']`.
        fresh: numbers of the new connections in their order, `[m]`.
    """
    return _serving(numbers).rearranged(numbers, source, fresh.to(numbers))  # type: ignore[no-any-return]


def union(places: Tensor, others: Tensor) -> Tensor:
    """All members of two sorted tensors of places, sorted; `others` may repeat itself and `places`."""
    return _serving(places).union(places, others)  # type: ignore[no-any-return]


def empty_places(occupied: Tensor, ranks: Tensor) -> Tensor:
    """The places that have these ranks, counted from 0, among the places that are not occupied.

    Args:
        occupied: places, ascending, int64.
        ranks: ascending, int64, on the same device.
    """
    return _serving(occupied).empty_places(occupied, ranks)  # type: ignore[no-any-return]


def ascending(numbers: Tensor, below: int) -> Tensor:
    """Sorted numbers.

    Args:
        numbers: int64 `[n]`, at least 0; may be overwritten.
        below: what they are all below.
    """
    return _serving(numbers).ascending(numbers, below)  # type: ignore[no-any-return]


def _serving(tensor: Tensor) -> Any:
    """The module that serves such a tensor."""
    return implementation("graph", tensor)()


@implements("graph", "reference")
def _reference() -> Any:
    from synaptome.kernels import graph_reference

    return graph_reference


@implements("graph", "cpu")
def _cpu() -> Any:
    from synaptome.kernels import graph_cpu

    return graph_cpu
