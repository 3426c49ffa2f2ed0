"""Synaptic failures in classifiers: what a network learns when each of its synapses may fail at each example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch

from synaptome import data
from synaptome.analysis.robustness import accuracy_under_failures
from synaptome.errors import ConfigurationError
from synaptome.kernels.failing_linear import check_failure
from synaptome.learning.optimization import Optimization
from synaptome.networks.feedforward import FeedForward
from synaptome.recipes.failing import LossName, Noise, backprop, check_sizes, describe, fails
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.recipes.snapshots import Snapshots
from synaptome.synapses.failing import Failing


@dataclass(frozen=True)
class FailuresClassifier(Recipe):
    """A feed-forward classifier of images whose synapses fail.

    Args:
        data: the data set.
        depth: layers of synapses, at least 1.
        width: neurons in each hidden layer.
        activation: of the hidden layers.
        output: of the last layer.
        bias: whether neurons have biases, which never fail.
        scaling: standard deviation of the initial weights: sqrt (fan_in^-1/2), lin (fan_in^-1), const (0.001), or a
            number alpha (fan_in^-alpha).
        failure: probability that a synapse fails, in [0, 1).
        failing: the layers that fail: all, none, or numbers from 1, such as 1,3.
        noise: failures drawn as such (bernoulli), or normal noise of their mean and variance (gaussian).
        inference: at evaluation: expected, noisy, gaussian or mc(K).
        loss: what is minimised.
        batch: examples a step.
        epochs: passes over the training examples.
        validation: share of the training examples held out, in [0, 1).
        optimization: optimizer and its learning rate.
        spectra: what is measured of the weights while they learn.
        robustness: rates of failure at inference that the trained network is tested with.
    """

    name: ClassVar[str] = "failures-classifier"
    summary: ClassVar[str] = "classify images with synapses that fail"
    paper: ClassVar[str] = "Wan et al. 2013"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {
            "activation": ("linear", "relu"),
            "scaling": ("sqrt", "lin"),
            "depth": ("2", "3", "10"),
            "failure": ("0", "0.5"),
        },
        "published-mnist": {
            "data": ("mnist",),
            "loss": ("summed-squared-error",),
            "optimization.rate": ("1e-4",),
            "width": ("784",),
            "activation": ("linear", "relu"),
            "depth": ("2", "3"),
            "failure": ("0", "0.5"),
        },
    }

    data: Literal["digits", "mnist", "fashion", "cifar10"] = "digits"
    depth: int = 2
    width: int = 100
    activation: Literal["linear", "relu", "sigmoid"] = "relu"
    output: Literal["linear", "softmax"] = "linear"
    bias: bool = True
    scaling: str = "sqrt"
    failure: float = 0.5
    failing: str = "all"
    noise: Noise = "bernoulli"
    inference: str = "expected"
    loss: LossName = "cross-entropy"
    batch: int = 100
    epochs: int = 10
    validation: float = 0.1
    optimization: Optimization = field(default_factory=lambda: Optimization(rate=0.3))
    spectra: Snapshots = field(default_factory=Snapshots)
    robustness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        Failing(self.failure, self.inference, self.noise)
        for rate in self.robustness:
            check_failure(rate)
        check_sizes(depth=self.depth, width=self.width, batch=self.batch, epochs=self.epochs)
        if not 0 <= self.validation < 1:
            raise ConfigurationError(
                f"validation is a share of the training examples in [0, 1); given {self.validation}"
            )
        if self.output == "softmax" and self.loss == "cross-entropy":
            raise ConfigurationError(
                "cross-entropy takes its softmax itself, and twice is wrong: use --output linear, or a squared error"
            )

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        images = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed)
        inputs = images.train.inputs[0].numel()
        network = FeedForward(
            [inputs, *[self.width] * (self.depth - 1), images.outputs],
            activation=self.activation,
            output=self.output,
            bias=self.bias,
            scaling=self.scaling,
            wiring=Failing(self.failure, self.inference, self.noise),
            layers=self.failing,
        ).to(device)
        images = images.to(device)
        recorders, finals = self.spectra.of(images)
        if self.robustness:
            tested = partial(accuracy_under_failures, split=images.test, rates=self.robustness)
            finals = {**finals, "robustness": tested}
        return Experiment(
            data=images,
            rule=backprop(self, network, self.loss, images),
            epochs=self.epochs,
            batch=self.batch,
            synapse=describe(self),
            learning="backprop",
            citations=("wan2013",) if fails(self) else (),
            recorders=recorders,
            finals=finals,
        )
