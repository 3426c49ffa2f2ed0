"""Sparse layers whose connections fail, against dense ones that fail, sparse ones that do not, and an explicit mask.

`failing-sparse` is synaptome's kernel, `failing-dense` the product of a dense weight with failures, `sparse` the sparse
product without any. `explicit` gathers the activations of each connection, times a mask `[batch, nnz]` that is drawn
and held. Each is measured forward alone, and forward with the gradients of input and weights. On one thread the clock
is that of the process, which other work on the machine does not move.

How far from the limit: for a vector of 16 examples the mask costs, with 512-bit logic of three operands, an addition,
two multiplications, three shifts, three operations of logic and a comparison, where the product without failures does
one multiply-add; the dense product makes two bits of its mask from each of these hashes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import Tensor

from synaptome.kernels.failing_linear import failing_linear
from synaptome.kernels.failing_sparse import failing_sparse_linear
from synaptome.kernels.sparse_product import sparse_linear
from synaptome.synapses.sparse import SparseLinear

SHAPES, QUICK_SHAPES = ((100, 784, 784), (128, 1024, 1024)), ((10, 64, 64),)  # batch, outputs, inputs
FAILURE = 0.5
KEY = torch.tensor([1, 1])

Product = Callable[[Tensor, Tensor], Tensor]


def failing_sparse(layer: SparseLinear) -> Product:
    """Synaptome's operation."""
    structure = layer.structure
    return lambda x, values: failing_sparse_linear(x, values, None, structure, FAILURE, KEY)


def failing_dense(layer: SparseLinear) -> Product:
    """Every synapse of a dense weight fails."""
    return lambda x, weight: failing_linear(x, weight, None, FAILURE, KEY)


def sparse(layer: SparseLinear) -> Product:
    """No failures at all."""
    structure = layer.structure
    return lambda x, values: sparse_linear(x, values, None, structure)


def explicit(layer: SparseLinear) -> Product:
    """A mask for each example and connection, in memory."""
    row, col = layer.row_of.long(), layer.col.long()

    def product(x: Tensor, values: Tensor) -> Tensor:
        mask = torch.rand(len(x), len(col)) >= FAILURE
        each = x[:, col] * values * mask / (1 - FAILURE)
        return each.new_zeros(len(x), layer.out_features).index_add(1, row, each)

    return product


LAYERS: dict[str, Callable[[SparseLinear], Product]] = {
    "failing-sparse": failing_sparse,
    "failing-dense": failing_dense,
    "sparse": sparse,
    "explicit": explicit,
}


def setup(contestant: str, shape: tuple[int, int, int], density: float, backward: bool) -> Work:
    """The work of one contestant."""
    batch, outputs, inputs = shape
    torch.manual_seed(0)
    layer = SparseLinear(inputs, outputs, False, density=density)
    weights = layer.to_dense().weight if contestant == "failing-dense" else layer.values
    weights.requires_grad_(backward)
    x = torch.randn(batch, inputs, requires_grad=backward)
    grad = torch.randn(batch, outputs)
    function = LAYERS[contestant](layer)

    def work() -> None:
        y = function(x, weights)
        if backward:
            torch.autograd.grad(y, (x, weights), grad)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--density", type=float, nargs="+", default=[0.05])
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for shape in QUICK_SHAPES if options.quick else SHAPES:
            for density in options.density:
                for backward in (False, True):
                    work = "forward + backward" if backward else "forward"
                    results += compare(
                        "failing-sparse",
                        [Contestant(name, partial(setup, name, shape, density, backward)) for name in LAYERS],
                        baseline="failing-sparse",
                        rounds=2 if options.quick else 15,
                        threads=threads,
                        note=f"{work}, {' x '.join(map(str, shape))}, density {density:g}, failure {FAILURE}, float32",
                        memory=not options.quick and threads == 1,
                        clock=time.process_time if threads == 1 else time.perf_counter,
                    )
    save(results, options.out)


if __name__ == "__main__":
    main()
