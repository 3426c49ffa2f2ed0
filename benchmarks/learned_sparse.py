"""What learned masks are worth at inference: latency and size of networks, dense, learned and sparse, in CPU time.

LeNet-300-100 on images of 28 x 28 and Conv2 on 3 x 32 x 32, no biases, float32. `dense` is the network of torch with
all of its weights; `learned` the network as it is trained, which masks its weights in every pass; `sparse` the same
after `to_sparse`, which stores each layer sparsely or densely, by its density. Masks are drawn at random, at densities
that the methods reach on MNIST, or are told to keep. A row of the CSV also has the bytes of the tensors of the state,
those of the compact file, and how each layer is stored. CPU time of the process, because what else the machine does
must not count; of one thread, because threads that wait spin.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save
from torch import nn

import synaptome as syn
from synaptome.networks import registry
from synaptome.synapses.learned_model import learned_layers
from synaptome.training.compact import compact_bytes

SEED = 0
CLASSES = 10
CALLS = {1: 50, 100: 5}  # passes that are timed together, by the size of the batch
SHAPES = {"lenet": (1, 28, 28), "conv2": (3, 32, 32)}
QUICK_SHAPES = {"lenet": (1, 4, 4), "conv2": (3, 8, 8)}
CONTESTANTS = ("dense", "learned", "sparse")
FORMS = (nn.Linear, nn.Conv2d, syn.SparseLinear, syn.SparseConv2d)  # what `to_sparse` chooses among


class Case(NamedTuple):
    """A network, the method of its masks, and the share of synapses that they keep."""

    network: str
    method: str
    density: float


CASES = (
    Case("lenet", "free-pruning", 0.6),
    Case("lenet", "minimal-pruning", 0.93),
    Case("lenet", "edge-popup", 0.5),
    Case("lenet", "edge-popup", 0.1),
    Case("lenet", "edge-popup", 0.05),
    Case("conv2", "edge-popup", 0.1),
)


def build(contestant: str, case: Case, shape: Sequence[int]) -> nn.Module:
    """The network of a contestant, in inference; the weights and masks of all are the same."""
    torch.manual_seed(SEED)
    top = case.method == "edge-popup"
    wiring = None if contestant == "dense" else syn.Learned(case.method, density=case.density if top else None)
    model = registry.build(case.network, shape, CLASSES, bias=False, seed=SEED, wiring=wiring)
    if not top:
        for layer in learned_layers(model).values():
            with torch.no_grad():
                layer.scores.copy_(case.density - torch.rand_like(layer.scores))
    return (syn.to_sparse(model) if contestant == "sparse" else model).eval()


def setup(contestant: str, case: Case, shape: Sequence[int], batch: int) -> Work:
    """The network of a contestant, and some passes at inference."""
    model = build(contestant, case, shape)
    x = torch.randn(batch, *shape)

    @torch.no_grad()
    def passes() -> None:
        for _ in range(CALLS.get(batch, 1)):
            model(x)

    return passes


def described(contestant: str, case: Case, shape: Sequence[int]) -> dict[str, Any]:
    """The sizes of a contestant, and how its layers are stored, as columns of the CSV."""
    model = build(contestant, case, shape)
    weights = [module for module in model.modules() if isinstance(module, FORMS)]
    compact = len(compact_bytes(model, seed=SEED, initialiser="he")) if contestant == "learned" else None
    return {
        "state_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "compact_bytes": compact,
        "layers": " ".join(type(layer).__name__ for layer in weights),
    }


def measure(case: Case, shape: Sequence[int], batch: int, threads: int, rounds: int) -> list[Result]:
    """All contestants with one network and one size of batch."""
    results = compare(
        "learned-sparse",
        [Contestant(name, partial(setup, name, case, tuple(shape), batch)) for name in CONTESTANTS],
        baseline="dense",
        rounds=rounds,
        warmup=2,
        threads=threads,
        amount=CALLS.get(batch, 1),
        unit="passes",
        note=f"{case.network}, {case.method}, density {case.density:g}, batch {batch}, float32, CPU time",
        limit=10,
        clock=time.process_time,
    )
    return [
        replace(result, row=result.row | described(name, case, shape))
        for name, result in zip(CONTESTANTS, results, strict=True)
    ]


def told(case: Case, results: Sequence[Result]) -> str:
    """Sizes of one network, in words."""
    dense, learned, sparse = (result.row for result in results)
    return (
        f"{case.network}, {case.method}, density {case.density:g}: bytes dense {dense['state_bytes']:,}, sparse "
        f"{sparse['state_bytes']:,}, compact file {learned['compact_bytes']:,}; to_sparse makes {sparse['layers']}"
    )


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small images, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 100])
    options = parser.parse_args()
    shapes, rounds = (QUICK_SHAPES, 2) if options.quick else (SHAPES, 15)
    results, sizes = [], []
    for case in CASES:
        for threads in options.threads:
            for batch in options.batch:
                found = measure(case, shapes[case.network], batch, threads, rounds)
                results += found
        sizes.append(told(case, found))
    save(results, options.out)
    print("\n".join(sizes))


if __name__ == "__main__":
    main()
