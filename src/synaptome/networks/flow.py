"""How activity flows through the layers of a stable network: its dynamics with all that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels import flow as kernel
from synaptome.networks.dynamics import DYNAMICS, REVERSIBLE, Dynamics, join
from synaptome.networks.feedforward import ACTIVATIONS
from synaptome.networks.forces import Activation, antisymmetric
from synaptome.networks.reversible import reversible_flow

STARTS = ("half-kick", "zero")


@dataclass(frozen=True)
class Flow:
    """The map from the state before some layers to the state after them, given their weights and biases.

    Args:
        dynamics: a name in `synaptome.networks.dynamics`.
        step: h, above 0.
        gamma: of `antisymmetric`, at least 0.
        start: of `verlet`: `half-kick` (order 2) or `zero` (order 1).
        activation: a name in `ACTIVATIONS`.
        reversible: whether the backward pass recomputes the states; for `leapfrog`, `verlet` and `hamiltonian`.

    Raises:
        ConfigurationError: a name or a number is none of these, or is for other dynamics.
    """

    dynamics: str
    step: float
    gamma: float = 0.0
    start: str = "half-kick"
    activation: str = "tanh"
    reversible: bool = False

    def __post_init__(self) -> None:
        if self.dynamics not in DYNAMICS:
            raise unknown("dynamics", self.dynamics, DYNAMICS)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        if not 0 < self.step < math.inf:  # also refuses NaN
            raise ConfigurationError(f"a step is a finite number above 0; given {self.step}")
        if not 0 <= self.gamma < math.inf:
            raise ConfigurationError(f"gamma is a finite number, at least 0; given {self.gamma}")
        if self.gamma and not self.method.tied:
            raise ConfigurationError(
                f"gamma is a damping of the antisymmetric dynamics, and {self.dynamics} has none; given "
                f"gamma={self.gamma}: leave it out"
            )
        if self.start != STARTS[0] and self.dynamics != "verlet":
            raise ConfigurationError(
                f"start says how Z of the verlet dynamics starts, and {self.dynamics} has no Z; given "
                f"start={self.start!r}: leave it out"
            )
        if self.reversible and self.dynamics not in REVERSIBLE:
            raise ConfigurationError(
                f"{self.dynamics} cannot be undone step by step; reversible=True is for {', '.join(REVERSIBLE)}"
            )

    @property
    def method(self) -> Dynamics:
        """The dynamics by their equations."""
        return DYNAMICS[self.dynamics]

    @property
    def function(self) -> Activation:
        """The activation."""
        return ACTIVATIONS[self.activation]

    def kick(self, layer: int) -> float:
        """The share of Verlet's kick in a layer of the network, counted from 0."""
        return 0.5 if layer == 0 and self.start == "half-kick" else 1.0

    def matrices(self, weight: Tensor) -> Tensor:
        """The K of each layer, or of one, that the step takes: the weight, or its antisymmetric part with gamma."""
        return antisymmetric(weight, self.gamma) if self.method.tied else weight

    def run(self, carried: Tensor, weight: Tensor, bias: Tensor, first: int = 0) -> Tensor:
        """The carried state after consecutive layers: of narrow layers in one call, see `synaptome.kernels.flow`.

        Args:
            carried: the state before them, `[batch, n]` or `[batch, n, height, width]`.
            weight, bias: a row for each of these layers.
            first: the number of the first of them in the network, from 0.
        """
        half_kick = self.dynamics == "verlet" and self.kick(first) < 1
        if weight.dim() == 3 and kernel.covers(carried, weight.shape[-1], self.dynamics, self.activation):
            return kernel.flow(
                carried,
                weight,
                bias,
                dynamics=self.dynamics,
                step=self.step,
                gamma=self.gamma,
                half_kick=half_kick,
                activation=self.activation,
                reversible=self.reversible,
            )
        if self.reversible:
            return reversible_flow(
                carried,
                weight,
                bias,
                dynamics=self.dynamics,
                step=self.step,
                half_kick=half_kick,
                activation=self.activation,
            )
        state = self.method.split(carried)
        # Unbound at once: the gradient of one index after another would fill a whole stack for each layer.
        layers = zip(self.matrices(weight).unbind(), bias.unbind(), strict=True)
        for layer, (K, b) in enumerate(layers, first):
            state = self.method.step(state, K, b, self.step, self.function, self.kick(layer))
        return join(state)
