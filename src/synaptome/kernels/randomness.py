"""Counter-based randomness: every random number is a hash of where it is used, so that none is ever stored.

A *key* is an int64 tensor `[2]`: (stream, counter). A layer owns its stream and advances its counter at each noisy
pass, so two layers, or two passes, never share a number. Everything below is integer arithmetic modulo 2^64 or 2^32,
hence the same on every device, in every order, on any number of threads.

A mask bit of `failing_linear` is made in two steps, cheap enough to be repeated in each kernel:

1. a row (example b, output o) of an `[examples, out, in]` mask gets 64 bits by splitmix64 (Steele, Lea & Flood 2014),
   the n-th number of the key's own sequence with n = b * out + o;
2. inside a row, 32 bits serve two inputs, i and i + ceil(in / 2): the low and the high half of a 32-bit finaliser
   (the two-round xor-shift-multiply of C. Wellons' hash-prospector, bias 0.10704308166917044) of n = i, with one half
   of the row's 64 bits entering before its first round and the other half between the rounds.

A synapse fails when its 16-bit draw is below `round(failure * 65536)`: rates are exact to 1/65536.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN_64 = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: 2^64 / golden ratio
GOLDEN_32 = -1640531535  # 0x9E3779B1 as int32
DRAWS = 65536  # a draw is 16 bits
NORMALS = 2**16  # normal numbers made at a time: they stay in a core's second-level cache


def splitmix64(state: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 tensors of any shape (wrapping arithmetic)."""
    z = (state ^ _shifted64(state, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shifted64(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shifted64(z, 31)


def base(key: Tensor) -> Tensor:
    """The 64 bits, 0-d int64, from which a key's sequence starts."""
    return splitmix64(splitmix64(key[0]) + GOLDEN_64 * key[1])


def sequence(key: Tensor, start: int, stop: int) -> Tensor:
    """Numbers `start` to `stop` of a key's sequence, int64 `[stop - start]`, 64 random bits each."""
    return splitmix64(base(key) + GOLDEN_64 * (1 + torch.arange(start, stop, device=key.device)))


def threshold(failure: float) -> int:
    """The 16-bit draws below it fail: the rate in units of 1/65536, never all of them."""
    return min(round(failure * DRAWS), DRAWS - 1)


def surviving(key: Tensor, examples: range, out_features: int, in_features: int, failure: float) -> Tensor:
    """Which synapses survive for a range of examples: bool `[len(examples), out_features, in_features]`.

    The specification of the mask; kernels regenerate the same bits in their own loops.
    """
    rows = sequence(key, examples.start * out_features, examples.stop * out_features)
    low = rows.to(torch.int32).view(-1, 1)
    high = (rows >> 32).to(torch.int32).view(-1, 1)
    half = (in_features + 1) // 2
    x = _finalised(low + GOLDEN_32 * torch.arange(half, dtype=torch.int32, device=key.device), high)
    limit = threshold(failure)
    survives = torch.empty(len(examples), out_features, in_features, dtype=torch.bool, device=key.device)
    x = x.view(len(examples), out_features, half)
    torch.ge(x & 0xFFFF, limit, out=survives[..., :half])
    torch.ge(_shifted32(x, 16)[..., : in_features - half], limit, out=survives[..., half:])
    return survives


def surviving_at(key: Tensor, row: Tensor, col: Tensor, batch: int, shape: tuple[int, int], failure: float) -> Tensor:
    """Which synapses survive at some places of a weight: bool `[places, batch]`, those bits of `surviving`.

    Args:
        key: int64 `[2]`, (stream, counter).
        row, col: outputs and inputs of the places, integers `[places]`.
        batch: the number of examples.
        shape: `(out_features, in_features)` of the weight.
        failure: probability of failure in [0, 1).
    """
    out_features, in_features = shape
    number = row.long().unsqueeze(1) + out_features * torch.arange(batch, device=key.device)
    bits = splitmix64(base(key) + GOLDEN_64 * (1 + number))
    half = (in_features + 1) // 2
    second = (col >= half).unsqueeze(1)
    step = GOLDEN_32 * (col.long().unsqueeze(1) - half * second)
    x = _finalised(bits.to(torch.int32) + step.to(torch.int32), (bits >> 32).to(torch.int32))
    return torch.where(second, _shifted32(x, 16), x & 0xFFFF) >= threshold(failure)


def _finalised(x: Tensor, high: Tensor) -> Tensor:
    """The 32-bit finaliser, in place: a chunk of masks should stay in the cache."""
    x ^= _shifted32(x, 16)
    x *= 0x21F0AAAD
    x ^= high
    x ^= _shifted32(x, 15)
    x *= 0x735A2D97
    x ^= _shifted32(x, 15)
    return x


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal numbers of a key, by Box and Muller's transform of its sequence, computed in float64."""
    count = math.prod(shape)
    numbers = torch.empty(count, dtype=dtype, device=key.device)
    for start in range(0, count, NORMALS):
        stop = min(start + NORMALS, count)
        radius = torch.sqrt(-2 * torch.log(_uniform(sequence(key, start, stop))))
        angle = 2 * math.pi * _uniform(sequence(key, count + start, count + stop))
        numbers[start:stop] = radius * torch.cos(angle)
    return numbers.view(shape)


def _uniform(bits: Tensor) -> Tensor:
    """Numbers in (0, 1), float64, of 53 bits each: never 0, so that the logarithm stays finite."""
    return (_shifted64(bits, 11).double() + 0.5) * 2.0**-53


def _shifted64(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _shifted32(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int32."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)
