"""What blocks that learn apart cost, the balance that suits them, and the speed to expect of it.

A block takes F + B + U for a batch, forward, backward and update, and S if it has a synthesiser, for a guess and a
fit. In processes of their own M blocks are as fast as the slowest of them; one process takes the sum of all F + B + U.
Equal blocks therefore gain `M / (1 + M S / (F + B + U))`, where the sum is that of the whole network. What passes
between processes does so while they work, and is left out.
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
from synaptome.errors import ConfigurationError
from synaptome.learning.block_learner import BlockLearner
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.synthetic import SyntheticGradients

REPEATS = 7  # of which the fastest counts: in the others something else took time


@dataclass(frozen=True)
class BlockCost:
    """Seconds that a block takes for a batch.

    Attributes:
        learning: F + B + U.
        synthesis: S; 0 without a synthesiser.
    """

    learning: float
    synthesis: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.learning + self.synthesis


def measured_costs(rule: SyntheticGradients, batch: Batch) -> list[BlockCost]:
    """The cost of each block, measured here, on copies: the rule stays as it is.

    With blocks of one layer each, and no synthesisers, these are the costs that `balanced` takes.

    Args:
        rule: of all blocks.
        batch: of the size that is asked about.
    """
    costs = []
    x = batch.inputs
    for number, learner in enumerate(rule.learners, 1):
        copied = copy.deepcopy(learner)
        copied.scheduler = None  # which costs next to nothing, and warns of steps that are not those of a training
        step = partial(_step, copied, x, batch.targets, number == len(rule.learners))
        learning = _fastest(partial(step, Decoupling(delay=0, true_share=1.0)))
        synthesis = 0.0
        if learner.synthesis is not None:
            synthesis = max(0.0, _fastest(partial(step, Decoupling(delay=0))) - learning)
        costs.append(BlockCost(learning, synthesis))
        with torch.no_grad():
            x = copy.deepcopy(learner.block)(x)
    return costs


def predicted_speedup(costs: Sequence[BlockCost]) -> float:
    """How many times as fast as one process, and backpropagation, a process for each block is."""
    return sum(cost.learning for cost in costs) / max(cost.total for cost in costs)


def balanced(layers: Sequence[float], blocks: int, synthesis: float = 0.0) -> tuple[int, ...]:
    """The balance whose slowest block is the fastest: so many layers in each block.

    Args:
        layers: what each layer costs, at least 0.
        blocks: how many, from 1 to the number of layers.
        synthesis: what a synthesiser costs, which every block but the last has.

    Raises:
        ConfigurationError: there are more blocks than layers, or none.
    """
    depth = len(layers)
    if not 1 <= blocks <= depth:
        raise ConfigurationError(f"a network of {depth} layers has from 1 to {depth} blocks; given {blocks}")
    until = [0.0]
    for cost in layers:
        until.append(until[-1] + cost)
    # For each number of first layers: the slowest of `count` blocks of them, at best, with the sizes that give it.
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * depth]
    for count in range(1, blocks + 1):
        extra = synthesis if count < blocks else 0.0
        found = [(math.inf, ())] + [
            min(
                (max(slowest, until[end] - until[start] + extra), (*sizes, end - start))
                for start, (slowest, sizes) in enumerate(found[:end])
            )
            for end in range(1, depth + 1)
        ]
    return found[depth][1]


def _step(learner: BlockLearner, x: Tensor, targets: Tensor, last: bool, how: Decoupling) -> None:
    learner.how, learner.delay = how, 0
    h = learner.begin(x, targets)
    if last:
        learner.conclude()
    else:
        learner.learn(lambda: torch.zeros_like(h), lambda gradient: None)


def _fastest(work: Callable[[], None]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
