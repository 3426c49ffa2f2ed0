"""Stable deep networks: classifiers whose layers are the time steps of a dynamical system."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome import data
from synaptome.analysis.noise import noise_sensitivity
from synaptome.analysis.stability_measures import Stability
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.multilevel import Multilevel
from synaptome.networks.flow import Flow
from synaptome.networks.multilevel import pixel_smoothness, smoothness
from synaptome.networks.stable import StableNetwork
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.recipes.stable_presets import OptimizationChoice, StableChoice, choice
from synaptome.training.callbacks import Callback, When
from synaptome.training.measures import Measure

ROWS = 100  # of metrics, at most, in a level of many short epochs
LEFT_OPEN = tuple(each.name for each in fields(StableChoice) if each.name != "rate")  # what presets decide

CITATIONS = {
    "euler": ("haber2017",),
    "antisymmetric": ("haber2017",),
    "leapfrog": ("haber2017", "chang2018"),
    "verlet": ("haber2017", "chang2018"),
    "hamiltonian": ("haber2017", "galimberti2021"),
    "runge-kutta": ("haber2017",),
}


@dataclass(frozen=True)
class StableNetworks(Recipe):
    """A classifier whose layers are steps in time of a differential equation, trained at one depth or at several.

    The equations are in `synaptome.networks.dynamics`, and the network is `synaptome.networks.stable.StableNetwork`.
    What is not given is the preset's, if there is one, or else what serves the data set; all of these values are in
    `synaptome.recipes.stable_presets`. The presets are the authors' settings (Haber & Ruthotto 2017, section 6):

    | preset | data | T | layers | width | smoothness |
    |---|---|---|---|---|---|
    | swiss-roll | swiss-roll | 20 | 16 to 1024, on 7 levels | 4, two of them padding | 5e-4 |
    | circle | ellipses, which is what their code calls circle | 20 | 8 | 3, one of them padding | 1e-2 |
    | peaks | peaks | 5 | 8 | 16, learned | 0 |

    Three terms keep a network regular. Two are added to the loss: `smoothness` times
    `sum_i ||theta_{i+1} - theta_i||^2 / (2 h)`, and `pixel_smoothness` times the sum of squared differences between
    the classifier's weights of neighbouring pixels (Haber & Ruthotto 2017, section 3.3). The third is the weight decay
    of the optimizer. Whether they are used or not, each row of metrics has their values without these factors:
    `regularisation/smoothness`, `regularisation/pixels` for convolutions, and `regularisation/weights`, which is half
    the sum of the squares of all parameters. An epoch of few steps has no row of its own: a level has a hundred at
    most, the last one at its end.

    Args:
        preset: the authors' settings for one of their problems.
        data: points of the plane, or images; the preset's if there is one, else swiss-roll.
        dynamics: euler (a residual network), antisymmetric, leapfrog, verlet, hamiltonian or runge-kutta.
        width: features, or channels of a convolution; even for hamiltonian.
        depth: layers, on the first level.
        levels: 1, or how often the network is trained: each time at twice the depth of the time before, with half the
            step.
        time: T, the length of the interval that the layers divide, above 0.
        controls: weights and biases on a grid in time of their own: how many, from 1 to the depth, on the first level;
            one for each layer if not given.
        gamma: damping of antisymmetric, at least 0.
        start: of verlet: half-kick (second order) or zero (first order).
        activation: of the layers.
        opening: pad fills new features with zeros, learned is a linear layer or a convolution.
        convolutional: layers of 3 x 3 convolutions, for images; if not given, for cifar10 alone.
        reversible: recompute states in the backward pass, with memory constant in depth; for leapfrog, verlet and
            hamiltonian.
        smoothness: factor of the smoothness of weights and biases in time, at least 0.
        pixel_smoothness: factor of the smoothness of the classifier over pixels, at least 0; for convolutions.
        batch: examples a step.
        epochs: passes over the training examples, on each level.
        validation: share of the training examples held out, in [0, 1). Nothing is chosen by them, so none are unless
            asked for.
        optimization: optimizer, learning rate and weight decay, in place of what serves the data set; the schedule
            starts again on each level.
        noise: standard deviations of Gaussian noise on the inputs, with which the trained network is tested.
    """

    name: ClassVar[str] = "stable"
    summary: ClassVar[str] = "classify with deep networks that are dynamical systems in time"
    paper: ClassVar[str] = "Haber & Ruthotto 2017; Chang et al. 2018; Galimberti et al. 2021; Onken et al. 2019"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {"data": ("ellipses", "swiss-roll", "circle", "peaks"), "dynamics": tuple(CITATIONS)},
        "depth": {
            "data": ("swiss-roll",),
            "dynamics": tuple(CITATIONS),
            "depth": tuple(str(2**power) for power in range(2, 11)),
        },
    }

    preset: Literal["swiss-roll", "circle", "peaks"] | None = None
    data: Literal["ellipses", "swiss-roll", "circle", "peaks", "mnist", "fashion", "cifar10", "digits"] | None = None
    dynamics: Literal["euler", "antisymmetric", "leapfrog", "verlet", "hamiltonian", "runge-kutta"] = "verlet"
    width: int | None = None
    depth: int | None = None
    levels: int | None = None
    time: float | None = None
    controls: int | None = None
    gamma: float = 0.0
    start: Literal["half-kick", "zero"] = "half-kick"
    activation: Literal["linear", "relu", "swish", "sigmoid", "tanh", "elu", "selu"] = "tanh"
    opening: Literal["pad", "learned"] | None = None
    convolutional: bool | None = None
    reversible: bool = False
    smoothness: float | None = None
    pixel_smoothness: float = 0.0
    batch: int | None = None
    epochs: int | None = None
    validation: float = 0.0
    optimization: OptimizationChoice = field(default_factory=OptimizationChoice)
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        made = self._choice()
        check_sizes(width=made.width, depth=made.depth, levels=made.levels, batch=made.batch, epochs=made.epochs)
        if not 0 < made.time < math.inf:  # also refuses NaN
            raise ConfigurationError(
                f"time is the length of the interval [0, T], finite and above 0; given {made.time}"
            )
        # What does not fit is refused here, before anything is loaded.
        Flow(self.dynamics, made.time / made.depth, self.gamma, self.start, self.activation, self.reversible)
        self.optimization.made(made.rate)
        for name, number in (("smoothness", made.smoothness), ("pixel_smoothness", self.pixel_smoothness)):
            if not 0 <= number < math.inf:
                raise ConfigurationError(f"{name} is a finite number, at least 0; given {number}")
        if self.pixel_smoothness and not made.convolutional:
            raise ConfigurationError(
                f"pixel_smoothness is over the pixels of a convolutional network, and this one has none; given "
                f"{self.pixel_smoothness}: leave it out, or take an image set with convolutional=True"
            )
        for std in self.noise:
            if not 0 <= std < math.inf:
                raise ConfigurationError(f"a standard deviation of noise is a finite number of at least 0; given {std}")

    def resolved(self) -> StableNetworks:
        """The same recipe with every field given that the preset or the data set decided."""
        made = self._choice()
        optimization = OptimizationChoice(**asdict(self.optimization.made(made.rate)))
        return replace(self, optimization=optimization, **{name: getattr(made, name) for name in LEFT_OPEN})

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        made = self._choice()
        examples = data.load(made.data, data_dir=data_dir, validation=self.validation, seed=seed)
        network = self._network(made, examples).to(device)
        examples = examples.to(device)
        optimization = self.optimization.made(made.rate)
        optimizer = optimization.optimizer(network.parameters())
        epoch_steps = math.ceil(len(examples.train) / made.batch)
        steps = made.epochs * epoch_steps
        term = partial(penalty, in_time=made.smoothness, over_pixels=self.pixel_smoothness)
        rule = Backprop(network, optimizer, penalty=term if made.smoothness or self.pixel_smoothness else None)

        def schedule(optimizer: optim.Optimizer) -> LRScheduler | None:
            return optimization.scheduler(optimizer, steps)

        when = _rows(steps, made.epochs)
        several = made.levels > 1
        depths = (Callback(when, lambda trainer: {"network/depth": network.depth}),) if several else ()
        return Experiment(
            data=examples,
            rule=Multilevel(rule, made.levels, steps, schedule),
            epochs=made.levels * made.epochs,
            batch=made.batch,
            synapse=self._describe(made),
            learning="multilevel backprop" if several else "backprop",
            citations=self._citations(made),
            evaluate=when,
            callbacks=(Callback(when, lambda trainer: regularity(network)), *depths),
            finals=self._finals(examples),
            # Of weights and biases, with two moments of an optimizer: the last level has so many times as many.
            growth=3 * (2 ** (made.levels - 1) - 1) * (network.weight.nbytes + network.bias.nbytes),
        )

    def _choice(self) -> StableChoice:
        """The preset or what serves the data set, with what is given in place of its own."""
        usual = choice(self.preset, self.data, self.convolutional)
        given = {name: getattr(self, name) for name in LEFT_OPEN}
        return replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _network(self, made: StableChoice, examples: Dataset) -> StableNetwork:
        shape = examples.input_shape
        if made.convolutional and len(shape) != 3:
            raise ConfigurationError(
                f"convolutions are of images, and {made.data} is points of the plane; leave convolutional out, or "
                f"choose mnist, fashion, cifar10 or digits"
            )
        return StableNetwork(
            shape if made.convolutional else math.prod(shape),
            examples.outputs,
            dynamics=self.dynamics,
            width=made.width,
            depth=made.depth,
            time=made.time,
            controls=self.controls,
            gamma=self.gamma,
            start=self.start,
            activation=self.activation,
            opening=made.opening,
            reversible=self.reversible,
        )

    def _finals(self, examples: Dataset) -> Mapping[str, Measure]:
        finals: dict[str, Measure] = {"stability": Stability(examples).final}
        if self.noise:
            finals["noise"] = partial(noise_sensitivity, split=examples.test, stds=self.noise)
        return finals

    def _describe(self, made: StableChoice) -> str:
        """Such as `verlet, 16 layers`, or `verlet, 16 to 1024 layers` on several levels."""
        deepest = f" to {made.depth * 2 ** (made.levels - 1)}" if made.levels > 1 else ""
        return f"{self.dynamics}, {made.depth}{deepest} layers"

    def _citations(self, made: StableChoice) -> tuple[str, ...]:
        """The dynamics; several levels, and weights on a grid of their own."""
        keys = [*CITATIONS[self.dynamics]]
        keys += ["haber2018"] if made.levels > 1 else []
        keys += ["onken2019"] if self.controls not in (None, made.depth) else []
        return tuple(keys)


def penalty(network: nn.Module, in_time: float, over_pixels: float) -> Tensor:
    """What is added to the loss of a stable network: smoothness in time and over pixels, times their factors; 0-d."""
    assert isinstance(network, StableNetwork)
    total = in_time * smoothness(network)
    return total + over_pixels * pixel_smoothness(network) if over_pixels else total


@torch.no_grad()
def regularity(network: StableNetwork) -> dict[str, float]:
    """The terms that keep a stable network regular, without their factors: metrics `regularisation/...`."""
    squares = [parameter.square().sum() for parameter in network.parameters()]
    found = {"smoothness": smoothness(network), "weights": torch.stack(squares).sum() / 2}
    if len(network.opening.shape) > 1:
        found["pixels"] = pixel_smoothness(network)
    return {f"regularisation/{name}": value.item() for name, value in found.items()}


def _rows(level_steps: int, epochs: int) -> When:
    """At the end of each level, and so often from its start that it has at most `ROWS` rows."""
    every = math.ceil(epochs / ROWS)
    return lambda step, epoch_steps: step % level_steps % (every * epoch_steps) == 0
