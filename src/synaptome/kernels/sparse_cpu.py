"""Sparse products on the CPU, by Numba.

The inner loops are LLVM vectors written out (`_row_sum`, `dots`): a block of an output row, or the sums of several
connections, stays in registers while the connections go by, and each connection costs one multiply-add for each vector
of activations that it reads. Numba's own vectorised loops would load and store the sums for every few connections, and
take vectors of half the processor's width. A batch that is no multiple of a vector ends in one that overlaps the one
before. Blocks of eight vectors keep the activations that a pass over the connections reads small enough for the
second-level cache; narrower blocks gained nothing on larger layers.

Threads take ranges of rows with equal numbers of connections. Each number is summed by one thread in one order, so the
bits do not depend on the number of threads.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.threads import in_threads
from synaptome.kernels.vectors import BOTH, CONTRACT, MOST, REGISTER_BYTES, TOGETHER, Code


def spmm(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor) -> Tensor:
    """`W x + bias`: `[in, batch]` to `[out, batch]`, in float32 or float64."""
    y = x.new_empty(crow.shape[0] - 1, x.shape[1])
    _run(_spmm, x, crow, col, (values, x, values if bias is None else bias, crow, col, col, y), bias is not None, False)
    return y


def input_grad(values: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor) -> Tensor:
    """`W' grad`: `[out, batch]` to `[in, batch]`."""
    by_x = grad.new_empty(ccol.shape[0] - 1, grad.shape[1])
    _run(_spmm, grad, ccol, row, (values, grad, values, ccol, row, permutation, by_x), False, True)
    return by_x


def sddmm(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """`grad x'` at the connections: `[out, batch]` and `[in, batch]` to `[nnz]`."""
    by_values = grad.new_zeros(col.shape[0])
    _run(_sddmm, x, crow, col, (grad, x, crow, col, by_values))
    return by_values


def grads(
    values: Tensor, x: Tensor, grad: Tensor, ccol: Tensor, row: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor]:
    """`sddmm` and `input_grad` in one pass: `[nnz]` and `[in, batch]`."""
    by_values, by_x = grad.new_zeros(row.shape[0]), x.new_empty(x.shape)
    _run(_grads, x, ccol, row, (values, x, grad, ccol, row, permutation, by_values, by_x))
    return by_values, by_x


def _run(
    kernel: Callable[..., None], x: Tensor, starts: Tensor, indices: Tensor, operands: tuple[Tensor, ...], *flags: bool
) -> None:
    """Call `kernel(*operands, *flags, lanes, start, stop)` over all units: a unit is a row or a connection."""
    arrays = [(o.detach() if o.requires_grad else o).contiguous().numpy() for o in operands]
    nnz, batch = indices.shape[0], x.shape[1]
    lanes = REGISTER_BYTES // x.element_size()
    lanes = lanes if batch >= lanes else 1
    units = nnz + starts.shape[0] - 1
    in_threads(lambda start, stop: kernel(*arrays, *flags, lanes, start, stop), units, nnz * batch)


def _row_sum(permuted: bool) -> Any:
    """`y[row, left:right] = start + Σ_k values[k] x[indices[k], left:right]`, or with `values[permutation[k]]`."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        y, x, values, permutation, indices, row, batch, left, right, first, last, start, lanes, vectors = code.operands
        target = code.row(y, row, batch)
        for width, many in code.variants(x, lanes, vectors):
            offsets = [build.add(left, code.integer(width * vector)) for vector in range(many - 1)]
            offsets.append(build.sub(right, code.integer(width)))
            totals = [cgutils.alloca_once_value(build, code.filled(start, width)) for _ in offsets]
            with cgutils.for_range(build, last, first) as loop:
                place = code.index(permutation, loop.index) if permuted else loop.index
                value = code.filled(build.load(build.gep(values, [place])), width)
                source = code.row(x, code.index(indices, loop.index), batch)
                for total, offset in zip(totals, offsets, strict=True):
                    code.add_product(total, value, code.vector(source, offset, width))
            for total, offset in zip(totals, offsets, strict=True):
                code.keep(build.load(total), target, offset)
        return context.get_dummy_value()

    def row_sum(  # type: ignore[no-untyped-def]
        typing, y, x, values, permutation, indices, row, batch, left, right, first, last, start, lanes, vectors
    ):
        integers = (types.int64,) * 6
        return types.void(y, x, values, permutation, indices, *integers, x.dtype, types.int64, types.int64), generate

    return intrinsic(row_sum)


plain_row_sum, permuted_row_sum = _row_sum(permuted=False), _row_sum(permuted=True)


@intrinsic
def dots(typing, by_values, grad, x, indices, row, batch, left, right, first, lanes, connections):  # type: ignore[no-untyped-def]
    """`by_values[k] += Σ_b grad[row, b] x[indices[k], b]` over b from left to right, for the connections from first."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        by_values, grad, x, indices, row, batch, left, right, first, lanes, connections = code.operands
        grads = code.row(grad, row, batch)
        for width, many in code.variants(x, lanes, connections):
            places = [build.add(first, code.integer(number)) for number in range(many)]
            inputs = [code.row(x, code.index(indices, place), batch) for place in places]
            zero = ir.Constant(ir.VectorType(x.type.pointee, width), [0.0] * width)
            totals = [cgutils.alloca_once_value(build, zero) for _ in places]
            rest = build.srem(build.sub(right, left), code.integer(width))
            with cgutils.for_range_slice(build, left, build.sub(right, rest), code.integer(width)) as (offset, _):
                factor = code.vector(grads, offset, width)
                for total, activations in zip(totals, inputs, strict=True):
                    code.add_product(total, factor, code.vector(activations, offset, width))
            with build.if_then(build.icmp_signed(">", rest, code.integer(0))):
                # The last vector overlaps the one before: lanes that were counted become zeros.
                offset = build.sub(right, code.integer(width))
                fresh = code.lanes_from(build.sub(code.integer(width), rest), width)
                factor = build.select(fresh, code.vector(grads, offset, width), zero)
                for total, activations in zip(totals, inputs, strict=True):
                    code.add_product(total, factor, build.select(fresh, code.vector(activations, offset, width), zero))
            sums = [build.load(total) for total in totals]
            sums += sums[-1:] * ((1 << (many - 1).bit_length()) - many)  # to a power of two; these are not stored
            stored = 0
            for vector in code.lane_sums(sums):
                left_over = min(vector.type.count, many - stored)
                whole = left_over == vector.type.count
                for part in [vector] if whole else [code.shuffled(vector, vector, [i]) for i in range(left_over)]:
                    place, size = build.add(first, code.integer(stored)), part.type.count
                    code.keep(build.fadd(code.vector(by_values, place, size), part), by_values, place)
                    stored += size
        return context.get_dummy_value()

    return types.void(by_values, grad, x, indices, *(types.int64,) * 7), generate


@intrinsic
def _column_grads(  # type: ignore[no-untyped-def]
    typing, by_values, by_x, values, x, grad, permutation, indices, column, batch, left, right, first, last, lanes, many
):
    """Both gradients of one column, for b from left to right, where k goes from first to last and p = permutation[k].

    `by_x[column, b] = Σ_k values[p] grad[indices[k], b]`, and `by_values[p] += Σ_b grad[indices[k], b] x[column, b]`.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        by_values, by_x, values, x, grad, permutation, indices, column, batch, *bounds = code.operands
        left, right, first, last, lanes, many = bounds
        target, inputs = code.row(by_x, column, batch), code.row(x, column, batch)

        def gather(start: Any, count: int, offsets: list[Any], totals: list[Any], factors: list[Any]) -> None:
            """What some connections, from `start` on, add to the totals, and the sums of their products with x."""
            width = factors[0].type.count
            places, dots = [], []
            for at in [build.add(start, code.integer(number)) for number in range(count)]:
                places.append(code.index(permutation, at))
                value = code.filled(build.load(build.gep(values, [places[-1]])), width)
                source = code.row(grad, code.index(indices, at), batch)
                dot = None
                for total, factor, offset in zip(totals, factors, offsets, strict=True):
                    vector = code.vector(source, offset, width)
                    code.add_product(total, value, vector)
                    product = build.fmul(vector, factor, flags=CONTRACT)
                    dot = product if dot is None else build.fadd(dot, product, flags=CONTRACT)
                dots.append(dot)
            sums = code.lane_sums(dots)
            for number, place in enumerate(places):
                vector, lane = divmod(number, sums[0].type.count)
                dot = build.extract_element(sums[vector], ir.Constant(ir.IntType(32), lane))
                pointer = build.gep(by_values, [place])
                build.store(build.fadd(build.load(pointer), dot), pointer)

        for width, vectors in code.variants(x, lanes, many, BOTH):
            offsets = [build.add(left, code.integer(width * vector)) for vector in range(vectors - 1)]
            offsets.append(build.sub(right, code.integer(width)))
            factors = [code.vector(inputs, offset, width) for offset in offsets]
            zero = ir.Constant(factors[0].type, [0.0] * width)
            # The last vector overlaps the one before: lanes that were counted become zeros.
            counted = build.sub(code.integer(width * vectors), build.sub(right, left))
            factors[-1] = build.select(code.lanes_from(counted, width), factors[-1], zero)
            totals = [cgutils.alloca_once_value(build, zero) for _ in offsets]
            whole = build.sub(last, build.srem(build.sub(last, first), code.integer(TOGETHER)))
            for begin, end, count in ((first, whole, TOGETHER), (whole, last, 1)):
                with cgutils.for_range_slice(build, begin, end, code.integer(count)) as (start, _):
                    gather(start, count, offsets, totals, factors)
            for total, offset in zip(totals, offsets, strict=True):
                code.keep(build.load(total), target, offset)
        return context.get_dummy_value()

    return types.void(by_values, by_x, values, x, grad, permutation, indices, *(types.int64,) * 8), generate


@numba.njit(inline="always")
def row_at(starts, unit):  # type: ignore[no-untyped-def]
    """The first row before which there are at least so many rows and connections."""
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if starts[middle] + middle < unit:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _spmm(values, x, bias, starts, indices, permutation, y, biased, permuted, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    zero = x.dtype.type(0)
    first_row, last_row = row_at(starts, begin), row_at(starts, end)
    for left in range(0, batch, lanes * MOST):
        right = min(left + lanes * MOST, batch)
        count = (right - left + lanes - 1) // lanes
        for row in range(first_row, last_row):
            start = bias[row] if biased else zero
            place = row, batch, left, right, starts[row], starts[row + 1], start, lanes, count
            if permuted:
                permuted_row_sum(y, x, values, permutation, indices, *place)
            else:
                plain_row_sum(y, x, values, permutation, indices, *place)


@compiled
def _grads(values, x, grad, starts, indices, permutation, by_values, by_x, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    first_column, last_column = row_at(starts, begin), row_at(starts, end)
    for left in range(0, batch, lanes * BOTH):
        right = min(left + lanes * BOTH, batch)
        count = (right - left + lanes - 1) // lanes
        for column in range(first_column, last_column):
            place = column, batch, left, right, starts[column], starts[column + 1], lanes, count
            _column_grads(by_values, by_x, values, x, grad, permutation, indices, *place)


@compiled
def _sddmm(grad, x, starts, indices, by_values, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    first_row, last_row = row_at(starts, begin), row_at(starts, end)
    for left in range(0, batch, lanes * MOST):
        right = min(left + lanes * MOST, batch)
        for row in range(first_row, last_row):
            last = starts[row + 1]
            for first in range(starts[row], last, MOST):
                dots(by_values, grad, x, indices, row, batch, left, right, first, lanes, min(MOST, last - first))
