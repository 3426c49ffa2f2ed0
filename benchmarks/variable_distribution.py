"""A pass of the last worker of parallel variable distribution, forward and backward: whole, and from its own layers on.

Without forget-me-not terms the layers before a worker's block do not change in an outer iteration, and what they make
of the batch is computed once. Digits, all training examples, one thread, CPU time, since what else the machine does
must not count.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import nn

from synaptome import data
from synaptome.learning.distribution_blocks import Partition, by_layers
from synaptome.learning.distribution_objective import Objective, cut_before
from synaptome.learning.loss import loss_named
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.stable import StableNetwork

DEPTH = 8
PASSES = 5
BLOCKS = (2, 4)


def network(kind: str, inputs: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    if kind == "stable":
        return StableNetwork(inputs, classes, dynamics="verlet", width=128, depth=DEPTH, opening="learned")
    return FeedForward([inputs, *[256] * (DEPTH - 1), classes], activation="tanh")


def setup(kind: str, blocks: int, cached: bool) -> Work:
    """Passes of the last of so many workers."""
    examples = data.load("digits")
    batch = examples.train[slice(None)]
    model = network(kind, batch.inputs[0].numel(), examples.outputs)
    partition, last = Partition(model, by_layers(model, blocks)), blocks - 1
    objective = Objective.of(model, loss_named("cross-entropy"), batch)
    values = partition.values()
    if cached:
        cut = cut_before(model, partition.blocks[last])
        assert cut is not None
        objective = objective.after(cut, values)
    own = [piece.clone().requires_grad_() for piece in partition.take(values, last)]

    def work() -> None:
        for _ in range(PASSES):
            torch.autograd.grad(objective(partition.put(values, last, own)), own)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    options = parser.parse_args()
    results = []
    for kind in ("stable", "feed-forward"):
        for blocks in BLOCKS:
            contestants = [
                Contestant(name, partial(setup, kind, blocks, cached))
                for name, cached in (("whole", False), ("cached", True))
            ]
            results += compare(
                "variable-distribution",
                contestants,
                baseline="whole",
                rounds=2 if options.quick else 40,
                amount=PASSES,
                unit="passes",
                note=f"{kind}, {DEPTH} layers, the last of {blocks} blocks, digits, CPU time",
                clock=time.process_time,
                limit=30.0,
            )
    save(results, options.out)


if __name__ == "__main__":
    main()
