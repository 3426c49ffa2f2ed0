"""The gradient that two phases of a layered network tell of, from states alone: local products, and no autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import States


@torch.no_grad()
def contrast(
    network: LayeredNetwork, inputs: Tensor, free: States, plus: States, minus: States, difference: float
) -> None:
    """Leave the estimate of the gradient of the mean cost in the parameters of all but the read-out.

    Of symmetric networks `-(s+_i s+_j - s-_i s-_j) / difference`, of others `-s0_i (s+_j - s-_j) / difference`, a mean
    over the batch; see `synaptome.learning.equilibrium`.

    Args:
        network: symmetric, or with feedback weights of its own.
        inputs: `[batch, inputs]`.
        free: the states of the layers in the free phase, each `[batch, width]`.
        plus, minus: those of the two phases that are compared.
        difference: of the betas of these two, not 0.
    """
    scale = -1 / (difference * len(inputs))
    changes = [(above - below).mul_(scale) for above, below in zip(plus, minus, strict=True)]
    for number, layer in enumerate(network.layers):
        assert isinstance(layer, nn.Linear)
        into = gradient(layer.weight)
        if number == 0:
            torch.mm(changes[0].T, inputs, out=into)
        elif network.symmetric:
            torch.mm(plus[number].T, plus[number - 1], out=into)
            into.addmm_(minus[number].T, minus[number - 1], alpha=-1).mul_(scale)
        else:
            torch.mm(changes[number].T, free[number - 1], out=into)
        if layer.bias is not None:
            torch.sum(changes[number], 0, out=gradient(layer.bias))
    for number, layer in enumerate(network.feedback):
        assert isinstance(layer, nn.Linear)
        torch.mm(changes[number].T, free[number + 1], out=gradient(layer.weight))


@torch.no_grad()
def readout_gradient(readout: nn.Linear, states: Tensor, error: Tensor) -> None:
    """Leave the gradient of a mean cost in a read-out `[classes, width]`: `error' s / batch`.

    Args:
        readout: linear.
        states: what it reads, `[batch, width]`.
        error: the derivative of each example's cost by what it says, `[batch, classes]`.
    """
    error = error / len(error)
    torch.mm(error.T, states, out=gradient(readout.weight))
    if readout.bias is not None:
        torch.sum(error, 0, out=gradient(readout.bias))


def gradient(parameter: Tensor) -> Tensor:
    """The parameter's gradient, to be overwritten; made if there is none."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
