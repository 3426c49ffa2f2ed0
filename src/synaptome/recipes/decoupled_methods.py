"""The methods of the recipe `decoupled`: what they are called, which fields only some of them have, what they cite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from synaptome.errors import ConfigurationError
from synaptome.recipes.block_parts import APART
from synaptome.recipes.shared_batches import PIPELINES

if TYPE_CHECKING:
    from synaptome.recipes.decoupled import Decoupled

METHODS = {
    "synthetic": "synthetic gradients",
    "stale": "stale true gradients",
    "locked": "backprop, block by block",
    "frozen": "backprop, first blocks frozen",
    "backprop": "backprop",
}
Method = Literal["synthetic", "stale", "locked", "frozen", "backprop", "ddp", "gpipe", "1f1b"]
IMAGES = ("digits", "mnist", "fashion", "cifar10")
LEVELLED = ("synthetic", "locked")
ONLY_OF: dict[str, tuple[str, ...]] = {  # fields that other methods refuse
    "true_share": ("synthetic",),
    "warmup": ("synthetic",),
    "least_cosine": ("synthetic",),
    "free": ("synthetic",),
    "synthetic_inputs": ("synthetic",),
    "levels": LEVELLED,
    "replicas": APART,
    "microbatches": PIPELINES,
}
CITATIONS = {
    "synthetic": ("jaderberg2017",),
    "stale": ("huo2018",),
    "ddp": ("li2020",),
    "gpipe": ("huang2019",),
    "1f1b": ("narayanan2021",),
}


def check_fields(recipe: Decoupled, convolutional: bool) -> None:
    """Refuse fields that contradict each other or the method, or are out of range: a ConfigurationError.

    Args:
        recipe: whose fields these are.
        convolutional: whether its network is.
    """
    if recipe.balance and recipe.blocks not in (2, len(recipe.balance)):
        raise ConfigurationError(
            f"balance names {len(recipe.balance)} blocks and blocks is {recipe.blocks}; leave blocks out"
        )
    if not (recipe.synthesis_rate > 0 and math.isfinite(recipe.synthesis_rate)):
        raise ConfigurationError(f"synthesis_rate is a positive number; given {recipe.synthesis_rate}")
    if recipe.method != "synthetic" and (recipe.true_share or recipe.warmup or recipe.least_cosine is not None):
        raise ConfigurationError(
            f"true_share, warmup and least_cosine belong to the method synthetic; given with {recipe.method}"
        )
    if recipe.method != "synthetic" and (recipe.free or recipe.synthetic_inputs):
        raise ConfigurationError(
            f"free and synthetic_inputs belong to the method synthetic; given with {recipe.method}"
        )
    if not 0 <= recipe.true_share <= 1:  # also refuses NaN
        raise ConfigurationError(f"true_share is a share in [0, 1); given {recipe.true_share}")
    if recipe.true_share == 1:
        raise ConfigurationError("with true_share 1 there are no guesses: choose the method stale, or locked")
    if recipe.method == "stale" and recipe.delay < 1:
        raise ConfigurationError("true gradients without delay are not stale: choose the method locked")
    if recipe.network == "feed-forward" and recipe.time is not None:
        raise ConfigurationError("a feed-forward network has no time; leave it out, or choose network stable")
    if recipe.network == "feed-forward" and recipe.convolutional:
        raise ConfigurationError("a feed-forward network has no convolutions; leave them out, or choose network stable")
    if recipe.convolutional and recipe.data not in IMAGES:
        raise ConfigurationError(
            f"convolutions are of images, and {recipe.data} is points of the plane; leave convolutional out, or choose "
            f"{', '.join(IMAGES)}"
        )
    if recipe.levels > 1 and (recipe.network != "stable" or recipe.method not in LEVELLED):
        raise ConfigurationError(
            f"levels belong to stable networks and the methods {' and '.join(LEVELLED)}; given {recipe.levels} "
            f"levels with network {recipe.network} and method {recipe.method}"
        )
    if recipe.synthesiser == "convolutional" and not convolutional:
        raise ConfigurationError(
            f"a convolutional synthesiser is of convolutional networks; given network {recipe.network} of "
            f"{recipe.data}: choose synthesiser linear or mlp, or a stable network with convolutional True"
        )
    if not (recipe.timeout > 0 and math.isfinite(recipe.timeout)):
        raise ConfigurationError(f"timeout is a number of seconds above 0; given {recipe.timeout}")
