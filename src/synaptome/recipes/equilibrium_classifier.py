"""Equilibrium propagation: classifiers of images that learn from two relaxations and not from backprop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from synaptome import data
from synaptome.analysis import equilibria
from synaptome.analysis.alignment import alignment, bptt_gradient
from synaptome.data.dataset import Batch
from synaptome.data.indexed import indexed
from synaptome.errors import ConfigurationError
from synaptome.learning.equilibrium import EquilibriumPropagation
from synaptome.learning.nudging import check_nudging
from synaptome.learning.optimization import Optimization
from synaptome.networks.equilibrium import EquilibriumNetwork
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.sparse_directed import SparseDirectedNetwork
from synaptome.recipes.equilibrium_choice import EquilibriumChoice, choice
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.topology.graphs import check_density
from synaptome.training.callbacks import Callback, each_epoch
from synaptome.training.trainer import Trainer

CHECKED = 100  # training examples whose gradient is compared with that of backpropagation through time


LEFT_OPEN = tuple(field.name for field in fields(EquilibriumChoice))  # fields that the network decides if not given


@dataclass(frozen=True)
class EquilibriumClassifier(Recipe):
    """A network that classifies images at its equilibrium, and learns by nudging it.

    It is layered, or a complete directed one, of whose connections a random share exists. Of layered networks, steps,
    beta and rates that are not given are those of Scellier & Bengio 2017 for as many hidden layers, of 500 neurons:

    | hidden layers | free steps | nudged steps | beta | rates |
    |---|---|---|---|---|
    | 1 | 20 | 4 | 0.5 | 0.1, 0.05 |
    | 2 | 150 | 6 | 1 | 0.4, 0.1, 0.01 |
    | 3 | 500 | 8 | 1 | 0.128, 0.032, 0.008, 0.002 |

    They keep the states of each training example, and draw the sign of beta for each batch. Images are in [0, 1]. On
    MNIST with one hidden layer, rates of 0.4 and 0.1 that fall linearly and a weight decay of 1e-4 came to 2.35 % test
    error after 20 epochs (seed 0).

    Of complete ones nothing is published; what they take is what learns digits over several seeds: corrected, centered,
    from states 0, 20 free and 5 nudged steps of 0.7, beta 0.5, batches of 32, rates of 0.1, momentum 0.9. On MNIST,
    4990 hidden neurons at 2 % also learn with rates of 0.1 and 0.2, and faster. Where rates are too high, outputs
    overshoot, and stay clipped at 0 for good.

    Args:
        data: the data set.
        network: layers that act on their neighbours, or any neuron on any other that is no input.
        hidden: neurons in each hidden layer; of a complete network the number of hidden neurons.
        density: share of a complete network's connections that exist, in (0, 1].
        state: how a neuron follows its drive.
        weights: whether a connection has one weight for both directions, or two of their own, as in complete networks;
            symmetric if not given and layered.
        corrected: whether nudged phases of asymmetric weights are corrected to follow their exact gradient; complete
            networks are if it is not given.
        cost: squared error of output neurons, or cross-entropy of a read-out of the last hidden layer, if layered.
        nudging: which phases are compared: one nudged and the free one, with beta positive or of random sign, or two
            nudged ones of either sign; random sign if not given and layered.
        beta: strength of the nudge, above 0.
        free_steps: steps of the free phase.
        nudged_steps: steps of a nudged phase.
        dt: size of a step, in (0, 1]; 1 is a fixed sweep. 0.5 if not given and layered.
        persistent: whether the free phase of a training example starts where its last one ended; else from 0. All of
            them are kept in memory and in checkpoints; if it is not given, those of layered networks.
        batch: examples a step; 20 if not given and layered.
        epochs: passes over the training examples.
        rates: learning rate of each layer, the one next to the images first; of complete networks that of connections
            from inputs, with the biases, and that of the others.
        momentum: of gradient descent, in [0, 1); 0 if not given and layered.
        schedule: how the rates fall over the run; drops divides them by 10 at 50 and 75 % of the steps.
        weight_decay: of weights and biases, at least 0.
        validation: number of training images that are held out.
        check_gradient: whether each epoch ends with a comparison of the gradient, layer by layer, with that of
            backpropagation through time on 100 training images.
    """

    name: ClassVar[str] = "equilibrium-classifier"
    summary: ClassVar[str] = "classify images by equilibrium propagation"
    paper: ClassVar[str] = "Scellier & Bengio 2017; Scellier et al. 2018; Laborieux et al. 2021; Scurria et al. 2026"

    data: Literal["digits", "mnist", "fashion"] = "digits"
    network: Literal["layered", "complete"] = "layered"
    hidden: tuple[int, ...] = (500,)
    density: float | None = None
    state: Literal["hard-sigmoid", "sigmoid", "tanh"] = "hard-sigmoid"
    weights: Literal["symmetric", "asymmetric"] | None = None
    corrected: bool | None = None
    cost: Literal["squared-error", "cross-entropy"] = "squared-error"
    nudging: Literal["one-sided", "random-sign", "centered"] | None = None
    beta: float | None = None
    free_steps: int | None = None
    nudged_steps: int | None = None
    dt: float | None = None
    persistent: bool | None = None
    batch: int | None = None
    epochs: int = 30
    rates: tuple[float, ...] = ()
    momentum: float | None = None
    schedule: Literal["constant", "cosine", "linear", "drops"] = "constant"
    weight_decay: float = 0.0
    validation: int = 0
    check_gradient: bool = False

    def __post_init__(self) -> None:
        made = self._choice()
        widths = {f"hidden layer {number}": width for number, width in enumerate(self.hidden, 1)}
        check_sizes(**widths, batch=made.batch, epochs=self.epochs)
        self._check_network(made)
        check_nudging(made.nudging, made.beta)
        Relaxation(made.free_steps, made.dt)
        Relaxation(made.nudged_steps, made.dt)
        groups = len(self.hidden) + 1
        if len(made.rates) != groups or not all(0 < rate < math.inf for rate in made.rates):
            raise ConfigurationError(
                f"rates are positive numbers, one for each of the {groups} "
                f"{'layers of weights' if self.network == 'layered' else 'kinds of connection'}; given "
                f"{', '.join(f'{rate:g}' for rate in made.rates) or 'none'}"
            )
        if made.corrected and made.weights == "symmetric":
            raise ConfigurationError(
                "symmetric weights need no correction: their gradient is exact without; leave corrected out, or choose "
                "asymmetric weights"
            )
        if not 0 <= made.momentum < 1:
            raise ConfigurationError(f"momentum is a number of at least 0 and below 1; given {made.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(f"weight_decay is a number of at least 0; given {self.weight_decay}")

    def _check_network(self, made: EquilibriumChoice) -> None:
        if self.network == "layered":
            if self.density is not None:
                raise ConfigurationError(
                    f"density is that of a complete network, and layers are dense; given {self.density}: leave it out, "
                    f"or choose the network complete"
                )
            return
        if self.density is None or len(self.hidden) != 1:
            raise ConfigurationError(
                f"a complete network has one number of hidden neurons, and a density; given hidden "
                f"{', '.join(map(str, self.hidden)) or 'none'} and density {self.density}"
            )
        check_density(self.density)
        if made.weights != "asymmetric":
            raise ConfigurationError(
                "connections of a complete network have a direction, and their weights are asymmetric; given symmetric"
            )
        if self.cost != "squared-error":
            raise ConfigurationError(
                f"{self.cost} is the cost of a read-out, and outputs of a complete network are neurons; leave the cost "
                f"out, or choose the network layered"
            )

    def resolved(self) -> EquilibriumClassifier:
        """The same recipe with every field given that the network decided."""
        return replace(self, **asdict(self._choice()))

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        images = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed, normalise=False)
        made = self._choice()
        network = self._network(made, math.prod(images.input_shape), images.outputs).to(device)
        images = indexed(images.to(device)) if made.persistent else images.to(device)
        groups = [{"params": group, "lr": rate} for group, rate in zip(network.synapses(), made.rates, strict=True)]
        optimizer = torch.optim.SGD(groups, momentum=made.momentum, weight_decay=self.weight_decay)
        steps = self.epochs * math.ceil(len(images.train) / made.batch)
        rule = EquilibriumPropagation(
            network,
            optimizer,
            self.cost,
            nudging=made.nudging,
            beta=made.beta,
            nudged=Relaxation(made.nudged_steps, made.dt),
            corrected=made.corrected,
            examples=len(images.train) if made.persistent else None,
            scheduler=Optimization(schedule=self.schedule).scheduler(optimizer, steps),
        )
        batch = images.train[slice(0, CHECKED)]
        check = Callback(each_epoch(), partial(_aligned, rule, batch))
        return Experiment(
            data=images,
            rule=rule,
            epochs=self.epochs,
            batch=made.batch,
            synapse=self._describe(made),
            learning=f"equilibrium propagation, {made.nudging}",
            citations=self._citations(made),
            callbacks=(check,) if self.check_gradient else (),
            finals={equilibria.NAME: partial(equilibria.network_equilibria, split=images.test)},
            growth=4 * len(images.train) * sum(network.widths) if made.persistent else 0,  # the states that are kept
        )

    def _choice(self) -> EquilibriumChoice:
        """What is usual for the network, with what is given in place of its own."""
        return choice(self.network, len(self.hidden), {name: getattr(self, name) for name in LEFT_OPEN})

    def _network(self, made: EquilibriumChoice, inputs: int, outputs: int) -> EquilibriumNetwork:
        relaxation = Relaxation(made.free_steps, made.dt)
        if self.density is not None:
            (hidden,) = self.hidden
            return SparseDirectedNetwork.random(
                inputs, hidden, outputs, self.density, state=self.state, relaxation=relaxation
            )
        return LayeredNetwork(
            [inputs, *self.hidden, outputs],
            state=self.state,
            symmetric=made.weights == "symmetric",
            readout=self.cost == "cross-entropy",
            relaxation=relaxation,
        )

    def _describe(self, made: EquilibriumChoice) -> str:
        """Such as `symmetric`, `asymmetric, corrected`, or `complete, 2 % of connections, asymmetric, corrected`."""
        graph = "" if self.density is None else f"complete, {100 * self.density:.3g} % of connections, "
        return f"{graph}{made.weights}{', corrected' if made.corrected else ''}"

    def _citations(self, made: EquilibriumChoice) -> tuple[str, ...]:
        keys = ["scellier2017"]
        keys += ["scellier2018"] if made.weights == "asymmetric" else []
        keys += ["farinha2020"] if self.network == "complete" else []
        keys += ["scurria2026"] if made.corrected else []
        keys += ["laborieux2021"] if made.nudging == "centered" or self.cost == "cross-entropy" else []
        return tuple(keys)


def _aligned(rule: EquilibriumPropagation, batch: Batch, trainer: Trainer) -> dict[str, float]:
    """The cosines of the rule's gradient, of its positive nudge where signs are random, and that of BPTT, by layer.

    Both start from states 0, so that what is kept of the examples plays no part.
    """
    network = rule.network
    targets = rule.cost.prepared(batch.targets)

    def cost(outputs: Tensor) -> Tensor:
        return rule.cost.per_example(outputs, targets).mean()

    gradient = rule.gradient(batch)
    _, reference = bptt_gradient(network, batch.inputs, cost)
    return {f"alignment/{layer}": value for layer, value in alignment(network, gradient, reference).items()}
