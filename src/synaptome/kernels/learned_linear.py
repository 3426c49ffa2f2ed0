"""The product with weights of which only the presence or the sign is learned: `y = x (W ∘ f(s))' + b`.

One operation for the mask, the product and, where a penalty asks for it, the sum of the mask; and one for the
straight-through gradient of them all. Neither the effective weight nor the gradient by it need stand in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.nn import functional as F

from synaptome.kernels.backends import implementation, implements
from synaptome.kernels.learned_weight import gate, gate_grad, is_plain, learned_weight, mask_sum


def learned_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    rule: str,
    amount: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """`x (W ∘ f(s))' + b`, with the gradients of `synaptome.kernels.learned_weight.learned_weight`.

    Args:
        x: `[..., in_features]`.
        weight, scores: `[out_features, in_features]`.
        bias: `[out_features]` or None.
        rule, amount, key: as for `learned_weight`.

    Returns:
        `[..., out_features]`.

    Raises:
        ConfigurationError: shapes or dtypes of weight and scores do not fit.
    """
    if _fits(x, weight, scores):
        return _product(x, scores, bias, weight, rule, amount, key, None)  # type: ignore[no-any-return]
    return F.linear(x, learned_weight(weight, scores, rule, amount, key), bias)


def learned_linear_and_sum(
    x: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, rule: str, factor: float
) -> tuple[Tensor, Tensor]:
    """The same, and `factor * sum f(s)`, 0-d: where both are differentiated, the scores are gone through once.

    Args:
        x, weight, scores, bias: as for `learned_linear`.
        rule, factor: as for `synaptome.kernels.learned_weight.mask_sum`.

    Raises:
        ConfigurationError: shapes or dtypes of weight and scores do not fit.
    """
    if _fits(x, weight, scores):
        return _product(x, scores, bias, weight, rule, 0.0, None, factor)  # type: ignore[no-any-return]
    return F.linear(x, learned_weight(weight, scores, rule), bias), mask_sum([scores], [rule], [factor])


def _fits(x: Tensor, weight: Tensor, scores: Tensor) -> bool:
    """Whether W stays as it is, and nothing is to be traced, converted or refused.

    Asked at every pass: what makes no Python object takes the least time.
    """
    if type(x) is not Tensor or x.dim() != 2 or weight.requires_grad or not is_plain(weight):
        return False
    if x.get_device() != weight.get_device() or x.is_neg() or x.is_sparse or torch._C._is_any_autocast_enabled():
        return False
    if weight.shape != scores.shape or x.size(1) != weight.size(1):
        return False
    return x.dtype == weight.dtype == scores.dtype


class _Product(torch.autograd.Function):
    """The product of a plain weight, and its gradients by input, scores and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, bias: Tensor | None, weight: Tensor, *options: Any) -> Any:
        *ctx.options, ctx.factor = options
        by_x = ctx.needs_input_grad[0]
        count = ctx.factor is not None
        multiplied = implementation("learned_linear", scores)
        y, gated, kept, total = multiplied(x, weight, scores, bias, *ctx.options, by_x, count)
        ctx.save_for_backward(x, scores, weight, None if kept is scores else kept, gated if by_x else None)
        if not count:
            return y
        ctx.set_materialize_grads(False)
        ctx.shape = scores.shape
        return y, torch.as_tensor(ctx.factor * total, dtype=y.dtype, device=y.device)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, by_sum = grads if len(grads) == 2 else (*grads, None)
        if grad is None:  # of the sum alone, which needs nothing that an earlier backward pass has freed
            return None, None if by_sum is None else (by_sum * ctx.factor).expand(ctx.shape), *(None,) * 6
        x, scores, weight, kept, gated = ctx.saved_tensors
        by_x, by_scores, by_bias = ctx.needs_input_grad[:3]
        if by_x and torch.is_grad_enabled():  # to be differentiated again, also by the scores
            gated = learned_weight(weight, scores, *ctx.options)
        kept = scores if kept is None else kept
        return (
            grad.mm(gated) if by_x else None,
            _by_scores(grad, x, weight, scores, kept, ctx.options[0], by_sum, ctx.factor) if by_scores else None,
            grad.sum(0) if by_bias else None,
            *(None,) * 5,
        )


def _by_scores(grad: Tensor, *operands: Any) -> Tensor:
    """The gradient by the scores; see `by_operations`."""
    by_sum = operands[-2]
    batched = is_legacy_batchedtensor(grad) or (by_sum is not None and is_legacy_batchedtensor(by_sum))
    if batched or torch.is_grad_enabled():
        return by_operations(grad, *operands)
    return implementation("learned_linear_grad", grad)(grad, *operands)  # type: ignore[no-any-return]


@implements("learned_linear_grad", "reference")
def by_operations(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    kept: Tensor,
    rule: str,
    by_sum: Tensor | None,
    factor: float,
) -> Tensor:
    """`(grad' x) ∘ W ∘ g'(s)`, plus `factor by_sum`, by operations one after the other.

    Args:
        grad: by the product, `[batch, out_features]`.
        x, weight, scores, rule: of `learned_linear`.
        kept: of `gate`.
        by_sum: the gradient by `factor * sum f(s)`, 0-d, or None.
        factor: of the sum.
    """
    by_scores = gate_grad(grad.t().mm(x), weight, scores, kept, rule, own=True)
    return by_scores if by_sum is None else by_scores + by_sum * factor


# Past `Function.apply`, which looks for what `is_plain` has looked for, and takes as long as a small product.
_product: Any = super(torch.autograd.Function, _Product).apply


@implements("learned_linear", "reference")
def multiplied(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    rule: str,
    amount: float,
    key: Tensor | None,
    keep: bool,
    count: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Any]:
    """The product; `W ∘ f(s)`, and `kept` of `gate`; the sum of f(s).

    Args:
        x, weight, scores, bias, rule, amount, key: of `learned_linear`.
        keep: whether `W ∘ f(s)` is needed.
        count: whether the sum is, of `positive` or `sign`.
    """
    gated, kept = gate(weight, scores, rule, amount, key)
    total = implementation("mask_sum", scores)(scores, rule) if count else 0
    return F.linear(x, gated, bias), gated, kept, total


@implements("learned_linear", "cpu")
def _multiplied_cpu(*operands: Any) -> Any:  # until its module is imported, which takes this place
    from synaptome.kernels import learned_linear_cpu

    return learned_linear_cpu.product(*operands)


@implements("learned_linear_grad", "cpu")
def _by_scores_cpu(*operands: Any) -> Tensor:
    from synaptome.kernels import learned_linear_cpu

    return learned_linear_cpu.gradient(*operands)
