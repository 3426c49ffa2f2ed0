"""Multilevel training of stable networks, and what keeps their weights smooth.

Train with N steps, prolong to 2 N of half the size, train again (Haber, Ruthotto, Holtham & Jun 2018, arXiv 1703.02009;
Haber & Ruthotto 2017, section 3.4). Weights are a path in time, so that a network and its prolongation are two
discretisations of one differential equation, and their outputs differ by the error of the coarse one's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from synaptome.errors import ConfigurationError
from synaptome.networks.blocks import StableBlock
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
    _double([network], [optimizer])
    network.depth *= 2
    network.flow = network.opening.flow = dataclasses.replace(network.flow, step=network.time / network.depth)


@torch.no_grad()
def prolong_blocks(blocks: Sequence[StableBlock], optimizers: Sequence[optim.Optimizer]) -> None:
    """`prolong` for a network that was split into blocks: they become those of the prolonged network.

    The weights of all blocks are one path in time: a block's last new control lies halfway to the first one of the next
    block. Borders stay at their times, so that what is learned of the activities there holds on.

    Args:
        blocks: consecutive ones. Behind the last control of the last one the path is taken as constant.
        optimizers: of the parameters of each block, all of one kind and with as many steps behind them; see `prolong`.

    Raises:
        ConfigurationError: an optimizer does not hold its block's parameters, or its state cannot be interpolated.
            Nothing has been changed then.
    """
    _double(blocks, optimizers)
    for block in blocks:
        block.first, block.depth = 2 * block.first, 2 * block.depth
        block.flow = dataclasses.replace(block.flow, step=block.flow.step / 2)
        if block.opening is not None:
            block.opening.flow = block.flow


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


def _double(parts: Sequence[StableNetwork | StableBlock], optimizers: Sequence[optim.Optimizer | None]) -> None:
    """Put a path of twice as many controls in the place of the one that lies in these parts, one after the other."""
    for part, optimizer in zip(parts, optimizers, strict=True):
        if optimizer is not None:
            _check(optimizer, part)
    for name in PATHS:
        olds = [part.get_parameter(name) for part in parts]
        for part, optimizer, old, new, state in zip(
            parts, optimizers, olds, _doubled(olds), _doubled_states(olds, optimizers), strict=True
        ):
            parameter = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(part, name, parameter)
            if optimizer is not None:
                _replace(optimizer, old, parameter, state)


def _doubled(pieces: Sequence[Tensor]) -> list[Tensor]:
    path = torch.cat([piece.detach() for piece in pieces])
    parts = torch.split(resample(path, 2 * len(path)), [2 * len(piece) for piece in pieces])
    return [part.clone() for part in parts]  # memory of their own: one may be changed while another is differentiated


def _doubled_states(olds: Sequence[nn.Parameter], optimizers: Sequence[optim.Optimizer | None]) -> list[dict[str, Any]]:
    """What the optimizers keep for a path, of each of its pieces; nothing before their first steps."""
    states: list[dict[str, Any]] = [
        dict(optimizer.state.get(old, {})) if optimizer is not None else {}
        for old, optimizer in zip(olds, optimizers, strict=True)
    ]
    whole = [state for state, old in zip(states, olds, strict=True) if len(old)]  # a block may be the classifier alone
    for key in set.intersection(*(set(state) for state in whole)):
        kept = [state[key] for state in whole]
        if all(isinstance(each, Tensor) and each.dim() > 0 for each in kept):
            for state, each in zip(whole, _doubled(kept), strict=True):
                state[key] = each
    return states


def _check(optimizer: optim.Optimizer, network: StableNetwork | StableBlock) -> None:
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


def _replace(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter, state: dict[str, Any]) -> None:
    """Put a prolonged parameter in the place of the one before."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if optimizer.state.pop(old, None) is not None:
        optimizer.state[new] = state
