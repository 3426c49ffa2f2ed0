"""Relaxation of many small networks at once: every pattern of every network moves by itself until it rests.

A network has N neurons, the inputs first and the outputs last. Inputs are clamped; every other neuron j has a state s_j
and an activity a_j = ρ(s_j), and takes Euler steps of

    ds_j = Σ_i a_i W_ij + b_j - leak_j s_j,   + nudge (y_j - a_j) for outputs,   s_j <- project(s_j + dt ds_j)

| activity | ρ(s) | project |
|---|---|---|
| `hard-sigmoid` | s | clip to [0, 1], where the hard sigmoid is the identity |
| `sigmoid` | 1 / (1 + exp(-s)) | nothing |
| `tanh` | tanh s | nothing |

A clamped input's activity is its value. The residual of a step is the projected one, `max_j |s_j(t) - s_j(t-1)|`: the
raw `ds` never vanishes at an equilibrium that is clipped. Where traces are asked for, they are the sums over time of
spike-timing-dependent plasticity (Farinha et al. 2020), `Σ_t a_i(t) [beta_0 a_j(t) + beta_1 (a_j(t) - a_j(t-1))]`.

Every pattern of every network is computed by itself, in one order, so that its bits depend neither on the others nor on
the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.backends import implements
from synaptome.kernels.operators import operator

CONVERGED, OUT_OF_STEPS, NOT_FINITE = range(3)  # the outcomes of a relaxation

ACTIVITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "hard-sigmoid": lambda state: state,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class Relaxed(NamedTuple):
    """What a relaxation of P networks on M patterns has come to.

    Attributes:
        state: float64 `[P, M, N]`, of inputs too.
        trace: float64 `[P, M, N, N]`, 0 for connections into inputs; without neurons if traces were not asked for.
        steps: int64 `[P, M]`, taken.
        residual: float64 `[P, M]`, of the last step; infinite where it was not finite or none was taken.
        outcome: int8 `[P, M]`: CONVERGED (the residual is within the tolerance), OUT_OF_STEPS or NOT_FINITE.
    """

    state: Tensor
    trace: Tensor
    steps: Tensor
    residual: Tensor
    outcome: Tensor


def relax(
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    leak: Tensor,
    targets: Tensor,
    nudge: Tensor,
    *,
    inputs: int,
    dt: float,
    steps: int,
    tolerance: float = 0.0,
    stop: bool = True,
    activity: str = "hard-sigmoid",
    beta_0: float = 0.0,
    beta_1: float = 1.0,
    traced: bool = False,
) -> Relaxed:
    """Let M patterns of P networks relax; see above for the equations.

    Args:
        state: where it starts, float64 `[P, M, N]`: the values of inputs, the states of all others.
        weight: float64 `[P, N, N]`, W[i, j] from i to j, 0 where there is no connection.
        bias, leak: float64 `[P, N - inputs]`.
        targets: y, float64 `[M, outputs]`.
        nudge: float64 `[P, M]`, of any sign; 0 for the free phase.
        inputs: how many neurons are clamped.
        dt: of a step, above 0.
        steps: at most, at least 0.
        tolerance: residual with which a state counts as one at rest, at least 0. At 0 it must repeat itself to the bit.
        stop: whether a pattern at rest stops. With tolerance 0 this changes nothing but the number of steps, and the
            rounding of traces with beta_0: the state would never move again.
        activity: a name in the table above.
        beta_0, beta_1: of the traces.
        traced: whether to sum traces.

    Raises:
        ConfigurationError: a name, a number, a shape or a dtype does not fit.
    """
    _check(state, weight, bias, leak, targets, nudge, inputs)
    if activity not in ACTIVITIES:
        raise unknown("activity", activity, ACTIVITIES)
    if not (0 < dt < float("inf") and steps >= 0 and tolerance >= 0):  # also refuses NaN
        raise ConfigurationError(
            f"dt is a finite number above 0, steps and tolerance are at least 0; given dt {dt}, steps {steps}, "
            f"tolerance {tolerance}"
        )
    options = (inputs, dt, steps, tolerance, stop, activity, beta_0, beta_1, traced)
    return Relaxed(*relax_networks(state, weight, bias, leak, targets, nudge, *options))


def _check(
    state: Tensor, weight: Tensor, bias: Tensor, leak: Tensor, targets: Tensor, nudge: Tensor, inputs: int
) -> None:
    networks, patterns, neurons = state.shape if state.dim() == 3 else (0, 0, 0)
    given = {"state": state, "weight": weight, "bias": bias, "leak": leak, "targets": targets, "nudge": nudge}
    outputs = targets.shape[-1] if targets.dim() == 2 else 0
    shapes = {
        "state": (networks, patterns, neurons),
        "weight": (networks, neurons, neurons),
        "bias": (networks, neurons - inputs),
        "leak": (networks, neurons - inputs),
        "targets": (patterns, outputs),
        "nudge": (networks, patterns),
    }
    for name, tensor in given.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float64:
            raise ConfigurationError(
                f"{name} of a relaxation is float64 of shape {list(shapes[name])}; given {tensor.dtype} "
                f"{list(tensor.shape)} with a state of shape {list(state.shape)} and {inputs} inputs"
            )
    if not (inputs >= 0 and outputs >= 1 and inputs + outputs <= neurons):
        raise ConfigurationError(
            f"inputs and at least one output are among the neurons; given {inputs} inputs and {outputs} outputs of "
            f"{neurons} neurons"
        )


def _room(state: Tensor, traced: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    networks, patterns, neurons = state.shape
    side = neurons if traced else 0
    return (
        torch.empty_like(state, memory_format=torch.contiguous_format),
        state.new_zeros(networks, patterns, side, side),
        state.new_zeros(networks, patterns, dtype=torch.int64),
        state.new_full((networks, patterns), float("inf")),
        state.new_full((networks, patterns), OUT_OF_STEPS, dtype=torch.int8),
    )


relax_networks = operator(
    "relax",
    "(Tensor state, Tensor weight, Tensor bias, Tensor leak, Tensor targets, Tensor nudge, int inputs, float dt, "
    "int steps, float tolerance, bool stop, str activity, float beta_0, float beta_1, bool traced)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda state, *operands: _room(state, operands[-1]),
)


@implements("relax", "reference")
def _relax(
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
) -> tuple[Tensor, ...]:
    end, trace, taken, residual, outcome = _room(state, traced)
    clamped, s = state[..., :inputs], state[..., inputs:]
    a = torch.cat((clamped, ACTIVITIES[activity](s)), -1)
    outputs = targets.shape[1]
    moving = torch.ones_like(outcome, dtype=torch.bool)
    for _ in range(steps):
        ds = torch.bmm(a, weight)[..., inputs:] + bias.unsqueeze(1) - leak.unsqueeze(1) * s
        ds[..., -outputs:] += nudge.unsqueeze(2) * (targets - a[..., -outputs:])
        new = s + dt * ds
        if activity == "hard-sigmoid":
            new = new.clamp(0, 1)
        new = torch.where(moving.unsqueeze(2), new, s)
        moved = (new - s).abs().amax(2)
        after = torch.cat((clamped, ACTIVITIES[activity](new)), -1)
        finite = moved < float("inf")
        if traced:
            change = beta_0 * after + beta_1 * (after - a)
            change[..., :inputs] = 0
            trace += torch.where(moving[..., None, None], after.unsqueeze(3) * change.unsqueeze(2), 0.0)
        residual = torch.where(moving, torch.where(finite, moved, float("inf")), residual)
        taken += moving
        outcome = torch.where(moving & ~finite, NOT_FINITE, outcome)
        moving = moving & finite & ~((moved <= tolerance) & stop)
        s, a = new, after
        if not moving.any():
            break
    outcome = torch.where((outcome != NOT_FINITE) & (residual <= tolerance), CONVERGED, outcome)
    if traced:  # a state at rest goes on firing
        left = beta_0 * torch.where(outcome == CONVERGED, steps - taken, 0).double()
        trace[..., inputs:] += left[..., None, None] * a.unsqueeze(3) * a[..., inputs:].unsqueeze(2)
    return end.copy_(torch.cat((clamped, s), -1)), trace, taken, residual, outcome


@implements("relax", "cpu")
def _relax_cpu(state: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    from synaptome.kernels import relax_cpu

    room = _room(state, operands[-1])
    relax_cpu.relax(room, state, *operands)
    return room
