"""Training images that are shifted and mirrored anew for each batch, as He et al. 2016, section 4.2, train on CIFAR-10.

Each image is padded on all sides, and a crop of its own size is taken from a random place of it or of its mirror image.
What is drawn is a pure function of (seed, step), so that a resumed run sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synaptome.data.dataset import Batch, Dataset, Split
from synaptome.data.streams import philox
from synaptome.errors import ConfigurationError

_AUGMENTATION = 1 << 61  # a bit that no epoch reaches, and that tells these streams from those of a purpose


@dataclass(frozen=True)
class AugmentedImages(Split):
    """Images that a run learns from shifted and mirrored; wherever else they are asked for, they are as stored.

    Attributes:
        inputs: `[n, channels, height, width]`.
        targets: as for `Split`.
        padding: the largest shift in pixels, along each axis, at least 0.
        flip: whether half of the images are mirrored, left to right.

    Raises:
        ConfigurationError: the inputs are not images, or the padding is negative.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs.dim() != 4:
            raise ConfigurationError(
                f"only images [n, channels, height, width] can be shifted and mirrored; "
                f"given inputs {list(self.inputs.shape)}"
            )
        if self.padding < 0:
            raise ConfigurationError(f"padding is a number of pixels, at least 0; given {self.padding}")

    def training_batch(self, index: Tensor, seed: int, step: int) -> Batch:
        """The examples of `index`, each shifted and mirrored by chance; see `augment`."""
        inputs, targets = self[index]
        return Batch(augment(inputs, seed, step, padding=self.padding, flip=self.flip), targets)


def augmented(dataset: Dataset, *, padding: int = 4, flip: bool = True) -> Dataset:
    """The data set with training images that are shifted and mirrored; validation and test images stay.

    Args:
        dataset: of images.
        padding, flip: as for `AugmentedImages`.

    Raises:
        ConfigurationError: as `AugmentedImages`.
    """
    train = dataset.train
    return replace(dataset, train=AugmentedImages(train.inputs, train.targets, padding=padding, flip=flip))


def augment(images: Tensor, seed: int, step: int, *, padding: int = 4, flip: bool = True) -> Tensor:
    """A crop of each image, padded with zeros, or of its mirror image, at a place of its own.

    Zero is the mean of the channel where images are normalised.

    Args:
        images: `[batch, channels, height, width]`.
        seed: of the run.
        step: of the run, from 0 on.
        padding: pixels on each side; the crop's place is uniform over the (2 padding + 1)² there are.
        flip: whether an image is mirrored with probability 1/2.

    Returns:
        Another tensor of the same shape.

    Raises:
        ConfigurationError: the seed or the step is negative or too large.
    """
    batch, channels, height, width = images.shape
    generator = philox(seed, _AUGMENTATION | step)
    corners = generator.integers(2 * padding + 1, size=(2, batch, 1))
    mirrored = generator.integers(2, size=(batch, 1)) == 1 if flip else False
    rows = np.arange(height) + corners[0]
    columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + corners[1]
    places = torch.from_numpy(rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).to(images.device)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    return padded.gather(2, places.flatten(1).unsqueeze(1).expand(-1, channels, -1)).view(images.shape)
