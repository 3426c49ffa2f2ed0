"""What networks that relax to an equilibrium have in common, and what a learning rule may ask of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from synaptome.networks.drive import Drive
from synaptome.networks.relaxation import Advance, Outcome, Relaxation, States, relax
from synaptome.networks.states import StateFunction

# Adds to the drive of some neurons, its second argument, what acts on them at their state, the first; in place.
Nudge = Callable[[Tensor, Tensor], None]


class EquilibriumNetwork(nn.Module, ABC):
    """A network whose input is clamped, and whose output is read where its neurons have come to rest.

    Its neurons form layers of states `[batch, width]`, one or several, which start from 0 and follow their drive as
    `synaptome.networks.states` says.

    Args:
        state: how a neuron follows its drive.
        symmetric: whether a connection has one weight for both directions, so that there is an energy.
        widths: of the layers that relax.
        relaxation: of the free phase; the default one if None.

    Attributes:
        out_features: how many numbers the network says.
        readout: an `nn.Linear` from the last layer to what the network says, or None where outputs are neurons.
    """

    out_features: int
    readout: nn.Linear | None

    def __init__(
        self, state: StateFunction, symmetric: bool, widths: Sequence[int], relaxation: Relaxation | None
    ) -> None:
        super().__init__()
        self.state, self.symmetric, self.widths = state, symmetric, list(widths)
        self.relaxation = Relaxation() if relaxation is None else relaxation

    @abstractmethod
    def drive(self, x: Tensor) -> Drive:
        """The drive of the layers under a clamped input `[batch, ...]`; that of the input itself is computed here."""

    @abstractmethod
    def nudged(self, states: States) -> Tensor:
        """Of states or drives, those of the neurons that a nudge acts on: a view `[batch, neurons]`."""

    @abstractmethod
    def outputs(self, states: States) -> Tensor:
        """What the network says at these states, `[batch, outputs]`."""

    @abstractmethod
    def contrast(self, inputs: Tensor, free: States, plus: States, minus: States, difference: float) -> None:
        """Leave the estimate of the gradient of the mean cost in the parameters of all but the read-out.

        Of symmetric networks `-(s+_i s+_j - s-_i s-_j) / difference` for a weight from i to j, of others
        `-s0_i (s+_j - s-_j) / difference`, a mean over the batch; see `synaptome.learning.equilibrium`.

        Args:
            inputs: `[batch, inputs]`.
            free: the states of the free phase, each `[batch, width]`.
            plus, minus: those of the two phases that are compared.
            difference: of the betas of these two, not 0.
        """

    @abstractmethod
    def step_bound(self) -> float:
        """The dt above which steps overshoot, and states may oscillate instead of coming to rest."""

    @abstractmethod
    def synapses(self) -> list[list[nn.Parameter]]:
        """The parameters in groups that may have learning rates of their own, those next to the input first."""

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]`, flattened to `[batch, inputs]`, to `[batch, outputs]` at the end of the free phase."""
        drive = self.drive(x)
        return self.outputs(self.relax(drive, self.rest(len(x))).states)

    @torch.no_grad()
    def relax(
        self, drive: Drive, states: States, relaxation: Relaxation | None = None, nudge: Nudge | None = None
    ) -> Outcome:
        """Relax from these states, each `[batch, width]`, which are left as they are.

        Args:
            drive: of the layers.
            states: where it starts.
            relaxation: the network's own if None.
            nudge: what acts besides on the neurons that can be nudged.
        """
        relaxation = relaxation or self.relaxation
        return relax(self._advance(drive, relaxation.dt, nudge), states, relaxation)

    def _advance(self, drive: Drive, dt: float, nudge: Nudge | None) -> Advance:
        move = self.state.move

        def advance(states: States, out: States) -> None:
            drive.write(states, out)
            if nudge is not None:
                nudge(self.nudged(states), self.nudged(out))
            for state, target in zip(states, out, strict=True):
                move(state, target, dt)

        return advance

    def rest(self, batch: int) -> list[Tensor]:
        """States 0, each `[batch, width]`."""
        like = next(self.parameters())
        return [like.new_zeros(batch, width) for width in self.widths]


def gradient(parameter: Tensor) -> Tensor:
    """The parameter's gradient, to be overwritten; made if there is none."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
