"""Any learning rule on a network whose connections change while it learns."""

from __future__ import annotations

from typing import Any

from torch import nn

from synaptome.data.dataset import Batch
from synaptome.learning.rule import LearningRule
from synaptome.topology.evolution import Evolution


class Evolving:
    """A learning rule, after each of whose steps an evolution may change the connections.

    Args:
        rule: learns the weights; its model has sparse layers.
        evolution: of these layers, under the optimizer that the rule steps.

    Attributes:
        model: the rule's.
        rule, evolution: as given.
        replaced: connections that were replaced so far.
    """

    model: nn.Module

    def __init__(self, rule: LearningRule, evolution: Evolution) -> None:
        self.model = rule.model
        self.rule = rule
        self.evolution = evolution
        self.replaced = 0

    def step(self, batch: Batch) -> dict[str, float]:
        """The rule's step, then the evolution's; what the rule reports.

        Raises:
            NumericError: the rule's; or a weight or a gradient is not finite after its step, when it is time to change
                connections: these are then as they were before, the weights are not.
            ConfigurationError: the optimizer does not serve the evolution; see `Evolution.step`.
        """
        report = self.rule.step(batch)
        self.replaced += self.evolution.step()
        return report

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """As the rule does."""
        return self.rule.evaluate(batch)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule, with connections and optimizer, that of the evolution, and how many were replaced."""
        return {
            "rule": self.rule.state_dict(),
            "evolution": self.evolution.state_dict(),
            "replaced": self.replaced,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            ConfigurationError: it is of another network or another evolution.
        """
        self.rule.load_state_dict(state["rule"])  # first: what an evolution remembers belongs to these connections
        self.evolution.load_state_dict(state["evolution"])
        self.replaced = state["replaced"]
