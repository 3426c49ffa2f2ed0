"""Multilevel training: backpropagation through a network whose time steps are halved while it learns."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn, optim

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.optimization import MakeScheduler, restarted
from synaptome.learning.rule import LearningRule
from synaptome.networks.multilevel import prolong
from synaptome.networks.stable import StableNetwork


@runtime_checkable
class Refinable(LearningRule, Protocol):
    """A rule that can prolong what it trains; `SyntheticGradients` and its processes are."""

    def refine(self) -> None:
        """Double the depth, prolong all that is learned and what learns it, and start the schedule again."""
        ...


class Multilevel:
    """Learning on levels: so many steps at one depth, then as many at twice the depth, and so on.

    The network of the next level is the last one's weights, a path in time, on a grid of half the step; the state of
    the optimizer is prolonged as they are (see `synaptome.networks.multilevel.prolong`; Haber, Ruthotto, Holtham & Jun
    2018, arXiv 1703.02009). So the first level does what can be done cheaply, and the last one what needs the depth.
    What is measured after a level's last step is the network of that level: it is prolonged at the first step of the
    next one.

    Args:
        rule: learns the weights: backpropagation through a `StableNetwork`, which begins with the depth of the first
            level, or a rule that prolongs its network itself.
        levels: at least 1; the last one has `2^(levels - 1)` times the depth of the first.
        steps: of each level, at least 1; what comes after the last level's is spent on the last level.
        schedule: of backpropagation: makes the learning-rate schedule of each level, in place of the rule's own, or
            None for a constant rate; if not given, the rule's own goes on over all levels.

    Attributes:
        model: the rule's network, the same module at every level.
        rule: as given.
        level: of the network, from 0.
        done: steps so far.

    Raises:
        ConfigurationError: the rule or its model is another one, a number is out of range, or the optimizer is L-BFGS,
            whose state cannot be prolonged.
    """

    model: nn.Module

    def __init__(
        self,
        rule: Backprop | Refinable,
        levels: int,
        steps: int,
        schedule: MakeScheduler | None = None,
    ) -> None:
        if isinstance(rule, Backprop) and not isinstance(rule.model, StableNetwork):
            raise ConfigurationError(
                f"multilevel training halves the time steps of a StableNetwork; given a {type(rule.model).__name__}"
            )
        if not isinstance(rule, Backprop | Refinable):
            raise ConfigurationError(
                f"multilevel training takes backpropagation, or a rule with refine(); given a {type(rule).__name__}"
            )
        if levels < 1 or steps < 1:
            raise ConfigurationError(
                f"levels, and the steps of each, are whole numbers of at least 1; given {levels} levels of {steps} "
                f"steps"
            )
        if levels > 1 and isinstance(rule, Backprop) and isinstance(rule.optimizer, optim.LBFGS):
            raise ConfigurationError(
                "LBFGS keeps one flat history of all parameters, which cannot be prolonged; take one level, or another "
                "optimizer"
            )
        self.model = rule.model
        self.rule = rule
        self.level = 0
        self.done = 0
        self._levels = levels
        self._steps = steps
        self._schedule = schedule
        self._start_schedule()

    def step(self, batch: Batch) -> dict[str, float]:
        """The rule's step, at a level's first one on the prolonged network; what the rule reports.

        Raises:
            NumericError: the rule's; the network stays prolonged if it has been.
            ConfigurationError: the state of the optimizer cannot be prolonged; the network is not either.
        """
        if self.level < min(self.done // self._steps, self._levels - 1):
            self._refine()
        report = self.rule.step(batch)
        self.done += 1
        return report

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """As the rule does."""
        return self.rule.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule, the level of its network, and how many steps were done."""
        return {"rule": self.rule.state_dict(), "level": self.level, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            ConfigurationError: the network is at a later level, and deeper, than that of the state.
        """
        if state["level"] < self.level:
            raise ConfigurationError(
                f"this network is at level {self.level + 1} already, and the state is of level {state['level'] + 1}; "
                f"load it into a new one"
            )
        while self.level < state["level"]:
            self._refine()
        self.rule.load_state_dict(state["rule"])
        self.done = state["done"]

    def _refine(self) -> None:
        if isinstance(self.rule, Backprop):
            assert isinstance(self.rule.model, StableNetwork)
            prolong(self.rule.model, self.rule.optimizer)
            self._start_schedule()
        else:
            self.rule.refine()
        self.level += 1

    def _start_schedule(self) -> None:
        if self._schedule is not None and isinstance(self.rule, Backprop):
            self.rule.scheduler = restarted(self._schedule, self.rule.optimizer)
