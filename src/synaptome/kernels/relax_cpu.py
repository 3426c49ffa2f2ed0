"""Relaxation on the CPU, by Numba: time is the innermost loop but for the neurons, and nothing leaves the core's cache.

What the clamped inputs drive is summed once. A few patterns of one network move at once, as the lanes of a vector, each
until it is at rest; threads take such groups.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.flow_vectors import multiply
from synaptome.kernels.relax import ACTIVITIES, CONVERGED, NOT_FINITE
from synaptome.kernels.relax_vectors import HARD, LANES, SIGMOID, TANH, add_products, move
from synaptome.kernels.threads import in_threads

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
    operands = (*room, state, ACTIVITIES[activity](state), weight, bias, leak, targets, nudge)
    arrays = [operand.detach().contiguous().numpy() for operand in operands]
    networks, patterns, neurons = state.shape
    options = (inputs, dt, steps, tolerance, stop, KINDS[activity], beta_0, beta_1, traced)
    in_threads(
        lambda start, end: _relax(*arrays, *options, start, end),
        networks * -(-patterns // LANES),
        networks * patterns * steps * neurons * (neurons - inputs) * (1 + traced),
    )


@compiled
def _relax(  # type: ignore[no-untyped-def]
    ends, traces, counts, residuals, outcomes, states, activities, weights, biases, leaks, targets, nudges,
    inputs, dt, steps, tolerance, stop, kind, beta_0, beta_1, traced, start, end,
):  # fmt: skip
    """Groups of patterns from `start` to `end`."""
    patterns, neurons = states.shape[1:]
    free, outputs = neurons - inputs, targets.shape[1]
    groups = -(-patterns // LANES)
    W = np.empty((free, free))
    s, a, sums, drive, change, changes = np.empty((6, free, LANES))
    pull = np.zeros((free, LANES))
    trace = np.empty((free if traced else 0, free, LANES))
    moved, moving, count = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for group in range(start, end):
        network, first = group // groups, group % groups * LANES
        lanes = min(LANES, patterns - first)
        weight, bias = weights[network], biases[network]
        W[:] = weight[inputs:, inputs:]
        for lane in range(LANES):  # those beyond the last pattern repeat it
            pattern = first + min(lane, lanes - 1)
            given, nudge = states[network, pattern], nudges[network, pattern]
            s[:, lane] = given[inputs:]
            a[:, lane] = activities[network, pattern, inputs:]
            for j in range(free):
                total = bias[j]
                for i in range(inputs):
                    total += given[i] * weight[i, inputs + j]
                drive[j, lane] = total
            for j in range(outputs):
                pull[free - outputs + j, lane] = nudge
                drive[free - outputs + j, lane] += nudge * targets[pattern, j]
        moving[:], moved[:], count[:], changes[:], trace[:] = 1.0, np.inf, 0.0, 0.0, 0.0
        for _ in range(steps):
            multiply(sums, W, True, a)
            move(s, a, sums, drive, pull, leaks[network], moving, moved, change, changes, dt, beta_0, beta_1, kind)
            if traced:
                add_products(trace, a, change)
            left = 0.0
            for lane in range(LANES):
                count[lane] += moving[lane]
                if moved[lane] == np.inf or (stop and moved[lane] <= tolerance):
                    moving[lane] = 0.0
                left += moving[lane]
            if left == 0.0:
                break
        for lane in range(lanes):
            pattern = first + lane
            given = states[network, pattern]
            resting = moved[lane] <= tolerance
            rest = (steps - count[lane]) * beta_0 if resting else 0.0  # steps in which a state at rest goes on firing
            for i in range(neurons if traced else 0):
                source = given[i] if i < inputs else a[i - inputs, lane]
                for j in range(free):
                    summed = given[i] * changes[j, lane] if i < inputs else trace[i - inputs, j, lane]
                    traces[network, pattern, i, inputs + j] = summed + rest * source * a[j, lane]
            ends[network, pattern, :inputs] = given[:inputs]
            ends[network, pattern, inputs:] = s[:, lane]
            counts[network, pattern] = int(count[lane])
            residuals[network, pattern] = moved[lane]
            if resting:
                outcomes[network, pattern] = CONVERGED
            elif moved[lane] == np.inf and steps > 0:
                outcomes[network, pattern] = NOT_FINITE
