"""Synaptic failures in deep linear networks, where theory is exact: a linear teacher, and the semantic hierarchy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from synaptome import data
from synaptome.data.covariance import read_covariance
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.exact_expectation import ExactExpectation
from synaptome.learning.optimization import Optimization
from synaptome.networks.feedforward import FeedForward
from synaptome.recipes.failing import Noise, backprop, check_sizes, describe, fails, steps
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.recipes.snapshots import Snapshots
from synaptome.synapses.failing import Failing
from synaptome.training.callbacks import log_spaced

EXACT_DTYPE = torch.float64  # without sampling noise, rounding is what would stop the learning


@dataclass(frozen=True)
class FailuresLinear(Recipe):
    """A deep linear network with failing synapses learns a linear teacher, from samples or from the exact expectation.

    Args:
        features: inputs N, and neurons in each hidden layer.
        d: outputs of the teacher: one mode, or two of strength 1 and 0.2.
        depth: layers of synapses, at least 1.
        correlation: of neighbouring inputs, in (-1, 1): covariance correlation^|i - j|. 0 is the identity.
        covariance: a file (.npy, or text with a row a line) with any covariance of the inputs, N x N; replaces
            correlation.
        scaling: standard deviation of the initial weights: sqrt (fan_in^-1/2), lin (fan_in^-1), const (0.001), or a
            number alpha (fan_in^-alpha).
        failure: probability that a synapse fails, in [0, 1).
        failing: the layers that fail: all, none, or numbers from 1, such as 1,3.
        noise: failures drawn as such (bernoulli), or normal noise of their mean and variance (gaussian).
        inference: at evaluation: expected, noisy, gaussian or mc(K).
        exact: learn from the exact expectation over inputs and failures: as many steps, at the same rate, with
            nothing sampled.
        train: training examples.
        test: test examples.
        batch: examples a step.
        epochs: passes over the training examples.
        optimization: optimizer and its learning rate, which acts on the sum over the batch.
        spectra: what is measured of the weights while they learn.
    """

    name: ClassVar[str] = "failures-linear"
    summary: ClassVar[str] = "learn a linear teacher with deep linear networks that fail"
    paper: ClassVar[str] = "Wan et al. 2013; Mianjy & Arora 2019"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {
            "scaling": ("sqrt", "lin"),
            "depth": ("2", "3", "5", "10"),
            "d": ("1", "2"),
            "failure": ("0", "0.5"),
        }
    }

    features: int = 100
    d: Literal[1, 2] = 1
    depth: int = 2
    correlation: float = 0.0
    covariance: str | None = None
    scaling: str = "sqrt"
    failure: float = 0.5
    failing: str = "all"
    noise: Noise = "bernoulli"
    inference: str = "expected"
    exact: bool = False
    train: int = 100_000
    test: int = 1000
    batch: int = 1000
    epochs: int = 10
    optimization: Optimization = field(default_factory=lambda: Optimization(rate=1e-5))
    spectra: Snapshots = field(default_factory=Snapshots)

    def __post_init__(self) -> None:
        Failing(self.failure, self.inference, self.noise)
        _make_absolute(self)
        check_sizes(
            features=self.features,
            depth=self.depth,
            train=self.train,
            test=self.test,
            batch=self.batch,
            epochs=self.epochs,
        )
        if not -1 < self.correlation < 1:
            raise ConfigurationError(f"correlation is in (-1, 1); given {self.correlation}")
        if self.correlation and self.covariance is not None:
            raise ConfigurationError("correlation and covariance both choose the inputs; give one of them")

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        covariance = self._covariance()
        pairs = data.linear_regression(
            self.features,
            self.d,
            train=self.train,
            test=self.test,
            covariance=covariance,
            seed=seed,
            population=self.exact,
            dtype=EXACT_DTYPE if self.exact else torch.float32,
        )
        widths = [self.features] * self.depth + [self.d]
        moments = None if covariance is None else torch.from_numpy(covariance)
        return _experiment(self, widths, pairs, moments, device)

    def _covariance(self) -> npt.NDArray[np.float64] | None:
        if self.covariance is not None:
            return read_covariance(Path(self.covariance))
        if self.correlation == 0:
            return None
        places = np.arange(self.features)
        return np.asarray(self.correlation ** np.abs(places[:, None] - places), np.float64)


@dataclass(frozen=True)
class FailuresSemantic(Recipe):
    """A deep linear network with failing synapses learns the properties of four living things, in stages.

    Args:
        depth: layers of synapses, at least 1.
        width: neurons in each hidden layer.
        covariance: a file (.npy, or text with a row a line) with the items' uncentred covariance, 4 x 4 and positive
            definite; one-hot items if not given.
        scaling: standard deviation of the initial weights: sqrt (fan_in^-1/2), lin (fan_in^-1), const (0.001), or a
            number alpha (fan_in^-alpha).
        failure: probability that a synapse fails, in [0, 1).
        failing: the layers that fail: all, none, or numbers from 1, such as 1,3.
        noise: failures drawn as such (bernoulli), or normal noise of their mean and variance (gaussian).
        inference: at evaluation: expected, noisy, gaussian or mc(K).
        exact: learn from the exact expectation over failures, with nothing sampled.
        epochs: steps; each sees the four items.
        optimization: optimizer and its learning rate, which acts on the sum over the items.
        spectra: what is measured of the weights while they learn.
    """

    name: ClassVar[str] = "failures-semantic"
    summary: ClassVar[str] = "learn a hierarchy of concepts with deep linear networks that fail"
    paper: ClassVar[str] = "Saxe et al. 2019; Wan et al. 2013"

    depth: int = 2
    width: int = 16
    covariance: str | None = None
    scaling: str = "const"
    failure: float = 0.1
    failing: str = "all"
    noise: Noise = "bernoulli"
    inference: str = "expected"
    exact: bool = False
    epochs: int = 3000
    optimization: Optimization = field(default_factory=lambda: Optimization(rate=0.01))
    spectra: Snapshots = field(default_factory=Snapshots)

    def __post_init__(self) -> None:
        Failing(self.failure, self.inference, self.noise)
        _make_absolute(self)
        check_sizes(depth=self.depth, width=self.width, epochs=self.epochs)

    @property
    def batch(self) -> int:
        """The four items."""
        return len(data.semantic.ITEMS)

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        items = data.semantic_hierarchy(
            None if self.covariance is None else read_covariance(Path(self.covariance)),
            dtype=EXACT_DTYPE if self.exact else torch.float32,
        )
        widths = [items.train.inputs.shape[1], *[self.width] * (self.depth - 1), items.outputs]
        inputs = items.train.inputs.double()
        return _experiment(self, widths, items, inputs.mT @ inputs / len(inputs), device)


def _make_absolute(recipe: FailuresLinear | FailuresSemantic) -> None:
    """Let recipe.json name the file wherever the run is resumed from."""
    if recipe.covariance is not None:
        object.__setattr__(recipe, "covariance", str(Path(recipe.covariance).absolute()))


def _experiment(
    recipe: FailuresLinear | FailuresSemantic,
    widths: list[int],
    pairs: data.Dataset,
    covariance: torch.Tensor | None,
    device: torch.device,
) -> Experiment:
    """The experiment of a linear task; `covariance` is of its inputs, None for the identity."""
    network = FeedForward(
        widths,
        activation="linear",
        bias=False,
        scaling=recipe.scaling,
        wiring=Failing(recipe.failure, recipe.inference, recipe.noise),
        layers=recipe.failing,
    ).to(device, EXACT_DTYPE if recipe.exact else None)
    pairs = pairs.to(device)
    if recipe.exact:
        assert pairs.teacher is not None  # every linear task has one
        optimizer = recipe.optimization.optimizer(network.parameters())
        rule: Backprop = ExactExpectation(
            network,
            optimizer,
            pairs.teacher,
            None if covariance is None else covariance.to(device, EXACT_DTYPE),
            recipe.batch,
            recipe.optimization.scheduler(optimizer, steps(recipe, pairs)),
        )
    else:
        rule = backprop(recipe, network, "summed-squared-error", pairs)
    recorders, finals = recipe.spectra.of(pairs, linear=True)
    task = ("saxe2019",) if isinstance(recipe, FailuresSemantic) else ()
    return Experiment(
        data=pairs,
        rule=rule,
        epochs=recipe.epochs,
        batch=recipe.batch,
        synapse=describe(recipe),
        learning="exact expectation" if recipe.exact else "backprop",
        citations=(*task, "wan2013", "mianjy2019") if fails(recipe) else task,
        evaluate=log_spaced(),
        recorders=recorders,
        finals=finals,
    )
