"""Backprop of a batch that is shared out among processes, by torch's DistributedDataParallel.

Every process has the whole network. Process 0 sends each its rows of the batch; gradients are averaged while they are
computed (Li et al. 2020, arXiv 2006.15704), and all take the same step. Each share counts by its number of rows, so
that gradients, losses and accuracies are means over the whole batch, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, distributed, nn

from synaptome.data.dataset import Batch
from synaptome.errors import NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.parallel.groups import listening, own_group
from synaptome.learning.parallel.lines import Line
from synaptome.learning.parallel.orders import INPUTS, STEP, Orders


class Replica(Backprop):
    """The network in this process, which learns from its rows of each batch what all learn; see `Worker`.

    Every process makes one at the same time; the parameters of process 0 are then those of all.

    Args:
        rule: backpropagation, the same in every process. Layers may not draw noise of their own, nor look at several
            examples at once, if the result is to be that of the whole batch.
        shape: of an example's input.
        timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        ConfigurationError: there is one process only, or the timeout is out of range.
        WorkerLostError: another process ended, or did not answer in time.
    """

    def __init__(self, rule: Backprop, shape: Sequence[int], timeout: float) -> None:
        super().__init__(rule.model, rule.optimizer, rule.loss, rule.scheduler, rule.penalty)
        self.shape, self.timeout = tuple(shape), timeout
        self._group = own_group(timeout)
        self._rank, self._processes = distributed.get_rank(), distributed.get_world_size()
        self._like = next(self.model.parameters())  # of the dtype of inputs, and where they are needed
        with listening(timeout):
            self._network = nn.parallel.DistributedDataParallel(self.model, process_group=self._group)
        self._examples = self._counted = 0

    def learn(self, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """One step with all other processes.

        Args:
            inputs: the rows of this process, by `rows_of`.
            labels: int64 `[batch]` of the whole batch.

        Returns:
            Means over the whole batch.

        Raises:
            NumericError: the loss of the whole batch is not finite; it is raised in all processes.
            WorkerLostError: another process ended, or did not answer in time.
        """
        self._examples = len(labels)
        self._counted = counted(len(labels), self._rank, self._processes)
        own = labels[rows_of(len(labels), self._rank, self._processes)]
        with listening(self.timeout):
            return self.step(Batch(inputs.to(self._like.device), own.to(self._like.device)))

    def work(self, labels: Tensor, line: Line) -> None:
        """See `Worker`."""
        rows = rows_of(len(labels), self._rank, self._processes)
        inputs = line.receive((rows.stop - rows.start, *self.shape), INPUTS, self._like.dtype)
        with suppress(NumericError):  # process 0 says so, and ends it
            self.learn(inputs, labels)

    def differentiate(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """As of `Backprop`, for the whole batch, of which this process has a share."""
        outputs = self._network(batch.inputs)
        values = self.loss.per_example(outputs, batch.targets)[: self._counted]
        right = (outputs.argmax(1) == batch.targets)[: self._counted].sum()
        sums = torch.stack([values.detach().sum().double(), right.double()]).cpu()
        pending = distributed.all_reduce(sums, group=self._group, async_op=True)
        scale = 1 if self.loss.summed else 1 / self._examples
        objective = self._processes * scale * values.sum()  # the gradients of all are averaged
        penalty = objective.new_zeros(()) if self.penalty is None else self.penalty(self.model)
        (objective + penalty).backward()  # type: ignore[no-untyped-call]
        pending.wait()
        loss, accuracy = (sums / self._examples).tolist()
        return penalty.detach() + sums[0].item() * scale, {"loss": loss, "accuracy": accuracy}


class DataParallel:
    """The rule of process 0; the others `synaptome.learning.parallel.orders.serve` their replicas.

    Its state is that of `Backprop`, with which one process goes on from it.

    Args:
        replica: of process 0.
        batch: examples a step, at most.

    Attributes:
        model: the network.
    """

    model: nn.Module

    def __init__(self, replica: Replica, batch: int) -> None:
        self.replica, self.model = replica, replica.model
        self._orders = Orders(batch, replica.timeout)

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step in every process; see `LearningRule.step`.

        Raises:
            NumericError: the loss is not finite; the model is then as it was before the step.
            WorkerLostError: another process ended, or did not answer in time.
            ConfigurationError: targets are not classes, or are more than was said.
        """
        self._orders.give(STEP, batch.targets)
        examples, processes = len(batch.targets), 1 + len(self._orders.lines)
        for rank, line in enumerate(self._orders.lines, 1):
            line.send(batch.inputs[rows_of(examples, rank, processes)], INPUTS)
        return self.replica.learn(batch.inputs[rows_of(examples, 0, processes)], batch.targets)

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference, in this process."""
        return self.replica.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and schedule, which are the same in every process."""
        return self.replica.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in all processes."""
        self.replica.load_state_dict(state)
        self._orders.give_states([state] * len(self._orders.lines))

    def close(self) -> None:
        """Let the other processes end, if they have not."""
        self._orders.close()


def counted(examples: int, rank: int, processes: int) -> int:
    """How many rows of a process's share count: all of them, or none of the one that it has for company."""
    return (rank + 1) * examples // processes - rank * examples // processes


def rows_of(examples: int, rank: int, processes: int) -> slice:
    """The rows of a batch for a process: shares differ by at most one row.

    With fewer examples than processes some have no share, but take part in what is computed together: they are given
    the first row, which does not count.
    """
    start, end = rank * examples // processes, (rank + 1) * examples // processes
    return slice(start, end) if end > start else slice(0, 1)
