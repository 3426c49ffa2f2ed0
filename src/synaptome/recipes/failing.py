"""What the recipes of synaptic failures share."""

from __future__ import annotations

from typing import Literal, Protocol

from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.optimization import Optimization
from synaptome.networks.feedforward import FeedForward, layer_numbers

LossName = Literal["cross-entropy", "mean-squared-error", "summed-squared-error"]
Noise = Literal["bernoulli", "gaussian"]


class FailingRecipe(Protocol):
    """The fields of such a recipe that what follows needs."""

    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def failure(self) -> float: ...  # noqa: D102
    @property
    def failing(self) -> str: ...  # noqa: D102
    @property
    def noise(self) -> Noise: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def optimization(self) -> Optimization: ...  # noqa: D102


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1, by name."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"{name} is a whole number of at least 1; given {size}")


def fails(recipe: FailingRecipe) -> bool:
    """Whether any synapse fails."""
    return recipe.failure > 0 and bool(layer_numbers(recipe.failing, recipe.depth))


def describe(recipe: FailingRecipe) -> str:
    """The kind of synapse, in a few words."""
    if not fails(recipe):
        return "dense"
    form = "gaussian " if recipe.noise == "gaussian" else ""
    layers = "" if recipe.failing == "all" else f" in {recipe.failing}"
    return f"{form}failing {recipe.failure:g}{layers}"


def steps(recipe: FailingRecipe, examples: Dataset) -> int:
    """Steps of a whole run."""
    return recipe.epochs * -(-len(examples.train) // recipe.batch)


def backprop(recipe: FailingRecipe, network: FeedForward, loss: LossName, examples: Dataset) -> Backprop:
    """Backpropagation with the recipe's optimizer and schedule."""
    optimizer = recipe.optimization.optimizer(network.parameters())
    return Backprop(network, optimizer, loss, recipe.optimization.scheduler(optimizer, steps(recipe, examples)))
