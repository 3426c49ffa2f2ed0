"""The parts of a stable network: its opening layer, and blocks of consecutive layers for parallel learning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.networks.dynamics import join
from synaptome.networks.flow import Flow
from synaptome.networks.partition import bounds, check_balance

if TYPE_CHECKING:
    from synaptome.networks.stable import StableNetwork

OPENINGS = ("pad", "learned")


class Opening(nn.Module):
    """From inputs to the carried state at time 0.

    Args:
        shape: of an input: `(features,)`, or `(channels, height, width)` of an image.
        width: features or channels of the network.
        kind: `pad` fills new features or channels with zeros, `learned` is a linear layer or a 3 x 3 convolution.
        flow: of the network; it says which fields there are.

    Raises:
        ConfigurationError: `kind` is neither, or more inputs are to be padded than the network is wide.
    """

    def __init__(self, shape: Sequence[int], width: int, kind: str, flow: Flow) -> None:
        super().__init__()
        if kind not in OPENINGS:
            raise unknown("opening", kind, OPENINGS)
        what = "features" if len(shape) == 1 else "channels"
        if kind == "pad" and width < shape[0]:
            raise ConfigurationError(
                f"zero padding takes a width of at least the {shape[0]} {what} of the inputs; given width={width}: "
                f"widen the network, or choose opening='learned'"
            )
        self.shape, self.width, self.kind, self.flow = tuple(shape), width, kind, flow
        self.layer: nn.Module | None = None
        if kind == "learned":
            self.layer = nn.Linear(shape[0], width) if len(shape) == 1 else nn.Conv2d(shape[0], width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]`, flattened to `[batch, features]`, or `[batch, channels, height, width]`, to the state."""
        flat = x.flatten(1) if len(self.shape) == 1 and x.dim() > 1 else x
        if flat.dim() != len(self.shape) + 1 or flat.shape[1:] != self.shape:
            raise ConfigurationError(
                f"this network takes inputs [batch, {', '.join(map(str, self.shape))}]; given {list(x.shape)}"
            )
        if self.layer is not None:
            y: Tensor = self.layer(flat)
        else:
            y = F.pad(flat, (*(0, 0) * (len(self.shape) - 1), 0, self.width - self.shape[0]))
        return join(self.flow.method.opened(y))

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"shape={self.shape}, width={self.width}, kind={self.kind!r}"


class StableBlock(nn.Module):
    """Consecutive layers of a stable network with parameters of their own, made by `StableNetwork.split`.

    The first block takes the inputs of the network, each of the others the carried state of the one before; the last
    one gives the network's outputs, each of the others its carried state.

    Args:
        network: whose layers these are; their parameters are copied.
        first, end: numbers of the first layer and of the one after the last, from 0.
        last: whether the classifier belongs to it.
    """

    def __init__(self, network: StableNetwork, first: int, end: int, last: bool) -> None:
        super().__init__()
        self.flow, self.first, self.depth = network.flow, first, end - first
        self.opening = copy.deepcopy(network.opening) if first == 0 else None
        some = end > first  # without layers there is no gradient, which DistributedDataParallel would wait for
        self.weight = nn.Parameter(network.weight.detach()[first:end].clone(), requires_grad=some)
        self.bias = nn.Parameter(network.bias.detach()[first:end].clone(), requires_grad=some)
        self.classifier = copy.deepcopy(network.classifier) if last else None

    def forward(self, x: Tensor) -> Tensor:
        """Inputs or a carried state, to a carried state or outputs."""
        carried = x if self.opening is None else self.opening(x)
        carried = self.flow.run(carried, self.weight, self.bias, self.first)
        return carried if self.classifier is None else classified(self.flow, self.classifier, carried)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"layers {self.first} to {self.first + self.depth - 1}, {self.flow}"


def classified(flow: Flow, classifier: nn.Linear, carried: Tensor) -> Tensor:
    """The outputs `[batch, outputs]` of a carried state."""
    features = flow.method.features(flow.method.split(carried))
    outputs: Tensor = classifier(features.flatten(1))
    return outputs


def blocks(network: StableNetwork, balance: Sequence[int]) -> nn.ModuleList:
    """Blocks with so many layers each; see `StableNetwork.split`."""
    if network.controls != network.depth:
        raise ConfigurationError(
            f"blocks own the weights of their layers, which needs one control for each of the {network.depth} layers; "
            f"this network interpolates {network.controls}: leave controls out"
        )
    check_balance(balance, network.depth, least=0)  # the last one may be the classifier alone
    parts = enumerate(bounds(balance), 1)
    return nn.ModuleList(StableBlock(network, first, end, number == len(balance)) for number, (first, end) in parts)
