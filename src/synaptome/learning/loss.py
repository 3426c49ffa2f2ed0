"""Losses, each with a value for every example, so that what is reported never depends on the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from synaptome.errors import unknown


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        per_example: outputs `[batch, outputs]` and targets to `[batch]`. Targets are class indices `[batch]` int64
            or real values `[batch, outputs]`.
        summed: whether the objective is the sum over the batch; else the mean. Reports always show the mean.
    """

    per_example: Callable[[Tensor, Tensor], Tensor]
    summed: bool = False

    def objective(self, values: Tensor) -> Tensor:
        """What is differentiated: the sum or mean of the examples' values `[batch]`."""
        return values.sum() if self.summed else values.mean()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    real = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype) if targets.dtype == torch.int64 else targets
    return (outputs - real).square()


LOSSES = {
    "cross-entropy": Loss(_cross_entropy),
    "mean-squared-error": Loss(lambda outputs, targets: _squared_error(outputs, targets).mean(1)),
    # The sum over outputs and over the batch, as the studies of synaptic failures have it: rates scale with the batch.
    "summed-squared-error": Loss(lambda outputs, targets: _squared_error(outputs, targets).sum(1), summed=True),
}


def loss_named(name: str) -> Loss:
    """A loss of the table; ConfigurationError if there is none of that name."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def batch_means(outputs: Tensor, values: Tensor, targets: Tensor) -> dict[str, float]:
    """What a rule reports of a batch: the mean `loss` and, of classes, the `accuracy`.

    Args:
        outputs: `[batch, outputs]`.
        values: the examples' losses `[batch]`.
        targets: as for `Loss`.
    """
    means = {"loss": values.detach().mean().item()}
    if targets.dtype == torch.int64:
        means["accuracy"] = (outputs.argmax(1) == targets).sum().item() / len(targets)
    return means
