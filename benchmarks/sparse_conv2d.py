"""Convolutions by 3 x 3 kernels of which only some entries exist, against masked dense and plain dense ones.

`sparse` is `SparseConv2d`; `masked` multiplies the kernels of a dense convolution by a mask, as most published code
does; `dense` is `torch.nn.Conv2d`. Both rivals are torch's own convolution (oneDNN on a CPU). Each is measured forward
alone, and forward with the gradients of input, weights and bias. On one thread the clock is that of the process, which
other work on the machine does not move.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.synapses.sparse_conv import SparseConv2d

SHAPES = ((16, 32, 32), (64, 64, 32), (64, 64, 16), (128, 128, 16), (128, 128, 8))  # channels in and out, side
QUICK_SHAPES = ((4, 6, 8),)
DENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5)
KERNEL = 3


class Masked(nn.Module):
    """Dense kernels times a mask."""

    mask: Tensor

    def __init__(self, graph: SparseConv2d) -> None:
        super().__init__()
        dense = graph.to_dense()
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("mask", (dense.weight != 0).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=KERNEL // 2)


LAYERS: dict[str, Callable[[SparseConv2d], nn.Module]] = {
    "sparse": lambda graph: graph,
    "masked": Masked,
    "dense": lambda graph: graph.to_dense(),
}


def setup(contestant: str, shape: tuple[int, int, int], batch: int, density: float, backward: bool) -> Work:
    """The work of one contestant."""
    inputs, outputs, side = shape
    torch.manual_seed(0)
    layer = LAYERS[contestant](SparseConv2d(inputs, outputs, KERNEL, padding=KERNEL // 2, density=density))
    layer.requires_grad_(backward)
    x = torch.randn(batch, inputs, side, side, requires_grad=backward)
    grad = torch.randn(batch, outputs, side, side)

    def work() -> None:
        y = layer(x)
        if backward:
            torch.autograd.grad(y, (x, *layer.parameters()), grad)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[100])
    parser.add_argument("--density", type=float, nargs="+", default=DENSITIES)
    options = parser.parse_args()
    results = []
    for threads in options.threads:
        for batch in options.batch:
            for shape in QUICK_SHAPES if options.quick else SHAPES:
                for density in options.density:
                    for backward in (False, True):
                        work = "forward + backward" if backward else "forward"
                        inputs, outputs, side = shape
                        results += compare(
                            "sparse-conv2d",
                            [
                                Contestant(name, partial(setup, name, shape, batch, density, backward))
                                for name in LAYERS
                            ],
                            baseline="sparse",
                            rounds=2 if options.quick else 15,
                            threads=threads,
                            note=f"{work}, density {density:g}, {batch} images {inputs} x {side} x {side} to {outputs} "
                            f"channels, kernels {KERNEL} x {KERNEL}, float32",
                            limit=30,
                            clock=time.process_time if threads == 1 else time.perf_counter,
                        )
    save(results, options.out)


if __name__ == "__main__":
    main()
