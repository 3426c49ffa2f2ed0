"""Sparse products on the CPU, by Numba.

The inner loops are LLVM vectors written out (`_row_sum`, `_dots`): a block of an output row, or the sums of several
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

from collections.abc import Callable, Iterator
from typing import Any

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from synaptome.kernels.threads import in_threads

_FEATURES = get_host_cpu_features()
REGISTER_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
MOST = 8  # vectors of a block, and connections whose sums are taken at once: they fit into 16 registers
CONTRACT = ("contract",)  # a product and a sum may become one instruction


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


def _compiled(function: Callable[..., None]) -> Any:
    """Compiled without the interpreter's lock; kept on disk, or only in memory where no folder can be written."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)


class _Code:
    """Writes vector instructions. Offsets count the numbers, or indices, that a pointer points to."""

    def __init__(self, context: Any, build: Any, signature: Any, arguments: Any) -> None:
        self.build = build
        self.operands = [
            context.make_array(kind)(context, build, argument).data if isinstance(kind, types.Array) else argument
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]

    def integer(self, value: int) -> Any:
        return ir.Constant(ir.IntType(64), value)

    def index(self, pointer: Any, offset: Any) -> Any:
        """The index there, in 64 bits."""
        return self.build.sext(self.build.load(self.build.gep(pointer, [offset])), ir.IntType(64))

    def row(self, matrix: Any, row: Any, length: Any) -> Any:
        """Where a row of a matrix begins."""
        return self.build.gep(matrix, [self.build.mul(row, length)])

    def vector(self, pointer: Any, offset: Any, lanes: int) -> Any:
        """The vector there."""
        return self.build.load(self._place(pointer, offset, lanes), align=_bytes(pointer))

    def keep(self, vector: Any, pointer: Any, offset: Any) -> None:
        """Store the vector there."""
        self.build.store(vector, self._place(pointer, offset, vector.type.count), align=_bytes(pointer))

    def _place(self, pointer: Any, offset: Any, lanes: int) -> Any:
        kind = ir.VectorType(pointer.type.pointee, lanes)
        return self.build.bitcast(self.build.gep(pointer, [offset]), kind.as_pointer())

    def filled(self, number: Any, lanes: int) -> Any:
        """A vector of one number."""
        kind = ir.VectorType(number.type, lanes)
        first = self.build.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        return self.shuffled(first, first, [0] * lanes)

    def shuffled(self, first: Any, second: Any, lanes: list[int]) -> Any:
        """A vector of the given lanes of two, counted through both."""
        kind = ir.VectorType(ir.IntType(32), len(lanes))
        return self.build.shuffle_vector(first, second, ir.Constant(kind, lanes))

    def add_product(self, total: Any, first: Any, second: Any) -> None:
        """`total += first * second`; the total becomes a register."""
        product = self.build.fmul(first, second, flags=CONTRACT)
        self.build.store(self.build.fadd(self.build.load(total), product, flags=CONTRACT), total)

    def lane_sums(self, vectors: list[Any]) -> list[Any]:
        """Vectors of the sums over the lanes of each of some vectors, whose number is a power of two.

        The halves of two vectors are added at once, so that a shuffle serves several sums.
        """
        segment = vectors[0].type.count  # each sum is spread over so many neighbouring lanes
        while segment > 1:
            pairs = [vectors] if len(vectors) == 1 else [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
            lanes = range(vectors[0].type.count * len(pairs[0]))
            low = [lane for lane in lanes if lane % segment < segment // 2]
            high = [lane for lane in lanes if lane % segment >= segment // 2]
            vectors = [
                self.build.fadd(self.shuffled(pair[0], pair[-1], low), self.shuffled(pair[0], pair[-1], high))
                for pair in pairs
            ]
            segment //= 2
        return vectors

    def variants(self, pointer: Any, lanes: Any, count: Any) -> Iterator[tuple[int, int]]:
        """Code for all numbers of lanes, and of vectors or connections, that a call may ask for."""
        for wide in (REGISTER_BYTES // _bytes(pointer), 1):
            for many in range(1, MOST + 1):
                same = [
                    self.build.icmp_signed("==", asked, self.integer(number))
                    for asked, number in ((lanes, wide), (count, many))
                ]
                with self.build.if_then(self.build.and_(*same)):
                    yield wide, many


def _bytes(pointer: Any) -> int:
    return 4 if isinstance(pointer.type.pointee, ir.FloatType) else 8


def _row_sum(permuted: bool) -> Any:
    """`y[row, left:right] = start + Σ_k values[k] x[indices[k], left:right]`, or with `values[permutation[k]]`."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, build, signature, arguments)
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


_plain_row_sum, _permuted_row_sum = _row_sum(permuted=False), _row_sum(permuted=True)


@intrinsic
def _dots(typing, by_values, grad, x, indices, row, batch, left, right, first, lanes, connections):  # type: ignore[no-untyped-def]
    """`by_values[k] += Σ_b grad[row, b] x[indices[k], b]` over b from left to right, for the connections from first."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, build, signature, arguments)
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
                numbers = ir.Constant(ir.VectorType(ir.IntType(64), width), list(range(width)))
                counted = code.filled(build.sub(code.integer(width), rest), width)
                fresh = build.icmp_signed(">=", numbers, counted)
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


@numba.njit(inline="always")
def _row_at(starts, unit):  # type: ignore[no-untyped-def]
    """The first row before which there are at least so many rows and connections."""
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if starts[middle] + middle < unit:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def _spmm(values, x, bias, starts, indices, permutation, y, biased, permuted, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    zero = x.dtype.type(0)
    first_row, last_row = _row_at(starts, begin), _row_at(starts, end)
    for left in range(0, batch, lanes * MOST):
        right = min(left + lanes * MOST, batch)
        count = (right - left + lanes - 1) // lanes
        for row in range(first_row, last_row):
            start = bias[row] if biased else zero
            place = row, batch, left, right, starts[row], starts[row + 1], start, lanes, count
            if permuted:
                _permuted_row_sum(y, x, values, permutation, indices, *place)
            else:
                _plain_row_sum(y, x, values, permutation, indices, *place)


@_compiled
def _sddmm(grad, x, starts, indices, by_values, lanes, begin, end):  # type: ignore[no-untyped-def]
    batch = x.shape[1]
    first_row, last_row = _row_at(starts, begin), _row_at(starts, end)
    for left in range(0, batch, lanes * MOST):
        right = min(left + lanes * MOST, batch)
        for row in range(first_row, last_row):
            last = starts[row + 1]
            for first in range(starts[row], last, MOST):
                _dots(by_values, grad, x, indices, row, batch, left, right, first, lanes, min(MOST, last - first))
