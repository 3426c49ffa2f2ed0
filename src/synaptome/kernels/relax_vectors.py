"""A step of relaxation and its traces, written in LLVM's own vectors for `relax_cpu`.

Arrays are `[neurons, LANES]`: a lane is a pattern.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from synaptome.kernels.flow_vectors import tanh
from synaptome.kernels.vectors import CONTRACT, REGISTER_BYTES, Code

LANES = REGISTER_BYTES // 8  # of float64
HARD, SIGMOID, TANH = range(3)  # the activities


@intrinsic
def _move(typing, s, a, sums, drive, pull, leak, moving, moved, change, changes, dt, beta_0, beta_1, kind, count):  # type: ignore[no-untyped-def]
    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        s, a, sums, drive, pull, leak, moving, moved, change, changes, *numbers, kind, count = code.operands
        dt, beta_0, beta_1 = (code.filled(number, LANES) for number in numbers)
        zero, one, half, infinite = (ir.Constant(dt.type, [value] * LANES) for value in (0.0, 1.0, 0.5, float("inf")))
        origin = code.integer(0)

        def add_product(total: Any, first: Any, second: Any) -> Any:
            return build.fadd(total, build.fmul(first, second, flags=CONTRACT), flags=CONTRACT)

        def subtract_product(total: Any, first: Any, second: Any) -> Any:
            return build.fsub(total, build.fmul(first, second, flags=CONTRACT), flags=CONTRACT)

        def clipped(x: Any) -> Any:  # what is no number stays
            x = build.select(build.fcmp_ordered("<", x, zero), zero, x)
            return build.select(build.fcmp_ordered(">", x, one), one, x)

        def same(x: Any) -> Any:
            return x

        def sigmoid(x: Any) -> Any:
            return add_product(half, half, tanh(code, build.fmul(half, x)))

        goes_on = build.fcmp_ordered(">", code.vector(moving, origin, LANES), zero)
        most = cgutils.alloca_once_value(build, build.select(goes_on, zero, code.vector(moved, origin, LANES)))
        kinds = (HARD, clipped, same), (SIGMOID, same, sigmoid), (TANH, same, partial(tanh, code))
        for number, project, activity in kinds:
            asked = build.icmp_signed("==", kind, code.integer(number))
            with build.if_then(asked), cgutils.for_range(build, count) as loop:
                place = build.mul(loop.index, code.integer(LANES))
                old, sent = code.vector(s, place, LANES), code.vector(a, place, LANES)
                slope = build.fadd(code.vector(sums, place, LANES), code.vector(drive, place, LANES))
                slope = subtract_product(slope, code.vector(pull, place, LANES), sent)
                slope = subtract_product(slope, code.filled(build.load(build.gep(leak, [loop.index])), LANES), old)
                new = build.select(goes_on, project(add_product(old, dt, slope)), old)
                distance = build.fsub(new, old)
                distance = build.select(build.fcmp_ordered("<", distance, zero), build.fsub(old, new), distance)
                # That of what is no number is infinite.
                distance = build.select(build.fcmp_ordered("<", distance, infinite), distance, infinite)
                so_far = build.load(most)
                build.store(build.select(build.fcmp_ordered(">", distance, so_far), distance, so_far), most)
                after = activity(new)
                traced = build.fadd(build.fmul(beta_0, after), build.fmul(beta_1, build.fsub(after, sent)))
                traced = build.select(goes_on, traced, zero)
                code.keep(new, s, place)
                code.keep(after, a, place)
                code.keep(traced, change, place)
                code.keep(build.fadd(code.vector(changes, place, LANES), traced), changes, place)
        code.keep(build.load(most), moved, origin)
        return context.get_dummy_value()

    number = types.float64
    arrays = s, a, sums, drive, pull, leak, moving, moved, change, changes
    return types.void(*arrays, number, number, number, types.int64, types.int64), generate


@numba.njit
def move(s, a, sums, drive, pull, leak, moving, moved, change, changes, dt, beta_0, beta_1, kind):  # type: ignore[no-untyped-def]
    """One step of all neurons, of the lanes that are `moving`.

    Args:
        s, a: states and activities, which become those after the step.
        sums: what the activities of free neurons drive.
        drive: what else does, and does not change: inputs, biases, targets.
        pull: how strongly an activity is nudged back to 0.
        leak: `[neurons]`.
        moving: 1 or 0 for each lane.
        moved: the largest change of a state in each moving lane, infinite if one is not finite.
        change: `beta_0 a(t) + beta_1 (a(t) - a(t-1))`.
        changes: its sum over time.
        dt, beta_0, beta_1: numbers of the equations.
        kind: of the activity.
    """
    _move(s, a, sums, drive, pull, leak, moving, moved, change, changes, dt, beta_0, beta_1, kind, len(leak))


@intrinsic
def _add_products(typing, trace, a, change, count):  # type: ignore[no-untyped-def]
    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        trace, a, change, count = code.operands
        lanes = code.integer(LANES)
        row = build.mul(count, lanes)
        with cgutils.for_range(build, count) as sources:
            source = code.vector(a, build.mul(sources.index, lanes), LANES)
            start = code.row(trace, sources.index, row)
            with cgutils.for_range_slice(build, code.integer(0), row, lanes) as (place, _):
                product = build.fmul(source, code.vector(change, place, LANES), flags=CONTRACT)
                code.keep(build.fadd(code.vector(start, place, LANES), product, flags=CONTRACT), start, place)
        return context.get_dummy_value()

    return types.void(trace, a, change, types.int64), generate


@numba.njit
def add_products(trace, a, change):  # type: ignore[no-untyped-def]
    """`trace[i, j] += a[i] change[j]` in each lane; the trace is `[neurons, neurons, LANES]`."""
    _add_products(trace, a, change, len(a))
