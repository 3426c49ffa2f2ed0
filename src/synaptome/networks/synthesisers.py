"""Synthesisers: small networks that guess the gradient of the loss at the activity between two blocks.

Each guesses, for an example of its own, from the activity h and, if it is conditioned, from the label too
(Jaderberg et al. 2017, arXiv 1608.05343, section 2.2 and "cDNI"). The last layer starts from 0, and so does the guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown

SYNTHESISERS = ("linear", "mlp", "convolutional")


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
        if hidden is not None and hidden < 1:
            raise ConfigurationError(f"hidden is a whole number of at least 1; given {hidden}")
        self.shape, self.classes, self.kind = tuple(shape), classes, kind
        self.layers: nn.Sequential
        if kind == "convolutional":
            channels, wide = shape[0], hidden or shape[0]
            self.layers = nn.Sequential(
                nn.Conv2d(channels + classes, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, channels, 3, padding=1)
            )
        else:
            size = math.prod(shape)
            wide = hidden or size
            first = size + classes
            widths = [] if kind == "linear" else [nn.Linear(first, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU()]
            self.layers = nn.Sequential(*widths, nn.Linear(wide if widths else first, size))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

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
