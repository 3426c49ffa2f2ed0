"""Multilevel training of stable networks, and what keeps their weights smooth.

Train with N steps, prolong to 2 N of half the size, train again (Haber, Ruthotto, Holtham & Jun 2018, arXiv 1703.02009;
Haber & Ruthotto 2017, section 3.4). Weights are a path in time, so that a network and its prolongation are two
discretisations of one differential equation, and their outputs differ by the error of the coarse one's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn, optim

from synaptome.errors import ConfigurationError
from synaptome.networks.stable import StableNetwork, resample
from synaptome.topology.optimizer_state import group_of

PATHS = ("weight", "bias")  # of a network: what lives on its grid in time


@torch.no_grad()
def prolong(network: StableNetwork, optimizer: optim.Optimizer | None = None) -> None:
    """Double a network's depth and controls in place, and halve its step; time stays.

    New controls are halfway between their neighbours, and the last one repeats the one before it. `weight` and `bias`
    become new parameters without gradients. The optimizer holds them in place of the old ones, with the same options,
    and its state for each control is interpolated as the control is: means stay means, and what is not negative stays
    so. A gradient by one control is about half as large as before, as its step is; Adam and its kind adapt within the
    memory of their means, for plain SGD the learning rate has to be chosen anew.

    Args:
        network: any.
        optimizer: of the network's parameters: any whose state for a parameter is of the parameter's shape, or a
            number; None if there is none, or a new one is to be made.

    Raises:
        ConfigurationError: the optimizer does not hold the parameters, or its state cannot be interpolated. Nothing has
            been changed then.
    """
    if optimizer is not None:
        _check(optimizer, network)
    count = 2 * network.controls
    for name in PATHS:
        old = network.get_parameter(name)
        new = nn.Parameter(resample(old, count), requires_grad=old.requires_grad)
        setattr(network, name, new)
        if optimizer is not None:
            _follow(optimizer, old, new)
    network.depth *= 2
    network.flow = network.opening.flow = dataclasses.replace(network.flow, step=network.time / network.depth)


def smoothness(network: StableNetwork) -> Tensor:
    """`sum_i ||theta_{i+1} - theta_i||^2 / (2 h)` over weights and biases (Haber & Ruthotto 2017, section 3.3), 0-d.

    h is the time between two controls, so that this is half the integral of the squared derivative of the path, and
    carries over depths.
    """
    spacing = network.time / network.controls
    total = sum(network.get_parameter(name).diff(dim=0).square().sum() for name in PATHS)
    assert isinstance(total, Tensor)
    return total / (2 * spacing)


def pixel_smoothness(network: StableNetwork) -> Tensor:
    """The sum of squared differences between the classifier's weights of neighbouring pixels, 0-d.

    Neighbours are above or beside each other in one channel, for one output (Haber & Ruthotto 2017, section 3.3).

    Raises:
        ConfigurationError: the network's features are no images.
    """
    channels, *size = (network.width, *network.opening.shape[1:])
    if not size:
        raise ConfigurationError(
            "this network is fully connected: its features have no neighbours; smoothness over pixels is for networks "
            "of images, whose inputs are (channels, height, width)"
        )
    images = network.classifier.weight.view(-1, channels, *size)
    return images.diff(dim=-1).square().sum() + images.diff(dim=-2).square().sum()


def _check(optimizer: optim.Optimizer, network: StableNetwork) -> None:
    """Refuse an optimizer whose state cannot be interpolated, before anything is changed."""
    if isinstance(optimizer, optim.LBFGS):
        raise ConfigurationError(
            "LBFGS keeps one flat history of all parameters, which cannot be interpolated in time; prolong the network "
            "without it, and make a new one"
        )
    for name in PATHS:
        parameter = network.get_parameter(name)
        if group_of(optimizer, parameter) is None and parameter.requires_grad:
            raise ConfigurationError(
                f"the optimizer does not hold the {name} of this network; make it from the network's parameters as "
                f"they are now"
            )
        for key, state in optimizer.state.get(parameter, {}).items():
            if isinstance(state, Tensor) and state.dim() > 0 and state.shape != parameter.shape:
                raise ConfigurationError(
                    f"{type(optimizer).__name__} keeps a state {key!r} of shape {list(state.shape)} for the {name}, "
                    f"{list(parameter.shape)}, which cannot be interpolated in time; prolong the network without the "
                    f"optimizer, and make a new one"
                )


def _follow(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a prolonged parameter in the place of the one before."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            key: resample(state, len(new)) if isinstance(state, Tensor) and state.dim() > 0 else state
            for key, state in optimizer.state.pop(old).items()
        }
