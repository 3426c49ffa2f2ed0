"""The product with failures on the CPU, by Numba: the masks of `randomness.surviving`, made in registers.

Beside it, for products that torch computes: the weights of a chunk of examples with their failures, and the transpose
of that. They stand here because Numba's cache of a function does not see that one from another file has changed.

Each function computes a range of rows of its result. Every number is summed by one thread in one order, so the bits do
not depend on the number of threads. The inner loops are written so that LLVM makes vector code of them at the
processor's full width: 32-bit arithmetic throughout (Numba would widen it to 64), and no branch.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from synaptome.kernels import randomness
from synaptome.kernels.splitmix import drawn
from synaptome.kernels.threads import in_threads

GOLDEN_32 = np.uint32(0x9E3779B1)
EXAMPLES_AT_ONCE = 8  # a row of the weights is used for so many examples while it is in the first-level cache


def product(x: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    """`[batch, in]` times `[out, in]` to `[batch, out]`, with failures, in float32 or float64."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    _run(_product, (x, weight), y, range(len(x)), weight.shape, failure, key)
    return y


def input_grad(grad: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    """`[batch, out]` times `[out, in]` to `[batch, in]`, with the failures of the product."""
    by_x = grad.new_zeros(grad.shape[0], weight.shape[1])
    _run(_input_grad, (grad, weight), by_x, range(len(grad)), weight.shape, failure, key)
    return by_x


def weight_grad(grad: Tensor, x: Tensor, failure: float, key: Tensor) -> Tensor:
    """`[batch, out]` and `[batch, in]` to `[out, in]`, with the failures of the product."""
    by_weight = grad.new_zeros(grad.shape[1], x.shape[1])
    _run(_weight_grad, (grad, x), by_weight, range(len(x)), by_weight.shape, failure, key)
    return by_weight


def masked_weight(weight: Tensor, examples: range, failure: float, key: Tensor) -> Tensor:
    """Surviving weights of a range of examples, scaled: `[out, in]` to `[len(examples) * out, in]`."""
    masked = weight.new_zeros(len(examples) * weight.shape[0], weight.shape[1])
    _run(_masked_weight, (weight,), masked, examples, weight.shape, failure, key)
    return masked


def add_masked(total: Tensor, by_example: Tensor, examples: range, failure: float, key: Tensor) -> None:
    """Add what survives of `[len(examples), out, in]`, scaled, to `[out, in]`, one example after the other."""
    _run(_add_masked, (by_example,), total, examples, total.shape, failure, key)


def _run(
    kernel: Callable[..., None],
    operands: tuple[Tensor, ...],
    result: Tensor,
    examples: range,
    weight_shape: torch.Size,
    failure: float,
    key: Tensor,
) -> None:
    out_features, in_features = weight_shape
    arrays = [operand.detach().contiguous().numpy() for operand in operands]
    first_row = randomness.GOLDEN_64 * examples.start * out_features
    base = np.uint64((randomness.base(key).item() + first_row) % 2**64)
    steps = GOLDEN_32 * np.arange((in_features + 1) // 2, dtype=np.uint32)
    limit = np.uint32(randomness.threshold(failure))
    scale = arrays[0].dtype.type(1 / (1 - randomness.threshold(failure) / randomness.DRAWS))
    rows = result.numpy()
    work = len(examples) * out_features * in_features
    in_threads(lambda start, stop: kernel(*arrays, rows, steps, base, limit, scale, start, stop), len(rows), work)


def _compiled(function: Callable[..., None]) -> Any:
    """Compiled without the interpreter's lock; kept on disk, or only in memory where no folder can be written."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _draws(typing: Any, low: Any, high: Any, step: Any) -> Any:
    """32 random bits of a pair of inputs: see `randomness`."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        low, high, step = arguments

        def word(value: int) -> Any:
            return ir.Constant(ir.IntType(32), value)

        x = build.add(low, step)
        x = build.mul(build.xor(x, build.lshr(x, word(16))), word(0x21F0AAAD))
        x = build.xor(x, high)
        x = build.mul(build.xor(x, build.lshr(x, word(15))), word(0x735A2D97))
        return build.xor(x, build.lshr(x, word(15)))

    return numba.uint32(numba.uint32, numba.uint32, numba.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _low_survives(typing: Any, draws: Any, limit: Any) -> Any:
    """Whether the input of the first half survives: its 16 bits are not below the limit."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        draws, limit = arguments
        return build.icmp_unsigned(">=", build.and_(draws, ir.Constant(ir.IntType(32), 0xFFFF)), limit)

    return numba.boolean(numba.uint32, numba.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _high_survives(typing: Any, draws: Any, limit: Any) -> Any:
    """Whether the input of the second half survives."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        draws, limit = arguments
        return build.icmp_unsigned(">=", build.lshr(draws, ir.Constant(ir.IntType(32), 16)), limit)

    return numba.boolean(numba.uint32, numba.uint32), generate


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def row_bits(base: np.uint64, number: int) -> Any:
    """The 64 random bits of a row of the mask: splitmix64."""
    z = drawn(base, number)
    return np.uint32(z), np.uint32(z >> np.uint64(32))


@numba.njit(inline="always")
def _add_row(factor, source, target, steps, low, high, limit):  # type: ignore[no-untyped-def]
    """`target[i] += factor * source[i]` for the inputs that survive."""
    half = len(steps)
    pairs = len(source) - half
    first, second = source[:half], source[half:]
    into_first, into_second = target[:half], target[half:]
    zero = source.dtype.type(0)
    for j in range(pairs):
        draws = _draws(low, high, steps[j])
        into_first[j] += factor * first[j] if _low_survives(draws, limit) else zero
        into_second[j] += factor * second[j] if _high_survives(draws, limit) else zero
    if pairs < half and _low_survives(_draws(low, high, steps[pairs]), limit):
        into_first[pairs] += factor * first[pairs]


@_compiled
def _product(x, weight, y, steps, base, limit, scale, start, stop):  # type: ignore[no-untyped-def]
    outputs, inputs = weight.shape
    half = len(steps)
    pairs = inputs - half
    zero = x.dtype.type(0)
    for block in range(start, stop, EXAMPLES_AT_ONCE):
        for o in range(outputs):
            first_weights, second_weights = weight[o, :half], weight[o, half:]
            for b in range(block, min(block + EXAMPLES_AT_ONCE, stop)):
                first, second = x[b, :half], x[b, half:]
                low, high = row_bits(base, b * outputs + o)
                total, other = zero, zero
                for j in range(pairs):
                    draws = _draws(low, high, steps[j])
                    total += first_weights[j] * first[j] if _low_survives(draws, limit) else zero
                    other += second_weights[j] * second[j] if _high_survives(draws, limit) else zero
                if pairs < half and _low_survives(_draws(low, high, steps[pairs]), limit):
                    total += first_weights[pairs] * first[pairs]
                y[b, o] = (total + other) * scale


@_compiled
def _input_grad(grad, weight, by_x, steps, base, limit, scale, start, stop):  # type: ignore[no-untyped-def]
    outputs = weight.shape[0]
    for block in range(start, stop, EXAMPLES_AT_ONCE):
        for o in range(outputs):
            for b in range(block, min(block + EXAMPLES_AT_ONCE, stop)):
                low, high = row_bits(base, b * outputs + o)
                _add_row(grad[b, o] * scale, weight[o], by_x[b], steps, low, high, limit)


@_compiled
def _weight_grad(grad, x, by_weight, steps, base, limit, scale, start, stop):  # type: ignore[no-untyped-def]
    examples, outputs = grad.shape
    for o in range(start, stop):
        for b in range(examples):
            low, high = row_bits(base, b * outputs + o)
            _add_row(grad[b, o] * scale, x[b], by_weight[o], steps, low, high, limit)


@_compiled
def _masked_weight(weight, masked, steps, base, limit, scale, start, stop):  # type: ignore[no-untyped-def]
    for row in range(start, stop):
        low, high = row_bits(base, row)
        _add_row(scale, weight[row % len(weight)], masked[row], steps, low, high, limit)


@_compiled
def _add_masked(by_example, total, steps, base, limit, scale, start, stop):  # type: ignore[no-untyped-def]
    examples, outputs = by_example.shape[:2]
    for o in range(start, stop):
        for b in range(examples):
            low, high = row_bits(base, b * outputs + o)
            _add_row(scale, by_example[b, o], total[o], steps, low, high, limit)
