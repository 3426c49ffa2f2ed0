"""The sparse product with failures on the CPU, by Numba: the vector loops of `sparse_cpu`, and masks in registers.

A connection costs, for each vector of examples, the 32-bit finaliser of `randomness` and a comparison (ten instructions
where the processor has logic of three operands) beside a multiply-add under a mask. The 64 bits of an output and an
example serve all connections of that output: the product makes them once a row, the gradients, which go through the
columns, once for all rows beforehand, in memory of the size of two outputs in float32.

The finaliser is written so that little is left to do for each connection. Its second word enters already mixed with its
own shift, since a shift distributes over exclusive or. And where the high 16 bits decide, they are compared in place.

Threads take ranges of rows, or columns, with equal numbers of connections. Each number is summed by one thread in one
order, so the bits do not depend on the number of threads.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from synaptome.kernels import randomness
from synaptome.kernels.compiled import compiled
from synaptome.kernels.failing_linear_cpu import GOLDEN_32, row_bits
from synaptome.kernels.sparse_cpu import row_at
from synaptome.kernels.splitmix import base_of
from synaptome.kernels.threads import in_threads
from synaptome.kernels.vectors import BOTH, CONTRACT, MOST, REGISTER_BYTES, TOGETHER, Code

WORD = ir.IntType(32)


def product(
    values: Tensor, x: Tensor, bias: Tensor | None, failure: float, key: Tensor, crow: Tensor, col: Tensor
) -> Tensor:
    """`[in, batch]` to `[out, batch]`, with failures, in float32 or float64."""
    y = x.new_empty(crow.shape[0] - 1, x.shape[1])
    arrays = _arrays(values, x, values if bias is None else bias, crow, col, y, key)
    _run(_product, (*arrays, bias is not None), failure, x, crow, col)
    return y


def grads(
    values: Tensor, x: Tensor, grad: Tensor, failure: float, key: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the product by the values and by x: `[nnz]` and `[in, batch]`."""
    outputs, batch = grad.shape
    words = np.empty((outputs, 2, batch), np.uint32)
    (of_key,) = _arrays(key)
    in_threads(lambda start, stop: _all_words(of_key, words, start, stop), outputs, outputs * batch)
    by_values, by_x = grad.new_zeros(row.shape[0]), x.new_empty(x.shape)
    arrays = _arrays(values, x, grad, ccol, row, permutation, by_values, by_x)
    _run(_grads, (*arrays, words), failure, x, ccol, row)
    return by_values, by_x


def _arrays(*operands: Tensor) -> list[Any]:
    return [(o.detach() if o.requires_grad else o).contiguous().numpy() for o in operands]


def _run(
    kernel: Callable[..., None],
    operands: tuple[Any, ...],
    failure: float,
    x: Tensor,
    starts: Tensor,
    indices: Tensor,
) -> None:
    """Call `kernel(*operands, half, limit, lanes, start, stop)` over all units: a unit is a row or a connection."""
    inputs, batch = x.shape
    lanes = REGISTER_BYTES // x.element_size()
    lanes = lanes if batch >= lanes else 1
    half, limit, nnz = (inputs + 1) // 2, randomness.threshold(failure), indices.shape[0]
    units = nnz + starts.shape[0] - 1
    in_threads(lambda start, stop: kernel(*operands, half, limit, lanes, start, stop), units, nnz * batch)


class _MaskCode(Code):
    """Writes vector instructions that make masks."""

    def unpacked(self, numbers: Any) -> list[Any]:
        """The integers of a tuple."""
        return [self.build.extract_value(numbers, number) for number in range(numbers.type.count)]

    def word(self, value: int, lanes: int) -> Any:
        """A vector of one 32-bit number."""
        return ir.Constant(ir.VectorType(WORD, lanes), [value] * lanes)

    def words(self, pointer: Any, offset: Any, lanes: int) -> Any:
        """The vector of 32-bit words there."""
        place = self.build.bitcast(self.build.gep(pointer, [offset]), ir.VectorType(WORD, lanes).as_pointer())
        return self.build.load(place, align=4)

    def input_of(self, column: Any, half: Any, limit: Any, lanes: int) -> tuple[Any, Any, Any]:
        """What the mask of one input is made with: its step, the 16 bits that decide, and the limit among them."""
        build = self.build
        first = build.icmp_signed("<", column, half)
        place = build.trunc(build.select(first, column, build.sub(column, half)), WORD)
        limit = build.trunc(limit, WORD)
        step = build.mul(place, ir.Constant(WORD, int(GOLDEN_32)))
        bits = build.select(first, ir.Constant(WORD, 0xFFFF), ir.Constant(WORD, 0xFFFF0000))
        limit = build.select(first, limit, build.shl(limit, ir.Constant(WORD, 16)))
        return self.filled(step, lanes), self.filled(bits, lanes), self.filled(limit, lanes)

    def survives(self, words: Any, decides: Any) -> Any:
        """For which examples a connection survives, by the vectors of their words and `input_of`: see `randomness`."""
        (low, high), (step, bits, limit) = words, decides
        build, lanes = self.build, low.type.count

        def mixed(x: Any, shift: int) -> Any:
            return build.xor(x, build.lshr(x, self.word(shift, lanes)))

        x = build.mul(mixed(build.add(low, step), 16), self.word(0x21F0AAAD, lanes))
        x = build.mul(build.xor(mixed(x, 15), high), self.word(0x735A2D97, lanes))
        return build.icmp_unsigned(">=", build.and_(mixed(x, 15), bits), limit)

    def added(self, total: Any, first: Any, second: Any, survives: Any) -> Any:
        """`total + first * second` where a connection survives, elsewhere the total."""
        product = self.build.fmul(first, second, flags=CONTRACT)
        return self.build.select(survives, self.build.fadd(total, product, flags=CONTRACT), total)


@intrinsic
def _row_sum(typing, y, x, values, indices, words, start, place):  # type: ignore[no-untyped-def]
    """`y[row, left:right] = start + Σ_k m values[k] x[indices[k], left:right]` over the k from first to last.

    The words `[2, block]` are those of the row, from example `origin` on.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = _MaskCode(context, build, signature, arguments)
        y, x, values, indices, words, start, place = code.operands
        origin, row, batch, left, right, first, last, half, limit, lanes, vectors = code.unpacked(place)
        target = code.row(y, row, batch)
        for width, many in code.variants(x, lanes, vectors):
            offsets = [build.add(left, code.integer(width * vector)) for vector in range(many - 1)]
            offsets.append(build.sub(right, code.integer(width)))
            both = [words, build.gep(words, [code.integer(width * MOST)])]
            pairs = [[code.words(each, build.sub(offset, origin), width) for each in both] for offset in offsets]
            totals = [cgutils.alloca_once_value(build, code.filled(start, width)) for _ in offsets]
            with cgutils.for_range(build, last, first) as loop:
                value = code.filled(build.load(build.gep(values, [loop.index])), width)
                column = code.index(indices, loop.index)
                source = code.row(x, column, batch)
                decides = code.input_of(column, half, limit, width)
                for total, offset, pair in zip(totals, offsets, pairs, strict=True):
                    survives = code.survives(pair, decides)
                    activations = code.vector(source, offset, width)
                    build.store(code.added(build.load(total), value, activations, survives), total)
            for total, offset in zip(totals, offsets, strict=True):
                code.keep(build.load(total), target, offset)
        return context.get_dummy_value()

    return types.void(y, x, values, indices, words, x.dtype, numba.types.UniTuple(types.int64, 11)), generate


@intrinsic
def _column_grads(typing, by_values, by_x, values, x, grad, permutation, indices, words, place):  # type: ignore[no-untyped-def]
    """Both gradients of one column, for b from left to right, where k goes from first to last and p = permutation[k].

    `by_x[column, b] = Σ_k m values[p] grad[indices[k], b]`; `by_values[p] += Σ_b m grad[indices[k], b] x[column, b]`.
    The words are `[out, 2, batch]`.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = _MaskCode(context, build, signature, arguments)
        by_values, by_x, values, x, grad, permutation, indices, words, place = code.operands
        column, batch, left, right, first, last, half, limit, lanes, vectors = code.unpacked(place)
        target, inputs = code.row(by_x, column, batch), code.row(x, column, batch)

        def gather(start: Any, count: int, offsets: Any, totals: Any, factors: Any, decides: Any) -> None:
            """What some connections, from `start` on, add to the totals, and the sums of their products with x."""
            width = factors[0].type.count
            places, dots = [], []
            for at in [build.add(start, code.integer(number)) for number in range(count)]:
                places.append(code.index(permutation, at))
                value = code.filled(build.load(build.gep(values, [places[-1]])), width)
                output = code.index(indices, at)
                source = code.row(grad, output, batch)
                low = code.row(words, build.mul(output, code.integer(2)), batch)
                both = [low, build.gep(low, [batch])]
                dot = ir.Constant(factors[0].type, [0.0] * width)
                for total, factor, offset in zip(totals, factors, offsets, strict=True):
                    survives = code.survives([code.words(each, offset, width) for each in both], decides)
                    vector = code.vector(source, offset, width)
                    build.store(code.added(build.load(total), value, vector, survives), total)
                    dot = code.added(dot, factor, vector, survives)
                dots.append(dot)
            sums = code.lane_sums(dots)
            for number, connection in enumerate(places):
                vector, lane = divmod(number, sums[0].type.count)
                dot = build.extract_element(sums[vector], ir.Constant(WORD, lane))
                pointer = build.gep(by_values, [connection])
                build.store(build.fadd(build.load(pointer), dot), pointer)

        for width, many in code.variants(x, lanes, vectors, BOTH):
            offsets = [build.add(left, code.integer(width * vector)) for vector in range(many - 1)]
            offsets.append(build.sub(right, code.integer(width)))
            factors = [code.vector(inputs, offset, width) for offset in offsets]
            zero = ir.Constant(factors[0].type, [0.0] * width)
            # The last vector overlaps the one before: lanes that were counted become zeros.
            counted = build.sub(code.integer(width * many), build.sub(right, left))
            factors[-1] = build.select(code.lanes_from(counted, width), factors[-1], zero)
            totals = [cgutils.alloca_once_value(build, zero) for _ in offsets]
            decides = code.input_of(column, half, limit, width)
            whole = build.sub(last, build.srem(build.sub(last, first), code.integer(TOGETHER)))
            for begin, end, count in ((first, whole, TOGETHER), (whole, last, 1)):
                with cgutils.for_range_slice(build, begin, end, code.integer(count)) as (start, _):
                    gather(start, count, offsets, totals, factors, decides)
            for total, offset in zip(totals, offsets, strict=True):
                code.keep(build.load(total), target, offset)
        return context.get_dummy_value()

    place = numba.types.UniTuple(types.int64, 10)
    return types.void(by_values, by_x, values, x, grad, permutation, indices, words, place), generate


@numba.njit(inline="always")
def _words(base, words, row, outputs, first, count):  # type: ignore[no-untyped-def]
    """The two words `[2, count]` of an output and of the examples from `first` on."""
    for example in range(count):
        low, high = row_bits(base, (first + example) * outputs + row)
        words[0, example] = low
        words[1, example] = high ^ (high >> np.uint32(15))  # as `_MaskCode.survives` takes it


@compiled
def _all_words(key, words, begin, end):  # type: ignore[no-untyped-def]
    base = base_of(key[0], key[1])
    for row in range(begin, end):
        _words(base, words[row], row, len(words), 0, words.shape[2])


@compiled
def _product(values, x, bias, starts, indices, y, key, biased, half, limit, lanes, begin, end):  # type: ignore[no-untyped-def]
    outputs, batch = y.shape
    base = base_of(key[0], key[1])
    zero = x.dtype.type(0)
    words = np.empty((2, lanes * MOST), np.uint32)
    first_row, last_row = row_at(starts, begin), row_at(starts, end)
    for left in range(0, batch, lanes * MOST):
        right = min(left + lanes * MOST, batch)
        origin = min(left, right - lanes)  # the last vector may begin before the block
        count = (right - left + lanes - 1) // lanes
        for row in range(first_row, last_row):
            first, last = np.int64(starts[row]), np.int64(starts[row + 1])
            if first < last:
                _words(base, words, row, outputs, origin, right - origin)
            place = origin, row, batch, left, right, first, last, half, limit, lanes, count
            _row_sum(y, x, values, indices, words, bias[row] if biased else zero, place)


@compiled
def _grads(values, x, grad, starts, indices, permutation, by_values, by_x, words, half, limit, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    first_column, last_column = row_at(starts, begin), row_at(starts, end)
    for left in range(0, batch, lanes * BOTH):
        right = min(left + lanes * BOTH, batch)
        count = (right - left + lanes - 1) // lanes
        for column in range(first_column, last_column):
            first, last = np.int64(starts[column]), np.int64(starts[column + 1])
            place = column, batch, left, right, first, last, half, limit, lanes, count
            _column_grads(by_values, by_x, values, x, grad, permutation, indices, words, place)
