"""Vectors of the processor, written in LLVM's own instructions, for the kernels whose sums must stay in registers.

Imported with the first CPU kernel that is written so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import types
from numba.extending import intrinsic

_FEATURES = get_host_cpu_features()
REGISTER_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
MOST = 8  # vectors of a block, and connections whose sums are taken at once: they fit into 16 registers
# The same where both gradients are summed: two registers for each vector, one for each connection. Wide ones are 32.
BOTH, TOGETHER = MOST if REGISTER_BYTES == 64 else MOST // 2, 4
CONTRACT = ("contract",)  # a product and a sum may become one instruction


class Code:
    """Writes vector instructions. Offsets count the numbers, or indices, that a pointer points to."""

    def __init__(self, context: Any, build: Any, signature: Any, arguments: Any) -> None:
        self.build = build
        self.operands = [
            context.make_array(kind)(context, build, argument).data if isinstance(kind, types.Array) else argument
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]

    def integer(self, value: int) -> Any:
        """A 64-bit number."""
        return ir.Constant(ir.IntType(64), value)

    def index(self, pointer: Any, offset: Any) -> Any:
        """The index there, in 64 bits."""
        return self.build.sext(self.build.load(self.build.gep(pointer, [offset])), ir.IntType(64))

    def row(self, matrix: Any, row: Any, length: Any) -> Any:
        """Where a row of a matrix begins."""
        return self.build.gep(matrix, [self.build.mul(row, length)])

    def vector(self, pointer: Any, offset: Any, lanes: int) -> Any:
        """The vector there."""
        return self.build.load(self._place(pointer, offset, lanes), align=size_of(pointer))

    def keep(self, vector: Any, pointer: Any, offset: Any) -> None:
        """Store the vector there."""
        self.build.store(vector, self._place(pointer, offset, vector.type.count), align=size_of(pointer))

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

    def lanes_from(self, first: Any, lanes: int) -> Any:
        """Which lanes of a vector are not before the first."""
        numbers = ir.Constant(ir.VectorType(ir.IntType(64), lanes), list(range(lanes)))
        return self.build.icmp_signed(">=", numbers, self.filled(first, lanes))

    def variants(self, pointer: Any, lanes: Any, count: Any, most: int = MOST) -> Iterator[tuple[int, int]]:
        """Code for all numbers of lanes, and of vectors or connections, that a call may ask for."""
        for wide in (REGISTER_BYTES // size_of(pointer), 1):
            for many in range(1, most + 1):
                same = [
                    self.build.icmp_signed("==", asked, self.integer(number))
                    for asked, number in ((lanes, wide), (count, many))
                ]
                with self.build.if_then(self.build.and_(*same)):
                    yield wide, many


def size_of(pointer: Any) -> int:
    """Bytes of the numbers that a pointer points to."""
    return 4 if isinstance(pointer.type.pointee, ir.FloatType) else 8


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to numbers of the type of another."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer  # type: ignore[attr-defined]  # which Numba adds as it loads
    return pointer(like)(address, like), generate


@numba.njit(inline="always")
def numbers_at(address, size, like):  # type: ignore[no-untyped-def]
    """The array of `size` numbers, of the type of another number, at the address of a tensor's data.

    To make arrays of the tensors of a small layer would take longer than its kernel does.
    """
    return numba.carray(_pointer(address, like), size)
