"""The demo: real digits, learned with each kind of synapse; each later capability adds its row."""

from __future__ import annotations

from synaptome.learning.optimization import Optimization
from synaptome.recipes.connectivity import LearnedConnectivity
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.equilibrium_classifier import EquilibriumClassifier
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.recipe import Recipe
from synaptome.recipes.stable import StableNetworks

EPOCHS = 30
SEEDS = (0, 1, 2)
OPTIMIZATION = Optimization(rate=0.05, momentum=0.9)

DEMO: dict[str, Recipe] = {
    "dense": FailuresClassifier(failure=0.0, epochs=EPOCHS, optimization=OPTIMIZATION),
    "failing-0.3": FailuresClassifier(failure=0.3, epochs=EPOCHS, optimization=OPTIMIZATION),
    "failing-0.5": FailuresClassifier(failure=0.5, epochs=EPOCHS, optimization=OPTIMIZATION),
    # Five times as wide, and as many synapses.
    "evolving": EvolvingSparsity(hidden=(500,), density=0.2, epochs=EPOCHS, validation=0.1, optimization=OPTIMIZATION),
    # LeNet-300-100 whose random weights stay, with the optimizer of the paper; as many images held out as above.
    "learned": LearnedConnectivity(method="free-flipping", data="digits", batch=100, epochs=EPOCHS, validation=144),
    # 16 layers that are steps of a differential equation, with an optimizer that serves them.
    "stable": StableNetworks(data="digits", batch=100, epochs=EPOCHS, validation=0.1),
    # Such layers in two blocks, of which the first learns from guesses of the gradient.
    "decoupled": Decoupled(data="digits", batch=100, epochs=EPOCHS, validation=0.1),
    # No backpropagation; small batches, as its authors take them.
    "equilibrium": EquilibriumClassifier(
        data="digits", epochs=EPOCHS, nudging="centered", rates=(0.4, 0.1), schedule="linear", validation=144
    ),
}
