"""Points of the plane in classes that no straight line parts: test problems of networks as dynamical systems.

Haber & Ruthotto, "Stable architectures for deep neural networks", Inverse Problems 34 (2017), section 6, and the code
that goes with it (Meganet). Inputs have these two features; networks of more features pad them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from synaptome.data.dataset import Dataset, Split
from synaptome.data.streams import stream
from synaptome.errors import ConfigurationError

Points = npt.NDArray[np.float64]

# What part of the plane holds all points, as (lowest, highest) of the first and of the second feature: where to draw
# points and decision regions.
EXTENTS: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = MappingProxyType(
    {
        "ellipses": ((-2.0, 2.0), (-1.0, 1.0)),
        "swiss-roll": ((-1.25, 1.25), (-1.25, 1.25)),
        "circle": ((-2.0, 2.0), (-2.0, 2.0)),
        "peaks": ((-3.0, 3.0), (-3.0, 3.0)),
    }
)
PEAKS_CLASSES = 5
_MINOR_AXIS = 0.4  # of an ellipse, for a major one of 1
_ARMS_APART = 0.2
_GRID = 256  # points on a side of the square, over which the authors take the lowest and the highest value of peaks
_PROPOSALS = 4096


def ellipses(train: int = 2000, test: int = 400, seed: int = 0) -> Dataset:
    """An ellipse in an elliptic ring: `x = r (cos φ, 0.4 sin φ)`, r uniform in [0, 1) for one class, in [1, 2) for the
    other, φ uniform.

    Args:
        train: number of training examples, shared equally among the classes.
        test: number of test examples, likewise.
        seed: of all points; training and test points come from streams of their own.

    Returns:
        A data set with inputs `[n, 2]` float32 in [-2, 2] x [-0.8, 0.8] and 2 classes; the examples of one class after
        those of the other.

    Raises:
        ConfigurationError: fewer examples than classes, or a seed out of range.
    """
    return _dataset("ellipses", _SIDES, _disc_and_ring(_MINOR_AXIS), train, test, seed)


def circle(train: int = 2000, test: int = 400, seed: int = 0) -> Dataset:
    """A disc in a ring: `ellipses` with axes of the same length, `x = r (cos φ, sin φ)`.

    Arguments, result and errors are those of `ellipses`, with inputs in [-2, 2] x [-2, 2]. The problem that the
    authors' code calls circle is `ellipses` here.
    """
    return _dataset("circle", _SIDES, _disc_and_ring(1.0), train, test, seed)


def swiss_roll(train: int = 512, test: int = 512, seed: int = 0) -> Dataset:
    """Two arms that wind around the origin twice: `x = r (cos φ, sin φ)` for φ in [0, 4π), with `r = φ / 4π` for one
    class and `r = φ / 4π + 0.2` for the other.

    Each arm is cut into as many parts of equal φ as it is to have points, and φ is uniform in each. The authors take
    φ equidistant, of which every other one is for validation, 256 or 257 on each arm.

    Arguments, result and errors are those of `ellipses`, with inputs in [-1.2, 1.2] x [-1.2, 1.2].
    """

    def draw(generator: np.random.Generator, label: int, count: int) -> Points:
        turned = (np.arange(count) + generator.random(count)) / count  # φ / 4π
        return _polar(turned + _ARMS_APART * label, 4 * pi * turned)

    return _dataset("swiss-roll", ("inner arm", "outer arm"), draw, train, test, seed)


def peaks(train: int = 5000, test: int = 1000, seed: int = 0) -> Dataset:
    """Points of [-3, 3] x [-3, 3] by the height of MATLAB's `peaks` there (see `peaks_height`), class 0 the lowest.

    The heights between the lowest and the highest are cut into 5 equal intervals, each of which has the same number
    of points, uniform over the part of the square that is as high. (The authors draw from a grid of 256 x 256 points,
    with repetitions; here every point is another one.)

    Arguments, result and errors are those of `ellipses`, with inputs in [-3, 3] x [-3, 3] and 5 classes.
    """
    levels = peaks_levels()
    (low, high), _ = EXTENTS["peaks"]

    def draw(generator: np.random.Generator, label: int, count: int) -> Points:
        drawn = np.empty((0, 2))
        while len(drawn) < count:
            proposed = low + (high - low) * generator.random((_PROPOSALS, 2))
            proposed = proposed.astype(np.float32).astype(np.float64)  # so that classes are those of the inputs
            drawn = np.concatenate([drawn, proposed[_classes(peaks_height(*proposed.T), levels) == label]])
        return drawn[:count]

    return _dataset("peaks", tuple(f"level {k + 1}" for k in range(PEAKS_CLASSES)), draw, train, test, seed)


def peaks_height(x1: Points, x2: Points) -> Points:
    """MATLAB's `peaks` at points given by their coordinates, any shape:

    `3 (1 - x1)² exp(-x1² - (x2 + 1)²) - 10 (x1/5 - x1³ - x2⁵) exp(-x1² - x2²) - exp(-(x1 + 1)² - x2²) / 3`.
    """
    height: Points = (
        3 * (1 - x1) ** 2 * np.exp(-(x1**2) - (x2 + 1) ** 2)
        - 10 * (x1 / 5 - x1**3 - x2**5) * np.exp(-(x1**2) - x2**2)
        - np.exp(-((x1 + 1) ** 2) - x2**2) / 3
    )
    return height


def peaks_levels() -> Points:
    """The heights `[4]` that part the classes of `peaks`, ascending; each belongs to the class below it.

    They cut the range from the lowest to the highest height over a grid of 256 x 256 points of the square, as the
    authors', into equal intervals.
    """
    side = np.linspace(*EXTENTS["peaks"][0], _GRID)
    heights = peaks_height(side[:, None], side[None, :])
    return np.linspace(heights.min(), heights.max(), PEAKS_CLASSES + 1)[1:-1]


_SIDES = ("inside", "outside")
# A generator, a class and a number of points, to these points `[number, 2]`.
_Draw = Callable[[np.random.Generator, int, int], Points]


def _classes(heights: Points, levels: Points) -> npt.NDArray[np.int64]:
    return np.digitize(heights, levels, right=True)


def _disc_and_ring(minor_axis: float) -> _Draw:
    def draw(generator: np.random.Generator, label: int, count: int) -> Points:
        radius = label + generator.random(count)
        return _polar(radius, 2 * pi * generator.random(count)) * [1, minor_axis]

    return draw


def _polar(radius: Points, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _dataset(name: str, classes: tuple[str, ...], draw: _Draw, train: int, test: int, seed: int) -> Dataset:
    def split(part: str, examples: int) -> Split:
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < len(classes):
            raise ConfigurationError(
                f"{part} must be a number of examples of at least {len(classes)}, one of each class of {name}, got "
                f"{examples!r}"
            )
        generator = stream(seed, f"{name} {part}")
        counts = [len(share) for share in np.array_split(np.arange(examples), len(classes))]
        points = np.concatenate([draw(generator, label, count) for label, count in enumerate(counts)])
        labels = np.repeat(np.arange(len(classes)), counts)
        return Split(torch.from_numpy(points).to(torch.float32), torch.from_numpy(labels))

    return Dataset(
        name=name,
        train=split("train", train),
        validation=None,
        test=split("test", test),
        classes=classes,
        source=f"generated: points of the plane as in Haber & Ruthotto 2017, seed {seed}",
    )
