"""Weights of which only the presence or the sign is learned: `W ∘ f(s)` of weights W and scores s, in one pass.

f is a step function, whose derivative is 0 wherever it exists. Its straight-through gradient (Bengio, Léonard &
Courville 2013) takes 1 for that derivative, so that `dL/ds = dL/d(W ∘ f(s)) ∘ W`, whether a synapse is there or not.

| rule | f(s) of a synapse | amount |
|---|---|---|
| `positive` | 1 where s > 0, else 0 | |
| `rescaled` | the same, times size / (1 + number of those); the gradient leaves this factor out | |
| `sign` | -1 where s < 0, else 1 | |
| `ternary` | 1 where s > amount, -1 where s < -amount, else 0 | at least 0 |
| `top` | 1 for the round(amount * size) largest scores, of equal ones the first, else 0 | in (0, 1] |
| `bernoulli` | 1 with probability s, else 0: where a number of the key's sequence, in units of 2^-24, is below s | |

A function of autograd in Python, beside an operation in Python, would cost a layer as much as its product does. So the
gradient is one of torch's own: that of `s ∘ W`, over whose numbers, which its gradient does not need, the operation
writes `W ∘ f(s)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    return _over(scores * weight, weight, scores, rule, amount, key)


def learned_mask(scores: Tensor, rule: str, amount: float = 0.0, key: Tensor | None = None) -> Tensor:
    """f(s), of the shape and dtype of the scores, with the straight-through gradient 1; see `learned_weight`."""
    return _over(scores.clone(), scores.new_ones(()).expand(scores.shape), scores, rule, amount, key)


def mask_sum(scores: Tensor, rule: str) -> Tensor:
    """The sum of f(s), 0-d, for `positive` or `sign`; its straight-through gradient is 1."""
    total = scores.sum()
    _written("mask_sum", total.detach(), scores.detach(), rule)
    return total


def _over(result: Tensor, weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> Tensor:
    """`result`, whose gradient stays what it is, with the numbers `W ∘ f(s)`."""
    numbers, scores = result.detach(), scores.detach()
    if rule == "positive":  # torch's own kernel of it, known as the gradient of `torch.nn.functional.threshold`
        torch.ops.aten.threshold_backward.grad_input(weight, scores, 0.0, grad_input=numbers)
    else:
        _written("learned_weight", numbers, weight, scores, rule, amount, key)
    return result


def _written(name: str, result: Tensor, *operands: Any) -> None:
    """Call an operation that writes its result: where nothing traces it, without torch's dispatcher.

    Its way back into Python takes longer than the operation on a small layer.
    """
    if type(result) is Tensor and not torch.compiler.is_compiling():
        implementation(name, operands[0])(result, *operands)
    else:
        OPERATORS[name](result, *operands)


OPERATORS = {
    name: operator(name, schema, lambda *_: None)
    for name, schema in (
        (
            "learned_weight",
            "(Tensor(a!) result, Tensor weight, Tensor scores, str rule, float amount, Tensor? key) -> ()",
        ),
        ("mask_sum", "(Tensor(a!) result, Tensor scores, str rule) -> ()"),
    )
}


def _rescaled(scores: Tensor, amount: float, key: Tensor | None) -> Tensor:
    there = scores > 0
    return there.to(scores.dtype) * (scores.numel() / (1 + there.sum().double()))


def _top(scores: Tensor, amount: float, key: Tensor | None) -> Tensor:
    return smallest(-scores.reshape(-1), round(amount * scores.numel())).view(scores.shape)


def _bernoulli(scores: Tensor, amount: float, key: Tensor | None) -> Tensor:
    assert key is not None  # the layer's own
    bits = randomness.sequence(key, 0, scores.numel()) >> (64 - DRAW_BITS)
    draws = (bits & ((1 << DRAW_BITS) - 1)).view(scores.shape)  # a shift of int64 keeps the sign
    return draws.double() * 2.0**-DRAW_BITS < scores


# f(s) by rule, of scores, amount and key.
RULES: dict[str, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "positive": lambda scores, amount, key: scores > 0,
    "rescaled": _rescaled,
    "sign": lambda scores, amount, key: torch.where(scores < 0, -1, 1),
    "ternary": lambda scores, amount, key: (scores > amount).to(torch.int8) - (scores < -amount).to(torch.int8),
    "top": _top,
    "bernoulli": _bernoulli,
}


@implements("learned_weight", "reference")
def _gate(result: Tensor, weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> None:
    torch.mul(weight, RULES[rule](scores, amount, key).to(weight.dtype), out=result)


@implements("learned_weight", "cpu")
def _gate_cpu(result: Tensor, weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> None:
    from synaptome.kernels import learned_weight_cpu

    learned_weight_cpu.gate(result, weight, scores, rule, amount, key)


@implements("mask_sum", "reference")
def _mask_sum(result: Tensor, scores: Tensor, rule: str) -> None:
    result.copy_(RULES[rule](scores, 0.0, None).sum())


@implements("mask_sum", "cpu")
def _mask_sum_cpu(result: Tensor, scores: Tensor, rule: str) -> None:
    from synaptome.kernels import learned_weight_cpu

    learned_weight_cpu.mask_sum(result, scores, rule)
