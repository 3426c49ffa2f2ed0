"""The product with weights of which only the presence or the sign is learned: `y = x (W ∘ f(s))' + b`.

A function of its own, because its gradient by the weights belongs to nobody else: the one by the scores is written over
it, which spares memory of the size of the weight and the way of it through the caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from synaptome.kernels.learned_weight import gate, gate_grad, is_plain, learned_weight


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
    if x.dim() == 2 and is_plain(weight) and _fits(x, weight, scores):
        y: Tensor = _Product.apply(x, scores, bias, weight, rule, amount, key)  # type: ignore[no-untyped-call]
        return y
    return F.linear(x, learned_weight(weight, scores, rule, amount, key), bias)


def _fits(x: Tensor, weight: Tensor, scores: Tensor) -> bool:
    """Whether W stays as it is, and nothing is to be converted or refused."""
    if weight.requires_grad or weight.shape != scores.shape or torch._C._is_any_autocast_enabled():
        return False
    return x.dtype == weight.dtype == scores.dtype


class _Product(torch.autograd.Function):
    """The product of a plain weight, and its gradients by input, scores and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, bias: Tensor | None, weight: Tensor, *options: Any) -> Tensor:
        gated, kept = gate(weight, scores, *options)
        ctx.options = options
        ctx.save_for_backward(x, scores, weight, gated, kept)
        return F.linear(x, gated, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scores, weight, gated, kept = ctx.saved_tensors
        (grad,) = grads
        by_x, by_scores, by_bias = ctx.needs_input_grad[:3]
        if by_x and torch.is_grad_enabled():  # to be differentiated again, also by the scores
            gated = learned_weight(weight, scores, *ctx.options)
        return (
            grad.mm(gated) if by_x else None,
            gate_grad(grad.t().mm(x), weight, scores, kept, ctx.options[0], own=True) if by_scores else None,
            grad.sum(0) if by_bias else None,
            *(None,) * 4,
        )
