"""Random numbers whose bits are the same everywhere: signs, and normal numbers truncated at two standard deviations.

Logarithms and cosines differ in their last bits between devices and between versions of their libraries. Here are only
the integers of `synaptome.kernels.randomness` and sums and products in float64, which IEEE 754 rounds in one way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synaptome.kernels import randomness

TRUNCATION = 2.0
TRUNCATED_STD = 0.87962566103423978  # of a standard normal number, given that it lies within ±TRUNCATION
# Taylor's series of exp(-t): its error is below 1e-14 for t up to 1/4.
_SERIES = [(-1) ** k / math.factorial(k) for k in range(11)]


def positive(key: Tensor, count: int, probability: float) -> Tensor:
    """Which of `count` signs are +, each with this probability: bool `[count]`.

    Args:
        key: int64 `[2]`, (stream, counter); see `synaptome.kernels.randomness`.
        count: how many.
        probability: in [0, 1], rounded up to a multiple of 2^-53.
    """
    limit = math.ceil(math.ldexp(probability, 53)) - 2**52
    signs = torch.empty(count, dtype=torch.bool, device=key.device)
    for start in range(0, count, randomness.NORMALS):
        stop = min(start + randomness.NORMALS, count)
        signs[start:stop] = randomness.sequence(key, start, stop) >> 11 < limit  # 53 bits, one of them a sign
    return signs


def truncated_normal(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers that lie within ±2, float64 `[count]`: multiples of 2^-31, never 0.

    By rejection (von Neumann 1951): a number x, uniform in (-2, 2), is accepted with probability `exp(-x²/2)`, else
    number i takes the next draw, `i + attempt * count` of the key's sequence, the high half for x and the low half for
    its acceptance.

    Args:
        key: int64 `[2]`, (stream, counter); see `synaptome.kernels.randomness`.
        count: how many.
    """
    start_of_key = randomness.base(key)
    numbers = torch.empty(count, dtype=torch.float64, device=key.device)
    for start in range(0, count, randomness.NORMALS):
        undecided = torch.arange(start, min(start + randomness.NORMALS, count), device=key.device)
        draw = undecided
        while len(undecided):
            bits = randomness.splitmix64(start_of_key + randomness.GOLDEN_64 * (1 + draw))
            x = (bits >> 32).double().add_(0.5).mul_(TRUNCATION * 2.0**-31)
            uniform = (bits & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32)
            accepted = uniform < _exp(x)
            numbers[undecided[accepted]] = x[accepted]
            undecided, draw = undecided[~accepted], draw[~accepted] + count
    return numbers


def _exp(x: Tensor) -> Tensor:
    """`exp(-x²/2)` for x within ±2, as the eighth power of `exp(-x²/16)`."""
    t = x.square().mul_(1 / 16)
    power = torch.full_like(t, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        power.mul_(t).add_(coefficient)
    for _ in range(3):
        power.mul_(power)
    return power
