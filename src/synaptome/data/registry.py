"""Every data set by its name: what it is, whether it is here, and how it is made ready for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from synaptome.data.cifar import locate_cifar10, read_cifar10
from synaptome.data.dataset import Dataset, Split
from synaptome.data.digits import read_digits
from synaptome.data.holdout import hold_out
from synaptome.data.idx import locate_idx, read_idx_set
from synaptome.data.images import ImageSet, prepare
from synaptome.data.linear import linear_regression
from synaptome.data.locate import Found, SearchPath, given_folder, search_path
from synaptome.data.planar import circle, ellipses, peaks, swiss_roll
from synaptome.data.semantic import semantic_hierarchy
from synaptome.errors import ConfigurationError, DataError, unknown


@dataclass(frozen=True)
class Files:
    """Labelled images read from files on the search path."""

    about: str
    read: Callable[[SearchPath], ImageSet]
    locate: Callable[[SearchPath], Found]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """Labelled images that come with an installed package."""

    about: str
    read: Callable[[], ImageSet]
    package: str
    module: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """Examples computed on the spot."""

    about: str
    make: Callable[..., Dataset]
    options: tuple[str, ...]
    seeded: bool
    divisible: bool


def _planar(about: str, make: Callable[..., Dataset]) -> Generated:
    return Generated(
        f"points of the plane: {about} (Haber & Ruthotto 2017)", make, ("train", "test"), seeded=True, divisible=True
    )


DATASETS: Mapping[str, Files | Embedded | Generated] = MappingProxyType(
    {
        "digits": Embedded(
            "handwritten digits, 1797 grey images of 8x8, 10 classes", read_digits, "scikit-learn", "sklearn"
        ),
        "mnist": Files(
            "handwritten digits, 70 000 grey images of 28x28, 10 classes",
            partial(read_idx_set, "mnist"),
            partial(locate_idx, "mnist"),
        ),
        "fashion": Files(
            "articles of clothing, 70 000 grey images of 28x28, 10 classes",
            partial(read_idx_set, "fashion"),
            partial(locate_idx, "fashion"),
        ),
        "cifar10": Files(
            "photographs, 60 000 colour images of 32x32, 10 classes",
            read_cifar10,
            locate_cifar10,
        ),
        "linear": Generated(
            "linear regression on a linear teacher, Gaussian inputs",
            linear_regression,
            options=("features", "d", "train", "test", "covariance"),
            seeded=True,
            divisible=True,
        ),
        "semantic": Generated(
            "four living things and their seven properties (Saxe et al. 2019)",
            semantic_hierarchy,
            options=("covariance",),
            seeded=False,
            divisible=False,
        ),
        "ellipses": _planar("an ellipse in an elliptic ring, 2 classes", ellipses),
        "swiss-roll": _planar("two arms wound around each other, 2 classes", swiss_roll),
        "circle": _planar("a disc in a ring, 2 classes", circle),
        "peaks": _planar("level sets of MATLAB's peaks function, 5 classes", peaks),
    }
)


@dataclass(frozen=True)
class Availability:
    """One line about one data set: its name, what it is, whether it can be loaded, and where it is or why not."""

    name: str
    about: str
    available: bool
    where: str

    def __str__(self) -> str:
        return f"{self.name}: {self.about}; {self.where}"


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    validation: int | float = 0,
    seed: int = 0,
    normalise: bool = True,
    **options: object,
) -> Dataset:
    """The data set `name`, in memory and ready for training.

    Image sets have float32 inputs `[n, C, H, W]` and int64 targets `[n]`, points of the plane float32 inputs `[n, 2]`
    and int64 targets `[n]`; the regression tasks have float32 inputs `[n, inputs]` and targets `[n, outputs]`.

    Args:
        name: a key of `DATASETS`.
        data_dir: the folder to look in before `SYNAPTOME_DATA` and the user's cache.
        validation: number (int) or share (float between 0 and 1) of the training examples to hold out. The test set
            is never touched.
        seed: of the choice of the held-out examples, and of what is generated.
        normalise: for images: subtract each channel's mean and divide by its standard deviation, both taken over the
            training examples that are left after holding out. Without it they stay in [0, 1]. What is generated is
            never rescaled: covariance and geometry are part of the task.
        options: what else the loader takes: `features`, `d`, `train`, `test`, `covariance` for "linear" (see
            `linear_regression`), `covariance` for "semantic" (see `semantic_hierarchy`), `train` and `test` for points
            of the plane (see `synaptome.data.planar`).

    Raises:
        ConfigurationError: an unknown name or option, or one out of range.
        DataError: `data_dir` does not exist, or the files are missing or not what they should be.
    """
    entry = DATASETS.get(name)
    if entry is None:
        raise unknown("data set", name, DATASETS)
    if options and not entry.options:
        raise ConfigurationError(f"data set {name} takes no options, got {', '.join(options)}")
    for option in options:
        if option not in entry.options:
            raise unknown(f"option of data set {name}", option, entry.options)
    given_folder(data_dir)  # a mistyped folder is an error even where no file is needed
    if isinstance(entry, Generated):
        if validation and not entry.divisible:
            raise ConfigurationError(f"{name} has no examples to spare for validation, got validation={validation!r}")
        dataset = entry.make(**options, seed=seed) if entry.seeded else entry.make(**options)
        return _divide(dataset, validation, seed)
    images = entry.read(search_path(data_dir)) if isinstance(entry, Files) else entry.read()
    return prepare(images, validation=validation, seed=seed, normalise=normalise)


def available(data_dir: str | Path | None = None) -> list[Availability]:
    """One line for each data set: what it is, where it was found or why it cannot be loaded.

    Files are looked for but not read: what is listed as found may still turn out to be damaged.

    Raises:
        DataError: `data_dir` is given and is not a folder.
    """
    places = search_path(data_dir)
    return [Availability(name, entry.about, *_whereabouts(entry, places)) for name, entry in DATASETS.items()]


def _whereabouts(entry: Files | Embedded | Generated, places: SearchPath) -> tuple[bool, str]:
    if isinstance(entry, Generated):
        return True, "generated"
    if isinstance(entry, Embedded):
        here = find_spec(entry.module) is not None
        return here, f"comes with {entry.package}" + ("" if here else ", which is not installed")
    try:
        return True, f"found in {entry.locate(places)}"
    except DataError as error:
        return False, str(error)


def _divide(dataset: Dataset, validation: int | float, seed: int) -> Dataset:
    kept, held = hold_out(len(dataset.train), validation, seed)
    if held is None:
        return dataset
    return replace(dataset, train=Split(*dataset.train[kept]), validation=Split(*dataset.train[held]))
