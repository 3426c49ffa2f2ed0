"""Parallel variable distribution in several processes, of which one trains and the others follow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError, WorkerLostError
from synaptome.learning.distribution import ParallelVariableDistribution
from synaptome.learning.distribution_processes import Processes

STEP, LOAD, END = range(3)  # orders


class Leading:
    """The rule of process 0, which gives every batch to the others; see `follow`.

    Args:
        rule: the same in every process.
        processes: of the rule.

    Attributes:
        model: the rule's.
    """

    model: nn.Module

    def __init__(self, rule: ParallelVariableDistribution, processes: Processes) -> None:
        self.rule, self.model, self.processes = rule, rule.model, processes

    def step(self, batch: Batch) -> dict[str, float]:
        """As the rule does, with the work of its workers shared out.

        Raises:
            ConfigurationError: targets are not classes.
        """
        if batch.targets.dtype != torch.int64:
            raise ConfigurationError(f"several processes learn classes, int64; given targets {batch.targets.dtype}")
        self._tell(STEP, len(batch.targets))
        self.processes.agree({"inputs": batch.inputs, "targets": batch.targets})
        return self.rule.step(batch)

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """As the rule does, here."""
        return self.rule.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """That of the rule."""
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in all processes."""
        self.rule.load_state_dict(state)
        self._tell(LOAD)
        self.processes.agree(self.model.state_dict())

    def close(self) -> None:
        """Let the other processes end, if they have not."""
        with suppress(WorkerLostError):
            self._tell(END)

    def _tell(self, order: int, size: int = 0) -> None:
        self.processes.agree({"order": torch.tensor([order, size])})


def follow(rule: ParallelVariableDistribution, processes: Processes, example: Sequence[int]) -> None:
    """Do the work of this process's workers until process 0 says that it is over.

    Args:
        rule, processes: as in process 0.
        example: shape of an input.

    Raises:
        WorkerLostError: another process ended, or did not answer in time.
    """
    told = {"order": torch.zeros(2, dtype=torch.int64)}
    while True:
        processes.agree(told)
        order, size = told["order"].tolist()
        if order == END:
            return
        if order == LOAD:
            processes.agree(rule.model.state_dict())
            continue
        batch: dict[str, Tensor] = {
            "inputs": torch.empty(size, *example),
            "targets": torch.empty(size, dtype=torch.int64),
        }
        processes.agree(batch)
        with suppress(NumericError):  # process 0 has the same one, and tells of it
            rule.step(Batch(batch["inputs"], batch["targets"]))
