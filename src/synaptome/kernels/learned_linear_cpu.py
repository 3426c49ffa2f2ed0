"""The product with learned weights on the CPU: `x (W ∘ f(s))'`, where rows of `W ∘ f(s)` are made as they are needed.

Some rows stay in the first-level cache while all examples go by, and the sums in registers. What is multiplied stands
in memory only if it is drawn, or if the gradient by x asks for it. The gradient by the scores is another such product,
which multiplies its sums by W and the slope before it stores them. Sums are taken in an order of their own, the same
for any number of threads.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor
from torch.nn import functional as F

from synaptome.kernels import threads
from synaptome.kernels.backends import implements
from synaptome.kernels.compiled import compiled
from synaptome.kernels.learned_linear import by_operations
from synaptome.kernels.learned_weight_cpu import (
    DRAWN,
    NUMBERS,
    POSITIVE,
    count_signs,
    gate,
    gate_part,
    mask_sum,
    plan,
)
from synaptome.kernels.vectors import REGISTER_BYTES, Code, numbers_at, size_of

ROWS = 4  # of the weight that are multiplied together
# Examples, or vectors of the gradient, that they are multiplied with: 16 of 32 registers, or 8 of 16; the rest singly.
MANY = (4, 1) if REGISTER_BYTES == 64 else (2, 1)
RESIDENT = 2**19  # bytes of examples that stay in the second-level cache; with more, torch's product is faster
LEAST = REGISTER_BYTES // 4  # inputs that fill a vector
STRAIGHT, SLOPES = 0, {"top": 1, "bernoulli": 2}  # what g'(s) is: 1, or by rule


@implements("learned_linear", "cpu")
def product(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    rule: str,
    amount: float,
    key: Tensor | None,
    keep: bool,
    count: bool,
) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """See `synaptome.kernels.learned_linear.multiplied`; `W ∘ f(s)` comes along only if it is to be kept."""
    outputs, inputs = weight.shape
    if not _worthwhile(x, weight):
        gated, kept = gate(weight, scores, rule, amount, key)
        return F.linear(x, gated, bias), gated, kept, mask_sum(scores, rule) if count else 0
    w, s, rows = weight.contiguous(), scores.contiguous(), x.contiguous()
    step, number, excess = plan(s, rule, amount)
    given = step == DRAWN or excess > 0
    matrix, kept = torch.empty_like(w) if keep else None, scores
    if given:
        matrix, kept = gate(w, s, rule, amount, key)
    y = x.new_empty(len(x), outputs)
    places = w.data_ptr(), s.data_ptr(), 0 if matrix is None else matrix.data_ptr(), rows.data_ptr(), y.data_ptr()
    operands = (-1 if given else step, *places, number, len(x), inputs, outputs, count)
    sums: list[int] = []
    parts, work = -(-outputs // ROWS), len(x) * w.numel()
    threads.in_threads(lambda start, stop: sums.append(_product(*operands, start, stop)), parts, work)
    return y if bias is None else y.add_(bias), matrix, kept, sum(sums)


@implements("learned_linear_grad", "cpu")
def gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    kept: Tensor,
    rule: str,
    by_sum: Tensor | None,
    factor: float,
) -> Tensor:
    """See `synaptome.kernels.learned_linear.by_operations`."""
    outputs, inputs = weight.shape
    if not _worthwhile(x, weight):
        return by_operations(grad, x, weight, scores, kept, rule, by_sum, factor)
    w, p, rows, columns = weight.contiguous(), kept.contiguous(), grad.contiguous(), x.contiguous()
    result, number = torch.empty_like(w), NUMBERS[w.dtype](0 if by_sum is None else by_sum.item() * factor)
    places = w.data_ptr(), p.data_ptr(), rows.data_ptr(), columns.data_ptr(), result.data_ptr()
    operands = (SLOPES.get(rule, STRAIGHT), *places, number, len(x), inputs, outputs)
    threads.in_threads(lambda start, stop: _gradient(*operands, start, stop), -(-outputs // ROWS), len(x) * w.numel())
    return result


def _worthwhile(x: Tensor, weight: Tensor) -> bool:
    return weight.shape[0] >= ROWS and weight.shape[1] >= LEAST and x.nbytes <= RESIDENT


@compiled
def _product(step, weight, scores, gated, x, y, number, batch, inputs, outputs, count, first, last):  # type: ignore[no-untyped-def]
    """Tiles of ROWS outputs from the first on, until the last; where the step is negative, `W ∘ f(s)` is given.

    Returns the sum of f(s), of positive scores or of signs, if it is asked for; else 0.
    """
    total = 0
    examples, results = numbers_at(x, batch * inputs, number), numbers_at(y, batch * outputs, number)
    size = ROWS * inputs
    scratch = np.empty(size if gated == 0 else 0, examples.dtype)
    for tile in range(first, last):
        row = min(tile * ROWS, outputs - ROWS)  # of the last tile some may be made once more
        begin = row * inputs * examples.itemsize
        place = np.int64(scratch.ctypes.data) if gated == 0 else gated + begin
        if step >= 0:
            gate_part(step, weight + begin, scores + begin, place, number, 0, size)
        _multiply(numbers_at(place, size, number), examples, results, row, outputs, batch, inputs)
        if count:
            new = min(ROWS, outputs - tile * ROWS) * inputs
            positive, negative = count_signs(scores + tile * size * examples.itemsize, new, number)
            total += positive if step == POSITIVE else new - 2 * negative
    return total


@intrinsic
def _multiply(typing, rows, examples, results, first, outputs, batch, inputs):  # type: ignore[no-untyped-def]
    """`results[b, first + r] = rows[r] . examples[b]` for ROWS rows."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        rows, examples, results, first, outputs, batch, inputs = code.operands
        lanes = REGISTER_BYTES // size_of(rows)
        zero = ir.Constant(ir.VectorType(rows.type.pointee, lanes), [0.0] * lanes)
        weights = [code.row(rows, code.integer(number), inputs) for number in range(ROWS)]
        left = build.srem(inputs, code.integer(lanes))
        whole, last = build.sub(inputs, left), build.sub(inputs, code.integer(lanes))
        new = code.lanes_from(build.sub(code.integer(lanes), left), lanes)  # of the last vector, of which some are done

        def add(offset: Any, totals: list[list[Any]], sources: list[Any], part: Any = None) -> None:
            def loaded(pointer: Any) -> Any:
                vector = code.vector(pointer, offset, lanes)
                return vector if part is None else build.select(part, vector, zero)

            factors = [loaded(pointer) for pointer in weights]
            for source, of_example in zip(sources, totals, strict=True):
                vector = loaded(source)
                for total, factor in zip(of_example, factors, strict=True):
                    code.add_product(total, factor, vector)

        begin = code.integer(0)
        for many in MANY:
            end = build.sub(batch, build.srem(build.sub(batch, begin), code.integer(many)))
            with cgutils.for_range_slice(build, begin, end, code.integer(many)) as (example, _):
                numbers = [build.add(example, code.integer(number)) for number in range(many)]
                sources = [code.row(examples, number, inputs) for number in numbers]
                totals = [[cgutils.alloca_once_value(build, zero) for _ in weights] for _ in sources]
                with cgutils.for_range_slice(build, code.integer(0), whole, code.integer(lanes)) as (offset, _):
                    add(offset, totals, sources)
                with build.if_then(build.icmp_signed("!=", left, code.integer(0))):
                    add(last, totals, sources, new)
                sums = code.lane_sums([build.load(total) for of_example in totals for total in of_example])
                together = min(ROWS, sums[0].type.count)
                for number in range(0, many * ROWS, together):
                    vector, lane = divmod(number, sums[0].type.count)
                    part = code.shuffled(sums[vector], sums[vector], list(range(lane, lane + together)))
                    row = code.row(results, numbers[number // ROWS], outputs)
                    code.keep(part, row, build.add(first, code.integer(number % ROWS)))
            begin = end
        return context.get_dummy_value()

    return types.void(rows, examples, results, *(types.int64,) * 4), generate


@compiled
def _gradient(slope, weight, kept, grad, x, result, added, batch, inputs, outputs, first, last):  # type: ignore[no-untyped-def]
    """Tiles of ROWS outputs of the gradient by the scores, from the first on, until the last."""
    w, p = numbers_at(weight, outputs * inputs, added), numbers_at(kept, outputs * inputs, added)
    g, examples = numbers_at(grad, batch * outputs, added), numbers_at(x, batch * inputs, added)
    y = numbers_at(result, outputs * inputs, added)
    for tile in range(first, last):
        row = min(tile * ROWS, outputs - ROWS)  # of the last tile some may be made once more
        _correlate(slope, w, p, g, examples, y, added, row, outputs, batch, inputs)


@intrinsic
def _correlate(typing, slope, weight, kept, grad, examples, result, added, first, outputs, batch, inputs):  # type: ignore[no-untyped-def]
    """ROWS rows of the result from the first on: `Σ_b grad[b, row] examples[b]`, times W and slope, plus `added`."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        slope, weight, kept, grad, examples, result, added, first, outputs, batch, inputs = code.operands
        lanes = REGISTER_BYTES // size_of(weight)
        kind = ir.VectorType(weight.type.pointee, lanes)
        zero, one = (ir.Constant(kind, [number] * lanes) for number in (0.0, 1.0))
        rows = [build.mul(build.add(first, code.integer(number)), inputs) for number in range(ROWS)]
        addend = code.filled(added, lanes)

        def finish(total: Any, place: Any) -> None:
            straight = build.fmul(total, code.vector(weight, place, lanes))
            with build.if_then(build.icmp_signed("==", slope, code.integer(STRAIGHT))):
                code.keep(build.fadd(straight, addend), result, place)
            with build.if_then(build.icmp_signed("==", slope, code.integer(SLOPES["top"]))):
                s = code.vector(kept, place, lanes)
                negated = build.select(build.fcmp_ordered("<", s, zero), build.fneg(straight), zero)
                code.keep(build.select(build.fcmp_ordered(">", s, zero), straight, negated), result, place)
            with build.if_then(build.icmp_signed("==", slope, code.integer(SLOPES["bernoulli"]))):
                p = code.vector(kept, place, lanes)  # in the order of torch's gradient of the sigmoid
                code.keep(build.fmul(build.fmul(straight, build.fsub(one, p)), p), result, place)

        def columns(begin: Any, many: int) -> None:
            """As many vectors of all rows from a column on."""
            offsets = [build.add(begin, code.integer(lanes * number)) for number in range(many)]
            totals = [[cgutils.alloca_once_value(build, zero) for _ in offsets] for _ in rows]
            with cgutils.for_range(build, batch) as loop:
                start = code.row(examples, loop.index, inputs)
                vectors = [code.vector(start, offset, lanes) for offset in offsets]
                place = build.gep(code.row(grad, loop.index, outputs), [first])
                for number, of_row in enumerate(totals):
                    factor = code.filled(build.load(build.gep(place, [code.integer(number)])), lanes)
                    for total, vector in zip(of_row, vectors, strict=True):
                        code.add_product(total, factor, vector)
            for row, of_row in zip(rows, totals, strict=True):
                for offset, total in zip(offsets, of_row, strict=True):
                    finish(build.load(total), build.add(row, offset))

        begin = code.integer(0)
        for many in MANY:
            width = code.integer(lanes * many)
            end = build.sub(inputs, build.srem(build.sub(inputs, begin), width))
            with cgutils.for_range_slice(build, begin, end, width) as (column, _):
                columns(column, many)
            begin = end
        with build.if_then(build.icmp_signed("<", begin, inputs)):  # of the last vector some are made once more
            columns(build.sub(inputs, code.integer(lanes)), 1)
        return context.get_dummy_value()

    types_of = slope, weight, kept, grad, examples, result, added
    return types.void(*types_of, *(types.int64,) * 4), generate
