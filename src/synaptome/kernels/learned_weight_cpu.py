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
from synaptome.kernels.compiled import compiled
from synaptome.kernels.largest_cpu import COUNTED, counting, threshold_of
from synaptome.kernels.splitmix import base_of, drawn
from synaptome.kernels.vectors import numbers_at

BLOCK = 128  # scores whose random numbers are made at a time: an even number

NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


def gate(weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> Tensor:
    """`W ∘ f(s)`, in float32 or float64; see `synaptome.kernels.learned_weight`."""
    w, s = weight.contiguous(), scores.contiguous()
    y, number, size = torch.empty_like(w), NUMBERS[w.dtype], s.numel()
    places = w.data_ptr(), s.data_ptr(), y.data_ptr()
    if rule in SIMPLE:
        _run(SIMPLE[rule], size, *places, number(amount))
    elif rule == "rescaled":
        _run(_scaled, size, *places, number(size / (1 + _count_signs(places[1], size, number(0))[0])))
    elif rule == "top":
        threshold, excess = threshold_of(places[1], size, round(amount * size), number(0))
        _run(_from, size, *places, number(threshold))
        _leave_out(*places[1:], size, excess, number(threshold))
    else:
        assert key is not None  # the layer's own
        key = key.contiguous()
        blocks = -(-size // BLOCK)
        operands = (*places, number(0), key.data_ptr(), size)
        threads.in_threads(lambda start, stop: _bernoulli(*operands, start, stop), blocks, size)
    return y if w is weight else torch.empty_like(weight).copy_(y)


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


def mask_sum(scores: Tensor, rule: str) -> int:
    """The sum of f(s) for `positive` or `sign`."""
    scores = scores.contiguous()
    size = scores.numel()
    positive, negative = _count_signs(scores.data_ptr(), size, NUMBERS[scores.dtype](0))
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
def _count_signs(address, size, like):  # type: ignore[no-untyped-def]
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
def _bernoulli(weight, scores, result, like, key_address, size, first, last):  # type: ignore[no-untyped-def]
    """Blocks from the first on, until the last. The halves of a number of the key's sequence decide two synapses."""
    start, stop = first * BLOCK, min(last * BLOCK, size)
    w, s, y = _parts(weight, scores, result, like, start, stop)
    key = numbers_at(key_address, 2, np.int64(0))
    base = base_of(key[0], key[1])
    sequence = np.empty(BLOCK // 2, np.uint64)
    halves = sequence.view(np.int32)
    unit = w.dtype.type(2.0**-24)
    for block in range(0, len(y), BLOCK):
        number = (start + block) // 2
        for i in range(len(sequence)):
            sequence[i] = drawn(base, number + i)
        w_block, s_block, y_block = w[block : block + BLOCK], s[block : block + BLOCK], y[block : block + BLOCK]
        for i in range(len(y_block)):
            draw = halves[i] >> np.int32(8) & np.int32(0xFFFFFF)  # a shift of int32 keeps the sign
            y_block[i] = w_block[i] if w.dtype.type(draw) * unit < s_block[i] else w.dtype.type(0)


SIMPLE = {"positive": _positive, "sign": _sign, "ternary": _ternary}  # rules that take the amount, or ignore it
