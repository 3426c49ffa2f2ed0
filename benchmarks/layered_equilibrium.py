"""Training steps of layered equilibrium propagation, against the same step by autograd of the energy, in CPU time.

784-500-10, symmetric, hard sigmoid, squared error, centered nudging: a free phase of 20 steps from states that are
kept, two nudged ones of 4, batch 20, SGD, float32. `autograd` writes the energy down and lets torch differentiate it by
the states in each step of a phase, and by the weights at its end; `network.energy` is not what it differentiates, but a
plain energy of its own. `explicit` is `EquilibriumPropagation`: products that are written down, the drive of the
clamped input computed once a batch, steps in memory that is there already, and no graph. `persistent` also reads and
keeps the states of 60 000 examples. CPU time of the process, because what else the machine does must not count; of one
thread, because threads that wait spin.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save
from torch import Tensor
from torch.nn import functional as F

from synaptome.data.dataset import Batch
from synaptome.data.indexed import IndexedBatch
from synaptome.learning.equilibrium import EquilibriumPropagation
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation

WIDTHS = (784, 500, 10)
QUICK_WIDTHS = (20, 30, 10)
EXAMPLES = 60_000
QUICK_EXAMPLES = 100
FREE, NUDGED, DT, BETA, RATES = 20, 4, 0.5, 0.5, (0.1, 0.05)
STEPS = 10  # a call: in training, a step finds the caches as the one before left them


class ByAutograd:
    """The same rule, as the energy alone gives it."""

    def __init__(self, network: LayeredNetwork) -> None:
        self.weights = [p.detach().clone().requires_grad_() for n, p in network.named_parameters() if "weight" in n]
        self.biases = [p.detach().clone().requires_grad_() for n, p in network.named_parameters() if "bias" in n]

    def energy(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """`sum s^2 / 2 - b' s - s_l' W_l s_{l-1}`, a sum over the batch."""
        total, below = x.new_zeros(()), x
        for state, weight, bias in zip(states, self.weights, self.biases, strict=True):
            total = total + state.square().sum() / 2 - (state * (below @ weight.T)).sum() - (state @ bias).sum()
            below = state
        return total

    def relaxed(self, x: Tensor, states: list[Tensor], y: Tensor, beta: float, steps: int) -> list[Tensor]:
        """Projected gradient descent on the energy, and on beta times the cost."""
        for _ in range(steps):
            states = [state.detach().requires_grad_() for state in states]
            total = self.energy(x, states)
            if beta:
                total = total + beta * (y - states[-1]).square().sum() / 2
            gradients = torch.autograd.grad(total, states)
            states = [(s - DT * g).clamp(0, 1).detach() for s, g in zip(states, gradients, strict=True)]
        return states

    def step(self, batch: Batch) -> None:
        """A step of centered nudging; states start from 0."""
        x = batch.inputs.flatten(1)
        y = F.one_hot(batch.targets, self.biases[-1].numel()).to(x.dtype)
        rest = [x.new_zeros(len(x), bias.numel()) for bias in self.biases]
        free = self.relaxed(x, rest, y, 0.0, FREE)
        plus, minus = (self.relaxed(x, free, y, beta, NUDGED) for beta in (BETA, -BETA))
        parameters = [*self.weights, *self.biases]
        contrast = (self.energy(x, plus) - self.energy(x, minus)) / (2 * BETA * len(x))
        gradients = torch.autograd.grad(contrast, parameters)
        with torch.no_grad():
            for parameter, gradient, rate in zip(parameters, gradients, (*RATES, *RATES), strict=True):
                parameter.sub_(gradient, alpha=rate)


def rule(network: LayeredNetwork, examples: int | None) -> EquilibriumPropagation:
    """The library's own."""
    groups = [{"params": group, "lr": rate} for group, rate in zip(network.synapses(), RATES, strict=True)]
    return EquilibriumPropagation(
        network,
        torch.optim.SGD(groups),
        nudging="centered",
        beta=BETA,
        nudged=Relaxation(NUDGED, DT),
        examples=examples,
    )


def setup(contestant: str, widths: Sequence[int], batch: int, examples: int) -> Work:
    """The network of a contestant, and some of its training steps."""
    torch.manual_seed(0)
    network = LayeredNetwork(widths, relaxation=Relaxation(FREE, DT))
    x, targets = torch.rand(batch, widths[0]) * (torch.rand(batch, widths[0]) < 0.2), torch.randint(10, (batch,))
    given = IndexedBatch(x, targets, torch.randperm(examples)[:batch])
    if contestant == "autograd":
        step = ByAutograd(network).step
    else:
        learner = rule(network, examples if contestant == "persistent" else None)

        def step(batch: Batch) -> None:
            learner.step(batch)

    def steps() -> None:
        for _ in range(STEPS):
            step(given)

    return steps


def measure(widths: Sequence[int], examples: int, batch: int, threads: int, rounds: int) -> list[Result]:
    """All contestants with one size of batch."""
    return compare(
        "layered-equilibrium",
        [
            Contestant(name, partial(setup, name, tuple(widths), batch, examples))
            for name in ("autograd", "explicit", "persistent")
        ],
        baseline="autograd",
        rounds=rounds,
        warmup=2,
        threads=threads,
        amount=STEPS,
        unit="steps",
        note=f"{'-'.join(map(str, widths))}, batch {batch}, {FREE} + 2 x {NUDGED} steps, SGD, float32, CPU time",
        limit=90,
        clock=time.process_time,
    )


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[20])
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for batch in options.batch:
            widths, examples, rounds = (QUICK_WIDTHS, QUICK_EXAMPLES, 2) if options.quick else (WIDTHS, EXAMPLES, 31)
            results += measure(widths, examples, batch, threads, rounds)
    save(results, options.out)


if __name__ == "__main__":
    main()
