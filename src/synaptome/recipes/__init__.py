"""Experiments: one file for each family. A recipe is a frozen dataclass and the experiment that it describes."""

from synaptome.recipes.connectivity import LearnedConnectivity
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.equilibrium_classifier import EquilibriumClassifier
from synaptome.recipes.equilibrium_logic import EquilibriumLogic
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.failures_linear import FailuresLinear, FailuresSemantic
from synaptome.recipes.pvd import VariableDistribution
from synaptome.recipes.recipe import Recipe
from synaptome.recipes.stable import StableNetworks

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        FailuresClassifier,
        FailuresLinear,
        FailuresSemantic,
        EvolvingSparsity,
        LearnedConnectivity,
        EquilibriumClassifier,
        StableNetworks,
        EquilibriumLogic,
        Decoupled,
        VariableDistribution,
    )
}
