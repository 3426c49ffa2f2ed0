"""Gradient descent on the exact expectation over inputs and failures, for deep linear networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from synaptome.analysis.linear_theory import expected_gradient
from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.failing import FailingLinear


class ExactExpectation(Backprop):
    """Learns as `Backprop` does with the loss `summed-squared-error`, on batches of infinitely many examples.

    Each step follows the closed gradient of `batch_size E‖h_L - W* x‖²` (`synaptome.analysis.linear_theory`); what is
    in the batches that it is given does not matter. `loss` in its reports is the expectation for one example, failures
    included; `evaluate` measures examples, as `Backprop` does.

    Args:
        model: a linear feed-forward network without biases, of dense or failing layers.
        optimizer: any torch optimizer over its parameters.
        teacher: W* `[outputs, inputs]`.
        covariance: Σ `[inputs, inputs]`, the inputs' uncentred second moments; None for the identity.
        batch_size: examples over which the objective is a sum, as learning rates of the sampled task have it.
        scheduler: a learning-rate schedule that steps once a batch.

    Raises:
        ConfigurationError: the network is not linear or has biases, or shapes do not fit.
    """

    def __init__(
        self,
        model: FeedForward,
        optimizer: torch.optim.Optimizer,
        teacher: Tensor,
        covariance: Tensor | None = None,
        batch_size: int = 1,
        scheduler: LRScheduler | None = None,
    ) -> None:
        super().__init__(model, optimizer, "summed-squared-error", scheduler)
        layers = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
        if len(layers) < len(model.layers):
            kinds = ", ".join(type(layer).__name__ for layer in model.layers)
            raise ConfigurationError(f"the exact expectation is known for dense and failing layers; given {kinds}")
        if model.activation != "linear" or model.output != "linear" or any(layer.bias is not None for layer in layers):
            raise ConfigurationError(
                "the exact expectation is known for linear networks without biases; "
                f"given activation {model.activation}, output {model.output}"
            )
        self.weights = [layer.weight for layer in layers]
        self.failures = [layer.failures.rate if isinstance(layer, FailingLinear) else 0.0 for layer in layers]
        self.teacher, self.covariance, self.batch_size = teacher, covariance, batch_size
        expected_gradient([weight.detach() for weight in self.weights], teacher, covariance, self.failures)

    @torch.no_grad()
    def differentiate(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The closed gradient, in the parameters; see `Backprop.differentiate`."""
        loss, gradients = expected_gradient(self.weights, self.teacher, self.covariance, self.failures)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.mul_(self.batch_size)
        return loss * self.batch_size, {"loss": loss.item()}
