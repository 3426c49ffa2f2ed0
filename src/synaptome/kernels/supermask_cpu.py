"""The draws of a supermask on the CPU, in LLVM's own vectors: `W ∘ f(s)`, where f(s) is 1 with probability σ(s).

`σ(s) = 1 / (1 + exp(-s))`, where `-s = n ln 2 + r` for an integer n, and exp is `2^n exp(r)`: that of Sleef (Shibata &
Petrogalli 2020), operation by operation, which torch takes on processors with vectors of 32 bytes or more. So σ(s) is
torch's there, but for the last numbers of a tensor, and differs in the last bits elsewhere: of ten million synapses
one may be drawn differently by torch's own operations. In float64 σ(s) is torch's.

Imported with the other kernels of learned weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from synaptome.kernels.compiled import compiled
from synaptome.kernels.randomness import GOLDEN_64
from synaptome.kernels.splitmix import base_of
from synaptome.kernels.vectors import Code, numbers_at

LANES = 16  # synapses that are drawn together, by half as many numbers of the key's sequence
UNIT = 2.0**-24
GOLDEN = np.uint64(GOLDEN_64 % 2**64)
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187045e-06
# Of exp(r) = 1 + r + r^2 p(r), the highest power first.
TERMS = (
    0.000198527617612853646,
    0.00139304355252534151,
    0.00833336077630519867,
    0.0416664853692054749,
    0.166666671633720398,
    0.5,
)
LEAST, MOST = -80.0, 88.0  # below and above which 1 / (1 + exp) is 1, and no normal number, for which 0 stands


@compiled
def bernoulli(weight, scores, result, kept, like, key_address, size, first, last):  # type: ignore[no-untyped-def]
    """Blocks of LANES synapses from the first on, until the last: `W ∘ f(s)`, and σ(s), which float64 brings along."""
    key = numbers_at(key_address, 2, np.int64(0))
    base = base_of(key[0], key[1])
    w, s = numbers_at(weight, size, like), numbers_at(scores, size, like)
    y, p = numbers_at(result, size, like), numbers_at(kept, size, like)
    for block in range(first, min(last, size // LANES)):
        _draw(w, s, y, p, block * LANES, base + np.uint64(block * LANES // 2 + 1) * GOLDEN)
    if last * LANES > size:
        rest = np.zeros((4, LANES), w.dtype)
        start = (last - 1) * LANES
        rest[0, : size - start], rest[1, : size - start] = w[start:], s[start:]
        rest[3, : size - start] = p[start:]
        _draw(rest[0], rest[1], rest[2], rest[3], 0, base + np.uint64(start // 2 + 1) * GOLDEN)
        y[start:], p[start:] = rest[2, : size - start], rest[3, : size - start]


@intrinsic
def _draw(typing, weight, scores, result, kept, start, state):  # type: ignore[no-untyped-def]
    """LANES synapses from the start on; the state is the one of the first number that decides two of them."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, build, signature, arguments)
        weight, scores, result, kept, start, state = code.operands
        if isinstance(scores.type.pointee, ir.FloatType):
            probabilities = _sigmoid(code, code.vector(scores, start, LANES))
            code.keep(probabilities, kept, start)
        else:
            probabilities = code.vector(kept, start, LANES)
        steps = ir.Constant(
            ir.VectorType(ir.IntType(64), LANES // 2), [GOLDEN_64 * i % 2**64 for i in range(LANES // 2)]
        )
        numbers = _splitmix64(build, build.add(code.filled(state, LANES // 2), steps))
        halves = build.bitcast(numbers, ir.VectorType(ir.IntType(32), LANES))
        draws = build.sitofp(build.lshr(halves, ir.Constant(halves.type, [8] * LANES)), probabilities.type)
        unit, zero = (ir.Constant(draws.type, [number] * LANES) for number in (UNIT, 0.0))
        there = build.fcmp_ordered("<", build.fmul(draws, unit), probabilities)
        code.keep(build.select(there, code.vector(weight, start, LANES), zero), result, start)
        return context.get_dummy_value()

    return types.void(weight, scores, result, kept, types.int64, types.uint64), generate


def _numbers(value: float) -> Any:
    return ir.Constant(ir.VectorType(ir.FloatType(), LANES), [float(np.float32(value))] * LANES)


def _splitmix64(build: Any, z: Any) -> Any:
    """The finaliser of splitmix64; see `synaptome.kernels.splitmix`."""

    def constant(value: int) -> Any:
        return ir.Constant(z.type, [value] * z.type.count)

    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = build.mul(build.xor(z, build.lshr(z, constant(shift))), constant(factor))
    return build.xor(z, build.lshr(z, constant(31)))


def _sigmoid(code: Code, s: Any) -> Any:
    build, integers = code.build, ir.VectorType(ir.IntType(32), LANES)
    fused = build.module.globals.get(f"llvm.fma.v{LANES}f32") or ir.Function(
        build.module, ir.FunctionType(s.type, [s.type] * 3), f"llvm.fma.v{LANES}f32"
    )

    x = build.fneg(s)
    # The sum's last digit counts ones, so that it is rounded to n, which its lowest bits then hold.
    ones = _numbers(1.5 * 2**23)
    shifted = build.fadd(build.fmul(x, _numbers(1 / np.log(2))), ones)
    n = build.fsub(shifted, ones)
    r = build.call(fused, [n, _numbers(-LN2_HIGH), x])
    r = build.call(fused, [n, _numbers(-LN2_LOW), r])
    terms = _numbers(TERMS[0])
    for term in TERMS[1:]:
        terms = build.call(fused, [terms, r, _numbers(term)])
    e = build.fadd(_numbers(1.0), build.call(fused, [build.fmul(r, r), terms, r]))
    biased = build.add(build.bitcast(shifted, integers), ir.Constant(integers, [127] * LANES))
    e = build.fmul(e, build.bitcast(build.shl(biased, ir.Constant(integers, [23] * LANES)), s.type))
    e = build.select(build.fcmp_ordered("<", x, _numbers(LEAST)), _numbers(0.0), e)
    e = build.select(build.fcmp_ordered(">", x, _numbers(MOST)), _numbers(np.inf), e)
    return build.fdiv(_numbers(1.0), build.fadd(_numbers(1.0), e))
