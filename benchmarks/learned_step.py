"""Training steps of LeNet-300-100 that learns its connectivity, against one that learns its weights, in CPU time.

784-300-100-10 with ReLU, cross-entropy and Adam, no biases, float32. `dense` is `torch.nn.Linear`; `naive` prunes a
frozen weight by plain autograd, `W (f(s) + s - detach(s))`, as most published code does; the others are `LearnedLinear`
of each method, those of the minimal methods with their penalty. CPU time of the process, because what else the machine
does must not count; of one thread, because threads that wait spin.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

import synaptome as syn
from synaptome.synapses.learned_rules import METHODS

WIDTHS = (784, 300, 100, 10)
QUICK_WIDTHS = (20, 30, 10)
STEPS = 10  # a call: in training, a step finds the caches as the one before left them
LOADED = 28 * 2**20  # bytes; blocks of up to 32 MiB teach glibc's malloc how large those are that come and go


class Naive(nn.Linear):
    """A frozen weight under a mask that autograd sees."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.empty_like(self.weight).uniform_(0.01, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.scores > 0).to(self.scores.dtype)
        return F.linear(x, self.weight * (mask + self.scores - self.scores.detach()))


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "dense": partial(nn.Linear, bias=False),
    "naive": Naive,
    **{method: partial(syn.LearnedLinear, bias=False, method=method) for method in METHODS},
}


def setup(contestant: str, widths: Sequence[int], batch: int) -> Work:
    """The network of a contestant, and some of its training steps."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [LAYERS[contestant](inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    x, targets = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))
    penalised = contestant.startswith("minimal")

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), targets)
            if penalised:
                loss = loss + syn.penalty(model)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return steps


def measure(widths: Sequence[int], batch: int, threads: int, rounds: int) -> list[Result]:
    """All contestants with one size of batch.

    A block is freed first, as those of the data are before training begins: malloc then keeps the memory that a step
    frees. Else it may give pages back to the system at every step and fault them in again, which takes as long as a
    learned weight does.
    """
    torch.zeros(LOADED, dtype=torch.uint8)
    return compare(
        "learned-step",
        [Contestant(name, partial(setup, name, tuple(widths), batch)) for name in LAYERS],
        baseline="dense",
        rounds=rounds,
        warmup=2,
        threads=threads,
        amount=STEPS,
        unit="steps",
        note=f"{'-'.join(map(str, widths))}, batch {batch}, Adam, float32, CPU time",
        limit=90,
        clock=time.process_time,
    )


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[25, 128])
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for batch in options.batch:
            widths, rounds = (QUICK_WIDTHS, 2) if options.quick else (WIDTHS, 61)
            results += measure(widths, batch, threads, rounds)
    save(results, options.out)


if __name__ == "__main__":
    main()
