"""What blocks that learn apart cost, the balance that suits them, and the speed to expect of it.

A block takes F + B + U for a batch, forward, backward and update, S for a guess and a fit if it has synthesisers, and X
for handing over what it owes its neighbours. In processes of their own M blocks are as fast as the slowest of them; one
process takes the sum of all F + B + U. Equal blocks therefore gain `M / (1 + M (S + X) / (F + B + U))`, where the sum
is that of the whole network. What processes that work at once take from each other, of memory and clock, is left out.
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
from synaptome.learning.guesses import Synthesis
from synaptome.learning.synthetic import SyntheticGradients

# The fastest of so many repeats counts, in so many seconds at least: in the others something else took time.
REPEATS, SECONDS = 7, 0.1


@dataclass(frozen=True)
class BlockCost:
    """Seconds that a block takes for a batch.

    Attributes:
        forward, backward, update: F, B and U.
        synthesis: S, of gradients and of inputs; 0 without synthesisers.
        transfer: X; 0 if it was not measured.
    """

    forward: float
    backward: float
    update: float
    synthesis: float = 0.0
    transfer: float = 0.0

    @property
    def learning(self) -> float:
        """F + B + U, which one process takes too."""
        return self.forward + self.backward + self.update

    @property
    def apart(self) -> float:
        """S + X, which only blocks that learn apart take."""
        return self.synthesis + self.transfer

    @property
    def total(self) -> float:
        """All of it."""
        return self.learning + self.apart


def measured_costs(rule: SyntheticGradients, batch: Batch, transfers: Sequence[float] = ()) -> list[BlockCost]:
    """The cost of each block, measured here, on copies: the rule stays as it is.

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
        last = number + 1 == len(rule.learners)
        forward = _fastest(partial(copied.begin, x, batch.targets))
        learning = _fastest(partial(_step, copied, x, batch.targets, last))
        update = _fastest(copied.optimizer.step)
        with torch.no_grad():
            h = copied.block(x)
        synthesis = 0.0
        if gradients is not None:
            synthesis += _fastest(partial(_guess_and_fit, gradients, (h, batch.targets), h))
        if inputs is not None:
            synthesis += _fastest(partial(_guess_and_fit, inputs.synthesis, (batch.inputs,), x))
        transfer = crossing[number] + crossing[number + 1]
        costs.append(BlockCost(forward, max(0.0, learning - forward - update), update, synthesis, transfer))
        x = h
    return costs


def predicted_speedup(costs: Sequence[BlockCost]) -> float:
    """How many times as fast as one process, and backpropagation, a process for each block is."""
    return sum(cost.learning for cost in costs) / max(cost.total for cost in costs)


def balanced(layers: Sequence[float], apart: Sequence[float]) -> tuple[int, ...]:
    """The balance whose slowest block is the fastest: so many layers in each block.

    Args:
        layers: what each layer costs, at least 0.
        apart: what each block costs beside its layers, at least 0: from 1 to as many blocks as there are layers.

    Raises:
        ConfigurationError: there are more blocks than layers, or none.
    """
    depth, blocks = len(layers), len(apart)
    if not 1 <= blocks <= depth:
        raise ConfigurationError(f"a network of {depth} layers has from 1 to {depth} blocks; given {blocks}")
    until = [0.0]
    for cost in layers:
        until.append(until[-1] + cost)
    # For each number of first layers: the slowest of the first blocks of them, at best, with the sizes that give it.
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * depth]
    for extra in apart:
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
