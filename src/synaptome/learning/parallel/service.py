"""The process of a block that is not the first one's: it learns when process 0 says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from synaptome.errors import NumericError
from synaptome.learning.guesses import SyntheticInputs
from synaptome.learning.parallel.lines import Line
from synaptome.learning.parallel.messages import (
    ACTIVITY,
    GRADIENT,
    MEANS,
    Places,
    expect_again,
    share_of,
    take_in,
    take_what_is_here,
)
from synaptome.learning.parallel.orders import (
    END,
    HEAD,
    INPUTS,
    ORDER,
    REFINE,
    SEND_MODEL,
    SEND_STATE,
    STATE,
    STEP,
    leave_signals,
)
from synaptome.learning.synthetic import SyntheticGradients, refine


def serve(
    rule: SyntheticGradients,
    shapes: Sequence[Sequence[int]],
    batch: int,
    timeout: float,
    *,
    replicas: int = 1,
    inputs: Sequence[int] = (),
) -> None:
    """Learn the block of this process until process 0 says that it is over.

    Signals to stop are for process 0, which says so when everything is saved.

    Args:
        rule, batch, timeout, replicas: as for `BlockProcesses`; the same in every process.
        shapes: of an example's activity between each block and the next.
        inputs: shape of the network's input, of an example; needed where there are replicas, or inputs are guessed.

    Raises:
        ConfigurationError: there are not as many processes as blocks and replicas take.
        WorkerLostError: another process ended, or did not answer in time.
    """
    leave_signals()
    _Service(rule, [inputs, *shapes], batch, timeout, replicas).run()


class _Service:
    """A block, lines to process 0 and to the processes of the blocks before and after, and what to do when told."""

    def __init__(
        self, rule: SyntheticGradients, shapes: Sequence[Sequence[int]], batch: int, timeout: float, replicas: int
    ) -> None:
        places = Places(len(rule.learners), replicas, timeout)
        block, replica = places.block, places.replica
        self.learner, self.schedule = rule.learners[block], rule.schedule
        self.learner.join(places.group)
        self.like = next(rule.model.parameters())  # of the dtype of activities, and where they are computed
        self.inputs, self.shape, self.batch, self.places = shapes[0], shapes[block], batch, places
        self.before: Line | None = None
        self.after: Line | None = None
        if block > 0:
            self.before = places.line(places.rank(block - 1, replica), rule.how, ACTIVITY)
        if block < places.blocks - 1:
            self.after = places.line(places.rank(block + 1, replica), rule.how, GRADIENT)
        is_next = self.before is not None and self.before.peer == 0
        self.root = self.before if is_next and self.before is not None else places.line(0, rule.how)
        self.broken = False

    def run(self) -> None:
        """Do what process 0 says."""
        self._expect_order()
        while True:
            told = self.root.take(ORDER)
            order, labels, examples = int(told[0]), told[HEAD : HEAD + int(told[1])], int(told[2])
            if order == END:
                take_in(self.learner, self.before, self.after)
                break
            self._expect_order()
            if order == STEP:
                self._step(labels.to(self.like.device), examples)
            elif order == SEND_MODEL:
                self._send_parameters()
            elif order == SEND_STATE:
                take_in(self.learner, self.before, self.after)
                state = self.learner.state_dict()
                self.root.send_state(share_of(state) if self.places.replica else state, STATE)
            elif order == REFINE:
                refine([self.learner], self.schedule)  # its depth; what depends on other blocks comes with a state
            else:
                self._take_state()
        for line in (self.root, self.before, self.after):
            if line is not None:
                line.flush()

    def _expect_order(self) -> None:
        self.root.expect((HEAD + self.batch,), ORDER, torch.int64)

    def _step(self, labels: Tensor, examples: int) -> None:
        take_what_is_here(self.learner, self.before, self.after)
        if self.before is None:
            self._learn(self._received(self.root, self.inputs, INPUTS, len(labels)), labels, examples)
        elif self.learner.inputs is None:
            self._learn(self._received(self.before, self.shape, ACTIVITY, len(labels)), labels, examples)
        else:
            self._step_on_guess(self.learner.inputs, self.before, labels, examples)

    def _step_on_guess(self, inputs: SyntheticInputs, before: Line, labels: Tensor, examples: int) -> None:
        given = self._received(self.root, self.inputs, INPUTS, len(labels))
        before.expect((len(labels), *self.shape), ACTIVITY, self.like.dtype)
        warm = self.learner.warm
        if warm:
            x = inputs.guess(given)
        else:
            x = before.take(ACTIVITY).to(self.like.device)
            inputs.activities.arrived.append(x)
        self._learn(x, labels, examples)
        if not self.broken:
            inputs.fit(given, examples, not warm, lambda: before.take(ACTIVITY).to(self.like.device))

    def _learn(self, x: Tensor, labels: Tensor, examples: int) -> None:
        after = self.after
        if after is None:
            self._conclude(x, labels, examples)
        else:
            activity = self.learner.begin(x, labels, examples)
            after.send(activity, ACTIVITY)
            after.expect(activity.shape, GRADIENT, activity.dtype)
            self.learner.learn(lambda: after.take(GRADIENT).to(self.like.device), self._send_gradient)

    def _conclude(self, x: Tensor, labels: Tensor, examples: int) -> None:
        """A step of the last block; after a loss that is not finite nothing is learned any more."""
        gradient: Tensor | None = None
        if not self.broken:
            self.learner.begin(x, labels, examples)
            try:
                gradient, means = self.learner.conclude()
            except NumericError:  # process 0 will say so, and end it
                self.broken = True
        loss, accuracy = (math.nan, math.nan) if self.broken else (means["loss"], means["accuracy"])
        if self.places.replica == 0:
            self.root.send(torch.tensor([loss, accuracy], dtype=torch.float64), MEANS)
        self._send_gradient(torch.zeros_like(x) if gradient is None else gradient)

    def _send_gradient(self, gradient: Tensor) -> None:
        assert self.before is not None
        self.before.send(gradient, GRADIENT)

    def _send_parameters(self) -> None:
        if self.places.replica == 0:
            cosines = {name: guesses.cosine for name, guesses in self.learner.guesses.items()}
            self.root.send_state({"block": self.learner.block.state_dict(), "cosines": cosines}, STATE)

    def _take_state(self) -> None:
        take_in(self.learner, self.before, self.after)
        self.learner.load_state_dict(self.root.receive_state(STATE))
        if self.before is not None:
            self.before.restart(GRADIENT)
        if self.after is not None:
            expect_again(self.learner, self.after)

    def _received(self, line: Line, shape: Sequence[int], tag: int, examples: int) -> Tensor:
        return line.receive((examples, *shape), tag, self.like.dtype).to(self.like.device)
