"""Sparse weights from and to those of other libraries and layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.selection import smallest
from synaptome.synapses.sparse_weight import SparseWeight

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Parts(NamedTuple):
    """What a sparse layer `[out_features, in_features]` is made of.

    Attributes:
        row, col: outputs and inputs of the connections, sorted, integers `[nnz]`.
        values: their weights `[nnz]`.
        bias: `[out_features]` or None.
    """

    in_features: int
    out_features: int
    row: Tensor
    col: Tensor
    values: Tensor
    bias: Tensor | None


def of_dense(layer: nn.Linear | nn.Conv2d, mask: Tensor | None) -> Parts:
    """The weights of a dense layer at the connections of a mask, and its very bias; see `SparseLinear.from_dense`.

    Kernels `[out, in, height, width]` are a matrix `[out, in * height * width]`.
    """
    weight = layer.weight.detach()
    mask = weight != 0 if mask is None else torch.as_tensor(mask)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ConfigurationError(
            f"mask is bool {list(weight.shape)}, as the weight; given {mask.dtype} {list(mask.shape)}"
        )
    matrix = weight.flatten(1)
    row, col = mask.to(weight.device).flatten(1).nonzero().unbind(1)
    values = nn.Parameter(matrix[row, col], layer.weight.requires_grad)
    return Parts(matrix.shape[1], matrix.shape[0], row, col, values, layer.bias)


def of_scipy(matrix: Any, bias: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Parts:
    """The entries of a SciPy sparse array or matrix; see `SparseLinear.from_scipy`."""
    from scipy.sparse import coo_array

    entries = coo_array(matrix, copy=True)
    if len(entries.shape) != 2:
        raise ConfigurationError(f"a matrix is [out_features, in_features]; given {list(entries.shape)}")
    entries.sum_duplicates()
    out_features, in_features = entries.shape
    row, col = (torch.from_numpy(index).long() for index in (entries.row, entries.col))
    order = (row * in_features + col).argsort()
    dtype = dtype or torch.get_default_dtype()
    values = torch.as_tensor(entries.data)[order].to(device, dtype)
    own = None if bias is None else _numbers("bias", bias).detach().clone().to(device, dtype)
    if own is not None and own.shape != (out_features,):
        raise ConfigurationError(f"bias is [{out_features}], one for each row; given {list(own.shape)}")
    return Parts(in_features, out_features, row[order], col[order], values, own)


def _numbers(what: str, given: Any) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{what} is a tensor, an array or a list of numbers; given {given!r}") from error


def of_largest(weight: SparseWeight, bias: Tensor | None, nnz: int) -> Parts:
    """The `nnz` connections of largest magnitude of a sparse weight; see `SparseLinear.pruned`."""
    keep = largest(weight.values, nnz)
    values = nn.Parameter(weight.values.detach()[keep], weight.values.requires_grad)
    return Parts(weight.in_features, weight.out_features, weight.row_of[keep], weight.col[keep], values, bias)


def largest(numbers: Tensor, count: int) -> Tensor:
    """Which are the `count` largest magnitudes, of equal ones the first: bool, of the shape of the numbers."""
    return smallest(-numbers.detach().abs().reshape(-1), count).view(numbers.shape)


def to_dense(weight: SparseWeight) -> Tensor:
    """The weights as a matrix `[out_features, in_features]`, 0 where there is no connection."""
    dense = weight.values.detach().new_zeros(weight.out_features, weight.in_features)
    dense[weight.row_of, weight.col] = weight.values.detach()
    return dense


def to_scipy(weight: SparseWeight) -> csr_array:
    """A copy as `scipy.sparse.csr_array` `[out_features, in_features]`; values of 0 stay in it."""
    from scipy.sparse import csr_array

    parts = (part.detach().cpu().numpy().copy() for part in (weight.values, weight.col, weight.crow))
    return csr_array(tuple(parts), shape=(weight.out_features, weight.in_features))


def to_networkx(weight: SparseWeight) -> Any:
    """The connections as a `networkx.DiGraph`; see `SparseLinear.to_networkx`."""
    try:
        import networkx  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError("to_networkx needs networkx: pip install networkx") from error
    graph = networkx.DiGraph()
    graph.add_nodes_from((("input", i) for i in range(weight.in_features)), bipartite=0)
    graph.add_nodes_from((("output", o) for o in range(weight.out_features)), bipartite=1)
    edges = zip(weight.row_of.tolist(), weight.col.tolist(), weight.values.tolist(), strict=True)
    graph.add_weighted_edges_from((("input", i), ("output", o), weight) for o, i, weight in edges)
    return graph
