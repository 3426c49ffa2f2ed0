"""Products with a sparse weight, of which only the connections exist: `y[o] = Σ_k v[k] x[col[k]]` over the k of row o.

Three operations: the product (SpMM), its gradient by the input (the same product over the transposed structure), and
its gradient by the values (SDDMM: `g[k] = Σ_b grad[row[k], b] x[col[k], b]`). Nothing of the size of a dense weight is
ever made. Activations are `[features, batch]`, so that a connection reads and writes contiguous rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels import graph
from synaptome.kernels.backends import implements
from synaptome.kernels.operators import differentiated_by, operator

GATHERED_ELEMENTS = 2**18  # the reference gathers this many activations at a time


class Structure(NamedTuple):
    """Where the connections of a weight `[out, in]` are, by rows and by columns, in int32 or int64.

    Attributes:
        crow: `[out + 1]`, where each row begins in `col`.
        col: `[nnz]`, the input of each connection, ascending within a row.
        ccol: `[in + 1]`, where each column begins in `row` and `permutation`.
        row: `[nnz]`, the output of each connection in the order of columns, ascending within a column.
        permutation: `[nnz]`, the place that each connection in the order of columns has in the order of rows.
    """

    crow: Tensor
    col: Tensor
    ccol: Tensor
    row: Tensor
    permutation: Tensor


def structure_of(crow: Tensor, col: Tensor, in_features: int) -> Structure:
    """The structure of a weight in compressed sparse rows."""
    return Structure(crow, col, *graph.transposed(crow, col, in_features))


def row_indices(crow: Tensor, nnz: int) -> Tensor:
    """The row of each connection, `[nnz]`, from `crow`."""
    rows = torch.arange(len(crow) - 1, dtype=crow.dtype, device=crow.device)
    return rows.repeat_interleave(crow.diff(), output_size=nnz)


def compressed(indices: Tensor, size: int) -> Tensor:
    """Where each of `size` rows begins among sorted row indices: `[size + 1]`; of columns alike, sorted or not."""
    starts = indices.new_zeros(size + 1)
    torch.cumsum(torch.bincount(indices, minlength=size), 0, out=starts[1:])
    return starts


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
    """`x W' + bias` for a sparse W.

    The result is a transposed view of `[out_features, batch]`. Elementwise functions keep these strides, so the next
    sparse layer need not transpose; other inputs are transposed once.

    Args:
        x: `[..., in_features]`.
        values: `[nnz]`, the weights of the connections in the order of rows.
        bias: `[out_features]` or None.
        structure: where the connections are.

    Returns:
        `[..., out_features]`.

    Raises:
        ConfigurationError: shapes or dtypes do not fit.
    """
    return with_features_first("sparse_linear", x, values, structure, lambda xs: spmm(values, xs, bias, *structure))


def with_features_first(
    name: str, x: Tensor, values: Tensor, structure: Structure, product: Callable[[Tensor], Tensor]
) -> Tensor:
    """A product of `[in, batch]` to `[out, batch]`, for x `[..., in]`; see `sparse_linear` for what is refused."""
    out_features, in_features = structure.crow.shape[0] - 1, structure.ccol.shape[0] - 1
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ConfigurationError(f"{name} takes x [..., {in_features}]; given x {list(x.shape)}")
    if values.shape != structure.col.shape:
        raise ConfigurationError(
            f"there are {structure.col.numel()} connections, each with a value; given values {list(values.shape)}"
        )
    if x.dtype != values.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ConfigurationError(
            f"x is {x.dtype} and the values are {values.dtype}; convert one of them, or use autocast"
        )
    # A view of a matrix as itself would cost a small layer some of its time.
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), in_features)
    y = product(flat.T.contiguous()).T
    return y if x.dim() == 2 else y.view(*x.shape[:-1], out_features)


# `W x + bias`: `[in, batch]` to `[out, batch]`.
spmm = operator(
    "spmm",
    "(Tensor values, Tensor x, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor permutation)"
    " -> Tensor",
    lambda values, x, bias, crow, *_: x.new_empty(crow.shape[0] - 1, x.shape[1]),
)

# Its gradient by x, `W' grad`: `[out, batch]` to `[in, batch]`.
input_grad = operator(
    "spmm_input_grad",
    "(Tensor values, Tensor grad, Tensor ccol, Tensor row, Tensor permutation) -> Tensor",
    lambda values, grad, ccol, *_: grad.new_empty(ccol.shape[0] - 1, grad.shape[1]),
)

# Its gradient by the values: `[out, batch]` and `[in, batch]` to `[nnz]`, `grad x'` at the connections.
sddmm = operator(
    "sddmm",
    "(Tensor grad, Tensor x, Tensor crow, Tensor col) -> Tensor",
    lambda grad, x, crow, col: grad.new_empty(col.shape[0]),
)

# Both gradients, by the values and by x, for which a kernel reads `grad` once.
grads = operator(
    "spmm_grads",
    "(Tensor values, Tensor x, Tensor grad, Tensor ccol, Tensor row, Tensor permutation) -> (Tensor, Tensor)",
    lambda values, x, grad, *_: (torch.empty_like(values), torch.empty_like(x)),
)


class _Product(torch.autograd.Function):
    """`spmm` with its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, *structure: Tensor) -> Tensor:
        ctx.save_for_backward(values, x, *structure)
        with torch._C._AutoDispatchBelowAutograd():
            return spmm(values, x, bias, *structure)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, x, crow, col, *transposed = ctx.saved_tensors
        grad = outputs[0].contiguous()  # once for all
        by_values, by_x = ctx.needs_input_grad[:2]
        if by_values and by_x:
            by_values, by_x = grads(values, x, grad, *transposed)
        else:
            by_values = sddmm(grad, x, crow, col) if by_values else None
            by_x = input_grad(values, grad, *transposed) if by_x else None
        by_bias = grad.sum(1) if ctx.needs_input_grad[2] else None
        return by_values, by_x, by_bias, None, None, None, None, None


differentiated_by("spmm", _Product)


def chunks(nnz: int, batch: int) -> Iterator[slice]:
    """Consecutive connections, few enough that their activations may be gathered."""
    chunk = max(1, GATHERED_ELEMENTS // max(1, batch))
    for start in range(0, nnz, chunk):
        yield slice(start, start + chunk)


@implements("spmm", "reference")
def _spmm(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *_: Tensor) -> Tensor:
    shape = len(crow) - 1, x.shape[1]
    y = x.new_zeros(shape) if bias is None else bias.to(x.dtype).unsqueeze(1).repeat(1, shape[1])
    row = row_indices(crow, len(col))
    for part in chunks(len(col), x.shape[1]):
        y.index_add_(0, row[part], values[part].unsqueeze(1) * x[col[part]])
    return y


@implements("spmm_input_grad", "reference")
def _input_grad(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    return _spmm(values[permutation], grad, None, ccol, row)


@implements("sddmm", "reference")
def _sddmm(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    row = row_indices(crow, len(col))
    by_values = grad.new_empty(len(col))
    for part in chunks(len(col), x.shape[1]):
        by_values[part] = (grad[row[part]] * x[col[part]]).sum(1)
    return by_values


@implements("spmm_grads", "reference")
def _grads(
    values: Tensor, x: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor]:
    in_columns = _sddmm(x, grad, ccol, row)
    return torch.empty_like(in_columns).index_copy_(0, permutation.long(), in_columns), _input_grad(
        values, grad, ccol, row, permutation
    )


@implements("spmm", "cpu")
def _spmm_cpu(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *_: Tensor) -> Tensor:
    from synaptome.kernels import sparse_cpu

    return sparse_cpu.spmm(values, x, bias, crow, col)


@implements("spmm_input_grad", "cpu")
def _input_grad_cpu(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    from synaptome.kernels import sparse_cpu

    return sparse_cpu.input_grad(values, grad, ccol, row, permutation)


@implements("sddmm", "cpu")
def _sddmm_cpu(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    from synaptome.kernels import sparse_cpu

    return sparse_cpu.sddmm(grad, x, crow, col)


@implements("spmm_grads", "cpu")
def _grads_cpu(
    values: Tensor, x: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor]:
    from synaptome.kernels import sparse_cpu

    return sparse_cpu.grads(values, x, grad, ccol, row, permutation)
