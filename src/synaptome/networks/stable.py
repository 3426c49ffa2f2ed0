"""Stable networks: deep networks as dynamical systems in time, fully connected or convolutional."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.networks.blocks import Opening, blocks, classified
from synaptome.networks.flow import Flow
from synaptome.networks.forces import step_bound


class StableNetwork(nn.Module):
    """An opening, `depth` layers that are steps of a differential equation in time from 0 to `time`, and a classifier.

    Layer j stands at time `j h`, with the step `h = time / depth` (Haber & Ruthotto 2017, arXiv 1705.03341; the
    equations are in `synaptome.networks.dynamics`). Its weights and biases may live on a coarser grid in time: control
    i stands at `i time / controls`, layers between two controls take what lies on the line between these, and layers
    after the last one its own values (Onken et al. 2019).

    Weights start from N(0, std) with std = 1 / (2 sqrt(fan_in)), the same ones in each layer, and biases from 0: a path
    that is constant in time. So a network of any depth starts as the same differential equation, whatever its step, and
    its smoothness in time (`synaptome.networks.multilevel.smoothness`) is 0. fan_in is the n below, or 9 n for a
    convolution. The opening and the classifier start as `torch.nn.Linear` and `torch.nn.Conv2d` do.

    Between layers travels one tensor, the carried state `[batch, n]` or `[batch, n, height, width]`: the fields of the
    dynamics side by side, so that n is twice the width for `leapfrog` and `verlet`, and the width for all others.

    Args:
        inputs: number of features, or `(channels, height, width)` of images: then layers are 3 x 3 convolutions that
            keep height and width.
        outputs: number of outputs.
        dynamics: `euler`, `antisymmetric`, `leapfrog`, `verlet`, `hamiltonian` or `runge-kutta`.
        width: features or channels of Y; even for `hamiltonian`, whose two fields are its halves.
        depth: number of layers.
        time: T, above 0.
        controls: number of control nodes, from 1 to depth; None for one in each layer.
        gamma: damping of `antisymmetric`, at least 0.
        start: of `verlet`: `half-kick` (order 2) or `zero` (order 1).
        activation: a name in `synaptome.networks.feedforward.ACTIVATIONS`.
        opening: `pad` fills features or channels with zeros, `learned` is a linear layer or a 3 x 3 convolution.
        reversible: whether the backward pass recomputes states, with memory constant in depth; for `leapfrog`, `verlet`
            and `hamiltonian`. See `synaptome.networks.reversible`.

    Attributes:
        weight: `[controls, n, n]` or `[controls, n, n, 3, 3]`; n is the width, or half of it for `hamiltonian`.
        bias: `[controls, n]`.

    Raises:
        ConfigurationError: a name, a number or a shape is none of these, or is for other dynamics.

    Warns:
        UserWarning: gamma is so large for the step that even a mode that does not turn grows, `gamma h > 4`.
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        outputs: int,
        *,
        dynamics: str = "verlet",
        width: int,
        depth: int,
        time: float = 10.0,
        controls: int | None = None,
        gamma: float = 0.0,
        start: str = "half-kick",
        activation: str = "tanh",
        opening: str = "pad",
        reversible: bool = False,
    ) -> None:
        super().__init__()
        shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ConfigurationError(
                f"inputs are a number of features or (channels, height, width), each at least 1; given {inputs}"
            )
        for name, number in (("outputs", outputs), ("width", width), ("depth", depth)):
            if number < 1:
                raise ConfigurationError(f"{name} is a whole number from 1 on; given {number}")
        if not 0 < time < math.inf:  # also refuses NaN
            raise ConfigurationError(f"time is the length of the interval [0, T], finite and above 0; given {time}")
        controls = depth if controls is None else controls
        if not 1 <= controls <= depth:
            raise ConfigurationError(f"there are 1 to {depth} controls, at most one in each layer; given {controls}")
        self.flow = Flow(dynamics, time / depth, gamma, start, activation, reversible)
        if self.flow.method.halves and width % 2:
            raise ConfigurationError(
                f"the {dynamics} dynamics act on two halves of the features; given width={width}, take an even one"
            )
        if gamma > 0 and self.step > step_bound(gamma):
            warnings.warn(
                f"gamma h = {gamma * self.step:g} is above 4, so that an explicit Euler step h = {self.step:g} "
                f"multiplies even a mode that does not turn by 1 - gamma h / 2 = {1 - gamma * self.step / 2:g}, and it "
                f"grows; take gamma up to {4 / self.step:g}, or a depth from {math.ceil(gamma * time / 4)} on",
                stacklevel=2,
            )
        self.width, self.depth, self.time = width, depth, time
        self.opening = Opening(shape, width, opening, self.flow)
        n, kernel = self.flow.method.control_width(width), (3, 3)[: len(shape) - 1]
        initial = torch.randn(n, n, *kernel) / (2 * math.sqrt(n * math.prod(kernel)))
        self.weight = nn.Parameter(initial.repeat(controls, *(1 for _ in initial.shape)))
        self.bias = nn.Parameter(torch.zeros(controls, n))
        self.classifier = nn.Linear(width * math.prod(shape[1:]), outputs)

    @property
    def step(self) -> float:
        """The step h = time / depth."""
        return self.flow.step

    @property
    def dynamics(self) -> str:
        """The name of the dynamics."""
        return self.flow.dynamics

    @property
    def controls(self) -> int:
        """The number of control nodes."""
        return len(self.weight)

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Layers from `start` up to, and without, `stop`.

        Args:
            x: inputs, `[batch, ...]` flattened to `[batch, inputs]` or `[batch, channels, height, width]`, if `start`
                is 0; else the carried state before layer `start`.
            start: from 0 to depth.
            stop: from `start` to depth; None for all layers and the classifier.

        Returns:
            `[batch, outputs]` if `stop` is None, else the carried state before layer `stop`.

        Raises:
            ConfigurationError: x has another shape, or there are no such layers.
        """
        end = self.depth if stop is None else stop
        if not 0 <= start <= end <= self.depth:
            raise ConfigurationError(
                f"this network has layers from 0 up to {self.depth}, and start is at most stop; given start={start}, "
                f"stop={stop}"
            )
        carried = self._flow(self.opening(x) if start == 0 else self._checked(x), start, end)
        return classified(self.flow, self.classifier, carried) if stop is None else carried

    def advance(self, carried: Tensor, layer: int) -> Tensor:
        """The carried state after one layer, counted from 0, of the one before it; `forward` is faster for several.

        Raises:
            ConfigurationError: the state has another shape, or there is no such layer.
        """
        if not 0 <= layer < self.depth:
            raise ConfigurationError(f"this network has layers 0 to {self.depth - 1}; given {layer}")
        return self._flow(self._checked(carried), layer, layer + 1)

    def features(self, x: Tensor) -> Tensor:
        """The path of Y (of p and q for `hamiltonian`) in time, `[depth + 1, batch, width(, height, width)]`."""
        method = self.flow.method
        weight, bias = self.layers()
        state = method.split(self.opening(x))
        path = [method.features(state)]
        for layer, (K, b) in enumerate(zip(self.flow.matrices(weight).unbind(), bias.unbind(), strict=True)):
            state = method.step(state, K, b, self.step, self.flow.function, self.flow.kick(layer))
            path.append(method.features(state))
        return torch.stack(path)

    def layers(self) -> tuple[Tensor, Tensor]:
        """The weight and bias of each layer, as at its time; `Flow.matrices` makes them antisymmetric."""
        return resample(self.weight, self.depth), resample(self.bias, self.depth)

    def split(self, balance: Sequence[int]) -> nn.ModuleList:
        """The network as blocks of consecutive layers that own copies of their parameters, for parallel learning.

        Args:
            balance: the number of layers in each block; the numbers sum to the depth. The last one may be 0: then its
                block is the classifier alone.

        Returns:
            Of `StableBlock`: each applied to what the one before gives, they compute what the network does.

        Raises:
            ConfigurationError: the numbers are no such, or the network interpolates fewer controls.
        """
        return blocks(self, balance)

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"width={self.width}, depth={self.depth}, time={self.time:g}, controls={self.controls}, {self.flow}"

    def _flow(self, carried: Tensor, start: int, stop: int) -> Tensor:
        weight, bias = self.layers()
        return self.flow.run(carried, weight[start:stop], bias[start:stop], start)

    def _checked(self, carried: Tensor) -> Tensor:
        shape = (self.flow.method.carried_width(self.width), *self.opening.shape[1:])
        if carried.shape[1:] != shape:
            raise ConfigurationError(
                f"the carried state of this network is [batch, {', '.join(map(str, shape))}]; given "
                f"{list(carried.shape)}"
            )
        return carried


def resample(nodes: Tensor, count: int) -> Tensor:
    """A path in time at `count` evenly spaced times from 0 on: on the lines between its nodes, and constant after them.

    Args:
        nodes: `[controls, ...]`; node i stands at `i T / controls`.
        count: at least 1; the result's row j stands at `j T / count`.

    Returns:
        `[count, ...]`; the nodes themselves if there are as many.
    """
    controls = len(nodes)
    if controls == count:
        return nodes
    positions = [divmod(j * controls, count) for j in range(count)]  # whole numbers: a node is met exactly
    low = torch.tensor([whole for whole, _ in positions], device=nodes.device)
    share = torch.tensor([rest / count for _, rest in positions], dtype=nodes.dtype, device=nodes.device)
    high = (low + 1).clamp(max=controls - 1)
    return torch.lerp(nodes[low], nodes[high], share.view(-1, *(1 for _ in nodes.shape[1:])))
