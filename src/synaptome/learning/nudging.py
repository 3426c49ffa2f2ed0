"""How an equilibrium is nudged towards its targets: the costs, the forces that they exert, and the phases of a nudge.

The cost C of an example is a function of the last layer's states s; a nudge of strength beta adds `-beta dC/ds` to
their drive. The estimate of the gradient is the difference between two phases over the difference of their betas:

| nudging | phases | error of the estimate | source |
|---|---|---|---|
| `one-sided` | beta, 0 | O(beta) | Scellier & Bengio 2017, theorem 1 |
| `random-sign` | beta or -beta by chance for each batch, 0 | O(beta), of its mean O(beta^2) | the same paper |
| `centered` | beta, -beta | O(beta^2) | Laborieux et al. 2021 |
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.networks.equilibrium import EquilibriumNetwork, gradient

NUDGINGS = ("one-sided", "random-sign", "centered")
COSTS = ("squared-error", "cross-entropy")


class Cost(Protocol):
    """What an equilibrium is judged by."""

    def prepared(self, targets: Tensor) -> Tensor:
        """Targets as batches have them to the `[batch, outputs]` that the other methods take, computed once a batch.

        Raises:
            ConfigurationError: a target that no output can reach.
        """
        ...

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs and prepared targets, both `[batch, outputs]`, to C `[batch]`; differentiable."""
        ...

    def push(self, state: Tensor, drive: Tensor, targets: Tensor, beta: float) -> None:
        """Add `-beta dC/ds` at the states of the last layer `[batch, width]` to their drive, in place."""
        ...


class SquaredError:
    """`C = |y - s|^2 / 2` of the output neurons, whose force is `y - s` (Scellier & Bengio 2017).

    The published code of that paper leaves the 1/2 out, so that its beta and its rates count twice as much as here.

    Args:
        network: its outputs are neurons, whose range is that of the targets. Classes are one-hot, of 0 and 1.
    """

    def __init__(self, network: EquilibriumNetwork) -> None:
        self.network = network

    def prepared(self, targets: Tensor) -> Tensor:
        """See `Cost.prepared`."""
        if targets.dtype == torch.int64:
            like = next(self.network.parameters())
            return F.one_hot(targets, self.network.out_features).to(like.dtype)
        state = self.network.state
        if not ((targets >= state.low) & (targets <= state.high)).all():  # also refuses NaN
            raise ConfigurationError(
                f"states of {state.name} are in [{state.low:g}, {state.high:g}], and so are targets; given targets "
                f"from {targets.min().item():g} to {targets.max().item():g}: rescale them, or choose another state"
            )
        return targets

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Cost.per_example`."""
        return (targets - outputs).square().sum(1) / 2

    def push(self, state: Tensor, drive: Tensor, targets: Tensor, beta: float) -> None:
        """See `Cost.push`."""
        drive.add_(targets, alpha=beta).sub_(state, alpha=beta)


class CrossEntropy:
    """`C = -y' log softmax(R s + c)` of a read-out R, c, whose force is `R' (y - softmax(R s + c))`.

    Laborieux et al. 2021: the read-out is no part of the system that relaxes.

    Args:
        readout: from the last hidden layer to the classes.
    """

    def __init__(self, readout: nn.Linear) -> None:
        self.readout = readout

    def prepared(self, targets: Tensor) -> Tensor:
        """See `Cost.prepared`; a ConfigurationError where they are not classes."""
        if targets.dtype != torch.int64:
            raise ConfigurationError(
                f"cross-entropy takes classes, int64 [batch]; given {targets.dtype} {list(targets.shape)}: choose the "
                f"cost squared-error for real targets"
            )
        return F.one_hot(targets, self.readout.out_features).to(self.readout.weight.dtype)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Cost.per_example`."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def push(self, state: Tensor, drive: Tensor, targets: Tensor, beta: float) -> None:
        """See `Cost.push`."""
        drive.addmm_(self.error(state, targets), self.readout.weight, alpha=-beta)

    def error(self, state: Tensor, targets: Tensor) -> Tensor:
        """`softmax(R s + c) - y`, the derivative of the cost by what the read-out says, `[batch, classes]`."""
        return torch.softmax(self.readout(state), 1) - targets

    @torch.no_grad()
    def differentiate(self, state: Tensor, targets: Tensor) -> None:
        """Leave the gradient of the mean cost in the read-out: of R it is `error' s / batch`."""
        error = self.error(state, targets) / len(state)
        torch.mm(error.T, state, out=gradient(self.readout.weight))
        if self.readout.bias is not None:
            torch.sum(error, 0, out=gradient(self.readout.bias))


def cost_named(name: str, network: EquilibriumNetwork) -> SquaredError | CrossEntropy:
    """The cost of that name for a network.

    Raises:
        ConfigurationError: there is none of that name, or the network has no read-out where the cost needs one, or one
            that the cost has no use for.
    """
    if name not in COSTS:
        raise unknown("cost", name, COSTS)
    if (name == "cross-entropy") != (network.readout is not None):
        raise ConfigurationError(
            f"cross-entropy is the cost of a network with a read-out, and squared-error of one whose outputs are "
            f"neurons; given {name} and a network {'without' if network.readout is None else 'with'} a read-out"
        )
    if network.readout is not None:
        return CrossEntropy(network.readout)
    return SquaredError(network)


def check_nudging(nudging: str, beta: float) -> None:
    """Refuse a nudging that does not exist, or a beta that is no strength of one: a ConfigurationError."""
    if nudging not in NUDGINGS:
        raise unknown("nudging", nudging, NUDGINGS)
    if not (beta > 0 and math.isfinite(beta)):
        raise ConfigurationError(
            f"beta is the strength of the nudge, a number above 0: without a nudge the two phases are one, and nothing "
            f"is learned; given {beta}"
        )


def drawn_phases(nudging: str, beta: float) -> tuple[float, float]:
    """The strengths of the two phases that are compared; `random-sign` draws from torch's generator."""
    if nudging == "centered":
        return beta, -beta
    if nudging == "random-sign" and torch.rand(()).item() < 0.5:
        return -beta, 0.0
    return beta, 0.0
