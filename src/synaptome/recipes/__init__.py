"""Experiments: one file for each family. A recipe is a frozen dataclass and the experiment that it describes."""

from synaptome.recipes.connectivity import LearnedConnectivity
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.failures_linear import FailuresLinear, FailuresSemantic
from synaptome.recipes.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (FailuresClassifier, FailuresLinear, FailuresSemantic, EvolvingSparsity, LearnedConnectivity)
}
