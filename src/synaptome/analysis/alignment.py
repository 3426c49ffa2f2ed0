"""How well an estimate of a layered network's gradient agrees with that of backpropagation through time (BPTT).

BPTT differentiates the cost at the end of the free phase through each of its steps. It needs no equilibrium, and tends
to the gradient at the equilibrium as the free phase gets longer; equilibrium propagation estimates the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from synaptome.networks.equilibrium import EquilibriumNetwork


@torch.enable_grad()
def bptt_gradient(
    network: EquilibriumNetwork, inputs: Tensor, cost: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The cost at the end of a free phase from states 0, and its gradient by autograd through all steps.

    A tolerance of the network's relaxation means nothing here: every step is taken.

    Args:
        network: its parameters' own gradients are left as they are.
        inputs: `[batch, ...]`.
        cost: of the network's outputs `[batch, outputs]`, 0-d and differentiable.

    Returns:
        The cost, 0-d, and the gradient of each parameter by its name.
    """
    states = network.rest(len(inputs))
    drive = network.drive(inputs)
    for _ in range(network.relaxation.steps):
        moved = zip(states, drive(states), strict=True)
        states = [network.state.moved(state, a, network.relaxation.dt) for state, a in moved]
    value = cost(network.outputs(states))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    return value.detach(), dict(zip(parameters, gradients, strict=True))


def alignment(model: nn.Module, gradient: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """The cosine of the angle between two gradients, for each layer with parameters of its own.

    Args:
        model: any module.
        gradient, reference: of its parameters, by name.

    Returns:
        By the layer's name in the model, from -1 to 1; 0 where one of the gradients is 0, and has no direction.
    """
    aligned = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        names = [prefix + own for own, _ in module.named_parameters(recurse=False)]
        if names:
            own, other = (torch.cat([given[n].flatten() for n in names]).double() for given in (gradient, reference))
            lengths = own.norm() * other.norm()
            aligned[name] = (own @ other / lengths).clamp(-1, 1).item() if lengths > 0 else 0.0
    return aligned
