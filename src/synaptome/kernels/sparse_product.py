"""Products with a sparse weight, of which only the connections exist: `y[o] = Σ_k v[k] x[col[k]]` over the k of row o.

Three operations: the product (SpMM), its gradient by the input (the same product over the transposed structure), and
its gradient by the values (SDDMM: `g[k] = Σ_b grad[row[k], b] x[col[k], b]`). Nothing of the size of a dense weight is
ever made. Activations are `[features, batch]`, so that a connection reads and writes contiguous rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels.backends import implementation, implements

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
    permutation = torch.argsort(col, stable=True)
    row = row_indices(crow, len(col))[permutation]
    return Structure(crow, col, compressed(col, in_features), row, permutation.to(col.dtype))


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
    out_features, in_features = structure.crow.shape[0] - 1, structure.ccol.shape[0] - 1
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ConfigurationError(f"sparse_linear takes x [..., {in_features}]; given x {list(x.shape)}")
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
    y: Tensor = spmm(values, flat.T.contiguous(), bias, *structure).T
    return y if x.dim() == 2 else y.view(*x.shape[:-1], out_features)


@torch.library.custom_op("synaptome::spmm", mutates_args=())
def spmm(
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    permutation: Tensor,
) -> Tensor:
    """`W x + bias`: `[in, batch]` to `[out, batch]`."""
    return implementation("spmm", x)(values, x, bias, crow, col)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::spmm_input_grad", mutates_args=())
def input_grad(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    """Gradient by x, `W' grad`: `[out, batch]` to `[in, batch]`."""
    return implementation("spmm_input_grad", grad)(values, grad, ccol, row, permutation)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::sddmm", mutates_args=())
def sddmm(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """Gradient by the values: `[out, batch]` and `[in, batch]` to `[nnz]`, `grad x'` at the connections."""
    return implementation("sddmm", grad)(grad, x, crow, col)  # type: ignore[no-any-return]


@spmm.register_fake
def _(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(crow.shape[0] - 1, x.shape[1])


@input_grad.register_fake
def _(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    return grad.new_empty(ccol.shape[0] - 1, grad.shape[1])


@sddmm.register_fake
def _(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return grad.new_empty(col.shape[0])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, x, _, *structure = inputs
    ctx.save_for_backward(values, x, *structure)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, x, crow, col, *transposed = ctx.saved_tensors
    grad = grad.contiguous()  # once for both
    by_values = sddmm(grad, x, crow, col) if ctx.needs_input_grad[0] else None
    by_x = input_grad(values, grad, *transposed) if ctx.needs_input_grad[1] else None
    by_bias = grad.sum(1) if ctx.needs_input_grad[2] else None
    return by_values, by_x, by_bias, None, None, None, None, None


spmm.register_autograd(_backward, setup_context=_save_for_backward)


# Under autocast the sums stay in float32, which the fast kernels take.
for _device in ("cpu", "cuda"):
    spmm.register_autocast(_device, torch.float32)


def _chunks(nnz: int, batch: int) -> Iterator[slice]:
    """Consecutive connections, few enough that their activations may be gathered."""
    chunk = max(1, GATHERED_ELEMENTS // max(1, batch))
    for start in range(0, nnz, chunk):
        yield slice(start, start + chunk)


@implements("spmm", "reference")
def _spmm(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor) -> Tensor:
    shape = len(crow) - 1, x.shape[1]
    y = x.new_zeros(shape) if bias is None else bias.to(x.dtype).unsqueeze(1).repeat(1, shape[1])
    row = row_indices(crow, len(col))
    for part in _chunks(len(col), x.shape[1]):
        y.index_add_(0, row[part], values[part].unsqueeze(1) * x[col[part]])
    return y


@implements("spmm_input_grad", "reference")
def _input_grad(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    return _spmm(values[permutation], grad, None, ccol, row)


@implements("sddmm", "reference")
def _sddmm(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    row = row_indices(crow, len(col))
    by_values = grad.new_empty(len(col))
    for part in _chunks(len(col), x.shape[1]):
        by_values[part] = (grad[row[part]] * x[col[part]]).sum(1)
    return by_values


@implements("spmm", "cpu")
def _spmm_cpu(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor) -> Tensor:
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
