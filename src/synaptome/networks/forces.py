"""What acts on the fields of a stable network: weights, the forces that they make, and shears by these forces.

A shear moves one field by a force that the other one exerts. It can be undone, whatever the force, and keeps
volumes, because the determinant of its Jacobian is 1 or -1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]  # the fields, each [batch, features] or [batch, channels, height, width]
# Of K, the field that exerts the force, b, and the activation.
Force = Callable[[Tensor, Tensor, Tensor, Activation], Tensor]


def apply(K: Tensor, y: Tensor, b: Tensor | None = None) -> Tensor:
    """`K y + b`: a matrix `[out, in]` on y `[batch, in]`, or 3 x 3 kernels `[out, in, 3, 3]` on padded images."""
    return F.linear(y, K, b) if K.dim() == 2 else F.conv2d(y, K, b, padding=1)


def apply_transposed(K: Tensor, y: Tensor, b: Tensor | None = None) -> Tensor:
    """`K' y + b` with the adjoint of `apply`: `<K x, y> = <x, K' y>`."""
    return F.linear(y, K.T, b) if K.dim() == 2 else F.conv_transpose2d(y, K, b, padding=1)


def antisymmetric(K: Tensor, gamma: float) -> Tensor:
    """`(K - K' - gamma I) / 2`, whose eigenvalues have the real part -gamma / 2 (Haber & Ruthotto 2017, section 3.2).

    Args:
        K: `[width, width]` or `[width, width, 3, 3]`, or a stack of these along a first axis.
        gamma: at least 0; see `step_bound`.
    """
    if K.dim() < 4:
        transposed, identity = K.transpose(-2, -1), torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    else:
        transposed = K.transpose(-4, -3).flip(-2, -1)
        identity = F.pad(torch.eye(K.shape[-3], dtype=K.dtype, device=K.device)[..., None, None], (1, 1, 1, 1))
    return (K - transposed - gamma * identity) / 2


def step_bound(gamma: float, frequency: float = 0.0) -> float:
    """The largest step with which explicit Euler does not grow on `y' = (K - K' - gamma I) y / 2`.

    A mode with eigenvalue `(-gamma + i frequency) / 2` is multiplied by `1 + h (-gamma + i frequency) / 2` in a step.

    Args:
        gamma: at least 0; at 0 every mode that turns grows, if slowly, and the bound is 0.
        frequency: of the mode, an imaginary part of an eigenvalue of `K - K'`; 0 bounds what gamma itself allows.
    """
    size = gamma**2 + frequency**2
    return 4 * gamma / size if size else math.inf


def _outward(K: Tensor, y: Tensor, b: Tensor, activation: Activation) -> Tensor:
    return activation(apply(K, y, b))


def _inward(K: Tensor, y: Tensor, b: Tensor, activation: Activation) -> Tensor:
    return activation(apply_transposed(K, y, b))


def _symmetric(K: Tensor, y: Tensor, b: Tensor, activation: Activation) -> Tensor:
    return apply_transposed(K, activation(apply(K, y, b)))


# By name, so that `synaptome.networks.reversible` can say the gradient of each.
FORCES: Mapping[str, Force] = MappingProxyType(
    {
        "outward": _outward,  # s(K y + b)
        "inward": _inward,  # s(K' y + b)
        "symmetric": _symmetric,  # K' s(K y + b), for tanh the gradient of 1' log cosh(K y + b)
    }
)


class Shear(NamedTuple):
    """One of two fields moves by a force that the other one exerts: `x_t <- x_t + scale F(x_s)`.

    Args:
        target: the field that moves, 0 or 1; the other one is the source.
        force: a name in `FORCES`.
        scale: of the force.
        mirrored: the target is field 1, goes to `2 x_s - x_t + scale F(x_s)`, and changes places with the source.
    """

    target: int
    force: str
    scale: float
    mirrored: bool = False


def moved(state: State, shear: Shear, force: Tensor) -> State:
    """The state after a shear whose force is known."""
    source, target = state[1 - shear.target], state[shear.target]
    if shear.mirrored:
        return torch.add(2 * source - target, force, alpha=shear.scale), source
    target = torch.add(target, force, alpha=shear.scale)
    return (target, source) if shear.target == 0 else (source, target)


def source_after(state: State, shear: Shear) -> Tensor:
    """The field that exerted the force of a shear, in the state after it."""
    return state[1] if shear.mirrored else state[1 - shear.target]


def moved_back(state: State, shear: Shear, force: Tensor) -> State:
    """The state before a shear whose force is known."""
    if shear.mirrored:  # a mirror image undoes itself
        return moved((state[1], state[0]), shear, force)[::-1]
    return moved(state, shear._replace(scale=-shear.scale), force)
