"""Synthesisers: small networks that guess what another block will send (Jaderberg et al. 2017, arXiv 1608.05343).

Of the gradient of the loss at the activity between two blocks, each guesses, for an example of its own, from the
activity h and, if it is conditioned, from the label too (section 2.2 and "cDNI"). Of the activity itself it guesses
from the network's input ("full unlock"). The last layer starts from 0, and so does the guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown

SYNTHESISERS = ("linear", "mlp", "convolutional")
INPUT_SYNTHESISERS = ("linear", "mlp")


class Synthesiser(nn.Module):
    """From the activity between two blocks to a guess of the loss's gradient by it.

    Args:
        shape: of an example's activity, `(features,)` or `(channels, height, width)`.
        classes: how many labels there are, for guesses that depend on them; 0 for guesses that do not.
        kind: `linear` (`W h + V y`), `mlp` (two hidden layers with ReLU; of the flattened activity) or
            `convolutional` (3 x 3 kernels over the activity's channels, and a plane for each label).
        hidden: features, or channels, of the hidden layers of `mlp` and `convolutional`; as many as those of the
            activity if None.

    Raises:
        ConfigurationError: there is no such kind, a number is below 1, or the activity has no planes to convolve.
    """

    def __init__(self, shape: Sequence[int], classes: int, kind: str = "linear", hidden: int | None = None) -> None:
        super().__init__()
        if kind not in SYNTHESISERS:
            raise unknown("synthesiser", kind, SYNTHESISERS)
        if kind == "convolutional" and len(shape) != 3:
            raise ConfigurationError(
                f"a convolutional synthesiser takes activities [channels, height, width]; given {list(shape)}: choose "
                f"linear or mlp"
            )
        self.shape, self.classes, self.kind = tuple(shape), classes, kind
        if kind == "convolutional":
            self.layers = _planes(shape[0] + classes, shape[0], hidden)
        else:
            size = math.prod(shape)
            self.layers = _layers(size + classes, size, kind, hidden)

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        """The guess, of the shape of h: the gradient of each example's own loss.

        Args:
            h: `[batch, *shape]`.
            labels: int64 `[batch]`; not looked at where guesses do not depend on them.
        """
        x = h if self.kind == "convolutional" else h.flatten(1)
        if self.classes:
            known = F.one_hot(labels, self.classes).to(x.dtype)
            if self.kind == "convolutional":
                known = known[:, :, None, None].expand(-1, -1, *h.shape[2:])
            x = torch.cat((x, known), 1)
        guess: Tensor = self.layers(x)
        return guess.view_as(h)

    def extra_repr(self) -> str:
        """What `print(synthesiser)` says of it."""
        return f"{self.kind}, shape={self.shape}, classes={self.classes}"


class InputSynthesiser(nn.Module):
    """From the network's input to a guess of the activity between two blocks, `I(x)`.

    It is not told the label: a block that learned on such inputs would find the label in them, and not in activities.
    The last layer starts from 0, as those of other synthesisers do: before it knows better, no example differs from
    another, and the next block learns no more than its biases.

    Args:
        inputs: shape of an input of the network, of an example.
        shape: of an example's activity.
        kind: `linear` or `mlp` (two hidden layers with ReLU), of the flattened input.
        hidden: features of the hidden layers of `mlp`; as many as those of the activity if None.

    Raises:
        ConfigurationError: there is no such kind, or a number is below 1.
    """

    def __init__(
        self, inputs: Sequence[int], shape: Sequence[int], kind: str = "linear", hidden: int | None = None
    ) -> None:
        super().__init__()
        if kind not in INPUT_SYNTHESISERS:
            raise unknown("synthesiser of inputs", kind, INPUT_SYNTHESISERS)
        self.inputs, self.shape, self.kind = tuple(inputs), tuple(shape), kind
        self.layers = _layers(math.prod(inputs), math.prod(shape), kind, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The guess `[batch, *shape]`, for inputs `[batch, *inputs]`."""
        guess: Tensor = self.layers(x.flatten(1))
        return guess.view(len(x), *self.shape)

    def extra_repr(self) -> str:
        """What `print(synthesiser)` says of it."""
        return f"{self.kind}, inputs={self.inputs}, shape={self.shape}"


def _layers(inputs: int, outputs: int, kind: str, hidden: int | None) -> nn.Sequential:
    """Of `linear` and `mlp`, in features."""
    wide = _checked(hidden) or outputs
    widths = [] if kind == "linear" else [nn.Linear(inputs, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU()]
    return _from_zero(nn.Sequential(*widths, nn.Linear(wide if widths else inputs, outputs)))


def _planes(inputs: int, outputs: int, hidden: int | None) -> nn.Sequential:
    """Of `convolutional`, in channels."""
    wide = _checked(hidden) or outputs
    return _from_zero(
        nn.Sequential(nn.Conv2d(inputs, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, outputs, 3, padding=1))
    )


def _checked(hidden: int | None) -> int | None:
    if hidden is not None and hidden < 1:
        raise ConfigurationError(f"hidden is a whole number of at least 1; given {hidden}")
    return hidden


def _from_zero(layers: nn.Sequential) -> nn.Sequential:
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layers
