"""Equilibrium propagation in populations of small directed networks, by `synaptome.learning.plasticity`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.kernels.relax import NOT_FINITE, Relaxed
from synaptome.learning.plasticity import NUDGINGS, Plasticity, contrasted_changes, telescoped_changes
from synaptome.networks.complete import largest_dt
from synaptome.networks.population import SIGNS, STARTS, Couplings, Population
from synaptome.networks.states import state_named
from synaptome.networks.success import HELD_EPOCHS, predicted_right, squared_error


class PopulationLearning:
    """Every network of a population learns by equilibrium propagation, by itself; a step is an epoch.

    A batch holds all patterns: inputs `[M, inputs]` and real targets `[M, outputs]`. A network whose state or weights
    stop being finite keeps the weights that it had, learns no more, and is counted as wrong.

    Args:
        model: the networks.
        plasticity: how they learn.
        one_hot: whether the largest output is the prediction; otherwise each output by itself, 1 from 0.5 on.

    Attributes:
        model, population: the networks, as given.
        epoch: how many are done.

    Warns:
        UserWarning: a nudged step expands whatever the weights become, or as they are; the largest dt is told.
    """

    model: nn.Module

    def __init__(self, model: Population, plasticity: Plasticity, one_hot: bool = False) -> None:
        self.model = self.population = model
        self.plasticity, self.one_hot = plasticity, one_hot
        self.epoch = 0
        limit = largest_dt(model.leak(model.weight), plasticity.beta)
        if model.dt > limit:
            warnings.warn(
                f"dt {model.dt:g} is above {limit:.3g}, from where on a step of the nudged phase overshoots by more "
                f"than it was off, and states need not settle; take a smaller dt or a smaller beta",
                stacklevel=2,
            )

    @torch.no_grad()
    def step(self, batch: Batch) -> dict[str, float]:
        """An epoch: the free phase, whose errors are reported, and one nudged phase or two.

        Raises:
            NumericError: no network is finite any more; the weights are as they were.
            ConfigurationError: targets do not fit, or are out of the activity's range.
        """
        targets = self._targets(batch)
        model, success, epoch = self.population, self.population.success, self.epoch + 1
        couplings = model.couplings()
        free = model.relax(model.initial(batch.inputs, STARTS, epoch), couplings=couplings)
        outputs = model.outputs(free.state)
        success.record_diverged(epoch, _finite(free))
        if not success.finite.any():
            raise NumericError(f"none of the {len(model)} networks is finite any more")
        success.record(epoch, squared_error(outputs, targets), self._right(outputs, targets))
        weights, biases, finite = self._changes(couplings, free, outputs, targets)
        values, present = self._learned(model.at_connections(weights))
        success.record_diverged(epoch, finite & values.isfinite().all(1))
        kept = success.finite.unsqueeze(1)
        model.values.copy_(torch.where(kept, values, model.values))
        if present is not model.present:
            model.present.copy_(torch.where(kept, present, model.present))
        if model.bias is not None:
            changed = model.bias + self.plasticity.rate_of(self.epoch) * biases[:, model.sizes.inputs :]
            model.bias.copy_(torch.where(kept, changed, model.bias))
        self.epoch = epoch
        return self._report(success.error, success.right) | {
            "held": share(success.streak >= HELD_EPOCHS),
            "ever-solved": share(success.solved > 0),
            "finite": share(success.finite),
            "sparsity": model.sparsity.mean().item(),
        }

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Errors after a free phase, always from the same initial states."""
        outputs, targets = self.model(batch.inputs), self._targets(batch)
        return self._report(squared_error(outputs, targets), self._right(outputs, targets))

    def state_dict(self) -> dict[str, Any]:
        """The networks with all records of theirs, and the epoch, of which every random number is a function."""
        return {"model": self.model.state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        self.epoch = state["epoch"]

    def _changes(
        self, couplings: Couplings, free: Relaxed, outputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ΔW and Δb at rate 1, `[P, N, N]` and `[P, N]`, and which networks were finite while they were nudged."""
        model, how = self.population, self.plasticity
        taught = torch.ones_like(outputs[..., 0])
        if how.margin is not None:
            taught -= predicted_right(outputs, targets, self.one_hot, how.margin).double()
        drawn = torch.ones_like(taught[:, :1])
        if how.nudging == "random-sign":
            drawn = torch.where(model.uniform(SIGNS, self.epoch + 1, 1) < 0.5, -1.0, 1.0)
        betas = (how.beta_0, how.beta_1) if how.rule == "deep" else None
        neurons = model.sizes.neurons
        finite = torch.ones_like(outputs[:, 0, 0], dtype=torch.bool)
        weights, biases = outputs.new_zeros(len(model), neurons, neurons), outputs.new_zeros(len(model), neurons)
        phases = NUDGINGS[how.nudging]
        for sign in phases:
            signed = sign * drawn * taught
            nudge = how.beta * signed
            nudged = model.relax(free.state, targets, nudge, steps=how.steps, betas=betas, couplings=couplings)
            finite = finite & _finite(nudged)
            parts = signed / (len(phases) * taught.shape[1])
            if how.rule == "deep":
                by_weight = nudged.trace / how.steps
            else:
                by_weight = contrasted_changes(model.activities(free.state), free.state, nudged.state, how.beta)
            weights += (by_weight * parts[..., None, None]).sum(1)
            if model.bias is not None:
                biases += (self._bias_changes(free, nudged) * parts[..., None]).sum(1)
        return weights, biases, finite

    def _bias_changes(self, free: Relaxed, nudged: Relaxed) -> Tensor:
        """Δb at rate 1, of each pattern, `[P, M, N]`."""
        how = self.plasticity
        if how.rule == "asymmetric":
            return (nudged.state - free.state) / how.beta
        start, end = (self.population.activities(phase.state) for phase in (free, nudged))
        return telescoped_changes(start, end, how.steps, how.beta_1)

    def _learned(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and presence of connections after an epoch, `[P, connections]` each, given ΔW at rate 1."""
        model, how = self.population, self.plasticity
        before, present = model.values.detach(), model.present
        changes = changes.sign() if how.sign else changes
        values = before + how.rate_of(self.epoch) * changes
        if how.l1:
            values -= how.l1 * before.sign()
        values *= present
        if how.sparsification is not None:
            removed = how.sparsification.removed(model, values, self.epoch + 1)
            values = torch.where(removed, 0.0, values)
            present = present if how.sparsification.regrow else present & ~removed
        return values, present

    def _right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of patterns that are predicted right, `[P]`."""
        return predicted_right(outputs, targets, self.one_hot).double().mean(1)

    def _targets(self, batch: Batch) -> Tensor:
        targets, outputs = batch.targets, self.population.sizes.outputs
        if targets.dim() != 2 or targets.shape[1] != outputs or not targets.dtype.is_floating_point:
            raise ConfigurationError(
                f"targets are real, of shape [patterns, {outputs}]; given {targets.dtype} {list(targets.shape)}"
            )
        kind = state_named(self.population.activity)
        if not ((targets >= kind.low) & (targets <= kind.high)).all():
            raise ConfigurationError(
                f"targets lie in the range of the activity {kind.name}, [{kind.low:g}, {kind.high:g}]; given numbers "
                f"from {targets.min():g} to {targets.max():g}"
            )
        return targets.double()

    def _report(self, error: Tensor, right: Tensor) -> dict[str, float]:
        """Over networks: the median error of finite ones, and shares; a network that diverged is never right."""
        finite = self.population.success.finite
        return {
            "loss": error[finite].median().item() if finite.any() else math.nan,
            "accuracy": (right @ finite.double()).item() / len(finite),
            "solved": share((right == 1) & finite),
        }


def share(networks: Tensor) -> float:
    """The share of networks `[P]` for which something holds."""
    return int(networks.count_nonzero()) / len(networks)


def _finite(relaxed: Relaxed) -> Tensor:
    """Which networks are finite on all patterns, `[P]`."""
    return (relaxed.outcome != NOT_FINITE).all(1)
