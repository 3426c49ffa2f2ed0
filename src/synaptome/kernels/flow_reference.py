"""The layers of a stable network one after the other, in plain torch: the oracle of `synaptome.kernels.flow`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"tanh": torch.tanh, "relu": torch.relu}


def final_state(
    state: Tensor, weight: Tensor, bias: Tensor, dynamics: str, step: float, half_kick: bool, activation: str
) -> Tensor:
    """The state after all layers, `[batch, fields * width]`, recorded by autograd; arguments as for `flow`."""
    fields = torch.split(state, weight.shape[1], 1)
    for layer, (K, b) in enumerate(zip(weight.unbind(), bias.unbind(), strict=True)):
        kick = 0.5 if half_kick and layer == 0 else 1.0
        fields = _layer(fields, K, b, ACTIVATIONS[activation], dynamics, step, kick)
    return torch.cat(fields, 1)


def _layer(
    fields: tuple[Tensor, ...], K: Tensor, b: Tensor, s: Activation, dynamics: str, h: float, kick: float
) -> tuple[Tensor, ...]:
    """One layer, whose columns `K y` are rows `y @ K'`."""
    if dynamics == "euler":
        (y,) = fields
        return (y + h * s(y @ K.T + b),)
    y, other = fields
    if dynamics == "leapfrog":
        return 2 * y - other - h**2 * s(y @ K.T + b) @ K, y
    if dynamics == "verlet":
        z = other - kick * h * s(y @ K + b)
        return y + h * s(z @ K.T + b), z
    p = y - h / 2 * s(other @ K.T + b) @ K
    q = other + h * s(p @ K.T + b) @ K
    return p - h / 2 * s(q @ K.T + b) @ K, q
