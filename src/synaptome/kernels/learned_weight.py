"""Weights of which only the presence or the sign is learned: `W ∘ f(s)` of weights W and scores s, in one pass.

f is a step function, whose derivative is 0 wherever it exists. Its straight-through gradient (Bengio, Léonard &
Courville 2013) takes for that derivative the one of a smooth g, so that `dL/ds = dL/d(W ∘ f(s)) ∘ W ∘ g'(s)`, whether a
synapse is there or not.

| rule | f(s) of a synapse | amount | g(s) |
|---|---|---|---|
| `positive` | 1 where s > 0, else 0 | | s |
| `rescaled` | the same, times size / (1 + number of those); the gradient leaves this factor out | | s |
| `sign` | -1 where s < 0, else 1 | | s |
| `ternary` | 1 where s > amount, -1 where s < -amount, else 0 | at least 0 | s |
| `top` | 1 for the round(amount * size) largest abs(s), of equal ones the first, else 0 | in (0, 1] | abs(s) |
| `bernoulli` | 1 with probability σ(s), else 0: where a draw in [0, 1) is below that | | σ(s) |

The n-th draw for `bernoulli`, in units of 2^-24, is the leading 24 bits of half a number of the key's sequence (see
`synaptome.kernels.randomness`): of the low half of number n / 2 if n is even, else of the high half of (n - 1) / 2.

Forward writes W ∘ f(s) and backward its gradient, each in one pass over its operands. Where torch traces a program, an
operator stands in for the first, and torch's own operations for the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import is_legacy_batchedtensor

from synaptome.errors import ConfigurationError
from synaptome.kernels import randomness
from synaptome.kernels.backends import implementation, implements
from synaptome.kernels.operators import operator
from synaptome.kernels.selection import smallest

DRAW_BITS = 24  # of a number that is compared with a probability: float32 holds all of them


def learned_weight(weight: Tensor, scores: Tensor, rule: str, amount: float = 0.0, key: Tensor | None = None) -> Tensor:
    """`W ∘ f(s)`, with the straight-through gradient by the scores and the true one, `grad ∘ f(s)`, by the weights.

    Args:
        weight: of any shape.
        scores: of the same shape and dtype.
        rule: a name in the table above.
        amount: see there.
        key: int64 `[2]`, (stream, counter), for `bernoulli`: the same key gives the same draws, on any device.

    Raises:
        ConfigurationError: shapes or dtypes do not fit.
    """
    if weight.shape != scores.shape or weight.dtype != scores.dtype:
        raise ConfigurationError(
            f"each weight has a score: weights and scores have one shape and one dtype; given {weight.dtype} "
            f"{list(weight.shape)} and {scores.dtype} {list(scores.shape)}"
        )
    if weight.requires_grad:
        return weight * learned_mask(scores, rule, amount, key)
    return _gated(weight, scores, rule, amount, key)


def learned_mask(scores: Tensor, rule: str, amount: float = 0.0, key: Tensor | None = None) -> Tensor:
    """f(s), of the shape and dtype of the scores, with the straight-through gradient g'(s); see `learned_weight`."""
    return _gated(torch.ones_like(scores, requires_grad=False), scores, rule, amount, key)


def mask_sum(scores: Sequence[Tensor], rules: Sequence[str], factors: Sequence[float]) -> Tensor:
    """`Σ factor * sum f(s)` over tensors of scores, 0-d; its straight-through gradient by each is its factor.

    Args:
        scores: at least one tensor, of any shapes.
        rules: of each, `positive` or `sign`.
        factors: of each.
    """
    if torch.compiler.is_compiling():
        each = zip(scores, rules, factors, strict=True)
        return sum((f * (_mask_sum(s, rule) + (s - s.detach()).sum()) for s, rule, f in each), scores[0].new_zeros(()))
    total: Tensor = _MaskSum.apply(rules, factors, *scores)  # type: ignore[no-untyped-call]
    return total


def _gated(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> Tensor:
    if is_plain(weight):
        gated: Tensor = _Gate.apply(weight, scores, rule, amount, key)  # type: ignore[no-untyped-call]
        return gated
    if torch.compiler.is_compiling() or not _are_functorch_transforms_active():
        return OPERATORS["learned_weight"](weight, scores, rule, amount, key)  # type: ignore[no-any-return]
    # Transforms differentiate torch's own operations only.
    g = SMOOTH[rule](scores) if rule in SMOOTH else scores
    return weight * (RULES[rule](g.detach(), amount, key).to(weight.dtype) + (g - g.detach()))


def is_plain(weight: Tensor) -> bool:
    """Whether nothing traces or transforms what is done with a weight, so that torch's dispatcher can be passed by.

    Its way back into Python takes longer than the operation on a small layer.
    """
    return type(weight) is Tensor and not torch.compiler.is_compiling() and not _are_functorch_transforms_active()


def gate(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W ∘ f(s)` of a plain weight, and what its gradient is made of: σ(s) for `bernoulli`, else the scores."""
    return implementation("learned_gate", scores)(weight, scores, rule, amount, key)  # type: ignore[no-any-return]


def gate_grad(grad: Tensor, weight: Tensor, scores: Tensor, kept: Tensor, rule: str, own: bool) -> Tensor:
    """`grad ∘ W ∘ g'(s)`, by torch's own operations where it is to be differentiated again, or of a batch of gradients.

    Args:
        grad, weight, scores: of one shape.
        kept: of `gate`.
        rule: of `gate`.
        own: whether the result may overwrite grad.
    """
    if torch.is_grad_enabled() or is_legacy_batchedtensor(grad):
        return _straight(grad, weight, scores, rule)
    if rule not in SMOOTH:
        return grad.mul_(weight) if own else grad * weight
    by_scores = grad if own and grad.is_contiguous() else grad.clone(memory_format=torch.contiguous_format)
    implementation("learned_weight_grad", weight)(by_scores, weight, kept, rule)
    return by_scores


class _Gate(torch.autograd.Function):
    """`W ∘ f(s)` of a plain weight, with its gradient by the scores."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> Tensor:
        gated, kept = gate(weight, scores, rule, amount, key)
        ctx.rule = rule
        ctx.save_for_backward(weight, scores, kept)
        return gated

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, kept = ctx.saved_tensors
        return None, gate_grad(grads[0], weight, scores, kept, ctx.rule, own=False), None, None, None


class _StraightThrough(torch.autograd.Function):
    """The operator below, with its gradient by the scores."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, rule: str, *options: Any) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(weight, scores)
        with torch._C._AutoDispatchBelowAutograd():
            return OPERATORS["learned_weight"](weight, scores, rule, *options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores = ctx.saved_tensors
        return None, _straight(grads[0], weight, scores, ctx.rule), None, None, None


class _MaskSum(torch.autograd.Function):
    """`Σ factor * sum f(s)` with its gradients."""

    @staticmethod
    def forward(ctx: Any, rules: Sequence[str], factors: Sequence[float], *scores: Tensor) -> Tensor:
        ctx.factors, ctx.shapes = factors, [s.shape for s in scores]
        each = zip(scores, rules, factors, strict=True)
        total = sum(factor * implementation("mask_sum", s)(s, rule) for s, rule, factor in each)
        return torch.as_tensor(total, dtype=scores[0].dtype, device=scores[0].device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_scores = ((grads[0] * factor).expand(shape) for factor, shape in zip(ctx.factors, ctx.shapes, strict=True))
        return None, None, *by_scores


OPERATORS = {
    "learned_weight": operator(
        "learned_weight",
        "(Tensor weight, Tensor scores, str rule, float amount, Tensor? key) -> Tensor",
        lambda weight, *_: torch.empty_like(weight),
    )
}
torch.library.impl("synaptome::learned_weight", "Autograd", _StraightThrough.apply)


def _rescaled(scores: Tensor, amount: float, key: Tensor | None) -> Tensor:
    there = scores > 0
    return there.to(scores.dtype) * (scores.numel() / (1 + there.sum().double()))


def _top(scores: Tensor, amount: float, key: Tensor | None) -> Tensor:
    return smallest(-scores.abs().reshape(-1), round(amount * scores.numel())).view(scores.shape)


def _bernoulli(probabilities: Tensor, amount: float, key: Tensor | None) -> Tensor:
    assert key is not None  # the layer's own
    numbers = randomness.sequence(key, 0, (probabilities.numel() + 1) // 2)
    halves = torch.stack((numbers, numbers >> 32), 1).view(-1)[: probabilities.numel()]
    draws = halves >> (32 - DRAW_BITS) & ((1 << DRAW_BITS) - 1)
    return draws.view(probabilities.shape).double() * 2.0**-DRAW_BITS < probabilities


# f(s) by rule, of scores, amount and key; for `bernoulli`, of g(s).
RULES: dict[str, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "positive": lambda scores, amount, key: scores > 0,
    "rescaled": _rescaled,
    "sign": lambda scores, amount, key: torch.where(scores < 0, -1, 1),
    "ternary": lambda scores, amount, key: (scores > amount).to(torch.int8) - (scores < -amount).to(torch.int8),
    "top": _top,
    "bernoulli": _bernoulli,
}

# g by rule, where it is not the identity.
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {"top": torch.abs, "bernoulli": torch.sigmoid}


def _straight(grad: Tensor, weight: Tensor, scores: Tensor, rule: str) -> Tensor:
    """`grad ∘ W ∘ g'(s)`, differentiable."""
    straight = grad * weight
    if rule == "top":
        return straight * scores.sign()
    if rule == "bernoulli":
        p = scores.sigmoid()
        return straight * (1 - p) * p  # in the order of torch's gradient of the sigmoid
    return straight


@implements("learned_weight", "reference")
@implements("learned_weight", "cpu")
def _written(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> Tensor:
    return gate(weight, scores, rule, amount, key)[0]


@implements("learned_gate", "reference")
def _gate(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> tuple[Tensor, Tensor]:
    kept = scores.sigmoid() if rule == "bernoulli" else scores
    mask = RULES[rule](kept, amount, key).to(weight.dtype)
    return torch.mul(weight, mask, out=torch.empty_like(weight)), kept


@implements("learned_weight_grad", "reference")
def _scale(grad: Tensor, weight: Tensor, kept: Tensor, rule: str) -> None:
    grad.mul_(weight)
    if rule == "top":
        grad.mul_(kept.sign())
    else:
        grad.mul_(1 - kept).mul_(kept)


@implements("mask_sum", "reference")
def _mask_sum(scores: Tensor, rule: str) -> Tensor:
    return RULES[rule](scores, 0.0, None).sum().to(scores.dtype)


# The compiled kernels take these places when their module is imported: at the first call.


@implements("learned_gate", "cpu")
def _gate_cpu(*operands: Any) -> tuple[Tensor, Tensor]:
    from synaptome.kernels import learned_weight_cpu

    return learned_weight_cpu.gate(*operands)


@implements("learned_weight_grad", "cpu")
def _scale_cpu(*operands: Any) -> None:
    from synaptome.kernels import learned_weight_cpu

    learned_weight_cpu.scale_grad(*operands)


@implements("mask_sum", "cpu")
def _mask_sum_cpu(*operands: Any) -> int:
    from synaptome.kernels import learned_weight_cpu

    return learned_weight_cpu.mask_sum(*operands)
