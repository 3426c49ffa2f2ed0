"""What blocks that learn apart cost, the balance that suits them, and the speed to expect of it.

A block takes F + B + U for a batch, forward, backward and update, S for a guess and a fit if it has synthesisers, R for
running a batch again whose true gradient is late, and X for activities and gradients that pass its borders. In
processes of their own M blocks are as fast as the slowest of them; one process takes the sum of all F + B + U. Equal
blocks therefore gain `M / (1 + M (S + R + X) / (F + B + U))`, where the sum is that of the whole network. Left out are
orders, labels and inputs that process 0 sends, and what processes that work at once take from each other, of memory and
clock.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from synaptome.data.dataset import Batch
from synaptome.learning.block_learner import BlockLearner
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.guesses import Synthesis
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import check_blocks

# The fastest of so many repeats counts, in so many seconds at least: in the others something else took time.
REPEATS, SECONDS = 7, 0.1


@dataclass(frozen=True)
class BlockCost:
    """Seconds that a block takes for a batch.

    Attributes:
        forward, backward, update: F, B and U.
        synthesis: S, of gradients and of inputs; 0 without synthesisers.
        replay: R; 0 unless true gradients come late.
        transfer: X; 0 if it was not measured.
    """

    forward: float
    backward: float
    update: float
    synthesis: float = 0.0
    replay: float = 0.0
    transfer: float = 0.0

    @property
    def learning(self) -> float:
        """F + B + U, which one process takes too."""
        return self.forward + self.backward + self.update

    @property
    def overhead(self) -> float:
        """S + R + X, which only blocks that learn apart take."""
        return self.synthesis + self.replay + self.transfer

    @property
    def total(self) -> float:
        """All of it."""
        return self.learning + self.overhead


def measured_costs(rule: SyntheticGradients, batch: Batch, transfers: Sequence[float] = ()) -> list[BlockCost]:
    """The cost of each block, measured here, on the CPU and on copies: the rule stays as it is.

    With blocks of one layer each, and no synthesisers, their `learning` is what `balanced` takes.

    Args:
        rule: of all blocks.
        batch: of the size that is asked about.
        transfers: seconds that a process spends on each border between two blocks, see
            `synaptome.learning.parallel.transfers.measured_transfers`; those of one process if not given.
    """
    crossing = [0.0, *transfers, 0.0] if transfers else [0.0] * (len(rule.learners) + 1)
    costs, x = [], batch.inputs
    for number, learner in enumerate(rule.learners):
        copied = copy.deepcopy(learner)
        copied.scheduler = None  # which costs next to nothing, and warns of steps that are not those of a training
        gradients, inputs = copied.synthesis, copied.inputs
        copied.synthesis = copied.inputs = None
        copied.how, copied.delay = Decoupling(delay=0, true_share=1.0), 0
        with torch.no_grad():
            h = copy.deepcopy(learner.block)(x)
        last = number + 1 == len(rule.learners)
        forward = _fastest(partial(copied.begin, x, batch.targets))
        learning = _fastest(partial(_step, copied, x, batch.targets, last))
        update = _fastest(copied.optimizer.step)
        forward = min(forward, learning - update)  # so that the parts are those of a step that was measured whole
        backward = learning - forward - update
        synthesis = 0.0
        if gradients is not None:
            synthesis += _fastest(partial(_guess_and_fit, gradients, (h, batch.targets), h))
        if inputs is not None:
            synthesis += _fastest(partial(_guess_and_fit, inputs.synthesis, (batch.inputs,), x))
        transfer = crossing[number] + crossing[number + 1]
        replay = 0.0 if last else _replayed(rule.how, forward, backward)
        costs.append(BlockCost(forward, backward, update, synthesis, replay, transfer))
        x = h
    return costs


def predicted_speedup(costs: Sequence[BlockCost]) -> float:
    """How many times as fast as one process, and backpropagation, a process for each block is."""
    return sum(cost.learning for cost in costs) / max(cost.total for cost in costs)


def balanced(layers: Sequence[float], overheads: Sequence[float]) -> tuple[int, ...]:
    """The balance whose slowest block is the fastest: so many layers in each block, at least one.

    Args:
        layers: what each layer costs, at least 0.
        overheads: what each block costs beside its layers, at least 0.

    Raises:
        ConfigurationError: there are more blocks than layers, or none.
    """
    depth = len(layers)
    check_blocks(depth, len(overheads))
    until = [0.0]
    for cost in layers:
        until.append(until[-1] + cost)
    # For each number of first layers: the slowest of the first blocks of them, at best, with the sizes that give it.
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * depth]
    for extra in overheads:
        found = [(math.inf, ())] + [
            min(
                (max(slowest, until[end] - until[start] + extra), (*sizes, end - start))
                for start, (slowest, sizes) in enumerate(found[:end])
            )
            for end in range(1, depth + 1)
        ]
    return found[depth][1]


def _step(learner: BlockLearner, x: Tensor, targets: Tensor, last: bool) -> None:
    h = learner.begin(x, targets)
    if last:
        learner.conclude()
    else:  # the gradient of a mean square: zeros would make some optimizers slow, on some processors
        learner.learn(lambda: h / len(h), lambda gradient: None)


def _replayed(how: Decoupling, forward: float, backward: float) -> float:
    """What a late true gradient takes: forward again, and beside a guess of the batch at hand backward again too."""
    if how.delay == 0 or how.true_share == 0:
        return 0.0
    return forward if how.true_share == 1 else forward + backward


def _guess_and_fit(synthesis: Synthesis, given: tuple[Tensor, ...], target: Tensor) -> None:
    synthesis.guess(*given)
    synthesis.fit(given, target, len(target))


def _fastest(work: Callable[[], object]) -> float:
    work()
    seconds: list[float] = []
    while len(seconds) < REPEATS or sum(seconds) < SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
