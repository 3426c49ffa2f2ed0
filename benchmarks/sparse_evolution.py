"""One change of the connections of a sparse layer, of which 30 % die and are born: by Numba and by plain torch.

The layer has as many inputs as outputs, and an optimizer with momentum (SGD), whose state follows. The note says by
which rules it drops and grows; growth by gradient includes the dense gradient of one batch, which is left out for the
large layer: it would have 10^12 entries. `training` is a training step of the same layer, forward, backward and SGD,
float32. New connections are drawn as in a new layer, so that one change is like the next.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save

from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution

CONTESTANTS = ("cpu", "reference", "training")


class Case(NamedTuple):
    """Rules and sizes."""

    drop: str
    grow: str
    features: int
    nnz: int
    batch: int


CASES = (
    Case("set", "random", 1024, 52_429, 128),
    Case("magnitude", "gradient", 1024, 52_429, 128),
    Case("set", "random", 10**6, 10**7, 1),
)
QUICK = (Case("set", "random", 30, 90, 8), Case("magnitude", "gradient", 30, 90, 8))


def setup(contestant: str, case: Case) -> Work:
    """The change by one backend, or the training step."""
    torch.manual_seed(0)
    layer = SparseLinear(case.features, case.features, nnz=case.nnz)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(case.batch, case.features)

    def train() -> None:
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()

    if contestant == "training":
        return partial(_under, "cpu", train)
    evolution = Evolution(layer, optimizer, drop=case.drop, grow=case.grow, initial="distribution")
    train()
    before = evolution.state_dict()  # with the gradient to grow by, which serves one change

    def change() -> None:
        evolution.load_state_dict(before)
        evolution.step()

    return partial(_under, contestant, change)


def _under(backend: str, work: Work) -> None:
    os.environ["SYNAPTOME_BACKEND"] = backend
    work()


def measure(case: Case, threads: int, rounds: int, memory: bool) -> list[Result]:
    """All contestants in one case."""
    return compare(
        "sparse-evolution",
        [Contestant(name, partial(setup, name, case)) for name in CONTESTANTS],
        baseline="cpu",
        rounds=rounds,
        threads=threads,
        unit="changes",
        note=f"{case.drop}/{case.grow}, {case.features} x {case.features}, {case.nnz} connections, batch {case.batch}",
        limit=90,
        memory=memory,
    )


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for case in QUICK if options.quick else CASES:
            large = case.features > 10**5
            rounds = 2 if options.quick else 5 if large else 20
            results += measure(case, threads, rounds, memory=not options.quick)
    save(results, options.out)


if __name__ == "__main__":
    main()
