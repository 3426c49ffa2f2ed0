"""The threshold of the largest scores in size, on the CPU, by Numba.

It takes no sort (after Floyd & Rivest 1975, "Expected time bounds for selection"): a sample brackets it, numbers
interpolated within the bracket narrow that, and the pass that counts also collects the scores within, as soon as they
are likely to be few. Where that does not help, since scores are equal or far from evenly spread, numbers of the sample
split the bracket; one that many scores are equal to is found so at once. No pass is longer than the one before, and
most layers take two.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

from synaptome.kernels.compiled import compiled
from synaptome.kernels.vectors import Code, numbers_at

LINE = 16  # scores that are sampled together, since they come from the memory together
SAMPLE = 256  # scores that bracket the threshold
DEVIATIONS = 3  # of a rank that was estimated, on both sides of it
FEW = 128  # scores that are compared with one another
SHARE = 16  # a bracket is collected when it holds no more than this part of the scores
TRIES = 2  # interpolations, of which one does where scores lie evenly
NEAR = 2.0**-8  # the part by which the threshold differs from a guess at most, as it does after a step of training
LANES = 16  # scores that are compared at once; of those that are collected each is found by a bit
COUNTED = 2**20  # numbers up to which a float32 counts, with room to spare


def counting(function: Callable[..., Any]) -> Any:
    """As `compiled`, where sums, which are counts here, may be taken in any order."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)


@compiled
def threshold_of(address, size, count, guess):  # type: ignore[no-untyped-def]
    """The largest number that at least `count` scores are not below in size, NaN for none; and how many more are not.

    A guess that is near saves a pass, and one that is not costs a few; it is above 0, or none.

    It lies from `low` on, and below `high`, which is NaN for no bound. Of the rest of the scores `many` are from low
    on and `few` from high on, and `few < count <= many`.
    """
    rest = numbers_at(address, size, guess)
    number = rest.dtype.type
    if count == 0:
        return number(np.nan), 0
    while len(rest) > FEW:
        low, high, many, few = number(0), number(np.nan), len(rest), 0
        sample = _sampled(rest)
        lower, upper = _likely(sample, count / len(rest))
        room, tries = 0, TRIES
        if guess > 0 and len(rest) == size:
            lower, upper, room = guess * number(1 - NEAR), guess * number(1 + NEAR), size // SHARE
        while True:
            found = np.empty(room, rest.dtype)
            from_lower, from_upper = (
                _between(rest, lower, upper, found) if room > 0 else _count_from(rest, lower, upper)
            )
            if from_lower < count:
                high, few = lower, from_lower
            elif from_upper < count:
                low, many, high, few = lower, from_lower, upper, from_upper
            else:
                low, many = upper, from_upper
            if low == high:  # from 0 on: the other scores are no numbers
                return low, 0
            if np.isinf(low) or high == _above(low, rest):
                return low, many - count
            if from_upper < count <= from_lower and from_lower - from_upper <= room:
                break
            room = 0
            if (many - few) * SHARE <= len(rest):
                lower, upper, room = low, high, many - few
            elif tries > 0 and np.isfinite(high):
                tries -= 1
                # As if scores lay evenly between low and high: the deviation of a rank is largest in the middle.
                step = (np.float64(high) - np.float64(low)) / (many - few)
                margin = DEVIATIONS * math.sqrt(many - few) / 2
                lower = max(low, number(low + step * (many - count - margin)))
                upper = min(high, number(low + step * (many - count + margin)))
                room = int(4 * margin) if 4 * margin * SHARE <= len(rest) else 0  # twice as many as are expected
            else:
                inside = _inside(sample, low, high)
                if len(inside) == 0:
                    lower, upper, room = low, high, many - few
                else:
                    lower = inside[(many - count) * len(inside) // (many - few)]
                    upper = _above(lower, rest)
        rest = found[: from_lower - from_upper]
        count -= few
    return _selected(np.abs(rest), count)


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
def _above(number, scores):  # type: ignore[no-untyped-def]
    """The next larger number of the scores' type, NaN for none."""
    larger = np.nextafter(number, scores.dtype.type(np.inf))
    return scores.dtype.type(np.nan) if larger == number else larger


@compiled
def _sampled(scores):  # type: ignore[no-untyped-def]
    """Some of the scores in size, those that are no numbers as 0, in ascending order."""
    sample = np.empty(min(SAMPLE, len(scores)), scores.dtype)
    lines = len(sample) // LINE
    for line in range(lines):
        first = len(scores) // LINE * line // lines * LINE
        for i in range(LINE):
            size = abs(scores[first + i])
            sample[line * LINE + i] = size if size >= 0 else scores.dtype.type(0)
    return np.sort(sample[: lines * LINE])


@numba.njit(inline="always")
def _likely(sample, share):  # type: ignore[no-untyped-def]
    """Between which numbers the one lies most likely that a share of the scores is not below."""
    middle = len(sample) * (1 - share)
    margin = DEVIATIONS * math.sqrt(middle * share) + 1
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    lower = sample[first] if first > 0 else sample.dtype.type(0)
    return lower, _above(sample[last], sample) if last < len(sample) else sample.dtype.type(np.nan)


@numba.njit(inline="always")
def _inside(sample, low, high):  # type: ignore[no-untyped-def]
    """What lies from low on and below high, of a sample in ascending order."""
    last = len(sample) if np.isnan(high) else np.searchsorted(sample, high)
    return sample[np.searchsorted(sample, low) : last]


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


@compiled
def _between(scores, lower, upper, found):  # type: ignore[no-untyped-def]
    """How many scores are in size not below either number; the sizes between them are collected while there is room."""
    from_lower, from_upper = 0, 0
    whole = len(scores) // LANES * LANES
    for start in range(0, whole, LANES):
        above = _lanes_from(scores, start, upper)
        between = _lanes_from(scores, start, lower) & ~above
        from_upper += _ones(above)
        while between != 0:
            if from_lower < len(found):
                found[from_lower] = abs(scores[start + trailing_zeros(between)])
            from_lower += 1
            between &= between - 1
    for i in range(whole, len(scores)):
        size = abs(scores[i])
        if size >= upper:
            from_upper += 1
        elif size >= lower:
            if from_lower < len(found):
                found[from_lower] = size
            from_lower += 1
    return from_lower + from_upper, from_upper


@intrinsic
def _lanes_from(typing, scores, first, bound):  # type: ignore[no-untyped-def]
    """Which of LANES scores from the first on are in size not below a number, a bit each."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        pointer, first, bound = code.operands
        vector = code.vector(pointer, first, LANES)
        larger = build.fcmp_ordered(">=", vector, code.filled(bound, LANES))
        smaller = build.fcmp_ordered("<=", vector, code.filled(build.fneg(bound), LANES))
        lanes = build.or_(larger, smaller)
        return build.zext(build.bitcast(lanes, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(scores, types.int64, scores.dtype), generate


@intrinsic
def _ones(typing, bits):  # type: ignore[no-untyped-def]
    """How many bits are set."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.ctpop(arguments[0])

    return types.int64(types.int64), generate
