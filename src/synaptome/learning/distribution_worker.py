"""What one worker of parallel variable distribution does: minimise over its block, and not forget the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError, unknown
from synaptome.learning.distribution_blocks import Partition, Values
from synaptome.learning.distribution_objective import Cut, Objective

SOLVERS = ("lbfgs", "adam")
ARMIJO = 1e-4  # share of the decrease that the slope promises (Nocedal & Wright 2006, section 3.1)
HALVINGS = 20  # of a step along the gradient, from 1 on


@dataclass(frozen=True)
class InnerSolver:
    """How a worker minimises its subproblem. It starts afresh in each outer iteration.

    Args:
        name: `lbfgs`, with line searches for the strong Wolfe conditions, or `adam`.
        steps: at least 1; L-BFGS stops sooner where the gradient vanishes, or after twice as many evaluations.
        rate: of Adam, or the first trial step of the line searches of L-BFGS; above 0.

    Raises:
        ConfigurationError: there is no such solver, or a number is out of range.
    """

    name: str = "lbfgs"
    steps: int = 15
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise unknown("inner solver", self.name, SOLVERS)
        if self.steps < 1 or not 0 < self.rate < math.inf:  # also refuses NaN
            raise ConfigurationError(
                f"an inner solver takes at least 1 step, at a finite rate above 0; given {self.steps} steps at the "
                f"rate {self.rate}"
            )

    def minimise(self, variables: Sequence[Tensor], function: Callable[[], Tensor]) -> int:
        """Leave the variables, leaves that require a gradient, at the solver's last point.

        Args:
            variables: what is moved.
            function: of them, 0-d.

        Returns:
            How often the function was evaluated with its gradient.
        """
        evaluations = 0

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            value = function()
            for variable, gradient in zip(
                variables, torch.autograd.grad(value, variables, materialize_grads=True), strict=True
            ):
                variable.grad = gradient
            return value.detach()

        if self.name == "lbfgs":
            lbfgs = torch.optim.LBFGS(
                variables,
                lr=self.rate,
                max_iter=self.steps,
                max_eval=2 * self.steps,
                history_size=self.steps,
                line_search_fn="strong_wolfe",
            )
            lbfgs.step(closure)  # type: ignore[no-untyped-call]
        else:
            adam = torch.optim.Adam(variables, lr=self.rate)
            for _ in range(self.steps):
                adam.step(closure)
        return evaluations


@dataclass(frozen=True)
class Start:
    """Where an outer iteration starts, the same for each worker.

    Attributes:
        values: x, the parameters.
        objective: f(x).
        gradient: of f at x, of the parameters' shapes.
        directions: d, along which each block may be moved by the workers of the others; None if it may not.
    """

    values: Values
    objective: float
    gradient: Values
    directions: Values | None


@dataclass(frozen=True)
class WorkerPoint:
    """What a worker came to: `x^l`, whose block l is `pieces`, and whose other blocks are `x_s + mu_s d_s`.

    Attributes:
        pieces: of the worker's block, in the partition's order.
        mu: `[blocks]` float64 on the CPU, 0 for the worker's own block.
        objective: f(x^l); that of the start if the worker stayed there.
        evaluations: of f, most of them with its gradient.
    """

    pieces: list[Tensor]
    mu: Tensor
    objective: float
    evaluations: int


def work(
    partition: Partition,
    objective: Objective,
    start: Start,
    block: int,
    solver: InnerSolver,
    sufficient: float,
    cut: Cut | None = None,
) -> WorkerPoint:
    """`min f(x_l, x_s + mu_s d_s)` over x_l and mu, inexactly: a pure function of what it is given.

    The solver's point is accepted for sufficient decrease, `f(x) - f(x^l) >= sufficient ||grad_l f(x)||²`, in place of
    an exact solution (Solodov 1997). If it does not give that, be it because its last point is worse or not finite, the
    block takes a step along its negative gradient too, halved until it has Armijo's decrease, and the better of the two
    points is taken if it is one, and else x itself.

    Args:
        partition: of the model's parameters.
        objective: f.
        start: x and what is known of it.
        block: l, from 0.
        solver: of the subproblem.
        sufficient: at least 0; of the dimension of a learning rate.
        cut: of the model before the block: what lies there is computed once if there are no directions.
    """
    own = [piece.clone().requires_grad_() for piece in partition.take(start.values, block)]
    others = torch.zeros(len(partition.blocks) - 1, dtype=own[0].dtype, device=own[0].device, requires_grad=True)
    variables = own if start.directions is None else [*own, others]
    f = objective if cut is None or start.directions is not None else objective.after(cut, start.values)

    def mu() -> Tensor:
        return torch.cat([others[:block], others.new_zeros(1), others[block:]])

    def at_point() -> Tensor:
        base = start.values if start.directions is None else partition.shift(start.values, start.directions, mu())
        return f(partition.put(base, block, own))

    evaluations = solver.minimise(variables, at_point) + 1
    with torch.no_grad():
        found = WorkerPoint([piece.detach() for piece in own], mu().cpu().double(), at_point().item(), evaluations)
        square = sum(slope.square().sum().item() for slope in partition.take(start.gradient, block))
        if found.objective <= start.objective - sufficient * square:
            return found
        return _stepped(partition, f, start, block, square, found)


def _stepped(
    partition: Partition, f: Objective, start: Start, block: int, square: float, found: WorkerPoint
) -> WorkerPoint:
    """The better of a step of steepest descent in the block and the solver's point, or the start."""
    here = partition.take(start.values, block)
    slopes = partition.take(start.gradient, block)
    still = torch.zeros_like(found.mu)
    for halvings in range(HALVINGS):
        step = 0.5**halvings
        pieces = [value - step * slope for value, slope in zip(here, slopes, strict=True)]
        reached = f(partition.put(start.values, block, pieces)).item()
        if reached <= start.objective - ARMIJO * step * square and reached < start.objective:
            if found.objective <= reached:
                return replace(found, evaluations=found.evaluations + halvings + 1)
            return WorkerPoint(pieces, still, reached, found.evaluations + halvings + 1)
    return WorkerPoint(here, still, start.objective, found.evaluations + HALVINGS)
