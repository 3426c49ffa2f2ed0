"""Backpropagation of errors with any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from synaptome.data.dataset import Batch
from synaptome.errors import NumericError
from synaptome.learning.loss import Loss, batch_means, loss_named
from synaptome.learning.optimization import load_schedule, schedule_state
from synaptome.synapses.learned_model import check_optimizer
from synaptome.synapses.predict import predict


class Backprop:
    """Gradient descent on a loss, differentiated by autograd.

    Args:
        model: any module from inputs `[batch, ...]` to outputs `[batch, outputs]`.
        optimizer: any torch optimizer over its parameters, those that call the closure again (L-BFGS) included.
        loss: a name in `synaptome.learning.loss.LOSSES`, or a `Loss`.
        scheduler: a learning-rate schedule that steps once a batch.
        penalty: of the model, 0-d and differentiable; added to what is minimised, and no part of the loss that is
            reported. It counts once a batch, whether the loss is a mean or a sum over it.

    Raises:
        ConfigurationError: there is no loss of that name, or the optimizer cannot train the model's learned layers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: str | Loss = "cross-entropy",
        scheduler: LRScheduler | None = None,
        penalty: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        check_optimizer(model, optimizer)
        self.model = model
        self.optimizer = optimizer
        self.loss = loss_named(loss) if isinstance(loss, str) else loss
        self.scheduler = scheduler
        self.penalty = penalty

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; see `LearningRule.step`."""
        if not self.model.training:
            self.model.train()
        first: dict[str, float] = {}

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            objective, means = self.differentiate(batch)
            if not first:
                first.update(means)
                if not math.isfinite(first["loss"]):
                    raise NumericError(f"the loss is {first['loss']}")
                if self.penalty is not None and not math.isfinite(objective):
                    raise NumericError(f"the loss is finite, but with the penalty it is {objective.item()}")
            return objective

        self.optimizer.step(closure)  # type: ignore[arg-type]  # torch types closures as returning float
        if self.scheduler is not None:
            self.scheduler.step()
        return first

    def differentiate(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Leave the objective's gradient in the parameters; returns the objective, 0-d, and what `step` reports."""
        outputs = self.model(batch.inputs)
        values = self.loss.per_example(outputs, batch.targets)
        objective = self.loss.objective(values)
        if self.penalty is not None:
            objective = objective + self.penalty(self.model)
        objective.backward()  # type: ignore[no-untyped-call]
        return objective.detach(), batch_means(outputs, values, batch.targets)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference, over as many noisy passes as the synapses ask for."""
        outputs = predict(self.model, batch.inputs).mean
        return batch_means(outputs, self.loss.per_example(outputs, batch.targets), batch.targets)

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and schedule."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule_state(self.scheduler),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
