"""Blocks of a network that learn apart: synthetic gradients, stale true ones, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome import data
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.block_learner import Decoupling
from synaptome.learning.block_processes import BlockProcesses, check_processes, serve
from synaptome.learning.rule import LearningRule
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import border_shapes, check_balance, even, split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import Synthesiser
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.process_group import joined, processes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.recipes.stable_presets import OptimizationChoice, StableChoice, choice
from synaptome.training.callbacks import each_epoch

ROWS = 100  # of metrics, beside that of the start
LEFT_OPEN = ("width", "depth", "time", "batch", "epochs")  # fields that the data set decides if they are not given
IMAGES = ("digits", "mnist", "fashion")
METHODS = {
    "synthetic": "synthetic gradients",
    "stale": "stale true gradients",
    "locked": "backprop, block by block",
    "frozen": "backprop, first blocks frozen",
    "backprop": "backprop",
}


def usual_for(name: str) -> StableChoice:
    """What is taken where a field is not given: more and smaller steps than those of the recipe `stable`."""
    usual = choice(None, name, None)
    return replace(usual, batch=64) if name in IMAGES else replace(usual, batch=64, epochs=200, rate=3e-3)


@dataclass(frozen=True)
class Decoupled(Recipe):
    """Blocks of consecutive layers learn at once, each from a guess of the gradient that is not there yet.

    In one process it is studied: what happens, and in which order, is what happens in processes of their own, to the
    bit. With `torchrun --nproc-per-node BLOCKS -m synaptome run decoupled ...` each block has a process, and they work
    at the same time; the first one writes the run.

    Args:
        data: points of the plane, or images.
        network: stable (a dynamical system in time, see the recipe `stable`) or feed-forward (tanh).
        dynamics: of a stable network: euler, antisymmetric, leapfrog, verlet, hamiltonian or runge-kutta.
        width: features of each layer.
        depth: layers, without the classifier of a stable network.
        time: T of a stable network, the length of the interval that its layers divide.
        blocks: how many.
        balance: layers of each block, in place of a fair share; of a stable network the last number may be 0, for a
            block that is the classifier alone.
        method: synthetic (guesses), stale (true gradients that are late, on the batches that they belong to), locked
            (true gradients that are waited for), frozen (all blocks but the last stay as they were drawn) or backprop.
            The last two need no processes: they are what a claim is compared with.
        delay: steps that a true gradient may be late before a block waits for it.
        true_share: of true gradients in an update, beside the guesses, in [0, 1).
        warmup: epochs of true gradients that are waited for, at the start.
        least_cosine: a block waits as long as guesses and true gradients have a smaller cosine, on average.
        synthesiser: linear, or mlp with two hidden layers.
        hidden: neurons in a synthesiser's hidden layers; those of the activity if not given.
        conditioned: whether guesses depend on labels.
        synthesis_rate: learning rate of synthesisers, by Adam.
        batch: examples a step.
        epochs: passes over the training examples.
        validation: share of the training examples held out, in [0, 1).
        optimization: optimizer of the blocks, in place of what serves the data set.
        timeout: seconds after which a process that does not answer counts as lost.
    """

    name: ClassVar[str] = "decoupled"
    summary: ClassVar[str] = "let the blocks of a network learn at once, by synthetic gradients"
    paper: ClassVar[str] = "Jaderberg et al. 2017; Huo et al. 2018"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "methods": {"method": tuple(METHODS)},
        "blocks": {"method": ("synthetic", "stale", "frozen"), "blocks": ("2", "4")},
    }

    data: Literal["ellipses", "swiss-roll", "circle", "peaks", "digits", "mnist", "fashion"] = "swiss-roll"
    network: Literal["stable", "feed-forward"] = "stable"
    dynamics: Literal["euler", "antisymmetric", "leapfrog", "verlet", "hamiltonian", "runge-kutta"] = "verlet"
    width: int | None = None
    depth: int | None = None
    time: float | None = None
    blocks: int = 2
    balance: tuple[int, ...] = ()
    method: Literal["synthetic", "stale", "locked", "frozen", "backprop"] = "synthetic"
    delay: int = 1
    true_share: float = 0.0
    warmup: int = 0
    least_cosine: float | None = None
    synthesiser: Literal["linear", "mlp"] = "linear"
    hidden: int | None = None
    conditioned: bool = True
    synthesis_rate: float = 1e-3
    batch: int | None = None
    epochs: int | None = None
    validation: float = 0.0
    optimization: OptimizationChoice = field(default_factory=OptimizationChoice)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        made = self._choice()
        check_sizes(width=made.width, depth=made.depth, blocks=self.blocks, batch=made.batch, epochs=made.epochs)
        if self.balance and self.blocks not in (2, len(self.balance)):
            raise ConfigurationError(
                f"balance names {len(self.balance)} blocks and blocks is {self.blocks}; leave blocks out"
            )
        if not (self.synthesis_rate > 0 and math.isfinite(self.synthesis_rate)):
            raise ConfigurationError(f"synthesis_rate is a positive number; given {self.synthesis_rate}")
        if self.method != "synthetic" and (self.true_share or self.warmup or self.least_cosine is not None):
            raise ConfigurationError(
                f"true_share, warmup and least_cosine belong to the method synthetic; given with {self.method}"
            )
        if self.true_share == 1:
            raise ConfigurationError("with true_share 1 there are no guesses: choose the method stale, or locked")
        if self.method == "stale" and self.delay < 1:
            raise ConfigurationError("true gradients without delay are not stale: choose the method locked")
        if self.network == "feed-forward" and self.time is not None:
            raise ConfigurationError("a feed-forward network has no time; leave it out, or choose network stable")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise ConfigurationError(f"timeout is a number of seconds above 0; given {self.timeout}")
        self._how(1)
        check_balance(self._balance(made), made.depth, least=int(self.network != "stable"))

    def resolved(self) -> Decoupled:
        """The same recipe with every number given that the data set decided."""
        made = self._choice()
        optimization = OptimizationChoice(**asdict(self.optimization.made(made.rate)))
        names = [name for name in LEFT_OPEN if name != "time" or self.network == "stable"]
        return replace(self, optimization=optimization, **{name: getattr(made, name) for name in names})

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        made = self._choice()
        examples = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed)
        network = self._network(made, examples).to(device)
        balance = self._balance(made)
        parts = split(network, balance).to(device)
        shapes = border_shapes(parts, examples.input_shape, device)
        examples = examples.to(device)
        epoch_steps = math.ceil(len(examples.train) / made.batch)
        optimization = self.optimization.made(made.rate)

        def schedule(optimizer: optim.Optimizer) -> LRScheduler | None:
            return optimization.scheduler(optimizer, made.epochs * epoch_steps)

        rule: LearningRule
        if self.method in ("frozen", "backprop"):
            if processes() > 1:
                raise ConfigurationError(
                    f"the method {self.method} learns in one process; given {processes()}: start it without torchrun"
                )
            model = nn.Sequential(*parts)
            if self.method == "frozen":
                for part in parts[:-1]:
                    part.requires_grad_(False)
            optimizer = optimization.optimizer([p for p in model.parameters() if p.requires_grad])
            rule = Backprop(model, optimizer, scheduler=schedule(optimizer))
        else:
            guessers = [self._synthesiser(shape, examples).to(device) for shape in shapes]
            rule = SyntheticGradients(
                parts,
                optimization.optimizer,
                guessers if self.method == "synthetic" else None,
                synthesis=partial(optim.Adam, lr=self.synthesis_rate),
                how=self._how(epoch_steps),
                scheduler=schedule,
            )
        work, close = None, None
        if processes() > 1 and isinstance(rule, SyntheticGradients):
            joined(self.timeout)
            if check_processes(len(parts)):
                work = partial(serve, rule, shapes, made.batch, self.timeout)
            else:
                rule = BlockProcesses(rule, made.batch, self.timeout)
                close = rule.close
        return Experiment(
            data=examples,
            rule=rule,
            epochs=made.epochs,
            batch=made.batch,
            synapse=f"{self._describe()}, {'+'.join(map(str, balance))} layers",
            learning=METHODS[self.method],
            citations={"synthetic": ("jaderberg2017",), "stale": ("huo2018",)}.get(self.method, ()),
            evaluate=each_epoch(math.ceil(made.epochs / ROWS)),
            work=work,
            close=close,
        )

    def _choice(self) -> StableChoice:
        """What serves the data set, with what is given in place of its own."""
        given = {name: getattr(self, name) for name in LEFT_OPEN}
        return replace(usual_for(self.data), **{name: value for name, value in given.items() if value is not None})

    def _network(self, made: StableChoice, examples: Dataset) -> nn.Module:
        inputs = math.prod(examples.input_shape)
        if self.network == "feed-forward":
            return FeedForward([inputs, *[made.width] * (made.depth - 1), examples.outputs], activation="tanh")
        return StableNetwork(
            inputs,
            examples.outputs,
            dynamics=self.dynamics,
            width=made.width,
            depth=made.depth,
            time=made.time,
            opening="learned",
        )

    def _balance(self, made: StableChoice) -> tuple[int, ...]:
        return self.balance or even(made.depth, self.blocks)

    def _how(self, epoch_steps: int) -> Decoupling:
        if self.method == "locked":
            return Decoupling(delay=0, true_share=1.0)
        if self.method == "stale":
            return Decoupling(delay=self.delay, true_share=1.0)
        return Decoupling(self.delay, self.true_share, self.warmup * epoch_steps, self.least_cosine)

    def _synthesiser(self, shape: Iterable[int], examples: Dataset) -> Synthesiser:
        classes = examples.outputs if self.conditioned else 0
        return Synthesiser(tuple(shape), classes, self.synthesiser, self.hidden)

    def _describe(self) -> str:
        return self.dynamics if self.network == "stable" else "feed-forward"
