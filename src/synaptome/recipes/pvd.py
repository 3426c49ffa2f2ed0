"""Parallel variable distribution: classifiers whose parameters are shared out among workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from synaptome import data
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.learning.distribution import ParallelVariableDistribution
from synaptome.learning.distribution_blocks import by_layers
from synaptome.learning.distribution_leading import Leading, follow
from synaptome.learning.distribution_processes import Processes
from synaptome.learning.distribution_worker import InnerSolver
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.stable import StableNetwork
from synaptome.recipes import stable
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.process_group import joined, processes, rank
from synaptome.recipes.recipe import Experiment, Recipe

MNIST_BATCH = 1000  # of MNIST, where an outer iteration on all images would take minutes
RATES = {"lbfgs": 1.0, "adam": 0.01}


@dataclass(frozen=True)
class VariableDistribution(Recipe):
    """A classifier that learns by parallel variable distribution, one worker for each block of consecutive layers.

    The method is in `synaptome.learning.distribution`. The workers run one after the other in this process, or, with
    `torchrun --nproc-per-node WORKERS -m synaptome run pvd ...`, at once in as many, with the same numbers. Each row of
    metrics has `train/after` and `train/decrease` of the outer iterations since the last one, the shares
    `train/taken/...` of them in which a worker's point or one of their hull was taken, and `train/evaluations`, how
    many passes an iteration took.

    Args:
        data: the data set.
        network: stable (`synaptome.networks.stable`, with a learned opening) or feed-forward.
        dynamics: of the stable network.
        width: features of the stable network, even for hamiltonian; or neurons of each hidden layer.
        depth: layers, beside the opening and the classifier of the stable network.
        time: T of the stable network, above 0.
        activation: of the layers.
        blocks: number of workers, each with a block of consecutive layers; 1 is the inner solver alone. If not given,
            there are as many as processes, and at least 2.
        synchronisation: whether the affine hull of the workers' points is searched, or the best of them is taken.
        forget_me_not: whether a worker also moves the blocks of the others, each along its negative gradient.
        solver: of the workers: L-BFGS with line searches, or Adam.
        steps: of the solver in each outer iteration.
        rate: of the solver; 1 for lbfgs and 0.01 for adam if not given.
        batch: examples that an outer iteration works on; 1000 for mnist and all training examples for the other sets if
            not given.
        epochs: passes over the training examples: outer iterations, if each works on all of them.
        validation: share of the training examples held out, in [0, 1).
        timeout: seconds after which a process that does not answer counts as lost.
    """

    name: ClassVar[str] = "pvd"
    summary: ClassVar[str] = "share out a network's parameters among workers that minimise the loss over their blocks"
    paper: ClassVar[str] = "Ferris & Mangasarian 1994; Solodov 1997"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "blocks": {
            "blocks": ("1", "2", "4"),
            "synchronisation": ("hull", "best"),
            "forget_me_not": ("True", "False"),
        },
    }

    data: Literal["ellipses", "swiss-roll", "digits", "mnist"] = "swiss-roll"
    network: Literal["stable", "feed-forward"] = "stable"
    dynamics: Literal["euler", "antisymmetric", "leapfrog", "verlet", "hamiltonian", "runge-kutta"] = "verlet"
    width: int = 16
    depth: int = 8
    time: float = 8.0
    activation: Literal["linear", "relu", "swish", "sigmoid", "tanh", "elu", "selu"] = "tanh"
    blocks: int | None = None
    synchronisation: Literal["hull", "best"] = "hull"
    forget_me_not: bool = True
    solver: Literal["lbfgs", "adam"] = "lbfgs"
    steps: int = 15
    rate: float | None = None
    batch: int | None = None
    epochs: int = 12
    validation: float = 0.0
    timeout: float = 300.0

    def __post_init__(self) -> None:
        batch = 1 if self.batch is None else self.batch
        check_sizes(width=self.width, depth=self.depth, blocks=self._blocks(), batch=batch, epochs=self.epochs)
        self._solver()
        if not 0 < self.time < math.inf:  # also refuses NaN
            raise ConfigurationError(
                f"time is the length of the interval [0, T], finite and above 0; given {self.time}"
            )
        if not 0 < self.timeout < math.inf:
            raise ConfigurationError(f"timeout is a finite number of seconds above 0; given {self.timeout}")
        if not 0 <= self.validation < 1:
            raise ConfigurationError(
                f"validation is a share of the training examples in [0, 1); given {self.validation}"
            )

    def resolved(self) -> VariableDistribution:
        """The same recipe with its blocks, its rate, and the batch of mnist, if they were not given."""
        batch = MNIST_BATCH if self.batch is None and self.data == "mnist" else self.batch
        return replace(self, blocks=self._blocks(), rate=self._solver().rate, batch=batch)

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        examples = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed)
        network = self._network(examples).to(device)
        examples = examples.to(device)
        group, blocks = None, self._blocks()
        if processes() > 1:
            if processes() > blocks:
                raise ConfigurationError(
                    f"each process does the work of at least one block; given {processes()} processes and "
                    f"{blocks} blocks: choose as many blocks, or start fewer"
                )
            joined(self.timeout)
            group = Processes(self.timeout)
        rule = ParallelVariableDistribution(
            network,
            by_layers(network, blocks),
            solver=self._solver(),
            synchronisation=self.synchronisation,
            forget_me_not=self.forget_me_not,
            processes=group,
        )
        leading = Leading(rule, group) if group is not None and rank() == 0 else None
        following = partial(follow, rule, group, examples.input_shape) if group is not None and rank() > 0 else None
        dynamics = stable.CITATIONS[self.dynamics] if self.network == "stable" else ()
        return Experiment(
            data=examples,
            rule=leading or rule,
            epochs=self.epochs,
            batch=self.resolved().batch or len(examples.train),
            synapse=f"{self.dynamics}, {self.depth} layers" if self.network == "stable" else "dense",
            learning=self._describe(),
            citations=((*dynamics, "ferris1994", "solodov1997") if blocks > 1 else dynamics),
            work=following,
            close=None if leading is None else leading.close,
        )

    def _blocks(self) -> int:
        return max(2, processes()) if self.blocks is None else self.blocks

    def _solver(self) -> InnerSolver:
        rate = RATES.get(self.solver, 1.0) if self.rate is None else self.rate
        return InnerSolver(self.solver, self.steps, rate)

    def _network(self, examples: Dataset) -> nn.Module:
        inputs = math.prod(examples.input_shape)
        if self.network == "feed-forward":
            hidden = [self.width] * (self.depth - 1)
            return FeedForward([inputs, *hidden, examples.outputs], activation=self.activation)
        return StableNetwork(
            inputs,
            examples.outputs,
            dynamics=self.dynamics,
            width=self.width,
            depth=self.depth,
            time=self.time,
            activation=self.activation,
            opening="learned",
        )

    def _describe(self) -> str:
        """Such as `PVD, 2 blocks, hull, lbfgs`, or `lbfgs` for one block."""
        if self._blocks() == 1:
            return self.solver
        memory = "" if self.forget_me_not else ", no forget-me-not terms"
        return f"PVD, {self._blocks()} blocks, {self.synchronisation}, {self.solver}{memory}"
