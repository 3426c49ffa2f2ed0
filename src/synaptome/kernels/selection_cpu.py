"""The smallest of many numbers on the CPU, by Numba.

A radix selection: numbers are counted by their leading digit, those of smaller digits than the last to be chosen are
chosen, those of larger ones are not, and the next digit decides among the others. It takes a few passes, whatever the
numbers are; a partition by comparisons slows down where many are equal, as new weights of 0 are.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from synaptome.kernels.compiled import compiled

DIGIT = 11  # bits: the counts fit into the first-level cache


def smallest(scores: Tensor, count: int) -> Tensor:
    """Which are the `count` smallest, at least 1, of float32 or float64 scores `[n]`: bool `[n]`."""
    numbers = scores.detach().contiguous().numpy()
    chosen = np.empty(len(numbers), np.bool_)
    _choose(_keys(numbers), count, 8 * numbers.itemsize, chosen)
    return torch.from_numpy(chosen)


def _keys(numbers: Any) -> Any:
    """Unsigned integers in the order of the numbers, in which -0 is 0."""
    size = numbers.itemsize
    bits = (numbers + 0).view(f"i{size}")  # -0 + 0 is 0
    # Negative numbers stand in descending order, below the others: all their bits are turned, of the others the first.
    return (bits ^ (bits >> (8 * size - 1) | -(1 << (8 * size - 1)))).view(f"u{size}")


@compiled
def _choose(keys, count, bits, chosen):  # type: ignore[no-untyped-def]
    undecided, count = _decide(keys, range(len(keys)), count, bits - DIGIT, chosen)
    while bits > DIGIT:
        bits -= DIGIT
        # The last digit may begin in the one before, in which all that are left are equal.
        undecided, count = _decide(keys, undecided, count, max(bits - DIGIT, 0), chosen)
    for i in undecided[:count]:
        chosen[i] = True


@numba.njit(inline="always")
def _decide(keys, candidates, count, shift, chosen):  # type: ignore[no-untyped-def]
    """Choose by the digit that begins at a bit; returns those of the last digit, and how many of them are to come."""
    start, mask = np.uint64(shift), np.uint64((1 << DIGIT) - 1)
    counts = np.zeros(1 << DIGIT, np.int64)
    for i in candidates:
        counts[(keys[i] >> start) & mask] += 1
    last = 0
    while counts[last] < count:
        count -= counts[last]
        last += 1
    undecided = np.empty(counts[last], np.int64)
    left = 0
    for i in candidates:
        digit = np.int64((keys[i] >> start) & mask)
        chosen[i] = digit < last
        if digit == last:
            undecided[left] = i
            left += 1
    return undecided, count
