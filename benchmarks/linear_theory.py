"""One step of learning on the exact expectation, against one step on a sampled batch of 1000, N = 100.

`explicit` is what earlier code does: layers that hold a mask for each example, differentiated by autograd; `cpu` is
synaptome's failing layer. Each step is one of SGD on a linear network N-...-N-1 at failure 0.5, at a rate so small that
the network stays as it is. The exact step has no sampling noise, so that the ratio says less than the whole.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import Tensor, nn

from synaptome.data import Batch, linear_regression
from synaptome.learning.backprop import Backprop
from synaptome.learning.exact_expectation import ExactExpectation
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.failing import Failing

FEATURES, BATCH, FAILURE, RATE = 100, 1000, 0.5, 1e-12
STEPS = 10  # a call


class Explicit(nn.Linear):
    """A failing layer with its mask in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in]` to `[batch, out]`."""
        mask = torch.rand(len(x), *self.weight.shape) > FAILURE
        return torch.bmm(mask * self.weight, x.unsqueeze(2)).squeeze(2) / (1 - FAILURE)


def rule(kind: str, depth: int, batch: int) -> tuple[Backprop, Batch]:
    """A contestant's rule and its batch."""
    torch.manual_seed(0)
    exact = kind == "exact"
    dtype = torch.float64 if exact else torch.float32
    pairs = linear_regression(FEATURES, 1, train=batch, test=1, population=exact, dtype=dtype)
    wiring = None if kind == "explicit" else Failing(FAILURE)
    network = FeedForward([FEATURES] * depth + [1], activation="linear", bias=False, wiring=wiring).to(dtype)
    if kind == "explicit":
        for layer in network.layers:
            layer.__class__ = Explicit
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    if exact:
        assert pairs.teacher is not None
        return ExactExpectation(network, optimizer, pairs.teacher, batch_size=batch), pairs.train[:batch]
    return Backprop(network, optimizer, "summed-squared-error"), pairs.train[:batch]


def setup(kind: str, depth: int, batch: int) -> Work:
    """The work of one contestant: some steps in a row, as in training."""
    learner, examples = rule(kind, depth, batch)

    def work() -> None:
        for _ in range(STEPS):
            learner.step(examples)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small batch, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    batch = 10 if options.quick else BATCH
    results = []
    for threads in options.threads:
        for depth in (2, 5):
            results += compare(
                "linear-theory",
                [Contestant(kind, partial(setup, kind, depth, batch)) for kind in ("explicit", "cpu", "exact")],
                baseline="exact",
                rounds=2 if options.quick else 9,
                threads=threads,
                amount=STEPS,
                unit="steps",
                note=f"N = {FEATURES}, {depth} layers, failure {FAILURE}; sampled: batch {batch}, float32",
                limit=60.0,
            )
    save(results, options.out)


if __name__ == "__main__":
    main()
