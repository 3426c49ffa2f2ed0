"""Relaxation on the CPU, by Numba: time is the innermost loop but for the neurons, and nothing leaves the core's cache.

What the clamped inputs drive is summed once. Threads take patterns of networks.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.relax import ACTIVITIES, CONVERGED, NOT_FINITE
from synaptome.kernels.threads import in_threads

HARD, SIGMOID, TANH = range(3)
KINDS = dict(zip(ACTIVITIES, (HARD, SIGMOID, TANH), strict=True))


def relax(
    room: tuple[Tensor, ...],
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    leak: Tensor,
    targets: Tensor,
    nudge: Tensor,
    inputs: int,
    dt: float,
    steps: int,
    tolerance: float,
    stop: bool,
    activity: str,
    beta_0: float,
    beta_1: float,
    traced: bool,
) -> None:
    """Fill the results `room`; see `synaptome.kernels.relax`."""
    operands = (*room, state, weight, bias, leak, targets, nudge)
    arrays = [operand.detach().contiguous().numpy() for operand in operands]
    networks, patterns, neurons = state.shape
    options = (inputs, dt, steps, tolerance, stop, KINDS[activity], beta_0, beta_1, traced)
    in_threads(
        lambda start, end: _relax(*arrays, *options, start, end),
        networks * patterns,
        networks * patterns * steps * neurons * (neurons - inputs) * (1 + traced),
    )


@numba.njit(inline="always")
def _activity(state, kind):  # type: ignore[no-untyped-def]
    if kind == SIGMOID:
        return 1.0 / (1.0 + math.exp(-state))
    if kind == TANH:
        return math.tanh(state)
    return state


@compiled
def _relax(  # type: ignore[no-untyped-def]
    ends, traces, counts, residuals, outcomes, states, weights, biases, leaks, targets, nudges,
    inputs, dt, steps, tolerance, stop, kind, beta_0, beta_1, traced, start, end,
):  # fmt: skip
    patterns, neurons = states.shape[1:]
    free = neurons - inputs
    first_output = free - targets.shape[1]
    s, drive, ds, a, change = (np.empty(free), np.empty(free), np.empty(free), np.empty(free), np.empty(free))
    W = np.empty((free, free))
    trace = np.empty((neurons, free))
    for place in range(start, end):
        network, pattern = place // patterns, place % patterns
        given, weight, leak = states[network, pattern], weights[network], leaks[network]
        nudge = nudges[network, pattern]
        for j in range(free):
            drive[j] = biases[network, j]
            s[j] = given[inputs + j]
            a[j] = _activity(s[j], kind)
            for i in range(free):
                W[i, j] = weight[inputs + i, inputs + j]
        for i in range(inputs):
            for j in range(free):
                drive[j] += given[i] * weight[i, inputs + j]
        trace[:] = 0.0
        moved, finite, count = np.inf, True, 0
        while count < steps and finite and not (stop and moved <= tolerance):
            ds[:] = drive
            for i in range(free):
                for j in range(free):
                    ds[j] += a[i] * W[i, j]
            for j in range(first_output, free):
                ds[j] += nudge * (targets[pattern, j - first_output] - a[j])
            moved = 0.0
            for j in range(free):
                new = s[j] + dt * (ds[j] - leak[j] * s[j])
                if kind == HARD:
                    new = 0.0 if new < 0.0 else 1.0 if new > 1.0 else new
                difference = abs(new - s[j])
                finite = finite and difference < np.inf  # False for NaN too
                moved = max(moved, difference)
                s[j] = new
                after = _activity(new, kind)
                change[j] = beta_0 * after + beta_1 * (after - a[j])
                a[j] = after
            if traced:
                for i in range(inputs):
                    for j in range(free):
                        trace[i, j] += given[i] * change[j]
                for i in range(free):
                    for j in range(free):
                        trace[inputs + i, j] += a[i] * change[j]
            count += 1
        resting = finite and moved <= tolerance
        for i in range(neurons if traced else 0):
            source = given[i] if i < inputs else a[i - inputs]
            for j in range(free):  # a state at rest goes on firing
                rest = (steps - count) * beta_0 * source * a[j] if resting else 0.0
                traces[network, pattern, i, inputs + j] = trace[i, j] + rest
        ends[network, pattern, :inputs] = given[:inputs]
        ends[network, pattern, inputs:] = s
        counts[network, pattern] = count
        residuals[network, pattern] = moved if finite else np.inf
        if not finite:
            outcomes[network, pattern] = NOT_FINITE
        elif resting:
            outcomes[network, pattern] = CONVERGED
