"""The sparse product with failures: `y[b, o] = Σ_k m[b, o, col[k]] v[k] x[b, col[k]] / (1 - p)` over the k of row o.

The mask is that of `synaptome.kernels.failing_linear`: a connection fails for the examples, and at the keys, at which
the synapse in its place of a dense weight would. It is made again where it is needed (see
`synaptome.kernels.randomness`), for the connections alone. Two operations, of weights that are scaled already: the
product, and both of its gradients, for which each bit of the mask is made once. Activations are `[features, batch]`, as
in `synaptome.kernels.sparse_product`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synaptome.kernels import randomness
from synaptome.kernels.backends import implements
from synaptome.kernels.failing_linear import check_failure
from synaptome.kernels.operators import differentiated_by, operator
from synaptome.kernels.sparse_product import Structure, chunks, row_indices, with_features_first


def failing_sparse_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure, failure: float, key: Tensor
) -> Tensor:
    """`x W' / (1 - p) + bias` for a sparse W, each connection of which fails with probability p for each example.

    Wan et al. 2013, equation 4, with the surviving weights scaled up so that the expectation is `x W'`. It is what
    `failing_linear` gives for the dense weight and the same key, up to rounding.

    Args:
        x: `[..., in_features]`; every leading index is an example with failures of its own.
        values: `[nnz]`, the weights of the connections in the order of rows.
        bias: `[out_features]` or None; it never fails.
        structure: where the connections are.
        failure: probability of failure in [0, 1), rounded to 1/65536.
        key: int64 `[2]`, (stream, counter): same key, same failures.

    Returns:
        `[..., out_features]`; of `[batch, in_features]` a transposed view of `[out_features, batch]`.

    Raises:
        ConfigurationError: the failure rate is out of range, or shapes or dtypes do not fit.
    """
    check_failure(failure)
    scale = 1 / (1 - randomness.threshold(failure) / randomness.DRAWS)
    return with_features_first(
        "failing_sparse_linear",
        x,
        values,
        structure,
        lambda xs: product(values * scale, xs, bias, failure, key, *structure),
    )


# `Σ_k m v[k] x[col[k]] + bias`, `[in, batch]` to `[out, batch]`.
product = operator(
    "failing_spmm",
    "(Tensor values, Tensor x, Tensor? bias, float failure, Tensor key, Tensor crow, Tensor col, Tensor ccol, "
    "Tensor row, Tensor permutation) -> Tensor",
    lambda values, x, bias, failure, key, crow, *_: x.new_empty(crow.shape[0] - 1, x.shape[1]),
)

# Its gradients by the values and by x, `[nnz]` and `[in, batch]`, with the failures of the product.
grads = operator(
    "failing_spmm_grads",
    "(Tensor values, Tensor x, Tensor grad, float failure, Tensor key, Tensor ccol, Tensor row, Tensor permutation)"
    " -> (Tensor, Tensor)",
    lambda values, x, *_: (torch.empty_like(values), torch.empty_like(x)),
)


class _Product(torch.autograd.Function):
    """`product` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, failure: float, key: Tensor, *structure: Tensor
    ) -> Tensor:
        ctx.failure = failure
        ctx.save_for_backward(values, x, key, *structure[2:])
        with torch._C._AutoDispatchBelowAutograd():
            return product(values, x, bias, failure, key, *structure)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, x, key, *transposed = ctx.saved_tensors
        grad = outputs[0].contiguous()
        needed = ctx.needs_input_grad
        by_values, by_x = None, None
        if needed[0] or needed[1]:
            # Most of the time goes into the mask: one of them alone would take nearly as long.
            by_values, by_x = grads(values, x, grad, ctx.failure, key, *transposed)
        return (
            by_values if needed[0] else None,
            by_x if needed[1] else None,
            grad.sum(1) if needed[2] else None,
            *(None,) * 7,
        )


differentiated_by("failing_spmm", _Product)


@implements("failing_spmm", "reference")
def _product(
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    failure: float,
    key: Tensor,
    crow: Tensor,
    col: Tensor,
    *_: Tensor,
) -> Tensor:
    shape, batch = (len(crow) - 1, len(x)), x.shape[1]
    y = x.new_zeros(shape[0], batch) if bias is None else bias.to(x.dtype).unsqueeze(1).repeat(1, batch)
    row = row_indices(crow, len(col))
    for part in chunks(len(col), batch):
        survives = randomness.surviving_at(key, row[part], col[part], batch, shape, failure)
        y.index_add_(0, row[part], values[part].unsqueeze(1) * x[col[part]] * survives)
    return y


@implements("failing_spmm_grads", "reference")
def _grads(
    values: Tensor,
    x: Tensor,
    grad: Tensor,
    failure: float,
    key: Tensor,
    ccol: Tensor,
    row: Tensor,
    permutation: Tensor,
) -> tuple[Tensor, Tensor]:
    shape, batch = (len(grad), len(x)), x.shape[1]
    by_values, by_x = torch.empty_like(values), torch.zeros_like(x)
    col = row_indices(ccol, len(row))
    for part in chunks(len(row), batch):
        survives = randomness.surviving_at(key, row[part], col[part], batch, shape, failure)
        by_product = grad[row[part]] * survives
        by_values[permutation[part]] = (by_product * x[col[part]]).sum(1)
        by_x.index_add_(0, col[part], values[permutation[part]].unsqueeze(1) * by_product)
    return by_values, by_x


@implements("failing_spmm", "cpu")
def _product_cpu(
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    failure: float,
    key: Tensor,
    crow: Tensor,
    col: Tensor,
    *_: Tensor,
) -> Tensor:
    from synaptome.kernels import failing_sparse_cpu

    return failing_sparse_cpu.product(values, x, bias, failure, key, crow, col)


@implements("failing_spmm_grads", "cpu")
def _grads_cpu(
    values: Tensor,
    x: Tensor,
    grad: Tensor,
    failure: float,
    key: Tensor,
    ccol: Tensor,
    row: Tensor,
    permutation: Tensor,
) -> tuple[Tensor, Tensor]:
    from synaptome.kernels import failing_sparse_cpu

    return failing_sparse_cpu.grads(values, x, grad, failure, key, ccol, row, permutation)
