"""Synthetic gradients: blocks of a network that update at once, by guesses of the gradients that come later.

In one process, one block after the other: what the blocks do, and in which order each of them does it, is what they do
in processes of their own (`synaptome.learning.block_processes`), to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.block_learner import BlockLearner, Decoupling, Synthesis
from synaptome.learning.loss import Loss, batch_means, loss_named
from synaptome.synapses.predict import predict

MakeOptimizer = Callable[[Iterable[nn.Parameter]], optim.Optimizer]
MakeScheduler = Callable[[optim.Optimizer], LRScheduler | None]


class SyntheticGradients:
    """Blocks learn from what synthesisers guess, and synthesisers from what arrives (Jaderberg et al. 2017).

    A step takes a batch forward through all blocks, and then lets them learn, the last one first. A true gradient is
    used `how.delay` steps after its batch, as it would come from a process of its own.

    Args:
        blocks: of a network, in a row; see `synaptome.networks.partition.split`.
        optimizer: makes that of each block, of its parameters.
        synthesisers: between each block and the next; None where `how` asks for no guesses.
        synthesis: makes the optimizer of each synthesiser; Adam at 1e-3 if None.
        how: delay, share of true gradients, warm-up, fall-back.
        loss: a name in `synaptome.learning.loss.LOSSES`, or a `Loss`.
        scheduler: makes the learning-rate schedule of each block's optimizer, a step for each batch.

    Attributes:
        model: the blocks, as one `torch.nn.Sequential`.
        learners: a `BlockLearner` of each.

    Raises:
        ConfigurationError: there are not as many synthesisers as there are borders between blocks.
    """

    model: nn.Module

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        optimizer: MakeOptimizer,
        synthesisers: Sequence[nn.Module] | None = None,
        *,
        synthesis: MakeOptimizer | None = None,
        how: Decoupling | None = None,
        loss: str | Loss = "cross-entropy",
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self.how = how or Decoupling()
        self.loss = loss_named(loss) if isinstance(loss, str) else loss
        self.learners = learners_of(
            list(blocks), optimizer, synthesisers, synthesis or _adam, self.how, self.loss, scheduler
        )
        self.model = nn.Sequential(*(learner.block for learner in self.learners))

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of each block; see `LearningRule.step`. Also `cosine/k` of guess k and the true gradient."""
        x = batch.inputs
        for learner in self.learners:
            x = learner.begin(x, batch.targets)
        *others, last = self.learners
        gradient, means = last.conclude()
        for number in reversed(range(len(others))):
            learner = others[number]
            if gradient is not None:
                learner.arrived.append(gradient)
            sent: list[Tensor] = []
            learner.learn(_nothing, sent.append)
            gradient = sent[0] if sent else None
        return means | cosines(self.learners)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference."""
        outputs = predict(self.model, batch.inputs).mean
        return batch_means(outputs, self.loss.per_example(outputs, batch.targets), batch.targets)

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


def learners_of(
    blocks: Sequence[nn.Module],
    optimizer: MakeOptimizer,
    synthesisers: Sequence[nn.Module] | None,
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
    learners = []
    for number, (block, synthesiser) in enumerate(zip(blocks, [*given, None], strict=True)):
        own = optimizer(block.parameters())
        learners.append(
            BlockLearner(
                block,
                own,
                loss,
                how,
                delay=how.delay_of(number, len(blocks)),
                synthesis=synthesiser and Synthesis(synthesiser, synthesis(synthesiser.parameters())),
                scheduler=scheduler and scheduler(own),
                first=number == 0,
            )
        )
    return learners


def cosines(learners: Sequence[BlockLearner]) -> dict[str, float]:
    """`cosine/k` of each synthesiser, from 1 on, with the true gradients."""
    numbered = enumerate(learners, 1)
    return {f"cosine/{number}": learner.cosine for number, learner in numbered if learner.synthesis is not None}


def _adam(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.Adam(parameters, lr=1e-3)


def _nothing() -> Tensor:
    raise AssertionError("a gradient is due that no block has sent")
