"""Dynamics by name: how the state of a stable network goes from one layer to the next, as pure functions on tensors.

A layer is a step h of an ordinary differential equation in time (Haber & Ruthotto 2017, arXiv 1705.03341). s is the
activation, K and b the layer's weights and biases, and K' the transpose, or the true adjoint of a convolution:

| name | state | equation | step | order |
|---|---|---|---|---|
| `euler` | Y | `Y' = s(K Y + b)` | `Y + h s(K Y + b)`, a residual network | 1 |
| `antisymmetric` | Y | the same with `(K - K' - gamma I) / 2` for K | the same | 1 |
| `runge-kutta` | Y | the same as `euler` | the classical one of four stages, K and b held within the step | 4 |
| `leapfrog` | Y, Y before | `Y'' = -K' s(K Y + b)`, `Y'(0) = 0` | `2 Y - Y before - h^2 K' s(K Y + b)` | 1 |
| `verlet` | Y, Z | `Y' = s(K Z + b)`, `Z' = -s(K' Y + b)` | Z a half step ahead of Y | 2 or 1 |
| `hamiltonian` | p, q | `q' = K' s(K p + b)`, `p' = -K' s(K q + b)` | half a step of p, one of q, half of p | 2 |

The order is that of the solution at a fixed time for weights that are constant in time; where they change, holding them
within a step makes every method one of order 1. Leapfrog is itself of order 2, and its start `Y before = Y` of order 1.
Verlet is of order 2 where its first step begins with half a kick of Z, and of order 1 where Z starts as if it stood at
-h/2. The Hamiltonian form is H-DNN (Galimberti et al. 2021, arXiv 2105.13205), on the two halves of the features. There
the authors take the semi-implicit Euler step of order 1; here it is the Störmer-Verlet step (Hairer, Lubich & Wanner
2006, section I.3), whose p and q belong to the same time, so that every layer is the same map and its energy needs no
correction; it costs three forces instead of two.

The last three are compositions of shears: one field moves by a force that the other one exerts. That is why they can be
undone, and why one description gives the step, its inverse and its gradient (`synaptome.networks.reversible`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from synaptome.networks.forces import FORCES, Activation, Shear, State, apply, moved, moved_back, source_after


def _leapfrog(h: float, kick: float) -> tuple[Shear, ...]:
    return (Shear(1, "symmetric", -(h**2), mirrored=True),)


def _verlet(h: float, kick: float) -> tuple[Shear, ...]:
    return Shear(1, "inward", -kick * h), Shear(0, "outward", h)


def _hamiltonian(h: float, kick: float) -> tuple[Shear, ...]:
    half = Shear(0, "symmetric", -h / 2)
    return half, Shear(1, "symmetric", h), half


def _euler(state: State, K: Tensor, b: Tensor, h: float, activation: Activation) -> State:
    return (torch.add(state[0], FORCES["outward"](K, state[0], b, activation), alpha=h),)


def _runge_kutta(state: State, K: Tensor, b: Tensor, h: float, activation: Activation) -> State:
    (y,) = state
    k1 = FORCES["outward"](K, y, b, activation)
    k2 = FORCES["outward"](K, torch.add(y, k1, alpha=h / 2), b, activation)
    k3 = FORCES["outward"](K, torch.add(y, k2, alpha=h / 2), b, activation)
    k4 = FORCES["outward"](K, torch.add(y, k3, alpha=h), b, activation)
    return (torch.add(y, k1 + 2 * (k2 + k3) + k4, alpha=h / 6),)


@dataclass(frozen=True)
class Dynamics:
    """One of the methods in the table of this module.

    The state between layers travels as one tensor, the carried state: its fields side by side on the axis of features
    or channels.

    Args:
        name: in the table.
        fields: how many the state has.
        opened: the fields at time 0, of the features `[batch, width]` or `[batch, width, height, width]`.
        explicit: the step of a method with one field.
        shears: the step of a reversible method, of h and the share of the first kick.
        halves: whether the fields are the halves of the features, and K acts on a half.
        tied: whether K is to be made `antisymmetric` first.
    """

    name: str
    fields: int
    opened: Callable[[Tensor], State]
    explicit: Callable[[State, Tensor, Tensor, float, Activation], State] | None = None
    shears: Callable[[float, float], tuple[Shear, ...]] | None = None
    halves: bool = False
    tied: bool = False

    def step(
        self, state: State, K: Tensor, b: Tensor, h: float, activation: Activation = torch.tanh, kick: float = 1.0
    ) -> State:
        """The state one layer on.

        Args:
            state: the fields, each `[batch, n]`, or `[batch, n, height, width]` for a convolution.
            K: `[n, n]` or `[n, n, 3, 3]`; an antisymmetric method takes it from `antisymmetric`.
            b: `[n]`.
            h: the step.
            activation: elementwise.
            kick: the share of Verlet's kick of Z in this step: 1/2 in the first for a start by half a kick, else 1.
        """
        if self.shears is None:
            assert self.explicit is not None
            return self.explicit(state, K, b, h, activation)
        for shear in self.shears(h, kick):
            source = state[1 - shear.target]
            state = moved(state, shear, FORCES[shear.force](K, source, b, activation))
        return state

    def inverse(
        self, state: State, K: Tensor, b: Tensor, h: float, activation: Activation = torch.tanh, kick: float = 1.0
    ) -> State:
        """The state one layer back, of a reversible method; arguments as for `step`."""
        assert self.shears is not None
        for shear in reversed(self.shears(h, kick)):
            force = FORCES[shear.force](K, source_after(state, shear), b, activation)
            state = moved_back(state, shear, force)
        return state

    def split(self, carried: Tensor) -> State:
        """The fields of a carried state, `arranged`."""
        return tuple(arranged(field) for field in carried.chunk(self.fields, 1))

    def features(self, state: State) -> Tensor:
        """What a layer shows: Y, or p and q side by side."""
        return join(state) if self.halves else state[0]

    def control_width(self, width: int) -> int:
        """The n of the weights `[n, n]` of a network with so many features."""
        return width // 2 if self.halves else width

    def carried_width(self, width: int) -> int:
        """The features of the carried state."""
        return self.fields * self.control_width(width)


def arranged(field: Tensor) -> Tensor:
    """The same field; one of images with its channels innermost in memory, where few of them convolve faster."""
    # Permuted, since torch.func.vmap has no other memory formats.
    return field.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if field.dim() == 4 else field


def join(state: State) -> Tensor:
    """The carried state of fields."""
    return state[0] if len(state) == 1 else torch.cat(state, 1)


def energy(carried: Tensor, K: Tensor, b: Tensor) -> Tensor:
    """`1' log cosh(K q + b) + 1' log cosh(K p + b)`, which the Hamiltonian form with tanh conserves for constant K, b.

    Args:
        carried: p and q side by side, `[batch, width]` or `[batch, width, height, width]`.
        K: `[width/2, width/2]` or `[width/2, width/2, 3, 3]`.
        b: `[width/2]`.

    Returns:
        `[batch]`.
    """
    p, q = carried.chunk(2, 1)
    return (_log_cosh(apply(K, q, b)) + _log_cosh(apply(K, p, b))).flatten(1).sum(1)


def _log_cosh(x: Tensor) -> Tensor:
    size = x.abs()  # cosh itself would overflow
    return size + F.softplus(-2 * size) - math.log(2)


def _alone(y: Tensor) -> State:
    return (y,)


DYNAMICS: Mapping[str, Dynamics] = MappingProxyType(
    {
        method.name: method
        for method in (
            Dynamics("euler", 1, _alone, explicit=_euler),
            Dynamics("antisymmetric", 1, _alone, explicit=_euler, tied=True),
            Dynamics("leapfrog", 2, lambda y: (y, y), shears=_leapfrog),
            Dynamics("verlet", 2, lambda y: (y, torch.zeros_like(y)), shears=_verlet),
            Dynamics("hamiltonian", 2, lambda y: y.chunk(2, 1), shears=_hamiltonian, halves=True),
            Dynamics("runge-kutta", 1, _alone, explicit=_runge_kutta),
        )
    }
)
REVERSIBLE = tuple(name for name, method in DYNAMICS.items() if method.shears is not None)
