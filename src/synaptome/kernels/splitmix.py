"""The integers of `synaptome.kernels.randomness` inside compiled loops, one number at a time.

Imported with the first CPU kernel that draws.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from synaptome.kernels.compiled import compiled
from synaptome.kernels.randomness import GOLDEN_64

_GOLDEN_64 = np.uint64(GOLDEN_64 % 2**64)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def splitmix64(state: Any) -> Any:
    """The finaliser of splitmix64, of uint64."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def base_of(stream: Any, counter: Any) -> Any:
    """The 64 bits from which the sequence of a key starts."""
    return splitmix64(splitmix64(np.uint64(stream)) + _GOLDEN_64 * np.uint64(counter))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def drawn(base: Any, number: Any) -> Any:
    """A number of the sequence, counted from 0."""
    return splitmix64(base + _GOLDEN_64 * np.uint64(1 + number))


@compiled
def uniform(streams, counter, numbers):  # type: ignore[no-untyped-def]
    """Fill float64 `[streams, count]` with multiples of 2^-53 in [0, 1), the high bits of each stream's sequence."""
    for row in range(len(streams)):
        start = base_of(streams[row], counter)
        for i in range(numbers.shape[1]):
            numbers[row, i] = np.float64(drawn(start, i) >> np.uint64(11)) * 2.0**-53
