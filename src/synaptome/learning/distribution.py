"""Parallel variable distribution (Ferris & Mangasarian 1994; Solodov 1997): workers share out the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError, unknown
from synaptome.learning.distribution_blocks import Block, Partition
from synaptome.learning.distribution_objective import Objective, cut_before
from synaptome.learning.distribution_processes import Processes
from synaptome.learning.distribution_synchronise import SYNCHRONISATIONS, Candidate, synchronise
from synaptome.learning.distribution_worker import InnerSolver, Start, WorkerPoint, work
from synaptome.learning.loss import Loss, batch_means, loss_named
from synaptome.synapses.predict import predict

# What two ways to compute the objective may differ by: relatively, and of the loss of an example near 0.
ROUNDING, NEAR_ZERO = 1e-4, 1e-6


class ParallelVariableDistribution:
    """Each worker minimises the loss over a block of the parameters, and their points are made one.

    A step is an outer iteration, on a batch that is fixed during it. With the parameters x in blocks x_1, ..., x_p:

    - Worker l minimises `f(x_l, x_s + mu_s d_s)` over its block x_l and over step sizes mu_s of all other blocks, along
      `d_s = -grad_s f(x)`: these are the forget-me-not terms. Or over x_l alone, and then what the
      layers before its first one make of the batch is computed once (`cut_before` says of which models).
    - It is inexact: see `work` for what is accepted of a worker.
    - The points are synchronised: see `synchronise`.

    So f never increases on a batch; that is checked after each step. On other batches it may. With one block this is
    the inner solver, started afresh in each step. Synapses that fail do so as in one pass: their failures are fixed
    during a step, as the batch is.

    Args:
        model: any module from inputs `[batch, ...]` to outputs `[batch, outputs]` whose outputs are a function of its
            parameters, buffers and inputs.
        blocks: of its trainable parameters: `by_layers`, `by_parameters` or of your own.
        loss: a name in `synaptome.learning.loss.LOSSES`, or a `Loss`.
        solver: of the workers.
        synchronisation: `hull` or `best`.
        forget_me_not: whether workers move the blocks of the others along d.
        sufficient: decrease that is asked of a worker, in units of its block's squared gradient; at least 0.
        processes: in which the workers run; one after the other in this one if None.

    Attributes:
        model: the network.

    Raises:
        ConfigurationError: a name or a number is none of these, or the blocks are not all parameters, once.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        loss: str | Loss = "cross-entropy",
        *,
        solver: InnerSolver | None = None,
        synchronisation: str = "hull",
        forget_me_not: bool = True,
        sufficient: float = 1e-6,
        processes: Processes | None = None,
    ) -> None:
        if synchronisation not in SYNCHRONISATIONS:
            raise unknown("synchronisation", synchronisation, SYNCHRONISATIONS)
        if not 0 <= sufficient < math.inf:  # also refuses NaN
            raise ConfigurationError(f"a sufficient decrease is a finite number of at least 0; given {sufficient}")
        self.model = model
        self.loss = loss_named(loss) if isinstance(loss, str) else loss
        self.partition = Partition(model, blocks)
        self.solver = InnerSolver() if solver is None else solver
        self.synchronisation = synchronisation
        self.forget_me_not = forget_me_not and len(self.partition.blocks) > 1
        self.sufficient = sufficient
        self.processes = processes
        self._cuts = [None if self.forget_me_not else cut_before(model, block) for block in self.partition.blocks]

    def step(self, batch: Batch) -> dict[str, float]:
        """One outer iteration; see `LearningRule.step`.

        Reports the loss `after` it and the `decrease`, both of this batch; `taken/hull`, `taken/worker-1`, ... and
        `taken/none`, of which one is 1 and the others are 0; and `evaluations`, the passes that all workers and the
        synchronisation took. Over many steps, their means are shares.

        Raises:
            NumericError: the loss or its gradient is not finite, or the loss has increased; the model is as before.
            ConfigurationError: the loss of the same batch and parameters is not always the same, or not the same in all
                processes.
            WorkerLostError: another process did not answer in time, or ended.
        """
        if not self.model.training:
            self.model.train()
        objective = Objective.of(self.model, self.loss, batch)
        start, report = self._start(objective, batch)
        points = self._points(objective, start)
        found = synchronise(self.partition, objective, start, points, self.synchronisation)
        taken, reached = self._install(found, start, objective, batch)
        after = report["loss"] if taken == "none" else reached
        report |= {"after": after, "decrease": report["loss"] - after}
        workers = [f"worker-{number}" for number in range(1, len(points) + 1)]
        report |= {f"taken/{name}": float(taken == name) for name in ("hull", *workers, "none")}
        report["evaluations"] = float(sum(point.evaluations for point in points) + found.evaluations)
        return report

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference, over as many noisy passes as the synapses ask for."""
        outputs = predict(self.model, batch.inputs).mean
        return batch_means(outputs, self.loss.per_example(outputs, batch.targets), batch.targets)

    def state_dict(self) -> dict[str, Any]:
        """The model: workers keep nothing from one step to the next."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])

    def _start(self, objective: Objective, batch: Batch) -> tuple[Start, dict[str, float]]:
        """Where the iteration starts, and the means there."""
        values = self.partition.values()
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        outputs = objective.outputs(leaves)
        losses = self.loss.per_example(outputs, batch.targets)
        f = self.loss.objective(losses)
        gradient = dict(zip(leaves, torch.autograd.grad(f, [*leaves.values()], materialize_grads=True), strict=True))
        means = batch_means(outputs, losses, batch.targets)
        if not math.isfinite(f.item()):
            raise NumericError(f"the loss is {means['loss']}")
        if not all(bool(each.isfinite().all()) for each in gradient.values()):
            raise NumericError(f"the loss is {means['loss']}, but its gradient is not finite")
        with torch.no_grad():
            again = objective(values).item()
        if not abs(again - f.item()) <= self._rounding(f.item(), batch):
            raise ConfigurationError(
                f"for one batch and the same parameters, the objective is {f.item()} at one pass and {again} at the "
                f"next; parallel variable distribution compares such numbers: take layers whose noise has a counter, "
                f"such as FailingLinear, in place of layers that draw from torch's generator, such as torch.nn.Dropout"
            )
        directions = {name: -each for name, each in gradient.items()} if self.forget_me_not else None
        return Start(values, f.item(), gradient, directions), means

    def _points(self, objective: Objective, start: Start) -> list[WorkerPoint]:
        count = len(self.partition.blocks)
        mine = range(count) if self.processes is None else self.processes.mine(count)
        points = {
            block: work(self.partition, objective, start, block, self.solver, self.sufficient, self._cuts[block])
            for block in mine
        }
        if self.processes is not None:
            return self.processes.exchange(self.partition, start, points)
        return list(points.values())

    @torch.no_grad()
    def _install(self, found: Candidate, start: Start, objective: Objective, batch: Batch) -> tuple[str, float]:
        """Make a point the model's, if it is not above the start in the model itself; what was taken, and its loss."""
        before = {name: value.clone() for name, value in start.values.items()}
        self.partition.install(found.values)
        # The one pass of the step that counts: the counters of failures, and running means, go on by it.
        losses = self.loss.per_example(self.model(batch.inputs), batch.targets)
        reached = self.loss.objective(losses).item()
        taken = found.taken
        if not reached <= start.objective:
            self.partition.install(before)
            if not reached <= start.objective + self._rounding(start.objective, batch):
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(objective.buffers[name])
                raise NumericError(
                    f"the objective went from {start.objective} to {reached} in a step that must not increase it, at a "
                    f"point where {found.objective} was expected ({found.taken}); the step was undone"
                )
            taken = "none"
        if self.processes is not None:
            self.processes.agree(self.partition.values())
        return taken, losses.mean().item()

    def _rounding(self, objective: float, batch: Batch) -> float:
        return ROUNDING * abs(objective) + NEAR_ZERO * (len(batch.targets) if self.loss.summed else 1)
