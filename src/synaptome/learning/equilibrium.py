"""Equilibrium propagation (Scellier & Bengio 2017): gradients from two relaxations.

The network relaxes freely to s0, then, nudged towards the targets, to s+ and, with centered nudging, to s-; else s- is
s0. With d the difference of the two betas, a weight W from neuron i to neuron j follows the estimate of `-dC/dW`

| network | rule | nudged drive | estimate |
|---|---|---|---|
| symmetric | EP | as in the free phase | `(s+_i s+_j - s-_i s-_j) / d` |
| with feedback weights | asymmetric EP (Scellier et al. 2018) | the same | `s0_i (s+_j - s-_j) / d` |
| the same | corrected (Scurria et al. 2026) | deviations from s0 spread by transposed weights | the same |

and a bias `(s+_j - s-_j) / d`. The first tends to the gradient of the cost at the free equilibrium as beta tends to 0.
So does the third, for any weights: at s0, `F(s, W) = 0`, the gradient is `-C_s' J^-1 F_W`, and the nudged equilibrium
`s0 + v` of the corrected drive solves `J' v = beta C_s` to first order. The second solves `J v = beta C_s` instead, and
is exact where J is symmetric only. The read-out of a network that has one follows its gradient at s0.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from synaptome.data.dataset import Batch
from synaptome.data.indexed import IndexedBatch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.kernels.relax import CONVERGED
from synaptome.learning.nudging import CrossEntropy, check_nudging, cost_named, drawn_phases
from synaptome.learning.optimization import load_schedule, schedule_state
from synaptome.networks.drive import Drive
from synaptome.networks.equilibrium import EquilibriumNetwork
from synaptome.networks.relaxation import Outcome, Relaxation, States


class EquilibriumPropagation:
    """Learns by comparing the equilibria of a free and of nudged phases.

    Args:
        network: symmetric, or with feedback weights of its own; how it relaxes freely is its own.
        optimizer: any torch optimizer over its parameters that does not call a closure again; rates by layer are
            parameter groups of `EquilibriumNetwork.synapses()`.
        cost: `squared-error` of output neurons, or `cross-entropy` of a network with a read-out.
        nudging: `one-sided`, `random-sign` or `centered`.
        beta: strength of the nudge, above 0.
        nudged: how the nudged phases relax, each from the free equilibrium; 4 steps of the free phase's size if None.
        corrected: whether the nudged phases of a network with feedback weights are corrected, which makes them exact.
        examples: how many training examples there are, whose free states are kept and are where their next free phase
            starts (Scellier & Bengio 2017); batches must be `IndexedBatch`es. None starts from 0 each time.
        scheduler: a learning-rate schedule that steps once a batch.

    Attributes:
        model: the network.

    Raises:
        ConfigurationError: one of them is none of the above, or contradicts another.

    Warns:
        UserWarning: dt is above `EquilibriumNetwork.step_bound()`.
    """

    model: nn.Module

    def __init__(
        self,
        network: EquilibriumNetwork,
        optimizer: torch.optim.Optimizer,
        cost: str = "squared-error",
        *,
        nudging: str = "random-sign",
        beta: float = 0.5,
        nudged: Relaxation | None = None,
        corrected: bool = False,
        examples: int | None = None,
        scheduler: LRScheduler | None = None,
    ) -> None:
        check_nudging(nudging, beta)
        if corrected and network.symmetric:
            raise ConfigurationError(
                "a symmetric network needs no correction: its gradient is exact without; leave corrected out, or make "
                "the network with symmetric=False"
            )
        if examples is not None and examples < 1:
            raise ConfigurationError(f"states are kept for at least 1 example, or for none (None); given {examples}")
        self.model = self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.cost = cost_named(cost, network)
        self.nudging, self.beta, self.corrected = nudging, beta, corrected
        self.nudged = Relaxation(4, network.relaxation.dt) if nudged is None else nudged
        self._kept = None if examples is None else network.rest(examples)
        _warn_of_large_steps(network, network.relaxation, self.nudged)

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; see `LearningRule.step`.

        Reports `residual` too, that of the free phase, and where it has a tolerance `resting`, the share of the
        examples that came to rest.
        """
        free, drive = self.free_phase(batch)
        report = self._means(batch, self.network.outputs(free.states)) | {"residual": free.residual.mean().item()}
        if self.network.relaxation.tolerance is not None:
            report["resting"] = (free.outcome == CONVERGED).double().mean().item()
        if not (math.isfinite(report["loss"]) and math.isfinite(report["residual"])):
            raise NumericError(f"the loss is {report['loss']}, and the states of the free phase are not all finite")
        if self._kept is not None and isinstance(batch, IndexedBatch):
            for kept, state in zip(self._kept, free.states, strict=True):
                kept.index_copy_(0, batch.examples, state)
        self.differentiate(batch, free.states, drive, drawn_phases(self.nudging, self.beta))
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return report

    @torch.no_grad()
    def free_phase(self, batch: Batch) -> tuple[Outcome, Drive]:
        """Relax without a nudge; returns what came of it, and the drive of the layers.

        Raises:
            ConfigurationError: states are kept, and the batch does not say whose they are.
        """
        drive = self.network.drive(batch.inputs)
        if self._kept is None:
            start: States = self.network.rest(len(batch.inputs))
        elif isinstance(batch, IndexedBatch):
            start = [kept.index_select(0, batch.examples) for kept in self._kept]
        else:
            raise ConfigurationError(
                "states are kept for each training example, and this batch does not say which examples it holds; train "
                "on synaptome.data.indexed.indexed(dataset), or leave examples out"
            )
        return self.network.relax(drive, start), drive

    @torch.no_grad()
    def differentiate(self, batch: Batch, free: States, drive: Drive, betas: tuple[float, float]) -> None:
        """Leave the estimate of the gradient of the mean cost in the parameters.

        Args:
            batch: of the free phase.
            free: its states.
            drive: its drive.
            betas: of the two phases to compare; 0 is the free one.
        """
        targets = self.cost.prepared(batch.targets)
        felt = drive.transposed_about(free) if self.corrected else drive
        plus, minus = (
            self.network.relax(felt, free, self.nudged, partial(self.cost.push, targets=targets, beta=beta)).states
            if beta
            else free
            for beta in betas
        )
        self.network.contrast(batch.inputs.flatten(1), free, plus, minus, betas[0] - betas[1])
        if isinstance(self.cost, CrossEntropy):
            self.cost.differentiate(free[-1], targets)

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        """The estimate of the gradient, by the names of the parameters, after a free phase from states 0.

        Where signs are random, that of the positive one. It also stands in the parameters afterwards.
        """
        drive = self.network.drive(batch.inputs)
        free = self.network.relax(drive, self.network.rest(len(batch.inputs))).states
        self.differentiate(batch, free, drive, (self.beta, -self.beta if self.nudging == "centered" else 0.0))
        gradients = {name: parameter.grad for name, parameter in self.network.named_parameters()}
        return {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch after a free phase from states 0."""
        return self._means(batch, self.network(batch.inputs))

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and schedule, and the states kept."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule_state(self.scheduler),
            "kept": self._kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            ConfigurationError: it keeps states of other examples, or none where this rule does, or the reverse.
        """
        kept = state["kept"]
        if _shapes(kept) != _shapes(self._kept):
            raise ConfigurationError(
                f"the state keeps layers of {_shapes(kept)} for its examples, and this rule {_shapes(self._kept)}: it "
                f"is of another network, or of other training examples"
            )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
        for own, given in zip(self._kept or (), kept or (), strict=True):
            own.copy_(given)

    @torch.no_grad()
    def _means(self, batch: Batch, outputs: Tensor) -> dict[str, float]:
        means = {"loss": self.cost.per_example(outputs, self.cost.prepared(batch.targets)).mean().item()}
        if batch.targets.dtype == torch.int64:
            means["accuracy"] = (outputs.argmax(1) == batch.targets).sum().item() / len(batch.targets)
        return means


def _shapes(kept: States | None) -> list[list[int]] | None:
    return None if kept is None else [list(state.shape) for state in kept]


def _warn_of_large_steps(network: EquilibriumNetwork, *relaxations: Relaxation) -> None:
    bound = network.step_bound()
    dt = max(relaxation.dt for relaxation in relaxations)
    if dt > bound:
        warnings.warn(
            f"dt = {dt:g} makes the projected map expansive: with these weights, steps above {bound:.3g} overshoot, "
            f"and states may oscillate instead of coming to rest; take a smaller dt, or smaller weights",
            stacklevel=3,
        )
