"""State functions by name: what keeps the activity of a neuron in a range, and how it follows its drive.

At rest a neuron's activity s is a function of its drive a, the sum of what it is given: `s = rho(a)`. On the way there
it takes Euler steps:

| name | rho(a) | range | step | G(s), where G' is the inverse of rho |
|---|---|---|---|---|
| `hard-sigmoid` | a clipped to [0, 1] | [0, 1] | `s <- clip(s + dt (a - s))` | `s^2 / 2` |
| `sigmoid` | `1 / (1 + exp(-a))` | [0, 1] | `s <- s + dt (rho(a) - s)` | `s log s + (1 - s) log(1 - s)` |
| `tanh` | `tanh a` | [-1, 1] | the same | `((1 + s) log(1 + s) + (1 - s) log(1 - s)) / 2` |

With dt = 1 each of them is the fixed sweep `s <- rho(a)` of Ernoult et al. 2019 and Laborieux et al. 2021. Where the
drive is `a = W s + b` with a symmetric W, the flow never increases `E = sum G(s) - s' W s / 2 - b' s` (Hopfield 1984,
equation 7), whose stationary points are its points of rest. That of the hard sigmoid is the energy of Scellier & Bengio
2017 (equation 1) where activities are their own clipped values, and its step is projected gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from synaptome.errors import unknown


@dataclass(frozen=True)
class StateFunction:
    """One of the functions in the table of this module.

    Args:
        name: in the table.
        low, high: the range of the activity.
        slope: the largest derivative of rho.
        function: rho, out of place.
        function_: rho, in place.
        potential: G, elementwise; 0 log 0 is 0.
        projects: whether rho is a projection, and acts on the state after the step instead of on the drive before it.
    """

    name: str
    low: float
    high: float
    slope: float
    function: Callable[[Tensor], Tensor]
    function_: Callable[[Tensor], Tensor]
    potential: Callable[[Tensor], Tensor]
    projects: bool = False

    def moved(self, state: Tensor, drive: Tensor, dt: float) -> Tensor:
        """The state one step of dt in (0, 1] later, differentiable; state and drive have one shape."""
        if self.projects:
            return self.function(torch.lerp(state, drive, dt))
        return torch.lerp(state, self.function(drive), dt)

    def move(self, state: Tensor, drive: Tensor, dt: float) -> None:
        """The same without autograd: the drive's own memory becomes the state one step later."""
        if not self.projects:
            self.function_(drive)
        if dt != 1:
            torch.lerp(state, drive, dt, out=drive)
        if self.projects:
            self.function_(drive)


def _clip(a: Tensor) -> Tensor:
    return a.clamp(0, 1)


def _clip_(a: Tensor) -> Tensor:
    return a.clamp_(0, 1)


def _half_square(s: Tensor) -> Tensor:
    return s.square() / 2


def _binary_entropy(s: Tensor) -> Tensor:
    return torch.xlogy(s, s) + torch.xlogy(1 - s, 1 - s)


def _tanh_potential(s: Tensor) -> Tensor:
    return (torch.xlogy(1 + s, 1 + s) + torch.xlogy(1 - s, 1 - s)) / 2


STATES: Mapping[str, StateFunction] = MappingProxyType(
    {
        state.name: state
        for state in (
            StateFunction("hard-sigmoid", 0.0, 1.0, 1.0, _clip, _clip_, _half_square, projects=True),
            StateFunction("sigmoid", 0.0, 1.0, 0.25, torch.sigmoid, torch.sigmoid_, _binary_entropy),
            StateFunction("tanh", -1.0, 1.0, 1.0, torch.tanh, torch.tanh_, _tanh_potential),
        )
    }
)


def state_named(name: str) -> StateFunction:
    """A state function of the table; ConfigurationError if there is none of that name."""
    if name not in STATES:
        raise unknown("state function", name, STATES)
    return STATES[name]
