"""What process 0 asks of the others, for rules that share each batch's work out among processes.

Process 0 has the data and the run; it gives every other process its orders, and the labels of a batch go with them.
Whoever serves has a worker that does what is asked, and says a word only when it has lost another process.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.parallel.lines import Line

ORDER, STATE, INPUTS = range(3)  # tags
STEP, SEND_MODEL, SEND_STATE, TAKE_STATE, REFINE, END = range(6)  # orders
HEAD = 3  # numbers of an order before the labels: which one, how many labels, and examples of the whole batch


class Worker(Protocol):
    """What a process does for process 0.

    Attributes:
        model: what it trains: the network, or a block of it.
    """

    model: nn.Module

    def work(self, labels: Tensor, line: Line) -> None:
        """Its part of a step; `labels` int64 `[batch]` are those of the whole batch, `line` leads to process 0."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        ...


class Orders:
    """Of process 0, to every other one.

    Args:
        batch: examples a step, at most.
        timeout: seconds after which a process that does not answer counts as lost.

    Attributes:
        lines: to the others, from process 1 on.

    Raises:
        ConfigurationError: the timeout is out of range.
    """

    def __init__(self, batch: int, timeout: float) -> None:
        self._batch = batch
        self.lines = [Line(peer, timeout) for peer in range(1, distributed.get_world_size())]

    def give(self, order: int, labels: Tensor | None = None) -> None:
        """Give an order; that of a step comes with the labels of the batch.

        Raises:
            ConfigurationError: labels are not classes, or are more than was said.
        """
        check_labels(labels, self._batch)
        told = ordered(order, self._batch, labels)
        for line in self.lines:
            line.send(told, ORDER)

    def models(self) -> list[dict[str, Any]]:
        """The state of each other process's model, from process 1 on."""
        self.give(SEND_MODEL)
        return [line.receive_state(STATE) for line in self.lines]

    def states(self) -> list[dict[str, Any]]:
        """The whole state of each other worker, from process 1 on."""
        self.give(SEND_STATE)
        return [line.receive_state(STATE) for line in self.lines]

    def give_states(self, states: Iterable[dict[str, Any]]) -> None:
        """Let each other worker go back to a state of its own, from process 1 on."""
        self.give(TAKE_STATE)
        for line, state in zip(self.lines, states, strict=True):
            line.send_state(state, STATE)

    def close(self) -> None:
        """Let the others end, if they have not."""
        with suppress(WorkerLostError):
            self.give(END)
            for line in self.lines:
                line.flush()


def ordered(order: int, batch: int, labels: Tensor | None = None, examples: int | None = None) -> Tensor:
    """An order as it is sent; that of a step has labels, int64.

    Args:
        order: which one.
        batch: examples of a step, at most.
        labels: of a batch, or of a share of it.
        examples: of the whole batch; as many as there are labels if None.
    """
    told = torch.zeros(HEAD + batch, dtype=torch.int64)
    told[0] = order
    if labels is not None:
        told[1], told[2] = len(labels), len(labels) if examples is None else examples
        told[HEAD : HEAD + len(labels)] = labels
    return told


def check_labels(labels: Tensor | None, batch: int) -> None:
    """Refuse labels that are not classes, or more than `batch` of them: a ConfigurationError."""
    if labels is None or (labels.dtype == torch.int64 and labels.dim() == 1 and 1 <= len(labels) <= batch):
        return
    raise ConfigurationError(
        f"processes that share a batch learn classes, int64, from 1 to {batch} a step; given {labels.dtype} "
        f"{list(labels.shape)}"
    )


def leave_signals() -> None:
    """Signals to stop are for process 0, which says so when everything is saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def serve(worker: Worker, batch: int, timeout: float) -> None:
    """Do what process 0 asks, until it says that it is over.

    Signals to stop are for process 0, which says so when everything is saved.

    Args:
        worker: of this process.
        batch, timeout: as for `Orders`.

    Raises:
        WorkerLostError: another process ended, or did not answer in time.
    """
    leave_signals()
    line = Line(0, timeout)
    line.expect((HEAD + batch,), ORDER, torch.int64)
    while True:
        told = line.take(ORDER)
        order, labels = int(told[0]), told[HEAD : HEAD + int(told[1])]
        if order == END:
            break
        line.expect((HEAD + batch,), ORDER, torch.int64)
        if order == STEP:
            worker.work(labels, line)
        elif order == SEND_MODEL:
            line.send_state(worker.model.state_dict(), STATE)
        elif order == SEND_STATE:
            line.send_state(worker.state_dict(), STATE)
        else:
            worker.load_state_dict(line.receive_state(STATE))
    line.flush()
