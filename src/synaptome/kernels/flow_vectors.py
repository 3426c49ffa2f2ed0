"""Products of small matrices with `[features, examples]`, and tanh, written in LLVM's own vectors.

A tile of the result, some rows by some vectors of examples, stays in registers while the features that it sums over go
by. Rows have a number of examples that is a multiple of every processor's vector.

`tanh x = e / (e + 2)` with `e = exp(2 |x|) - 1`, which needs no branch: with `2 |x| = n ln 2 + r`, n an integer, it is
`e = 2^n p + (2^n - 1)`, p being Taylor's polynomial of `exp(r) - 1`. Small numbers have n = 0 and lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from synaptome.kernels.vectors import CONTRACT, REGISTER_BYTES, Code, size_of

TANH, RELU = range(2)  # the activations
ROWS = (4, 1)  # of a tile, as many as there are left
VECTORS = (4, 1) if REGISTER_BYTES == 64 else (2, 1)  # of a tile: 16 of 32 registers, or 8 of 16
# By bytes of a number: ln 2 as a part whose products with small integers are exact and a rest, terms of the polynomial
# that leave less than a tenth of its last digit, and a number whose tanh rounds to 1.
LN2_HIGH = {4: 0.693359375, 8: 6.93147180369123816490e-01}
LN2_LOW = {4: -2.12194440054690582e-4, 8: 1.90821492927058781e-10}
TERMS = {4: 7, 8: 13}
LARGEST = {4: 10.0, 8: 20.0}


def _tiles(code: Code, count: Any, sizes: tuple[int, ...]) -> Iterator[tuple[Any, int]]:
    """Code that goes through `count` of something in pieces, the largest first: where each begins, and its size."""
    begin = code.integer(0)
    for size in sizes:
        end = code.build.sub(count, code.build.srem(code.build.sub(count, begin), code.integer(size)))
        with cgutils.for_range_slice(code.build, begin, end, code.integer(size)) as (first, _):
            yield first, size
        begin = end


@intrinsic
def _multiply(typing, result, kept, other, taken, matrix, transposed, source, added, plain, width, examples):  # type: ignore[no-untyped-def]
    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        result, kept, other, taken, matrix, transposed, source, added, plain, width, examples = code.operands
        lanes = REGISTER_BYTES // size_of(source)
        zero = ir.Constant(ir.VectorType(source.type.pointee, lanes), [0.0] * lanes)
        row_stride = build.select(transposed, code.integer(1), width)
        column_stride = build.select(transposed, width, code.integer(1))
        factors = [code.filled(factor, lanes) for factor in (kept, taken, added)]

        def finish(total: Any, target: Any, second: Any, offset: Any) -> Any:
            terms = code.vector(target, offset, lanes), code.vector(second, offset, lanes), total
            first, *rest = (build.fmul(f, t, flags=CONTRACT) for f, t in zip(factors, terms, strict=True))
            for term in rest:
                first = build.fadd(first, term, flags=CONTRACT)
            return first

        for first_row, many in _tiles(code, width, ROWS):
            rows = [build.add(first_row, code.integer(number)) for number in range(many)]
            starts = [build.gep(matrix, [build.mul(row, row_stride)]) for row in rows]
            for first_vector, vectors in _tiles(code, build.sdiv(examples, code.integer(lanes)), VECTORS):
                left = build.mul(first_vector, code.integer(lanes))
                offsets = [build.add(left, code.integer(lanes * number)) for number in range(vectors)]
                totals = [[cgutils.alloca_once_value(build, zero) for _ in offsets] for _ in rows]
                with cgutils.for_range(build, width) as loop:
                    inputs = code.row(source, loop.index, examples)
                    column = [code.vector(inputs, offset, lanes) for offset in offsets]
                    place = build.mul(loop.index, column_stride)
                    for start, of_row in zip(starts, totals, strict=True):
                        value = code.filled(build.load(build.gep(start, [place])), lanes)
                        for total, vector in zip(of_row, column, strict=True):
                            code.add_product(total, value, vector)
                with build.if_else(plain) as (alone, combined):
                    for part, epilogue in ((alone, lambda total, *_: total), (combined, finish)):
                        with part:
                            for row, of_row in zip(rows, totals, strict=True):
                                target, second = code.row(result, row, examples), code.row(other, row, examples)
                                for offset, total in zip(offsets, of_row, strict=True):
                                    vector = epilogue(build.load(total), target, second, offset)
                                    code.keep(vector, target, offset)
        return context.get_dummy_value()

    number = result.dtype
    kinds = result, number, other, number, matrix, types.boolean, source, number, types.boolean
    return types.void(*kinds, types.int64, types.int64), generate


@numba.njit
def multiply(result, matrix, transposed, source):  # type: ignore[no-untyped-def]
    """`result = matrix source`, `[width, examples]`, or with the matrix transposed."""
    one, (width, examples) = result.dtype.type(1), result.shape
    _multiply(result, one, result, one, matrix, transposed, source, one, True, width, examples)


@numba.njit
def combine(result, kept, other, taken, matrix, transposed, source, added):  # type: ignore[no-untyped-def]
    """`result = kept result + taken other + added matrix source`; the result may be the other, but not the source."""
    width, examples = result.shape
    _multiply(result, kept, other, taken, matrix, transposed, source, added, False, width, examples)


@intrinsic
def _activate(typing, sums, bias, kind, width, examples):  # type: ignore[no-untyped-def]
    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        sums, bias, kind, width, examples = code.operands
        lanes = REGISTER_BYTES // size_of(sums)
        for number, function in ((TANH, tanh), (RELU, _relu)):
            asked = build.icmp_signed("==", kind, code.integer(number))
            with build.if_then(asked), cgutils.for_range(build, width) as loop:
                start = code.filled(build.load(build.gep(bias, [loop.index])), lanes)
                row = code.row(sums, loop.index, examples)
                with cgutils.for_range_slice(build, code.integer(0), examples, code.integer(lanes)) as (offset, _):
                    code.keep(function(code, build.fadd(code.vector(row, offset, lanes), start)), row, offset)
        return context.get_dummy_value()

    return types.void(sums, bias, types.int64, types.int64, types.int64), generate


@numba.njit
def activate(sums, bias, kind):  # type: ignore[no-untyped-def]
    """`sums = activation(sums + bias)`, `[width, examples]`."""
    _activate(sums, bias, kind, sums.shape[0], sums.shape[1])


@intrinsic
def _correlate(typing, result, factor, left, right, rows, columns, examples):  # type: ignore[no-untyped-def]
    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        result, factor, left, right, rows, columns, examples = code.operands
        lanes = REGISTER_BYTES // size_of(left)
        zero = ir.Constant(ir.VectorType(left.type.pointee, lanes), [0.0] * lanes)
        for first_row, many in _tiles(code, rows, ROWS):
            for first_column, wide in _tiles(code, columns, VECTORS):
                lefts = [code.row(left, build.add(first_row, code.integer(n)), examples) for n in range(many)]
                rights = [code.row(right, build.add(first_column, code.integer(n)), examples) for n in range(wide)]
                totals = [cgutils.alloca_once_value(build, zero) for _ in range(many * wide)]
                with cgutils.for_range_slice(build, code.integer(0), examples, code.integer(lanes)) as (offset, _):
                    vectors = [code.vector(row, offset, lanes) for row in rights]
                    for number, row in enumerate(lefts):
                        vector = code.vector(row, offset, lanes)
                        for total, other in zip(totals[number * wide :], vectors, strict=False):
                            code.add_product(total, vector, other)
                sums = code.lane_sums([build.load(total) for total in totals])
                together = min(wide, sums[0].type.count)
                for number in range(0, many * wide, together):
                    vector, lane = divmod(number, sums[0].type.count)
                    part = code.shuffled(sums[vector], sums[vector], list(range(lane, lane + together)))
                    row = code.row(result, build.add(first_row, code.integer(number // wide)), columns)
                    place = build.add(first_column, code.integer(number % wide))
                    scaled = build.fmul(part, code.filled(factor, together), flags=CONTRACT)
                    code.keep(build.fadd(code.vector(row, place, together), scaled, flags=CONTRACT), row, place)
        return context.get_dummy_value()

    return types.void(result, result.dtype, left, right, *(types.int64,) * 3), generate


@numba.njit
def correlate(result, factor, left, right):  # type: ignore[no-untyped-def]
    """`result += factor left right'`: `[rows, columns]` of `[rows, examples]` and `[columns, examples]`."""
    _correlate(result, factor, left, right, len(left), len(right), left.shape[1])


def _relu(code: Code, x: Any) -> Any:
    zero = ir.Constant(x.type, [0.0] * x.type.count)
    return code.build.select(code.build.fcmp_ordered("<", x, zero), zero, x)  # keeps what is no number


def tanh(code: Code, x: Any) -> Any:
    """The hyperbolic tangent of each lane; see above."""
    build, lanes = code.build, x.type.count
    size = 4 if isinstance(x.type.element, ir.FloatType) else 8
    digits, exponent_bias = (23, 127) if size == 4 else (52, 1023)
    integers = ir.VectorType(ir.IntType(8 * size), lanes)

    def number(value: float) -> Any:
        return ir.Constant(x.type, [value] * lanes)

    def integer(value: int) -> Any:
        return ir.Constant(integers, [value] * lanes)

    def multiply_add(a: Any, b: Any, c: Any) -> Any:
        return build.fadd(build.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)

    bits, sign_bit = build.bitcast(x, integers), integer(1 << (8 * size - 1))
    sign = build.and_(bits, sign_bit)
    size_of_x = build.bitcast(build.xor(bits, sign), x.type)
    large = build.fcmp_ordered(">", size_of_x, number(LARGEST[size]))  # never of what is no number, which stays
    clipped = build.select(large, number(LARGEST[size]), size_of_x)
    doubled = build.fadd(clipped, clipped)
    # The sum's last digit counts ones, so that it is rounded to n, which its lowest bits then hold.
    ones = number(1.5 * 2**digits)
    shifted = multiply_add(doubled, number(1 / math.log(2)), ones)
    n = build.fsub(shifted, ones)
    r = multiply_add(n, number(-LN2_HIGH[size]), doubled)
    r = multiply_add(n, number(-LN2_LOW[size]), r)
    exponent = build.add(build.bitcast(shifted, integers), integer(exponent_bias))
    power = build.bitcast(build.shl(exponent, integer(digits)), x.type)  # 2^n
    terms = number(1 / math.factorial(TERMS[size]))
    for k in range(TERMS[size] - 1, 1, -1):
        terms = multiply_add(terms, r, number(1 / math.factorial(k)))
    p = multiply_add(build.fmul(r, r), terms, r)
    e = multiply_add(power, p, build.fsub(power, number(1.0)))
    result = build.fdiv(e, build.fadd(e, number(2.0)))
    return build.bitcast(build.or_(build.bitcast(result, integers), sign), x.type)
