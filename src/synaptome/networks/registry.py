"""Networks by name, each a function of the shape of its inputs and the number of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from torch import nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.networks.convolutional import ConvNet, ResNet20, finish
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.wiring import Kind, Wiring


def lenet(
    input_shape: Sequence[int],
    classes: int,
    *,
    activation: str = "relu",
    bias: bool = True,
    initialiser: str = "he",
    p1: float | None = None,
    seed: int | None = None,
    wiring: Kind | Wiring | None = None,
    layers: str = "all",
) -> FeedForward:
    """LeNet-300-100 (LeCun et al. 1998): fully connected, with hidden layers of 300 and 100.

    Args:
        input_shape: of an example, of any number of dimensions.
        classes, activation, bias, initialiser, p1, seed, wiring, layers: as for `ConvNet`.

    Raises:
        ConfigurationError: a name, a width or a layer number that does not exist.
    """
    network = FeedForward([math.prod(input_shape), 300, 100, classes], activation=activation, bias=bias)
    finish(network, initialiser, p1, seed, wiring, layers)
    return network


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "lenet": lenet,
        "conv2": partial(ConvNet, blocks=((64, 64),)),
        "conv4": partial(ConvNet, blocks=((64, 64), (128, 128))),
        "conv6": partial(ConvNet, blocks=((64, 64), (128, 128), (256, 256))),
        "resnet20": ResNet20,
    }
)


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    activation: str = "relu",
    bias: bool = True,
    affine: bool | None = None,
    initialiser: str = "he",
    p1: float | None = None,
    seed: int | None = None,
    wiring: Kind | Wiring | None = None,
    layers: str = "all",
) -> nn.Module:
    """The network `name`, from `[batch, *input_shape]` to `[batch, classes]`.

    Args:
        name: `lenet`, `conv2`, `conv4`, `conv6` or `resnet20`.
        input_shape: of an example: `(channels, height, width)`; any shape for lenet.
        classes: number of outputs.
        affine: of resnet20 only; see `ResNet20`.
        activation, bias, initialiser, p1, seed, wiring, layers: as for `ConvNet`.

    Raises:
        ConfigurationError: a name, number, shape or layer that does not exist, or affine for a network without batch
            normalisation.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    options = {"activation": activation, "bias": bias, "initialiser": initialiser, "p1": p1, "seed": seed}
    if affine is not None:
        if NETWORKS[name] is not ResNet20:
            raise ConfigurationError(
                f"affine is for batch normalisation, which {name} has none of; leave it out, or choose resnet20"
            )
        options["affine"] = affine
    return NETWORKS[name](input_shape, classes, **options, wiring=wiring, layers=layers)
