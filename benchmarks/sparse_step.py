"""Whole training steps of sparse networks, forward, backward and SGD with momentum, against dense and sparse rivals.

Multilayer perceptrons with ReLU and cross-entropy, every layer at the same density, float32. `sparse` is
`SparseLinear`; `dense` is `torch.nn.Linear`; `masked` multiplies a dense weight by a mask, as most published code does;
`csr` is torch's sparse product of compressed rows forward and compressed columns backward, with `sampled_addmm` for the
gradient of the values, on activations of the same layout; `gather` gathers the inputs of all connections and scatters
them to the outputs, as earlier code for evolving graphs does. All sparse contestants have the same graph. `gather` is
left out where what it gathers is over 100 MB.

Memory is what a process holds at its peak while it trains, above one that trains a network of a few neurons: weights,
gradients, momentum, indices and activations.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.synapses.sparse import SparseLinear

WIDTHS = ((784, 1024, 1024, 10), (3072, 1024, 512, 10))
QUICK_WIDTHS = ((20, 30, 10),)
DENSITIES = (0.01, 0.05, 0.1, 0.25)
STEPS = 10  # a call: in training, a step finds the caches as the one before left them
GATHERED_BYTES = 10**8
TINY = 8  # neurons in each layer of a network that takes no memory


class Masked(nn.Module):
    """A dense weight times a mask."""

    mask: Tensor

    def __init__(self, graph: SparseLinear) -> None:
        super().__init__()
        dense = graph.to_dense()
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("mask", (dense.weight != 0).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class CSRProduct(torch.autograd.Function):
    """torch's own products of a sparse matrix, none of which makes a dense one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, *structure: Tensor) -> Tensor:
        ctx.save_for_backward(values, x, *structure)
        crow, col, ccol = structure[:3]
        return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, len(ccol) - 1)) @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, x, crow, col, ccol, row, permutation = ctx.saved_tensors
        grad = grads[0].contiguous()
        shape = len(crow) - 1, len(ccol) - 1
        zeros = torch.sparse_csr_tensor(crow, col, torch.zeros_like(values), shape)
        by_values = torch.sparse.sampled_addmm(zeros, grad, x.T, beta=0).values()
        by_x = None
        if ctx.needs_input_grad[1]:
            by_x = torch.sparse_csr_tensor(ccol, row, values[permutation], shape[::-1]) @ grad
        return by_values, by_x, None, None, None, None, None


class CSR(nn.Module):
    """The layer around it, which keeps activations in `[features, batch]` as `SparseLinear` does."""

    def __init__(self, graph: SparseLinear) -> None:
        super().__init__()
        self.values, self.bias = graph.values, graph.bias
        self.structure = (graph.crow, graph.col, graph.ccol, graph.row, graph.permutation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = CSRProduct.apply(self.values, x.T.contiguous(), *self.structure)  # type: ignore[no-untyped-call]
        return y.T + self.bias if self.bias is not None else y.T


class Gather(nn.Module):
    """Inputs gathered for every connection, weighted, and scattered to the outputs."""

    def __init__(self, graph: SparseLinear) -> None:
        super().__init__()
        self.values, self.bias, self.outputs = graph.values, graph.bias, graph.out_features
        self.row, self.col = graph.row_of.long(), graph.col.long()

    def forward(self, x: Tensor) -> Tensor:
        weighted = x[:, self.col] * self.values
        y = x.new_zeros(len(x), self.outputs).index_add(1, self.row, weighted)
        return y + self.bias if self.bias is not None else y


LAYERS: dict[str, Callable[[SparseLinear], nn.Module]] = {
    "sparse": lambda graph: graph,
    "dense": lambda graph: nn.Linear(graph.in_features, graph.out_features),
    "masked": Masked,
    "csr": CSR,
    "gather": Gather,
}


def setup(contestant: str, widths: Sequence[int], density: float, batch: int) -> Work:
    """The network of a contestant, and some of its training steps."""
    warnings.filterwarnings("ignore", message="Sparse ")  # torch's word that CSR is in beta
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [LAYERS[contestant](SparseLinear(inputs, outputs, density=density)), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, targets = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss: Any = F.cross_entropy(model(x), targets)
            loss.backward()
            optimizer.step()

    return steps


def measure(widths: Sequence[int], density: float, batch: int, threads: int, rounds: int) -> list[Result]:
    """All contestants at one density."""
    gathered = max(4 * batch * density * a * b for a, b in pairwise(widths))
    names = [name for name in LAYERS if name != "gather" or gathered <= GATHERED_BYTES]
    return compare(
        "sparse-step",
        [Contestant(name, partial(setup, name, tuple(widths), density, batch)) for name in names],
        baseline="sparse",
        rounds=rounds,
        threads=threads,
        amount=STEPS,
        unit="steps",
        note=f"{'-'.join(map(str, widths))}, density {density:g}, batch {batch}, float32",
        limit=15,
    )


def memory(widths: Sequence[int], density: float, batch: int) -> str:
    """MB of the networks of each contestant, in words."""
    tiny = tuple(TINY for _ in widths)
    measured = compare(
        "sparse-step",
        [
            Contestant(f"{name} {len(size)} {size[0]}", partial(setup, name, size, density, batch))
            for name in ("sparse", "dense", "masked", "csr")
            for size in (tuple(widths), tiny)
        ],
        baseline=f"sparse {len(tiny)} {TINY}",
        rounds=1,
        fresh=True,
    )
    held = [(result.setup_mb or 0) + (result.peak_mb or 0) for result in measured]
    of_network = [own - base for own, base in zip(held[::2], held[1::2], strict=True)]
    told = ", ".join(
        f"{result.row['contestant'].split()[0]} {megabytes:.1f}"
        for result, megabytes in zip(measured[::2], of_network, strict=True)
    )
    return f"{'-'.join(map(str, widths))}, density {density:g}, batch {batch}: MB {told}"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[100, 128])
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES)
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for batch in options.batch:
            for widths in QUICK_WIDTHS if options.quick else WIDTHS:
                for density in options.density:
                    results += measure(widths, density, batch, threads, 2 if options.quick else 15)
    save(results, options.out)
    for widths in () if options.quick else WIDTHS:
        print(memory(widths, 0.05, options.batch[-1]))


if __name__ == "__main__":
    main()
