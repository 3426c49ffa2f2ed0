"""The synchronisation of parallel variable distribution: from what the workers came to, to one point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptome.learning.distribution_blocks import Partition
from synaptome.learning.distribution_objective import Objective
from synaptome.learning.distribution_worker import InnerSolver, Start, WorkerPoint

SYNCHRONISATIONS = ("hull", "best")
HULL = InnerSolver("lbfgs", steps=10)  # a handful of coefficients, each near 0 or 1


@dataclass(frozen=True)
class Candidate:
    """A point that may become the next one.

    Attributes:
        values: of the parameters.
        objective: f there.
        taken: `hull`, `worker-1`, `worker-2`, ..., or `none` for the point where the iteration started.
        evaluations: of f, spent on finding it from the workers' points.
    """

    values: dict[str, Tensor]
    objective: float
    taken: str
    evaluations: int


def synchronise(
    partition: Partition, objective: Objective, start: Start, points: Sequence[WorkerPoint], how: str
) -> Candidate:
    """The next point, nowhere above the start (Ferris & Mangasarian 1994).

    `best` takes the best worker's point. `hull` minimises `f(x + sum_l a_l (x^l - x))` over a, from the best worker's
    corner on, and takes what it finds if that is below the best worker. With one worker the two are the same, and there
    is nothing to synchronise.

    Args:
        partition: of the model's parameters.
        objective: f, of all parameters.
        start: x and what is known of it.
        points: of the workers, in the order of their blocks.
        how: `hull` or `best`.
    """
    number = min(range(len(points)), key=lambda worker: points[worker].objective)
    best = _worker(partition, objective, start, points, number)
    if how == "best" or len(points) == 1:
        return best
    steps = torch.stack([point.mu for point in points])  # [worker, block], 0 on the diagonal
    moves = {name: torch.zeros_like(value) for name, value in start.values.items()}
    for block, point in enumerate(points):
        own = partition.take(start.values, block)
        moves = partition.put(moves, block, [new - old for new, old in zip(point.pieces, own, strict=True)])

    def at(a: Tensor) -> dict[str, Tensor]:
        values = partition.shift(start.values, moves, a)
        return values if start.directions is None else partition.shift(values, start.directions, a @ steps)

    a = torch.zeros(len(points), dtype=torch.float64)
    a[number] = 1
    a.requires_grad_()
    lowest, chosen = best.objective, None

    def function() -> Tensor:
        nonlocal lowest, chosen
        value = objective(at(a))
        if value.item() < lowest:  # the last point of the search is not always its lowest
            lowest, chosen = value.item(), a.detach().clone()
        return value

    evaluations = HULL.minimise([a], function) + best.evaluations
    if chosen is None:
        return Candidate(best.values, best.objective, best.taken, evaluations)
    return Candidate(at(chosen), lowest, "hull", evaluations)


@torch.no_grad()
def _worker(
    partition: Partition, objective: Objective, start: Start, points: Sequence[WorkerPoint], number: int
) -> Candidate:
    """A worker's point, or the start if it is not below that.

    What the worker knows of f may differ by rounding, if it began in the middle of the model: f is computed again.
    """
    point, base = points[number], start.values
    if start.directions is not None:
        base = partition.shift(start.values, start.directions, point.mu)
    values = partition.put(base, number, point.pieces)
    reached = objective(values).item()
    if reached < start.objective:
        return Candidate(values, reached, f"worker-{number + 1}", 1)
    return Candidate(dict(start.values), start.objective, "none", 1)
