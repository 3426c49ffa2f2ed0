"""Relaxation of layers of neurons towards a point of rest, and what came of it, pattern by pattern.

The residual of a step is the projected one, `max |s(t) - s(t-1)|` over the neurons of a pattern: the raw derivative
never vanishes at an equilibrium where a state is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels.relax import CONVERGED, NOT_FINITE, OUT_OF_STEPS

States = Sequence[Tensor]  # of the layers, each [patterns, width]
# Writes the states one step later than its first argument into the second, whose memory is another.
Advance = Callable[[States, States], None]


@dataclass(frozen=True)
class Relaxation:
    """How long a relaxation lasts, and how large its steps are.

    Args:
        steps: at most, at least 1.
        dt: of a step, in (0, 1]; at 1 each step is a fixed sweep, `s <- rho(drive)`.
        tolerance: residual at which a pattern is at rest and stops, at least 0; at 0 it must repeat itself to the bit.
            None takes all steps, and looks at the residual of the last one only: the fastest where that is affordable.

    Raises:
        ConfigurationError: one of them is none of the above.
    """

    steps: int = 20
    dt: float = 0.5
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(f"a relaxation takes at least 1 step; given {self.steps}")
        if not 0 < self.dt <= 1:  # also refuses NaN
            raise ConfigurationError(
                f"dt is the size of a step, above 0 and at most 1, where a step is a whole sweep; given {self.dt}"
            )
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ConfigurationError(
                f"the tolerance is a residual of at least 0, or None to take all steps; given {self.tolerance}"
            )


@dataclass(frozen=True)
class Outcome:
    """What a relaxation has come to.

    Attributes:
        states: of the layers, each `[patterns, width]`.
        before: the same, one step earlier.
        steps: int64 `[patterns]`, taken.
        tolerance: residual with which a pattern counts as one at rest.
    """

    states: States
    before: States
    steps: Tensor
    tolerance: float

    @property
    def residual(self) -> Tensor:
        """Of the last step, `[patterns]`; infinite where a state is not finite."""
        return residual(self.states, self.before)

    @property
    def outcome(self) -> Tensor:
        """int8 `[patterns]`: CONVERGED (the residual is within the tolerance), OUT_OF_STEPS or NOT_FINITE."""
        last = self.residual
        told = torch.full_like(last, OUT_OF_STEPS, dtype=torch.int8)
        return told.masked_fill_(last <= self.tolerance, CONVERGED).masked_fill_(last.isinf(), NOT_FINITE)


@torch.no_grad()
def relax(advance: Advance, states: States, relaxation: Relaxation) -> Outcome:
    """Let patterns relax, each until it is at rest or out of steps; a pattern that is not finite stops by itself.

    Args:
        advance: a step of the dynamics, in which the patterns do not act on one another.
        states: where it starts, each `[patterns, width]`; left as they are.
        relaxation: how long, and until when. The size of steps is the dynamics' own affair.
    """
    now, spare = [state.clone() for state in states], [torch.empty_like(state) for state in states]
    patterns = len(now[0])
    if relaxation.tolerance is None:
        for _ in range(relaxation.steps):
            advance(now, spare)
            now, spare = spare, now
        return Outcome(now, spare, torch.full((patterns,), relaxation.steps, device=now[0].device), 0.0)
    resting = torch.zeros(patterns, dtype=torch.bool, device=now[0].device)
    steps = torch.zeros(patterns, dtype=torch.int64, device=now[0].device)
    # Of patterns that stop before the others: their last two states.
    kept, kept_before = [torch.empty_like(s) for s in now], [torch.empty_like(s) for s in now]
    for _ in range(relaxation.steps):
        advance(now, spare)
        now, spare = spare, now
        steps += ~resting
        last = residual(now, spare)
        stopping = ~resting & ((last <= relaxation.tolerance) | last.isinf())
        for target, state in zip((*kept, *kept_before), (*now, *spare), strict=True):
            target[stopping] = state[stopping]
        resting |= stopping
        if resting.all():
            break
    for target, state in zip((*kept, *kept_before), (*now, *spare), strict=True):
        target[~resting] = state[~resting]
    return Outcome(kept, kept_before, steps, relaxation.tolerance)


def residual(states: States, before: States) -> Tensor:
    """`max |s - s before|` over the neurons of each pattern, `[patterns]`; infinite where a state is not finite."""
    changes = [(state - earlier).abs().amax(1) for state, earlier in zip(states, before, strict=True)]
    return torch.stack(changes).amax(0).nan_to_num_(nan=torch.inf)
