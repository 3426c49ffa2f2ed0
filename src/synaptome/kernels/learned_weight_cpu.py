"""Learned weights on the CPU, by Numba: `W ∘ f(s)` in one pass over both, in vector code and without a branch.

The largest scores are found by a threshold, which takes no sort (after Floyd & Rivest 1975, "Expected time bounds for
selection"): a sample brackets it, two more numbers interpolated within the bracket narrow that, and what is then left
between them, a few hundred, is partitioned. Each step counts in a pass at the speed of the memory.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.failing_linear_cpu import GOLDEN_64, row_bits
from synaptome.kernels.threads import in_threads

LINE = 16  # scores that are sampled together, since they come from the memory together
SAMPLE = 1024  # scores that bracket the threshold
DEVIATIONS = 4  # of a rank that was estimated, on both sides of it
FEW = 64  # scores that are partitioned, rather than bracketed once more
ROUNDS = 5  # of which three or four do where scores lie evenly, and none helps where they are equal
BLOCK = 64  # scores that are passed over at once if none of them is looked for


def gate(result: Tensor, weight: Tensor, scores: Tensor, rule: str, amount: float, key: Tensor | None) -> None:
    """Write `W ∘ f(s)`, in float32 or float64; see `synaptome.kernels.learned_weight`."""
    target = result if result.is_contiguous() else result.new_empty(result.shape)
    y, w, s = (operand.contiguous().numpy().reshape(-1) for operand in (target, weight, scores))
    if rule == "top":
        number, excess = _threshold(s, round(amount * len(s)))
        _run(_from, w, s, y, number)
        if excess:
            y[np.flatnonzero(s == number)[-excess:]] = 0
    elif rule == "rescaled":
        _run(_scaled, w, s, y, w.dtype.type(len(s) / (1 + _count_signs(s)[0])))
    elif rule == "bernoulli":
        assert key is not None  # the layer's own
        _run(_bernoulli, w, s, y, key.numpy())
    else:
        _run({"sign": _sign, "ternary": _ternary}[rule], w, s, y, s.dtype.type(amount))
    if target is not result:
        result.copy_(target)


def _run(kernel: Callable[..., None], w: Any, s: Any, y: Any, number: Any) -> None:
    in_threads(lambda start, stop: kernel(w, s, y, number, start, stop), len(s), len(s))


def mask_sum(result: Tensor, scores: Tensor, rule: str) -> None:
    """Write the sum of f(s) for `positive` or `sign`."""
    positive, negative = _count_signs(scores.contiguous().numpy().reshape(-1))
    result.fill_(positive if rule == "positive" else scores.numel() - 2 * negative)


@compiled
def _threshold(scores, count):  # type: ignore[no-untyped-def]
    """The largest number that at least `count` scores are not below, NaN for none; and how many more are not.

    It lies from `low` on, and below `high`, which is NaN for no bound. There are `many` scores from low on, `few` from
    high on, and `few < count <= many`.
    """
    low, high = scores.dtype.type(-np.inf), scores.dtype.type(np.nan)
    many, few = len(scores), 0
    if count == 0:
        return high, 0
    lower, upper = _sampled(scores, count)
    for _ in range(ROUNDS):
        from_lower, from_upper = _count_from(scores, lower, upper)
        if from_lower < count:
            high, few = lower, from_lower
        else:
            low, many = lower, from_lower
            if from_upper < count:
                high, few = upper, from_upper
            else:
                low, many = upper, from_upper
        if many - few <= FEW or not np.isfinite(high - low):
            break
        # As if the candidates lay evenly between low and high: the deviation of a rank is largest in the middle.
        step = (np.float64(high) - np.float64(low)) / (many - few)
        margin = DEVIATIONS * math.sqrt(many - few) / 2
        lower = max(low, scores.dtype.type(low + step * (many - count - margin)))
        upper = min(high, scores.dtype.type(low + step * (many - count + margin)))
    left = np.sort(_between(scores, low, high, many - few))
    if len(left) == 0:  # where scores are not numbers
        return low, 0
    first = max(0, len(left) - (count - few))
    threshold, excess = left[first], 0
    while first > excess and left[first - excess - 1] == threshold:
        excess += 1
    return threshold, excess


@numba.njit(inline="always")
def _sampled(scores, count):  # type: ignore[no-untyped-def]
    """Two numbers between which the score that `count` are not below lies most likely."""
    sample = np.empty(min(len(scores), SAMPLE), scores.dtype)
    lines = len(sample) // LINE
    for i in range(len(sample)):
        line, place = i // LINE, i % LINE
        sample[i] = scores[len(scores) // LINE * line // lines * LINE + place] if line < lines else scores[i]
    sample = np.sort(sample)
    share = 1 - count / len(scores)
    margin = DEVIATIONS * math.sqrt(share * (1 - share) * len(sample)) + 1
    first, last = math.floor(share * len(sample) - margin), math.ceil(share * len(sample) + margin)
    lower = sample[first] if first >= 0 else scores.dtype.type(-np.inf)
    return lower, sample[last] if last < len(sample) else scores.dtype.type(np.nan)


@numba.njit
def _count_from(scores, lower, upper):  # type: ignore[no-untyped-def]
    """How many scores are not below either number."""
    from_lower, from_upper = 0, 0
    for i in range(len(scores)):
        from_lower += scores[i] >= lower
        from_upper += scores[i] >= upper
    return from_lower, from_upper


@numba.njit
def _between(scores, low, high, size):  # type: ignore[no-untyped-def]
    """The scores from low on and not from high on, of which there are at most `size`."""
    found = np.empty(size, scores.dtype)
    number = 0
    for start in range(0, len(scores), BLOCK):
        block = scores[start : start + BLOCK]
        from_low, from_high = _count_from(block, low, high)
        if from_low > from_high:
            for i in range(len(block)):
                if block[i] >= low and not block[i] >= high:
                    found[number] = block[i]
                    number += 1
    return found[:number]


@compiled
def _count_signs(scores):  # type: ignore[no-untyped-def]
    """How many scores are positive, and how many negative."""
    positive, negative = 0, 0
    for i in range(len(scores)):
        positive += scores[i] > 0
        negative += scores[i] < 0
    return positive, negative


# In slices, because a loop from any start would ask of every index whether it is negative, and not be vector code.


@compiled
def _scaled(weight, scores, result, scale, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = weight[start:stop], scores[start:stop], result[start:stop]
    for i in range(len(y)):
        y[i] = w[i] * scale if s[i] > 0 else w.dtype.type(0)


@compiled
def _sign(weight, scores, result, _, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = weight[start:stop], scores[start:stop], result[start:stop]
    for i in range(len(y)):
        y[i] = -w[i] if s[i] < 0 else w[i]


@compiled
def _ternary(weight, scores, result, threshold, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = weight[start:stop], scores[start:stop], result[start:stop]
    for i in range(len(y)):
        inverted = -w[i] if s[i] < -threshold else w.dtype.type(0)
        y[i] = w[i] if s[i] > threshold else inverted


@compiled
def _from(weight, scores, result, threshold, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = weight[start:stop], scores[start:stop], result[start:stop]
    for i in range(len(y)):
        y[i] = w[i] if s[i] >= threshold else w.dtype.type(0)


@numba.njit(inline="always")
def _mixed(state):  # type: ignore[no-untyped-def]
    """The finaliser of splitmix64."""
    low, high = row_bits(state, -1)
    return np.uint64(high) << np.uint64(32) | np.uint64(low)


@compiled
def _bernoulli(weight, scores, result, key, start, stop):  # type: ignore[no-untyped-def]
    w, s, y = weight[start:stop], scores[start:stop], result[start:stop]
    base = _mixed(_mixed(np.uint64(key[0])) + np.uint64(GOLDEN_64) * np.uint64(key[1]))  # `randomness.base`
    unit = w.dtype.type(2.0**-24)
    for i in range(len(y)):
        high = row_bits(base, start + i)[1]
        y[i] = w[i] if w.dtype.type(high >> np.uint32(8)) * unit < s[i] else w.dtype.type(0)
