"""A learning rule whose steps are timed, and nothing else of the run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from synaptome.data.dataset import Batch
from synaptome.learning.rule import LearningRule

SECONDS, STEP_MS = "training/seconds", "training/step_ms"  # columns of metrics: of all steps so far; of one, median


class Stopwatch:
    """A rule that does what another one does, and knows how long its steps took.

    A step lasts from the end of the one before, so that the batch is made within it; or, where something else was asked
    of the rule in between (evaluation, a checkpoint), from its own beginning.

    Args:
        rule: any learning rule.
        clock: gives seconds.

    Attributes:
        model: of the rule.
        seconds: of all steps together.
    """

    model: nn.Module

    def __init__(self, rule: LearningRule, clock: Callable[[], float] = time.perf_counter) -> None:
        self.model, self.seconds = rule.model, 0.0
        self._rule, self._clock = rule, clock
        self._since: float | None = None
        self._taken: list[float] = []

    @property
    def median(self) -> float:
        """Seconds of a step, median; 0 before the first."""
        return statistics.median(self._taken) if self._taken else 0.0

    def step(self, batch: Batch) -> dict[str, float]:
        """See `LearningRule.step`."""
        started = self._clock() if self._since is None else self._since
        means = self._rule.step(batch)
        self._since = self._clock()
        self._taken.append(self._since - started)
        self.seconds += self._taken[-1]
        return means

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """See `LearningRule.evaluate`."""
        self._since = None
        return self._rule.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """That of the rule."""
        self._since = None
        return self._rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state of the rule."""
        self._since = None
        self._rule.load_state_dict(state)
