"""The geometry of two-dimensional convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from synaptome.errors import ConfigurationError

Pair = int | Sequence[int]


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Height and width of what may be given as one integer; a ConfigurationError if one of them is below `least`."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or min(both) < least:
        raise ConfigurationError(f"{name} is an integer of at least {least}, or a pair of them; given {value}")
    return both[0], both[1]


def output_size(
    x: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the result, for shapes of images and kernels."""
    height, width = (
        (x[axis] + 2 * padding[axis] - dilation[axis] * (weight[axis] - 1) - 1) // stride[axis] + 1 for axis in (-2, -1)
    )
    return height, width
