"""What a stable network is trained with where nothing else is asked for: by data set, or as its authors did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Literal

from synaptome.errors import unknown
from synaptome.learning.optimization import Optimization

CHANNELS = 16  # of a convolutional network


@dataclass(frozen=True)
class OptimizationChoice:
    """What replaces a setting of the optimization; what is not given is that of Adam with a rate for the data set.

    Args:
        name: class in torch.optim, in any case; adam if not given.
        rate: initial learning rate, positive; what serves the recipe and the data set if not given.
        momentum: for optimizers that have it; 0 if not given.
        weight_decay: for optimizers that have it; 0 if not given. It acts on the weights of each layer, of which a
            deeper level has more.
        schedule: how the rate falls over each level; cosine if not given.
        drops: shares of a level's steps at which the schedule drops divides the rate by 10.
    """

    name: str | None = None
    rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: Literal["constant", "cosine", "linear", "drops"] | None = None
    drops: tuple[float, ...] | None = None

    def made(self, rate: float) -> Optimization:
        """The optimization, with this rate if none is given.

        Raises:
            ConfigurationError: see `Optimization`.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(Optimization("adam", rate=rate, schedule="cosine"), **given)


@dataclass(frozen=True)
class StableChoice:
    """Values of those fields of the recipe `stable` that have these names, and Adam's rate."""

    data: str
    width: int
    depth: int
    time: float
    opening: str
    batch: int
    epochs: int
    levels: int = 1
    smoothness: float = 0.0
    convolutional: bool = False
    rate: float = 0.01


_PLANE = StableChoice("swiss-roll", width=16, depth=16, time=10.0, opening="learned", batch=512, epochs=1000)
_DISC = replace(_PLANE, data="ellipses", batch=200, epochs=120, smoothness=1e-3)
_IMAGES = StableChoice("mnist", width=128, depth=16, time=4.0, opening="learned", batch=200, epochs=10, rate=2e-3)

DEFAULTS: Mapping[str, StableChoice] = MappingProxyType(
    {
        choice.data: choice
        for choice in (
            _PLANE,
            _DISC,
            replace(_DISC, data="circle"),
            replace(_PLANE, data="peaks", batch=500, epochs=150),
            _IMAGES,
            replace(_IMAGES, data="fashion"),
            replace(_IMAGES, data="cifar10", width=CHANNELS, convolutional=True),
            replace(_IMAGES, data="digits", width=64, epochs=30),
        )
    }
)

# Haber & Ruthotto 2017, section 6, and the code that goes with it (Meganet). Batches and epochs are for Adam: the
# authors take Newton's method.
PRESETS: Mapping[str, StableChoice] = MappingProxyType(
    {
        "swiss-roll": StableChoice(
            "swiss-roll",
            width=4,
            depth=16,
            time=20.0,
            opening="pad",
            batch=512,
            epochs=300,
            levels=7,
            smoothness=5e-4,
        ),
        # What their code calls circle; a third feature starts at 0.
        "circle": StableChoice(
            "ellipses", width=3, depth=8, time=20.0, opening="pad", batch=200, epochs=120, smoothness=1e-2
        ),
        "peaks": StableChoice("peaks", width=16, depth=8, time=5.0, opening="learned", batch=500, epochs=150),
    }
)


def choice(preset: str | None, data: str | None, convolutional: bool | None) -> StableChoice:
    """What is taken where a field is not given.

    Args:
        preset: a name in `PRESETS`, or None for the data set's own.
        data: a name in `DEFAULTS`; None for the preset's, or the swiss roll.
        convolutional: whether layers are convolutions; None for what is usual.

    Raises:
        ConfigurationError: there is no such preset or data set.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        return PRESETS[preset]
    name = _PLANE.data if data is None else data
    if name not in DEFAULTS:
        raise unknown("data set", name, DEFAULTS)
    chosen = DEFAULTS[name]
    if convolutional in (None, chosen.convolutional):
        return chosen
    return replace(chosen, convolutional=not chosen.convolutional, width=CHANNELS if convolutional else _IMAGES.width)
