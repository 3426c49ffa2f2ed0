"""The threshold of the largest scores in size, on the CPU, by Numba.

It takes no sort (after Floyd & Rivest 1975, "Expected time bounds for selection"): a sample brackets it, numbers
interpolated within the bracket narrow that, and as soon as few scores are likely to lie between them, the pass that
counts also collects those, which are compared with one another. Counts are kept in numbers of the scores' own type, a
lane of a vector each; Numba would widen integers to 64 bits.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from synaptome.kernels.compiled import compiled
from synaptome.kernels.vectors import numbers_at

LINE = 16  # scores that are sampled together, since they come from the memory together
SAMPLE = 256  # scores that bracket the threshold
DEVIATIONS = 4  # of a rank that was estimated, on both sides of it
FEW = 128  # scores that are collected, rather than bracketed once more
ROUNDS = 5  # of which three or four do where scores lie evenly, and none helps where they are equal
BLOCK = 128  # scores that are counted at once, and passed over if none of them is looked for
COUNTED = 2**20  # numbers up to which a float32 counts, with room to spare


def counting(function: Callable[..., Any]) -> Any:
    """As `compiled`, where sums, which are counts here, may be taken in any order."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)


@compiled
def threshold_of(address, size, count, like):  # type: ignore[no-untyped-def]
    """The largest number that at least `count` scores are not below in size, NaN for none; and how many more are not.

    It lies from `low` on, and below `high`, which is NaN for no bound. There are `many` scores from low on, `few` from
    high on, and `few < count <= many`.
    """
    scores = numbers_at(address, size, like)
    number = scores.dtype.type
    low, high, many, few = number(0), number(np.nan), size, 0
    if count == 0:
        return high, 0
    if size <= SAMPLE:
        return _selected(np.abs(scores), count)
    lower, upper = _sampled(scores, count)
    found, expected = np.empty(2 * FEW + BLOCK, scores.dtype), 1.0 * size
    for _ in range(ROUNDS):
        if expected > FEW:
            (from_lower, from_upper), collected = _count_from(scores, lower, upper), 0
        else:
            from_lower, from_upper, collected = _between(scores, lower, upper, found)
        if from_upper < count <= from_lower and collected == from_lower - from_upper:
            return _selected(found[:collected], count - from_upper)
        if from_lower < count:
            high, few = lower, from_lower
        else:
            low, many = lower, from_lower
            if from_upper < count:
                high, few = upper, from_upper
            else:
                low, many = upper, from_upper
        if not np.isfinite(high - low):
            break
        # As if the candidates lay evenly between low and high: the deviation of a rank is largest in the middle.
        step = (np.float64(high) - np.float64(low)) / (many - few)
        margin = DEVIATIONS * math.sqrt(many - few) / 2
        lower = max(low, number(low + step * (many - count - margin)))
        upper = min(high, number(low + step * (many - count + margin)))
        expected = 2 * margin
    found = np.empty(many - few + BLOCK, scores.dtype)
    left = np.sort(found[: _between(scores, low, high, found)[2]])
    if len(left) == 0:  # where scores are not numbers
        return low, 0
    threshold = left[max(0, len(left) - (count - few))]
    return threshold, max(0, (left >= threshold).sum() - (count - few))


@counting
def _selected(numbers, count):  # type: ignore[no-untyped-def]
    """The largest of few numbers that at least `count` are not below, -inf for none; and how many more are not.

    Each is compared with all, which vectors do sooner than a sort, of which the processor can foresee no branch.
    """
    one, zero = numbers.dtype.type(1), numbers.dtype.type(0)
    threshold, not_below = numbers.dtype.type(-np.inf), 0
    for number in numbers:
        from_number = zero
        for i in range(len(numbers)):
            from_number += one if numbers[i] >= number else zero
        if from_number >= count and number > threshold:
            threshold, not_below = number, int(from_number)
    return threshold, max(0, not_below - count)


@numba.njit(inline="always")
def _sampled(scores, count):  # type: ignore[no-untyped-def]
    """Two numbers between which the size that `count` are not below lies most likely."""
    sample = np.empty(SAMPLE, scores.dtype)
    lines = SAMPLE // LINE
    for line in range(lines):
        first = len(scores) // LINE * line // lines * LINE
        sample[line * LINE : (line + 1) * LINE] = np.abs(scores[first : first + LINE])
    rank = SAMPLE * (count / len(scores))
    margin = DEVIATIONS * math.sqrt(rank * (1 - rank / SAMPLE)) + 1
    most, least = math.ceil(rank + margin), math.floor(rank - margin)
    lower = _selected(sample, most)[0] if most <= SAMPLE else scores.dtype.type(0)
    return lower, _selected(sample, least)[0] if least > 0 else scores.dtype.type(np.nan)


@numba.njit(inline="always")
def _not_below(scores, lower, upper):  # type: ignore[no-untyped-def]
    """How many of at most 2^24 scores are in size not below either number."""
    one, zero = scores.dtype.type(1), scores.dtype.type(0)
    from_lower, from_upper = zero, zero
    for i in range(len(scores)):
        from_lower += one if abs(scores[i]) >= lower else zero
        from_upper += one if abs(scores[i]) >= upper else zero
    return int(from_lower), int(from_upper)


@counting
def _count_from(scores, lower, upper):  # type: ignore[no-untyped-def]
    """How many scores are in size not below either number."""
    from_lower, from_upper = 0, 0
    for start in range(0, len(scores), COUNTED):
        more_from_lower, more_from_upper = _not_below(scores[start : start + COUNTED], lower, upper)
        from_lower += more_from_lower
        from_upper += more_from_upper
    return from_lower, from_upper


@counting
def _between(scores, lower, upper, found):  # type: ignore[no-untyped-def]
    """How many scores are in size not below either number; those between them are collected while there is room."""
    from_lower, from_upper, collected = 0, 0, np.uint64(0)
    for start in range(0, len(scores), BLOCK):
        block = scores[start : start + BLOCK]
        more_from_lower, more_from_upper = _not_below(block, lower, upper)
        from_lower += more_from_lower
        from_upper += more_from_upper
        if more_from_lower > more_from_upper and collected + np.uint64(BLOCK) <= np.uint64(len(found)):
            for i in range(len(block)):
                size = abs(block[i])
                found[collected] = size
                collected += np.uint64(size >= lower and not size >= upper)
    return from_lower, from_upper, int(collected)
