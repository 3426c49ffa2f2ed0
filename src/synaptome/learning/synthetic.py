"""Synthetic gradients: blocks of a network that update at once, by guesses of the gradients that come later.

In one process, one block after the other: what the blocks do, and in which order each of them does it, is what they do
in processes of their own (`synaptome.learning.parallel.blocks`), to the bit.

With synthetic inputs a block does not wait for the block before either (full unlock). It learns on a guess of its
input, and the gradient by that guess is what goes back: the target of the synthesiser of the block before. Its activity
on the guess goes forward: the target of the next block's guess. So targets rest on guesses in both directions, as in
the paper; nothing but the first input and the labels is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.block_learner import BlockLearner
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.guesses import Synthesis, SyntheticInputs
from synaptome.learning.loss import Loss, batch_means, loss_named
from synaptome.learning.optimization import MakeOptimizer, MakeScheduler, restarted
from synaptome.networks.blocks import StableBlock
from synaptome.networks.multilevel import prolong_blocks
from synaptome.synapses.predict import predict


class SyntheticGradients:
    """Blocks learn from what synthesisers guess, and synthesisers from what arrives (Jaderberg et al. 2017).

    A step takes a batch forward through all blocks, and then lets them learn, the last one first. A true gradient is
    used `how.delay` steps after its batch, as it would come from a process of its own.

    Args:
        blocks: of a network, in a row; see `synaptome.networks.partition.split`.
        optimizer: makes that of each block, of its parameters.
        synthesisers: between each block and the next; None where `how` asks for no guesses.
        inputs: of synthetic inputs: modules from the network's input to a guess of the activity between each block and
            the next, such as `InputSynthesiser`; None if blocks wait for activities.
        synthesis: makes the optimizer of each synthesiser; Adam at 1e-3 if None.
        how: delay, share of true gradients, warm-up, fall-back, pace.
        loss: a name in `synaptome.learning.loss.LOSSES`, or a `Loss`.
        scheduler: makes the learning-rate schedule of each block's optimizer, a step for each batch.

    Attributes:
        model: the blocks, as one `torch.nn.Sequential`.
        learners: a `BlockLearner` of each.

    Raises:
        ConfigurationError: there are not as many synthesisers as there are borders between blocks, or inputs are to be
            guessed where gradients are not.
    """

    model: nn.Module

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        optimizer: MakeOptimizer,
        synthesisers: Sequence[nn.Module] | None = None,
        *,
        inputs: Sequence[nn.Module] | None = None,
        synthesis: MakeOptimizer | None = None,
        how: Decoupling | None = None,
        loss: str | Loss = "cross-entropy",
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self.how = how or Decoupling()
        self.loss = loss_named(loss) if isinstance(loss, str) else loss
        self.learners = learners_of(
            list(blocks), optimizer, synthesisers, inputs, synthesis or _adam, self.how, self.loss, scheduler
        )
        self.model = nn.Sequential(*(learner.block for learner in self.learners))
        self.schedule = scheduler

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of each block; see `LearningRule.step`.

        Also told: `cosine/k` of guess k and the true gradient and, of synthetic inputs, `input_cosine/k` of guess and
        activity k. The loss is then of outputs that rest on a guess, as the last block computed them.
        """
        activities = [batch.inputs]
        warm = self.learners[0].warm
        for learner in self.learners:
            learner.look()
            x = activities[-1]
            if learner.inputs is not None and warm:
                x = learner.inputs.guess(batch.inputs)
            activities.append(learner.begin(x, batch.targets))
        *others, last = self.learners
        gradient, means = last.conclude()
        for number in reversed(range(len(others))):
            learner = others[number]
            if gradient is not None:
                learner.gradients.arrived.append(gradient)
            sent: list[Tensor] = []
            learner.learn(_nothing, sent.append)
            gradient = sent[0] if sent else None
        for learner, activity in zip(self.learners, activities, strict=False):
            if learner.inputs is not None:
                learner.inputs.activities.arrived.append(activity)
                learner.inputs.fit(batch.inputs, len(batch.targets), not warm, _nothing)
        return means | cosines(self.learners)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference."""
        outputs = predict(self.model, batch.inputs).mean
        return batch_means(outputs, self.loss.per_example(outputs, batch.targets), batch.targets)

    def refine(self) -> None:
        """Double the depth of a split `StableNetwork`; see `refine`."""
        refine(self.learners, self.schedule)

    def state_dict(self) -> dict[str, Any]:
        """The state of every block's learner."""
        return {"blocks": [learner.state_dict() for learner in self.learners]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            ConfigurationError: it is of another number of blocks.
        """
        if len(state["blocks"]) != len(self.learners):
            raise ConfigurationError(
                f"the state is of {len(state['blocks'])} blocks, and there are {len(self.learners)} here"
            )
        for learner, own in zip(self.learners, state["blocks"], strict=True):
            learner.load_state_dict(own)


def refine(learners: Sequence[BlockLearner], schedule: MakeScheduler | None) -> None:
    """Prolong consecutive blocks and the state of their optimizers, and start their schedules again.

    Borders stay at their times, and so synthesisers go on as they are; see `prolong_blocks`.

    Raises:
        ConfigurationError: blocks are not of a `StableNetwork`, or an optimizer's state cannot be prolonged.
    """
    blocks = [learner.block for learner in learners]
    stable = [block for block in blocks if isinstance(block, StableBlock)]
    if len(stable) < len(blocks):
        raise ConfigurationError(
            f"blocks are prolonged whose time steps can be halved, those of a StableNetwork; given "
            f"{', '.join(type(block).__name__ for block in blocks)}"
        )
    prolong_blocks(stable, [learner.optimizer for learner in learners])
    for learner in learners:
        if schedule is not None:
            learner.scheduler = restarted(schedule, learner.optimizer)
        learner.rejoin()


def learners_of(
    blocks: Sequence[nn.Module],
    optimizer: MakeOptimizer,
    synthesisers: Sequence[nn.Module] | None,
    inputs: Sequence[nn.Module] | None,
    synthesis: MakeOptimizer,
    how: Decoupling,
    loss: Loss,
    scheduler: MakeScheduler | None,
) -> list[BlockLearner]:
    """A learner of each block; see `SyntheticGradients`."""
    borders = len(blocks) - 1
    if borders < 0:
        raise ConfigurationError("there is at least one block; given none")
    given = [None] * borders if synthesisers is None else list(synthesisers)
    if len(given) != borders or (borders and synthesisers is None and how.true_share < 1):
        raise ConfigurationError(
            f"{len(blocks)} blocks take {borders} synthesisers, one between each and the next, unless true_share is 1; "
            f"given {0 if synthesisers is None else len(given)}"
        )
    if inputs is not None and (len(inputs) != borders or how.true_share == 1):
        raise ConfigurationError(
            f"{len(blocks)} blocks take {borders} synthesisers of inputs, one between each and the next, and guesses "
            f"of gradients; given {len(inputs)} and true_share {how.true_share}"
        )

    def fitted(module: nn.Module | None) -> Synthesis | None:
        return None if module is None else Synthesis(module, synthesis(module.parameters()))

    learners = []
    guessers = [None, *([None] * borders if inputs is None else inputs)]
    for number, (block, synthesiser, guesser) in enumerate(zip(blocks, [*given, None], guessers, strict=True)):
        own, guess = optimizer(block.parameters()), fitted(guesser)
        learners.append(
            BlockLearner(
                block,
                own,
                loss,
                how,
                delay=how.delay_of(number, len(blocks)),
                synthesis=fitted(synthesiser),
                inputs=None if guess is None else SyntheticInputs(guess, how.delay),
                scheduler=scheduler and scheduler(own),
                first=number == 0,
            )
        )
    return learners


def cosines(learners: Sequence[BlockLearner]) -> dict[str, float]:
    """`cosine/k` of each synthesiser, from 1 on, with the true gradients; `input_cosine/k` with the activities."""
    gradients = {f"cosine/{k}": own.synthesis.cosine for k, own in enumerate(learners, 1) if own.synthesis is not None}
    inputs = {
        f"input_cosine/{k}": own.inputs.synthesis.cosine for k, own in enumerate(learners) if own.inputs is not None
    }
    return gradients | inputs


def _adam(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.Adam(parameters, lr=1e-3)


def _nothing() -> Tensor:
    raise AssertionError("a gradient is due that no block has sent")
