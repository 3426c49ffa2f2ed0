"""Synthetic gradients with each block in a process of its own, under torchrun.

Process 0 has the first block, asks for everything and answers for all: it is a learning rule as any other. Its word
goes to the next process ahead of each batch's activity, and so on down the row, so that nobody waits for an order.
Labels go with it: `serve` needs no data. Losses come back to process 0 from the last one.

Every block does what it does in one process, in the same order, and so with the same bits. What is reported differs in
two ways: the means of a step are those of a batch some steps before, which is known by then, and cosines are those of
the last evaluation.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, distributed, nn

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError, WorkerLostError
from synaptome.learning.block_learner import BlockLearner
from synaptome.learning.lines import Line
from synaptome.learning.synthetic import SyntheticGradients, cosines

ORDER, ACTIVITY, GRADIENT, MEANS, STATE = range(5)  # tags
STEP, SEND_PARAMETERS, SEND_STATE, TAKE_STATE, END = range(5)  # orders
HEAD = 2  # numbers of an order before the labels: which one, and how many labels


class BlockProcesses:
    """The rule of process 0, with the other blocks elsewhere; see `serve`.

    Args:
        rule: of all blocks, the same in every process. Here the first block learns, and the others are copies of what
            is elsewhere, renewed when they are asked for.
        batch: examples a step, at most.
        timeout: seconds after which a process that does not answer counts as lost.

    Attributes:
        model: all blocks.

    Raises:
        ConfigurationError: there are not as many processes as blocks.
    """

    model: nn.Module

    def __init__(self, rule: SyntheticGradients, batch: int, timeout: float) -> None:
        check_processes(len(rule.learners))
        self.rule, self.model = rule, rule.model
        self._first = rule.learners[0]
        self._batch = batch
        self._lines = [Line(peer, timeout) for peer in range(1, len(rule.learners))]
        self._next, self._last = self._lines[0], self._lines[-1]
        # By then the last process has the batch behind it, if none is further behind than it may be.
        self._lag = len(self._lines) * max(1, rule.how.delay)
        self._means: deque[Tensor] = deque()  # (loss, accuracy) of batches that have not been told of
        self._stale = False

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of each block; the means of an earlier batch, `delay` steps for each border between blocks before.

        Raises:
            NumericError: the loss of a batch not long before was not finite.
            WorkerLostError: another process ended, or did not answer in time.
            ConfigurationError: targets are not classes, or are more than was said.
        """
        if batch.targets.dtype != torch.int64 or len(batch.targets) > self._batch:
            raise ConfigurationError(
                f"blocks in processes of their own learn classes, int64, at most {self._batch} a step; given "
                f"{batch.targets.dtype} {list(batch.targets.shape)}"
            )
        self._stale = True
        self._order(STEP, batch.targets)
        activity = self._first.begin(batch.inputs, batch.targets)
        self._next.send(activity, ACTIVITY)
        self._next.expect(activity.shape, GRADIENT, activity.dtype)
        self._last.expect((2,), MEANS, torch.float64)
        self._first.learn(lambda: self._next.take(GRADIENT).to(activity.device), _unsent)
        if not self._means:
            self._means.append(self._last.take(MEANS))
        untold = len(self._means) + self._last.expected(MEANS)
        # The first steps tell of the first batch.
        loss, accuracy = (self._means.popleft() if untold > self._lag else self._means[0]).tolist()
        if not math.isfinite(loss):
            raise NumericError(f"the loss is {loss}")
        return {"loss": loss, "accuracy": accuracy} | cosines(self.rule.learners)

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference, here, with the parameters of all blocks as they are now."""
        self._renew()
        return self.rule.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """As of `SyntheticGradients`; what was on its way between processes is in it."""
        self._order(SEND_STATE)
        self._take_in()
        for line, learner in zip(self._lines, self.rule.learners[1:], strict=True):
            learner.load_state_dict(line.receive_state(STATE))
        self._stale = False
        return self.rule.state_dict() | {"means": list(self._means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in all processes."""
        self.rule.load_state_dict(state)
        self._means = deque(state.get("means", []))  # there are none if it was saved in one process
        self._order(TAKE_STATE)
        for line, learner in zip(self._lines, self.rule.learners[1:], strict=True):
            line.send_state(learner.state_dict(), STATE)
        self._last.restart(MEANS)
        _expect_again(self._first, self._next)
        self._stale = False

    def close(self) -> None:
        """Let the other processes end, if they have not."""
        with suppress(WorkerLostError):
            self._order(END)
            self._take_in()
            for line in self._lines:
                line.flush()

    def _order(self, order: int, labels: Tensor | None = None) -> None:
        self._next.send(_ordered(order, labels, self._batch), ORDER)

    def _take_in(self) -> None:
        """Take in all that is on its way to this process."""
        _take_in(self._first, self._next)
        while self._last.expected(MEANS):
            self._means.append(self._last.take(MEANS))

    def _renew(self) -> None:
        if self._stale:
            self._order(SEND_PARAMETERS)
            for line, learner in zip(self._lines, self.rule.learners[1:], strict=True):
                told = line.receive_state(STATE)
                learner.block.load_state_dict(told["block"])
                learner.cosine = told["cosine"]
            self._stale = False


def serve(rule: SyntheticGradients, shapes: Sequence[Sequence[int]], batch: int, timeout: float) -> None:
    """Learn the block of this process, from 1 on, until process 0 says that it is over.

    Signals to stop are for process 0, which says so when everything is saved.

    Args:
        rule, batch, timeout: as for `BlockProcesses`; the same in every process.
        shapes: of an example's activity between each block and the next.

    Raises:
        ConfigurationError: there are not as many processes as blocks.
        WorkerLostError: another process ended, or did not answer in time.
    """
    rank, blocks = check_processes(len(rule.learners)), len(rule.learners)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    learner = rule.learners[rank]
    like = next(rule.model.parameters())  # of the dtype of activities, and where they are computed
    last = rank == blocks - 1
    root = Line(0, timeout)
    before = root if rank == 1 else Line(rank - 1, timeout)
    after = None if last else Line(rank + 1, timeout)
    broken = False
    before.expect((HEAD + batch,), ORDER, torch.int64)
    while True:
        told = before.take(ORDER)
        order, labels = int(told[0]), told[HEAD : HEAD + int(told[1])]
        if after is not None:
            after.send(told, ORDER)
        if order == END:
            if after is not None:
                _take_in(learner, after)
            break
        before.expect((HEAD + batch,), ORDER, torch.int64)
        if order == STEP:
            x = before.receive((len(labels), *shapes[rank - 1]), ACTIVITY, like.dtype).to(like.device)
            labels = labels.to(like.device)
            if after is None:
                broken = _conclude(learner, x, labels, before, root, broken)
            else:
                activity = learner.begin(x, labels)
                after.send(activity, ACTIVITY)
                after.expect(activity.shape, GRADIENT, activity.dtype)
                learner.learn(
                    lambda: after.take(GRADIENT).to(like.device), lambda gradient: before.send(gradient, GRADIENT)
                )
        elif order == SEND_PARAMETERS:
            root.send_state({"block": learner.block.state_dict(), "cosine": learner.cosine}, STATE)
        elif order == SEND_STATE:
            if after is not None:
                _take_in(learner, after)
            root.send_state(learner.state_dict(), STATE)
        else:
            learner.load_state_dict(root.receive_state(STATE))
            before.restart(GRADIENT)
            if after is None:
                root.restart(MEANS)
            else:
                _expect_again(learner, after)
    for line in (before, root, *([] if after is None else [after])):
        line.flush()


def check_processes(blocks: int) -> int:
    """The rank of this process; a ConfigurationError if there are not as many processes as blocks, two or more."""
    processes = distributed.get_world_size()
    if processes != blocks or blocks < 2:
        raise ConfigurationError(
            f"each block has a process of its own, and there are at least two; given {blocks} blocks and {processes} "
            f"processes: start as many as there are blocks (torchrun --nproc-per-node {max(blocks, 2)}), or choose as "
            f"many blocks"
        )
    return distributed.get_rank()


def _conclude(learner: BlockLearner, x: Tensor, labels: Tensor, before: Line, root: Line, broken: bool) -> bool:
    """A step of the last block; whether its loss is not finite, now or before, and nothing is learned any more."""
    gradient: Tensor | None = None
    if not broken:
        learner.begin(x, labels)
        try:
            gradient, means = learner.conclude()
        except NumericError:  # process 0 will say so, and end it
            broken = True
    loss, accuracy = (math.nan, math.nan) if broken else (means["loss"], means["accuracy"])
    root.send(torch.tensor([loss, accuracy], dtype=torch.float64), MEANS)
    before.send(torch.zeros_like(x) if gradient is None else gradient, GRADIENT)
    return broken


def _take_in(learner: BlockLearner, after: Line) -> None:
    """Let a learner have all true gradients that were sent to it."""
    while after.expected(GRADIENT) > learner.due_later:
        gradient = after.take(GRADIENT)
        learner.arrived.append(gradient.to(next(learner.block.parameters()).device))


def _expect_again(learner: BlockLearner, after: Line) -> None:
    """Make room for the true gradients that a learner of another state waits for, and for no others."""
    after.restart(GRADIENT)
    for activity in learner.owed:
        after.expect(activity.shape, GRADIENT, activity.dtype)


def _ordered(order: int, labels: Tensor | None, batch: int) -> Tensor:
    told = torch.zeros(HEAD + batch, dtype=torch.int64)
    told[0] = order
    if labels is not None:
        told[1] = len(labels)
        told[HEAD : HEAD + len(labels)] = labels
    return told


def _unsent(gradient: Tensor) -> None:
    raise AssertionError("the first block has nobody to send gradients to")
