"""Blocks of a network that learn apart: synthetic gradients, stale true ones, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome import data
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.multilevel import Multilevel, Refinable
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.blocks import StableBlock
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import border_shapes, check_balance, even, split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import InputSynthesiser, Synthesiser
from synaptome.recipes.block_parts import APART, apart, check_replicas, check_replicas_start
from synaptome.recipes.decoupled_methods import CITATIONS, IMAGES, METHODS, ONLY_OF, Method, check_fields
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.process_group import own_device, processes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.recipes.shared_batches import MICROBATCHES, SHARED, Part, check_start, microbatches_of, shared
from synaptome.recipes.stable_presets import OptimizationChoice, StableChoice, choice
from synaptome.training.callbacks import each_epoch

ROWS = 100  # of metrics, beside that of the start
# Fields that the data set decides if they are not given; some are of stable networks alone.
LEFT_OPEN = ("convolutional", "width", "depth", "time", "batch", "epochs")
OF_STABLE = ("convolutional", "time")


def usual_for(name: str, convolutional: bool | None) -> StableChoice:
    """What is taken where a field is not given: more and smaller steps than those of the recipe `stable`."""
    usual = choice(None, name, convolutional)
    return replace(usual, batch=64) if name in IMAGES else replace(usual, batch=64, epochs=200, rate=3e-3)


@dataclass(frozen=True)
class Decoupled(Recipe):
    """Blocks of consecutive layers learn at once, each from a guess of the gradient that is not there yet.

    In one process it is studied: what happens, and in which order, is what happens in processes of their own, to the
    bit. With `torchrun --nproc-per-node BLOCKS -m synaptome run decoupled ...` each block has a process, and they work
    at the same time; the first one writes the run. With replicas each block has several, which share its batches out.

    Args:
        data: points of the plane, or images.
        network: stable (a dynamical system in time, see the recipe `stable`) or feed-forward (tanh).
        dynamics: of a stable network: euler, antisymmetric, leapfrog, verlet, hamiltonian or runge-kutta.
        convolutional: layers of 3 x 3 convolutions in a stable network, for images; if not given, for cifar10 alone.
        width: features of each layer, or channels of a convolution.
        depth: layers, without the classifier of a stable network; on several levels, those of the first one.
        time: T of a stable network, the length of the interval that its layers divide.
        levels: 1, or how often a stable network is trained: each time at twice the depth of the time before. Blocks
            wait for true gradients at all levels but the last, while synthesisers learn from them.
        blocks: how many.
        balance: layers of each block, in place of a fair share; of a stable network the last number may be 0, for a
            block that is the classifier alone.
        replicas: processes of each block, among which each batch is shared out.
        method: synthetic (guesses), stale (true gradients that are late, on the batches that they belong to), locked
            (true gradients that are waited for), frozen (all blocks but the last stay as they were drawn) or backprop.
            Frozen and backprop take one process: they are what a claim is compared with. So are the ways to share
            backpropagation out among processes, and these start with several: ddp (a part of each batch for each
            process), gpipe and 1f1b (pipelines of microbatches, a process for each block).
        delay: steps that a true gradient may be late before a block waits for it; with 0 a synthetic block still learns
            from its guess, and waits after that.
        true_share: of true gradients in an update, beside the guesses, in [0, 1).
        warmup: epochs of true gradients that are waited for, at the start of the last level.
        least_cosine: a block waits as long as guesses and true gradients have a smaller cosine, on average.
        free: blocks use true gradients as soon as they are there, up to delay steps late. In several processes the
            result then depends on timing.
        synthetic_inputs: the kind of synthesiser, linear or mlp, that guesses the inputs of blocks from the network's
            input, so that blocks do not wait for activities either; they do if not given.
        synthesiser: linear, mlp with two hidden layers, or convolutional; if not given, convolutional of convolutional
            networks, and linear of others.
        hidden: neurons, or channels of convolutions, in a synthesiser's hidden layers; those of the activity if not
            given.
        conditioned: whether guesses depend on labels.
        synthesis_rate: learning rate of synthesisers, by Adam.
        batch: examples a step.
        epochs: passes over the training examples, at each level.
        validation: share of the training examples held out, in [0, 1).
        optimization: optimizer of the blocks, in place of what serves the data set.
        timeout: seconds after which a process that does not answer counts as lost.
        microbatches: of a batch on its way through a pipeline.
    """

    name: ClassVar[str] = "decoupled"
    summary: ClassVar[str] = "let the blocks of a network learn at once, by synthetic gradients"
    paper: ClassVar[str] = "Jaderberg et al. 2017; Huo et al. 2018"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "methods": {"method": tuple(METHODS)},
        "blocks": {"method": ("synthetic", "stale", "frozen"), "blocks": ("2", "4")},
    }

    data: Literal["ellipses", "swiss-roll", "circle", "peaks", "digits", "mnist", "fashion", "cifar10"] = "swiss-roll"
    network: Literal["stable", "feed-forward"] = "stable"
    dynamics: Literal["euler", "antisymmetric", "leapfrog", "verlet", "hamiltonian", "runge-kutta"] = "verlet"
    convolutional: bool | None = None
    width: int | None = None
    depth: int | None = None
    time: float | None = None
    levels: int = 1
    blocks: int = 2
    balance: tuple[int, ...] = ()
    replicas: int = 1
    method: Method = "synthetic"
    delay: int = 1
    true_share: float = 0.0
    warmup: int = 0
    least_cosine: float | None = None
    free: bool = False
    synthetic_inputs: Literal["linear", "mlp"] | None = None
    synthesiser: Literal["linear", "mlp", "convolutional"] | None = None
    hidden: int | None = None
    conditioned: bool = True
    synthesis_rate: float = 1e-3
    batch: int | None = None
    epochs: int | None = None
    validation: float = 0.0
    optimization: OptimizationChoice = field(default_factory=OptimizationChoice)
    timeout: float = 120.0
    microbatches: int = MICROBATCHES

    def __post_init__(self) -> None:
        made = self._choice()
        check_sizes(width=made.width, depth=made.depth, blocks=self.blocks, batch=made.batch, epochs=made.epochs)
        check_sizes(levels=self.levels, replicas=self.replicas)
        check_fields(self, made.convolutional)
        if self.warmup >= made.epochs:
            raise ConfigurationError(
                f"warmup is less than the {made.epochs} epochs, or nothing learns from guesses; given {self.warmup}"
            )
        self._how(1)
        check_balance(self._balance(made), made.depth, least=int(self.network != "stable"))
        microbatches_of(self.method, self.microbatches, made.batch, len(self._balance(made)))
        check_replicas(self.method, len(self._balance(made)), self.replicas, made.batch)

    def resolved(self) -> Decoupled:
        """The same recipe with every number given that the data set decided."""
        made = self._choice()
        optimization = OptimizationChoice(**asdict(self.optimization.made(made.rate)))
        names = [name for name in LEFT_OPEN if name not in OF_STABLE or self.network == "stable"]
        given = {name: getattr(made, name) for name in names} | {"synthesiser": self._synthesiser_kind(made)}
        return replace(self, optimization=optimization, **given)

    @property
    def layers_of_blocks(self) -> tuple[int, ...]:
        """The layers of each block: the balance that is given, or a fair share of the depth."""
        return self._balance(self._choice())

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return len(self.layers_of_blocks)

    def with_method(self, method: Method) -> Decoupled:
        """The same recipe with another method; fields that this one does not have are left at their defaults."""
        lost = [name for name, methods in ONLY_OF.items() if method not in methods]
        left: dict[str, Any] = {each.name: each.default for each in fields(self) if each.name in lost}
        return replace(self, method=method, **left)

    def check_start(self) -> None:
        """Refuse what starts with several processes where there is one, a ConfigurationError; `resume` takes either."""
        check_start(self.method, self.block_count)
        check_replicas_start(self.block_count, self.replicas)

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        made = self._choice()
        device = own_device(device)
        examples = data.load(self.data, data_dir=data_dir, validation=self.validation, seed=seed)
        balance = self._balance(made)
        parts = split(self._network(made, examples).to(device), balance).to(device)
        examples = examples.to(device)
        part = self._part(made, examples, parts, device)
        rule, steps = part.rule, made.epochs * math.ceil(len(examples.train) / made.batch)
        if self.levels > 1 and part.work is None:
            rule = Multilevel(cast(Refinable, rule), self.levels, steps)
        weights = sum(part.weight.nbytes + part.bias.nbytes for part in parts if isinstance(part, StableBlock))
        return Experiment(
            data=examples,
            rule=rule,
            epochs=self.levels * made.epochs,
            batch=made.batch,
            synapse=f"{self._describe()}, {self._layers(balance)} layers",
            learning=self._learning(),
            citations=CITATIONS.get(self.method, ()) + (("haber2018",) if self.levels > 1 else ()),
            evaluate=each_epoch(math.ceil(self.levels * made.epochs / ROWS)),
            growth=3 * (2 ** (self.levels - 1) - 1) * weights,  # with two moments of an optimizer
            work=part.work,
            close=part.close,
        )

    def _part(self, made: StableChoice, examples: Dataset, parts: nn.ModuleList, device: torch.device) -> Part:
        """What learns in this process."""
        epoch_steps = math.ceil(len(examples.train) / made.batch)
        optimization = self.optimization.made(made.rate)
        between = border_shapes(parts, examples.input_shape, device)
        shapes = [examples.input_shape, *between, (examples.outputs,)]

        def schedule(optimizer: optim.Optimizer) -> LRScheduler | None:
            return optimization.scheduler(optimizer, made.epochs * epoch_steps)

        if self.method in APART:
            guessers = None
            if self.method == "synthetic":
                guessers = [self._synthesiser(made, shape, examples).to(device) for shape in between]
            rule = SyntheticGradients(
                parts,
                optimization.optimizer,
                guessers,
                inputs=self._input_synthesisers(between, examples, device),
                synthesis=partial(optim.Adam, lr=self.synthesis_rate),
                how=self._how(epoch_steps),
                scheduler=schedule,
            )
            return apart(rule, shapes[:-1], made.batch, self.replicas, self.timeout)
        if processes() > 1 and self.method not in SHARED:
            raise ConfigurationError(
                f"the method {self.method} learns in one process; given {processes()}: start it without torchrun"
            )
        model = nn.Sequential(*parts)
        if self.method == "frozen":
            model[:-1].requires_grad_(False)
        optimizer = optimization.optimizer([p for p in model.parameters() if p.requires_grad])
        whole = Backprop(model, optimizer, scheduler=schedule(optimizer))
        if self.method not in SHARED:
            return Part(whole)
        how = microbatches_of(self.method, self.microbatches, made.batch, len(parts))
        return shared(self.method, whole, optimization.optimizer, schedule, shapes, how, self.timeout)

    def _choice(self) -> StableChoice:
        """What serves the data set, with what is given in place of its own."""
        given = {name: getattr(self, name) for name in LEFT_OPEN}
        usual = usual_for(self.data, self.convolutional if self.network == "stable" else False)
        return replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _network(self, made: StableChoice, examples: Dataset) -> nn.Module:
        inputs = math.prod(examples.input_shape)
        if self.network == "feed-forward":
            return FeedForward([inputs, *[made.width] * (made.depth - 1), examples.outputs], activation="tanh")
        return StableNetwork(
            examples.input_shape if made.convolutional else inputs,
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
        waiting = (self.warmup + (self.levels - 1) * self._choice().epochs) * epoch_steps
        return Decoupling(self.delay, self.true_share, waiting, self.least_cosine, self.free)

    def _synthesiser_kind(self, made: StableChoice) -> str:
        return self.synthesiser or ("convolutional" if made.convolutional else "linear")

    def _synthesiser(self, made: StableChoice, shape: Iterable[int], examples: Dataset) -> Synthesiser:
        classes = examples.outputs if self.conditioned else 0
        return Synthesiser(tuple(shape), classes, self._synthesiser_kind(made), self.hidden)

    def _input_synthesisers(
        self, shapes: Iterable[tuple[int, ...]], examples: Dataset, device: torch.device
    ) -> list[InputSynthesiser] | None:
        kind = self.synthetic_inputs
        if kind is None:
            return None
        return [InputSynthesiser(examples.input_shape, shape, kind, self.hidden).to(device) for shape in shapes]

    def _layers(self, balance: Sequence[int]) -> str:
        """Such as `8+8`, or `2+2 to 8+8` on three levels."""
        sizes = [[2**level * layers for layers in balance] for level in sorted({0, self.levels - 1})]
        return " to ".join("+".join(map(str, each)) for each in sizes)

    def _learning(self) -> str:
        inputs = ", synthetic inputs" if self.synthetic_inputs else ""
        levels = ", multilevel" if self.levels > 1 else ""
        return (METHODS | SHARED)[self.method] + levels + inputs + (", free" if self.free else "")

    def _describe(self) -> str:
        return self.dynamics if self.network == "stable" else "feed-forward"
