"""Synthetic gradients with each block in a process of its own, or in several, under torchrun.

Process 0 has the first block, asks for everything and answers for all: it is a learning rule as any other. Its word
goes to every other process ahead of each batch, so that nobody waits for an order, and labels go with it: `serve` needs
no data. Losses come back to process 0 from the last block.

Every block does what it does in one process, in the same order, and so with the same bits, unless blocks run freely.
What is reported differs in two ways: the means of a step are those of a batch some steps before, which is known by
then, and cosines are those of the last evaluation.

With replicas every block has several processes. Each works at its share of every batch, beside the same share of the
other blocks, and the replicas of a block add up their gradients: what one process computes, to rounding.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.data.dataset import Batch
from synaptome.errors import NumericError, WorkerLostError
from synaptome.learning.parallel.messages import (
    ACTIVITY,
    GRADIENT,
    MEANS,
    Places,
    expect_again,
    of_all,
    take_in,
    take_what_is_here,
)
from synaptome.learning.parallel.orders import (
    END,
    INPUTS,
    ORDER,
    REFINE,
    SEND_MODEL,
    SEND_STATE,
    STATE,
    STEP,
    TAKE_STATE,
    check_labels,
    ordered,
)
from synaptome.learning.synthetic import SyntheticGradients, cosines


class BlockProcesses:
    """The rule of process 0, with the other blocks elsewhere; see `serve`.

    Args:
        rule: of all blocks, the same in every process. Here the first block learns, and the others are copies of what
            is elsewhere, renewed when they are asked for.
        batch: examples a step, at most.
        timeout: seconds after which a process that does not answer counts as lost.
        replicas: processes of each block, among which each batch is shared out.

    Attributes:
        model: all blocks.

    Raises:
        ConfigurationError: there are not as many processes as blocks and replicas take.
    """

    model: nn.Module

    def __init__(self, rule: SyntheticGradients, batch: int, timeout: float, *, replicas: int = 1) -> None:
        self._places = places = Places(len(rule.learners), replicas, timeout)
        self.rule, self.model = rule, rule.model
        self._first = rule.learners[0]
        self._first.join(places.group)
        self._batch, self._replicas = batch, replicas
        after, last = places.rank(1, 0), places.rank(places.blocks - 1, 0)
        self._lines = {
            rank: places.line(rank, rule.how, GRADIENT if rank == after else None)
            for rank in range(1, places.blocks * replicas)
        }
        self._next, self._last = self._lines[after], self._lines[last]
        # By then the last block has the batch behind it, if none is further behind than it may be: `delay` batches, and
        # one more that a block in between has sent a gradient of before it waits for its own.
        self._lag = (places.blocks - 1) * (max(1, rule.how.delay) + 1) - 1
        self._means: deque[Tensor] = deque()  # (loss, accuracy) of batches that have not been told of
        self._stale = False

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of each block; the means of an earlier batch, as many steps before as blocks may be apart.

        Raises:
            NumericError: the loss of a batch not long before was not finite.
            WorkerLostError: another process ended, or did not answer in time.
            ConfigurationError: targets are not classes, or are more than was said.
        """
        check_labels(batch.targets, self._batch)
        self._stale = True
        examples = len(batch.targets)
        inputs, targets = self._share_out(batch)
        take_what_is_here(self._first, None, self._next)
        activity = self._first.begin(inputs, targets, examples)
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
        told = {0: self._first.state_dict()} | {rank: line.receive_state(STATE) for rank, line in self._lines.items()}
        states = []
        for block, learner in enumerate(self.rule.learners):
            first, *others = (told[self._places.rank(block, replica)] for replica in range(self._replicas))
            whole = of_all(first, others)
            if block > 0:
                learner.load_state_dict(whole)
                whole = learner.state_dict()
            states.append(whole)
        self._stale = False
        return {"blocks": states, "means": list(self._means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in all processes."""
        self._take_in()
        self.rule.load_state_dict(state)
        self._order(TAKE_STATE)
        for rank, line in self._lines.items():
            line.send_state(state["blocks"][rank // self._replicas], STATE)
        self._means = deque(state.get("means", []))  # there are none if it was saved in one process
        expect_again(self._first, self._next)
        self._stale = False

    def refine(self) -> None:
        """As of `SyntheticGradients`, in all processes, between steps that wait for true gradients."""
        means = self.state_dict()["means"]
        self._order(REFINE)
        self.rule.refine()
        self.load_state_dict(self.rule.state_dict() | {"means": means})

    def close(self) -> None:
        """Let the other processes end, if they have not."""
        with suppress(WorkerLostError):
            self._order(END)
            self._take_in()
            for line in self._lines.values():
                line.flush()

    def _order(self, order: int) -> None:
        for line in self._lines.values():
            line.send(ordered(order, self._batch), ORDER)

    def _share_out(self, batch: Batch) -> Batch:
        """Send every process what it needs of a batch; the share of this one."""
        inputs, targets = (tensor.tensor_split(self._replicas) for tensor in batch)
        for rank, line in self._lines.items():
            block, replica = divmod(rank, self._replicas)
            line.send(ordered(STEP, self._batch, targets[replica], len(batch.targets)), ORDER)
            if block == 0 or self.rule.learners[block].inputs is not None:
                line.send(inputs[replica], INPUTS)
        return Batch(inputs[0], targets[0])

    def _take_in(self) -> None:
        """Take in all that is on its way to this process."""
        take_in(self._first, None, self._next)
        while self._last.expected(MEANS):
            self._means.append(self._last.take(MEANS))

    def _renew(self) -> None:
        if self._stale:
            self._order(SEND_MODEL)
            for block, learner in enumerate(self.rule.learners[1:], 1):
                told = self._lines[self._places.rank(block, 0)].receive_state(STATE)
                learner.block.load_state_dict(told["block"])
                for name, guesses in learner.guesses.items():
                    guesses.cosine = told["cosines"][name]
            self._stale = False


def _unsent(gradient: Tensor) -> None:
    raise AssertionError("the first block has nobody to send gradients to")
