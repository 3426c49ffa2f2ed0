"""Learned weights on the CPU, by Numba: `W ∘ f(s)` and its gradient in one pass each, in vector code without a branch.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from synaptome.kernels import threads
from synaptome.kernels.backends import implements
from synaptome.kernels.compiled import compiled
from synaptome.kernels.largest_cpu import COUNTED, counting, threshold_of
from synaptome.kernels.supermask_cpu import LANES, bernoulli
from synaptome.kernels.vectors import numbers_at

NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}

# How `W ∘ f(s)` is made, of a number: the amount, a factor or a threshold.
POSITIVE, SIGN, TERNARY, SCALED, FROM, DRAWN = range(6)
STEPS = {"positive": POSITIVE, "sign": SIGN, "ternary": TERNARY, "rescaled": SCALED, "top": FROM, "bernoulli": DRAWN}

# Of the scores at an address, as a guess, since scores move little in a step: a wrong one costs time, and nothing else.
_THRESHOLDS: dict[int, float] = {}
LAYERS = 1000  # of which thresholds are kept


def plan(scores: Tensor, rule: str, amount: float) -> tuple[int, Any, int]:
    """How it is made of contiguous scores, the number for that, and of how many the last that are it are left out."""
    number, size, excess = NUMBERS[scores.dtype], scores.numel(), 0
    if rule == "rescaled":
        amount = size / (1 + count_signs(scores.data_ptr(), size, number(0))[0])
    elif rule == "top":
        address = scores.data_ptr()
        amount, excess = threshold_of(address, size, round(amount * size), number(_THRESHOLDS.get(address, 0.0)))
        if len(_THRESHOLDS) == LAYERS:
            _THRESHOLDS.clear()
        _THRESHOLDS[address] = amount
    return STEPS[rule], number(amount), excess


@implements("learned_gate", "cpu")
def gate(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W ∘ f(s)` and what its gradient is made of, in float32 or float64; see `synaptome.kernels.learned_weight`."""
    w, s = weight.contiguous(), scores.contiguous()
    y, kept, size = torch.empty_like(w), scores, s.numel()
    places = w.data_ptr(), s.data_ptr(), y.data_ptr()
    step, number, excess = plan(s, rule, amount)
    if step == DRAWN:
        assert key is not None  # the layer's own
        kept = torch.empty_like(s) if w.dtype == torch.float32 else s.sigmoid()
        key = key.contiguous()
        operands = (*places, kept.data_ptr(), number, key.data_ptr(), size)
        threads.in_threads(lambda start, stop: bernoulli(*operands, start, stop), -(-size // LANES), size)
    else:
        _run(gate_part, size, step, *places, number)
        if excess:
            _leave_out(*places[1:], size, excess, number)
    return (y if w is weight else torch.empty_like(weight).copy_(y)), kept


@implements("learned_weight_grad", "cpu")
def scale_grad(grad: Tensor, weight: Tensor, kept: Tensor, rule: str) -> None:
    """Multiply a contiguous gradient by W and g'(s), for `top` of the scores s, for `bernoulli` of σ(s)."""
    w, s = weight.contiguous(), kept.contiguous()
    kernel = _scale_by_sign if rule == "top" else _scale_by_slope
    _run(kernel, s.numel(), w.data_ptr(), s.data_ptr(), grad.data_ptr(), NUMBERS[w.dtype](1))


def _run(kernel: Callable[..., None], size: int, *operands: Any) -> None:
    if size < threads.LEAST_WORK:  # as `in_threads` would, but the way there takes longer than a small layer
        kernel(*operands, 0, size)
    else:
        threads.in_threads(lambda start, stop: kernel(*operands, start, stop), size, size)


@implements("mask_sum", "cpu")
def mask_sum(scores: Tensor, rule: str) -> int:
    """The sum of f(s) for `positive` or `sign`."""
    scores = scores.contiguous()
    size = scores.numel()
    positive, negative = count_signs(scores.data_ptr(), size, NUMBERS[scores.dtype](0))
    return int(positive if rule == "positive" else size - 2 * negative)


@compiled
def _leave_out(scores_address, result_address, size, excess, threshold):  # type: ignore[no-untyped-def]
    """Of the scores that are the threshold in size, leave out the last."""
    scores, result = numbers_at(scores_address, size, threshold), numbers_at(result_address, size, threshold)
    for i in range(size - 1, -1, -1):
        if excess == 0:
            break
        if abs(scores[i]) == threshold:
            result[i] = 0
            excess -= 1


@counting
def count_signs(address, size, like):  # type: ignore[no-untyped-def]
    """How many scores are positive, and how many negative."""
    scores = numbers_at(address, size, like)
    one, zero = scores.dtype.type(1), scores.dtype.type(0)
    positive, negative = 0, 0
    for start in range(0, size, COUNTED):
        block = scores[start : start + COUNTED]
        above, below = zero, zero
        for i in range(len(block)):
            above += one if block[i] > 0 else zero
            below += one if block[i] < 0 else zero
        positive += int(above)
        negative += int(below)
    return positive, negative


# In slices, because a loop from any start would ask of every index whether it is negative, and not be vector code.


@numba.njit(inline="always")
def _parts(weight, scores, result, like, start, stop):  # type: ignore[no-untyped-def]
    return (
        numbers_at(weight, stop, like)[start:],
        numbers_at(scores, stop, like)[start:],
        numbers_at(result, stop, like)[start:],
    )


@compiled
def _positive(weight, scores, result, like, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, result, like, start, stop)
    for i in range(len(y)):
        y[i] = w[i] if s[i] > 0 else w.dtype.type(0)


@compiled
def _scaled(weight, scores, result, scale, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, result, scale, start, stop)
    for i in range(len(y)):
        y[i] = w[i] * scale if s[i] > 0 else w.dtype.type(0)


@compiled
def _sign(weight, scores, result, like, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, result, like, start, stop)
    for i in range(len(y)):
        y[i] = -w[i] if s[i] < 0 else w[i]


@compiled
def _ternary(weight, scores, result, threshold, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, result, threshold, start, stop)
    for i in range(len(y)):
        inverted = -w[i] if s[i] < -threshold else w.dtype.type(0)
        y[i] = w[i] if s[i] > threshold else inverted


@compiled
def _from(weight, scores, result, threshold, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, result, threshold, start, stop)
    for i in range(len(y)):
        y[i] = w[i] if abs(s[i]) >= threshold else w.dtype.type(0)


@compiled
def _scale_by_sign(weight, scores, grad, like, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = _parts(weight, scores, grad, like, start, stop)
    for i in range(len(y)):
        straight = y[i] * w[i]
        negated = -straight if s[i] < 0 else w.dtype.type(0)
        y[i] = straight if s[i] > 0 else negated


@compiled
def _scale_by_slope(weight, probabilities, grad, one, start, stop):  # type: ignore[no-untyped-def]
    w, p, y = _parts(weight, probabilities, grad, one, start, stop)
    for i in range(len(y)):
        y[i] = y[i] * w[i] * (one - p[i]) * p[i]  # in the order of torch's gradient of the sigmoid


@compiled
def gate_part(step, weight, scores, result, number, start, stop):  # type: ignore[no-untyped-def]
    """`W ∘ f(s)` of the synapses from the start on and before the stop; no draws."""
    if step == POSITIVE:
        _positive(weight, scores, result, number, start, stop)
    elif step == SIGN:
        _sign(weight, scores, result, number, start, stop)
    elif step == TERNARY:
        _ternary(weight, scores, result, number, start, stop)
    elif step == SCALED:
        _scaled(weight, scores, result, number, start, stop)
    else:
        _from(weight, scores, result, number, start, stop)
