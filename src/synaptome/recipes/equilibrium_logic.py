"""Equilibrium propagation in small directed networks that learn truth tables, many networks at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch

from synaptome.analysis import equilibria
from synaptome.analysis.populations import NAME, final, snapshot
from synaptome.data.logic import TABLES, logic
from synaptome.errors import ConfigurationError, unknown
from synaptome.learning.deep import PopulationLearning
from synaptome.learning.plasticity import Plasticity
from synaptome.learning.sparsification import Sparsification
from synaptome.networks.complete import Sizes, layered_connections
from synaptome.networks.population import Population
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.training.callbacks import each_epoch
from synaptome.training.measures import Recorder

ROWS = 20  # of metrics, beside that of the start
FRAMES = 1000  # snapshots of the networks' errors, at most, beside that of the start


@dataclass(frozen=True)
class Choices:
    """What a preset chooses for a rule and a coding; the fields are those of the recipe."""

    hidden: int = 5
    leak: str = "deep"
    std: float = 0.05
    spread: float = 0.1
    beta: float = 10.0
    nudging: str = "one-sided"
    rate: float = 100.0
    decay: float = 0.0
    margin: float | None = None
    epochs: int = 200


PUBLISHED = {
    ("deep", "plain"): Choices(),
    ("deep", "one-hot"): Choices(hidden=2, beta=1.0, rate=200.0),
    ("asymmetric", "plain"): Choices(leak="one", rate=1.0),
    ("asymmetric", "one-hot"): Choices(leak="one", rate=1.0),
}
# Patterns that are right teach nothing, so that a task once learned is not unlearned; more neurons, smaller steps.
# DEEP's networks have several equilibria, and so start from the same state each time: a network that has all patterns
# right then stays as it is.
_DEEP = Choices(hidden=20, spread=0.0, beta=3.0, rate=20.0, decay=0.01, margin=0.0, epochs=400)
# Larger initial weights let a signal through from the start.
_ASYMMETRIC = Choices(hidden=10, leak="one", std=0.5, rate=2.0, margin=0.2)
RELIABLE = {
    (rule, coding): choices
    for rule, choices in (("deep", _DEEP), ("asymmetric", _ASYMMETRIC))
    for coding in ("plain", "one-hot")
}
PRESETS: Mapping[str, Mapping[tuple[str, str], Choices]] = {"published": PUBLISHED, "reliable": RELIABLE}


@dataclass(frozen=True)
class EquilibriumLogic(Recipe):
    """Populations of small recurrent networks learn AND, OR, XOR, NOT or ID by equilibrium propagation.

    Network k of a run with seed s has the seed s * networks + k: ten runs of ten networks are one run of a hundred.
    What is not given is taken from the preset, for the rule and the coding.

    Args:
        task: and, or, xor, not or id.
        coding: of the output: plain (one neuron, 1 from 0.5 on) or one-hot (two neurons, the larger one).
        rule: deep (Farinha et al. 2020; the last input is the constant 1) or asymmetric (Scellier et al. 2018; with
            biases).
        layered: connections between neighbouring layers only, in both directions; of a complete graph otherwise.
        networks: how many learn at once.
        preset: published (the authors' settings) or reliable (settings that solve XOR and hold it).
        hidden: neurons that are neither inputs nor outputs.
        leak: deep (Σ_k W_jk), one, or certified (Σ_k |W_jk| + ε).
        activity: hard-sigmoid (states clipped to [0, 1]), sigmoid or tanh.
        dt: of a step of the states.
        free_steps: T1, of the free phase, at most.
        nudged_steps: T2, of the nudged phase, at most.
        tolerance: change of a state in a step with which it counts as one at rest, and stops; at 0 it must repeat
            itself to the bit, which stops nothing that would still move.
        std: standard deviation of the initial weights.
        spread: states start each epoch from U(0, spread).
        beta: strength of nudging, not 0.
        nudging: one-sided, random-sign or centered.
        rate: dt_W, of the weights.
        decay: the rate of epoch e is rate / (1 + decay e).
        beta_0: weight of the states' products in DEEP's plasticity.
        beta_1: weight of the products of states and changes of states in it.
        margin: a pattern is left out as long as it is predicted right by this margin, in [0, 0.5]; a negative one
            learns from all patterns at all times.
        sign: change weights by the sign of their change only.
        regularized: L1 regularisation, by reg_w.
        reg_w: its strength.
        sparse: remove weak connections at random, each for good.
        regrow: let removed connections learn on from 0, as the authors' code does.
        tol_w: size up to which weights may be removed.
        temp: temperature of their removal.
        epochs: each sees all patterns once.
    """

    name: ClassVar[str] = "equilibrium-logic"
    summary: ClassVar[str] = "learn truth tables by equilibrium propagation, many small networks at once"
    paper: ClassVar[str] = "Farinha et al. 2020; Scellier et al. 2018"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {"task": tuple(TABLES), "coding": ("plain", "one-hot")}
    }

    task: Literal["and", "or", "xor", "not", "id"] = "xor"
    coding: Literal["plain", "one-hot"] = "plain"
    rule: Literal["deep", "asymmetric"] = "deep"
    layered: bool = False
    networks: int = 10
    preset: Literal["published", "reliable"] = "published"
    hidden: int | None = None
    leak: Literal["deep", "one", "certified"] | None = None
    activity: Literal["hard-sigmoid", "sigmoid", "tanh"] = "hard-sigmoid"
    dt: float = 0.05
    free_steps: int = 1000
    nudged_steps: int = 1000
    tolerance: float = 0.0
    std: float | None = None
    spread: float | None = None
    beta: float | None = None
    nudging: Literal["one-sided", "random-sign", "centered"] | None = None
    rate: float | None = None
    decay: float | None = None
    beta_0: float = 0.0
    beta_1: float = 1.0
    margin: float | None = None
    sign: bool = False
    regularized: bool = False
    reg_w: float = 1.5e-4
    sparse: bool = False
    regrow: bool = False
    tol_w: float = 0.01
    temp: float = 5.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        if (self.rule, self.coding) not in PUBLISHED:
            raise unknown("rule and coding", f"{self.rule}, {self.coding}", (", ".join(pair) for pair in PUBLISHED))
        check_sizes(networks=self.networks, epochs=self.choices.epochs)
        if self.regrow and not self.sparse:
            raise ConfigurationError("regrow is of connections that were removed; choose sparse too")
        self._plasticity()

    @property
    def choices(self) -> Choices:
        """The preset's, with those of this recipe in their place."""
        preset = PRESETS[self.preset][self.rule, self.coding]
        given = {name: getattr(self, name) for name in vars(preset)}
        chosen = replace(preset, **{name: value for name, value in given.items() if value is not None})
        return replace(chosen, margin=None) if chosen.margin is not None and chosen.margin < 0 else chosen

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        one_hot, constant = self.coding == "one-hot", self.rule == "deep"
        table = logic(self.task, one_hot=one_hot, constant=constant)
        choices = self.choices
        sizes = Sizes(table.input_shape[0], choices.hidden, table.outputs)
        population = Population(
            range(seed * self.networks, (seed + 1) * self.networks),
            sizes,
            layered_connections(sizes, constant) if self.layered else None,
            leak=choices.leak,
            bias=self.rule == "asymmetric",
            activity=self.activity,
            dt=self.dt,
            steps=self.free_steps,
            tolerance=self.tolerance,
            std=choices.std,
            spread=choices.spread,
        ).to(device)
        table = table.to(device)
        return Experiment(
            data=table,
            rule=PopulationLearning(population, self._plasticity(), one_hot),
            epochs=choices.epochs,
            batch=len(table.train),
            synapse=self._describe(),
            learning="DEEP" if self.rule == "deep" else "asymmetric EP",
            citations=("farinha2020",) if self.rule == "deep" else ("scellier2018",),
            evaluate=each_epoch(-(-choices.epochs // ROWS)),
            recorders=(Recorder(NAME, each_epoch(-(-choices.epochs // FRAMES)), snapshot),),
            finals={
                NAME: partial(final, split=table.test, one_hot=one_hot),
                equilibria.NAME: partial(equilibria.population_equilibria, split=table.test, one_hot=one_hot),
            },
        )

    def _plasticity(self) -> Plasticity:
        choices = self.choices
        return Plasticity(
            rule=self.rule,
            beta=choices.beta,
            nudging=choices.nudging,
            steps=self.nudged_steps,
            rate=choices.rate,
            decay=choices.decay,
            beta_0=self.beta_0,
            beta_1=self.beta_1,
            sign=self.sign,
            l1=self.reg_w if self.regularized else 0.0,
            margin=choices.margin,
            sparsification=Sparsification(self.tol_w, self.temp, self.regrow) if self.sparse else None,
        )

    def _describe(self) -> str:
        """The kind of synapse, in a few words."""
        graph = "layered" if self.layered else "complete directed"
        return f"{graph}, pruned" if self.sparse else graph
