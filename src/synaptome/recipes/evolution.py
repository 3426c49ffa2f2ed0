"""Sparse connectivity that evolves: classifiers whose connections die and are born while they learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch

from synaptome import data
from synaptome.analysis.pruning import accuracy_when_pruned, check_share
from synaptome.analysis.wiring import Connections
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError, unknown
from synaptome.learning.backprop import Backprop
from synaptome.learning.evolving import Evolving
from synaptome.learning.optimization import Optimization
from synaptome.learning.rule import LearningRule
from synaptome.networks.feedforward import FeedForward
from synaptome.recipes.evolution_choice import ITOP, RIGL, SET, SNFS, EvolutionChoice
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.synapses.sparsity import Sparse
from synaptome.topology.evolution import Evolution
from synaptome.topology.layers import places_of, sparse_layers
from synaptome.training.callbacks import Callback, each_epoch
from synaptome.training.measures import Measure, Recorder

EPSILON = 20.0  # Mocanu et al. 2018, for MNIST
FRAMES = 60  # snapshots of the connections that a run records at most, beside that of the start


@dataclass(frozen=True)
class Preset:
    """A method by name: what the tables call it, what a report cites for it, and how its connections evolve."""

    title: str
    citation: str | None = None
    evolution: EvolutionChoice | None = None


PRESETS = {
    "set": Preset("SET", "mocanu2018", SET),
    "rigl": Preset("RigL", "evci2020", RIGL),
    "snfs": Preset("SNFS", "dettmers2019", SNFS),
    "itop": Preset("ITOP", "liu2021", ITOP),
    "static": Preset("static"),
    "dense": Preset("dense"),
}


@dataclass(frozen=True)
class EvolvingSparsity(Recipe):
    """A feed-forward classifier of images with few connections, which change while it learns.

    The presets, with the settings of their papers or, where these leave one open, of their authors' code:

    | preset | drop | grow | fraction | when | source |
    |---|---|---|---|---|---|
    | set | of each sign the weakest | random | 0.3 | each epoch | Mocanu et al. 2018, algorithm 1 |
    | rigl | magnitude | gradient | 0.3, cosine | each 100 steps, to 75 % | Evci et al. 2020, section 3 |
    | snfs | magnitude | momentum | 0.5, cosine | each epoch | Dettmers & Zettlemoyer 2019, section 3 |
    | itop | magnitude | random | 0.5, cosine | each 4 epochs | Liu et al. 2021 (SET-ITOP) |
    | static | | | | never | |
    | dense | | | | never; every connection is there | |

    snfs also shares connections among the layers by their momentum. itop changes connections after 1500 steps of 128
    images of CIFAR-10, which is about 4 epochs: that late, so that new ones have time to grow. New connections start
    from 0 under every preset. The graph to start from is random, and connections never change after the last step. A
    row of metrics at a step after which they do change measures the network with its new connections. The presets and
    their settings stand in `docs/sparse-networks.md` too.

    The dense network is what the others are compared with: how many connections there are and which (epsilon, density,
    distribution, topology) means nothing to it, and changes nothing.

    Args:
        data: the data set.
        hidden: neurons in each hidden layer.
        activation: of the hidden layers.
        bias: whether neurons have biases.
        scaling: standard deviation of the initial weights: sqrt (fan_in^-1/2), lin (fan_in^-1), const (0.001), or a
            number alpha (fan_in^-alpha), where fan_in is the mean number of connections of a neuron.
        preset: the method by which connections evolve:
            - set: each epoch, the weakest of each sign go and random ones come;
            - rigl: each 100 steps, new ones where the gradient is largest;
            - snfs: each epoch, where the momentum is largest, and shared among the layers by it;
            - itop: each 4 epochs, random ones;
            - static: never;
            - dense: every connection is there.
        epsilon: connections of each layer: epsilon (n_in + n_out), or all of a layer that has fewer places; 20 if no
            density is given.
        density: connections of all layers, as a share of their places in (0, 1], instead of epsilon.
        distribution: of a density over the layers: uniform or erk (Erdős–Rényi-kernel).
        topology: of the graph to start from: erdos-renyi, small-world or small-world(p).
        evolution: settings in place of the preset's.
        batch: examples a step.
        epochs: passes over the training examples.
        validation: share of the training examples held out, in [0, 1). Nothing is chosen by them, so none are unless
            asked for.
        optimization: optimizer and its learning rate; momentum and weight decay are for optimizers that have them.
        zero_connections: shares of the weakest connections, in [0, 1), without which the trained network is tested.
    """

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = "classify images with few connections that evolve"
    paper: ClassVar[str] = "Mocanu et al. 2018; Evci et al. 2020; Dettmers & Zettlemoyer 2019; Liu et al. 2021"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {"preset": tuple(PRESETS)},
        # New connections are drawn large, so that they matter before they are learned.
        "regularisation": {
            "data": ("mnist",),
            "scaling": ("0.35",),
            "evolution.initial": ("distribution",),
            "optimization.rate": ("0.05",),
            "optimization.schedule": ("constant",),
            "optimization.weight-decay": ("0", "1e-3"),
        },
    }

    data: Literal["digits", "mnist", "fashion", "cifar10"] = "digits"
    hidden: tuple[int, ...] = (1000, 1000, 1000)
    activation: Literal["linear", "relu", "sigmoid"] = "relu"
    bias: bool = True
    scaling: str = "sqrt"
    preset: Literal["set", "rigl", "snfs", "itop", "static", "dense"] = "set"
    epsilon: float | None = None
    density: float | None = None
    distribution: Literal["uniform", "erk"] = "uniform"
    topology: str = "erdos-renyi"
    evolution: EvolutionChoice = field(default_factory=EvolutionChoice)
    batch: int = 100
    epochs: int = 30
    validation: float = 0.0
    optimization: Optimization = field(
        default_factory=lambda: Optimization(rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    )
    zero_connections: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        widths = {f"hidden layer {number}": width for number, width in enumerate(self.hidden, 1)}
        check_sizes(**widths, batch=self.batch, epochs=self.epochs)
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        for share in self.zero_connections:
            check_share(share)
        self._wiring()
        changed = {f"evolution.{name}": value for name, value in self.evolution.given.items()}
        if PRESETS[self.preset].evolution is None and changed:
            told = ", ".join(f"{name} {value}" for name, value in changed.items())
            evolving = ",".join(name for name, preset in PRESETS.items() if preset.evolution is not None)
            raise ConfigurationError(
                f"the preset {self.preset!r} never changes a connection, but {told} is given; leave it out, or choose "
                f"another preset. To compare, take two sweeps: preset={evolving} with it, preset={self.preset} without"
            )

    def resolved(self) -> EvolvingSparsity:
        """The same recipe with every setting of its preset."""
        preset = PRESETS[self.preset].evolution
        return self if preset is None else replace(self, evolution=self.evolution.over(preset))

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        images = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed)
        network = FeedForward(
            [math.prod(images.input_shape), *self.hidden, images.outputs],
            activation=self.activation,
            bias=self.bias,
            scaling=self.scaling,
            wiring=self._wiring(),
        ).to(device)
        images = images.to(device)
        epoch_steps = math.ceil(len(images.train) / self.batch)
        steps = self.epochs * epoch_steps
        optimizer = self.optimization.optimizer(network.parameters())
        rule: LearningRule = Backprop(network, optimizer, scheduler=self.optimization.scheduler(optimizer, steps))
        method = PRESETS[self.preset]
        evolution = None
        callbacks: tuple[Callback, ...] = ()
        if method.evolution is not None:
            evolution = self.evolution.make(method.evolution, network, optimizer, epoch_steps, steps, seed)
            rule = evolving = Evolving(rule, evolution)
            callbacks = (Callback(each_epoch(), lambda trainer: {"connections/replaced": evolving.replaced}),)
        recorders, finals = self._measures(network, images, evolution)
        return Experiment(
            data=images,
            rule=rule,
            epochs=self.epochs,
            batch=self.batch,
            synapse=self._describe(network),
            learning="backprop",
            citations=self._citations(),
            callbacks=callbacks,
            recorders=recorders,
            finals=finals,
        )

    def _wiring(self) -> Sparse | None:
        epsilon = EPSILON if self.epsilon is None and self.density is None else self.epsilon
        sparse = Sparse(
            self.density, epsilon=epsilon, distribution=self.distribution, start="random", topology=self.topology
        )
        return None if self.preset == "dense" else sparse

    def _measures(
        self, network: FeedForward, images: Dataset, evolution: Evolution | None
    ) -> tuple[tuple[Recorder, ...], Mapping[str, Measure]]:
        recorders: tuple[Recorder, ...] = ()
        finals: dict[str, Measure] = {}
        if self.preset != "dense":
            connections = Connections(network, images.input_shape, evolution)
            recorders = (Recorder("connections", each_epoch(math.ceil(self.epochs / FRAMES)), connections.snapshot),)
            finals["connections"] = connections.final
        if self.zero_connections:
            finals["pruning"] = partial(accuracy_when_pruned, split=images.test, shares=self.zero_connections)
        return recorders, finals

    def _describe(self, network: FeedForward) -> str:
        """Such as `SET 4.5 %`, and what differs from the preset."""
        layers = sparse_layers(network).values()
        if not layers:
            return PRESETS[self.preset].title
        density = sum(layer.values.numel() for layer in layers) / sum(map(places_of, layers))
        preset = PRESETS[self.preset].evolution
        usual = preset.given if preset is not None else {}
        own = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.evolution.given.items()
            if value != usual.get(name)
        ]
        # Two digits, but 100 as a number: as .2g it would be 1e+02.
        return ", ".join([f"{PRESETS[self.preset].title} {float(f'{100 * density:.2g}'):g} %", *own])

    def _citations(self) -> tuple[str, ...]:
        """The method; and where the numbers of connections come from."""
        keys = [PRESETS[self.preset].citation]
        if self.preset != "dense":
            keys += ["mocanu2018"] if self.density is None else ["evci2020"] if self.distribution == "erk" else []
        return tuple(dict.fromkeys(key for key in keys if key is not None))
