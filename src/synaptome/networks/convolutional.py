"""Convolutional networks for small images, with a choice of synapse for each layer: Conv2, Conv4, Conv6, ResNet-20."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.networks.feedforward import ACTIVATIONS, FeedForward, layer_numbers
from synaptome.networks.initialisation import initialise, weight_layers
from synaptome.synapses.rewire import rewire
from synaptome.synapses.wiring import Kind, Wiring

STAGES = (16, 32, 64)  # channels of ResNet-20
BLOCKS = 3  # residual blocks in each stage


class ConvNet(nn.Module):
    """Blocks of 3 x 3 convolutions, each block followed by max pooling 2 x 2, then fully connected layers.

    With blocks `[64, 64]`, `[128, 128]`, `[256, 256]` and hidden layers of 256 and 256 these are Conv2, Conv4 and Conv6
    (Frankle & Carbin 2019, figure 2). Convolutions keep height and width; the activation follows each layer but the
    last.

    Args:
        input_shape: `(channels, height, width)` of an image.
        classes: number of outputs.
        blocks: for each block, the channels of its convolutions.
        hidden: widths of the fully connected layers before the last.
        activation: of all layers but the last, as for `FeedForward`.
        bias: whether layers have biases; they start from 0.
        initialiser, p1: of the weights; see `synaptome.networks.initialisation`.
        seed: of the weights; None takes one from torch's random numbers.
        wiring: what the synapses of the chosen layers are; dense if None. `Sparse(start="random")` draws values of its
            own.
        layers: which layers the wiring is for: `all`, `none`, or numbers from 1, such as `1,3`, counted from the input.

    Raises:
        ConfigurationError: a name, a number, a shape or a layer that does not exist; images too small to be pooled.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        blocks: Sequence[Sequence[int]],
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        bias: bool = True,
        initialiser: str = "he",
        p1: float | None = None,
        seed: int | None = None,
        wiring: Kind | Wiring | None = None,
        layers: str = "all",
    ) -> None:
        super().__init__()
        channels, height, width = check_images(input_shape, 2 ** len(blocks), f"pooled {len(blocks)} times")
        if not all(blocks) or min((1, *(number for block in blocks for number in block))) < 1:
            raise ConfigurationError(
                f"each block has at least one convolution, of at least 1 channel; given {[list(b) for b in blocks]}"
            )
        self.activation = activation
        self.blocks = nn.ModuleList()
        for block in blocks:
            sizes = pairwise((channels, *block))
            self.blocks.append(
                nn.ModuleList(nn.Conv2d(before, after, 3, padding=1, bias=bias) for before, after in sizes)
            )
            channels, height, width = block[-1], height // 2, width // 2
        self.head = FeedForward([channels * height * width, *hidden, classes], activation=activation, bias=bias)
        finish(self, initialiser, p1, seed, wiring, layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, classes]`."""
        activation = ACTIVATIONS[self.activation]
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            for convolution in block:
                x = activation(convolution(x))
            x = F.max_pool2d(x, 2)
        return self.head(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"activation={self.activation!r}"


class ResNet20(nn.Module):
    """The residual network of 20 layers for CIFAR-10 (He et al. 2016, section 4.2).

    A convolution, three stages of three residual blocks with 16, 32 and 64 channels, of which the second and third
    start with stride 2, the mean over all positions, and a fully connected layer. All convolutions are 3 x 3, without
    biases, and followed by batch normalisation. Shortcuts have no parameters: where the size changes, they take each
    second position and fill new channels with zeros (option A).

    Args:
        input_shape, classes, activation, initialiser, p1, seed, wiring, layers: as for `ConvNet`; heights and widths
            from 5 on.
        bias: whether the last layer has one.
        affine: whether batch normalisation has a trained scale and shift. By default, unless the wiring learns a gate
            over frozen weights, so that nothing but the connectivity is learned.

    Raises:
        ConfigurationError: as for `ConvNet`.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__()
        # At least two positions are left at the end: batch normalisation needs more than one number of a channel.
        channels, _, _ = check_images(input_shape, 5, "halved twice, with more than one position left")
        if classes < 1:
            raise ConfigurationError(f"a network needs at least one class; given {classes}")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.activation = activation
        if affine is None:
            affine = not _gated(wiring)
        self.conv = nn.Conv2d(channels, STAGES[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(STAGES[0], affine=affine)
        self.blocks = nn.ModuleList()
        channels = STAGES[0]
        for stage in STAGES:
            for _ in range(BLOCKS):
                stride = 1 if channels == stage else 2
                self.blocks.append(ResidualBlock(channels, stage, stride, activation=activation, affine=affine))
                channels = stage
        self.output = nn.Linear(channels, classes, bias)
        finish(self, initialiser, p1, seed, wiring, layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, classes]`."""
        h = ACTIVATIONS[self.activation](self.norm(self.conv(x)))
        for block in self.blocks:
            h = block(h)
        return self.output(h.mean((2, 3)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"activation={self.activation!r}"


class ResidualBlock(nn.Module):
    """`activation(norm(conv(activation(norm(conv(x))))) + shortcut(x))` (He et al. 2016, figure 2), shortcut option A.

    Args:
        in_channels, out_channels: at least as many out as in.
        stride: of the first convolution and of the shortcut.
        activation: a name in `ACTIVATIONS`.
        affine: whether batch normalisation has a trained scale and shift.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, activation: str, affine: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels, affine=affine)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels, affine=affine)
        self.stride, self.new_channels, self.activation = stride, out_channels - in_channels, activation

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height / stride, width / stride]`."""
        activation = ACTIVATIONS[self.activation]
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        h = activation(self.norm1(self.conv1(x)))
        return activation(self.norm2(self.conv2(h)) + shortcut)


def check_images(input_shape: Sequence[int], least: int, why: str) -> tuple[int, int, int]:
    """The channels, height and width of images; a ConfigurationError if they are none, or below `least` pixels."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigurationError(
            f"a convolutional network takes images of shape (channels, height, width); given {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise ConfigurationError(
            f"images are {why}: this network takes at least {least} x {least} pixels; given {height} x {width}"
        )
    return channels, height, width


def finish(
    network: nn.Module,
    initialiser: str,
    p1: float | None,
    seed: int | None,
    wiring: Kind | Wiring | None,
    layers: str,
) -> None:
    """Draw the weights of a new network, then give the chosen layers their synapses; see `ConvNet`."""
    names = list(weight_layers(network))
    chosen = [names[number - 1] for number in layer_numbers(layers, len(names))]
    initialise(network, initialiser, seed=int(torch.randint(2**62, (), device="cpu")) if seed is None else seed, p1=p1)
    if wiring is not None and chosen:
        rewire(network, wiring, where=chosen)


def _gated(wiring: Kind | Wiring | None) -> bool:
    """Whether synapses learn a gate over what they store."""
    kinds = wiring if isinstance(wiring, Wiring) else Wiring(() if wiring is None else (wiring,))
    return any(kind.axis == "gate" for kind in kinds)
