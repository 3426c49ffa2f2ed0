"""The convolution with failures, 100 images of 16 x 32 x 32 to 32 channels by 3 x 3 kernels, against explicit masks.

`explicit` holds a mask for each example and convolves the examples as groups of one image, all at once; `one-by-one`
makes a mask and a convolution for each. `reference` is synaptome's chunked plain torch, `cpu` takes the masks from its
Numba kernel, `plain` is a layer without failures. `gaussian` draws the noise from its normal form: two convolutions.
Each is measured forward alone, and forward with the gradients of input, weight and bias.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.synapses.failing_conv import FailingConv2d

SHAPE, QUICK_SHAPE = (100, 16, 32, 32), (10, 4, 6, 8)  # batch, input channels, output channels, height and width
KERNEL = 3
FAILURE = 0.5


def explicit(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A mask for each example, in memory."""
    batch = len(x)
    mask = torch.rand(batch, *layer.weight.shape) > FAILURE
    kernels = (mask * layer.weight / (1 - FAILURE)).flatten(0, 1)
    y = F.conv2d(x.flatten(0, 1).unsqueeze(0), kernels, padding=layer.padding, groups=batch)
    assert layer.bias is not None
    return y.view(batch, -1, *y.shape[2:]) + layer.bias.view(-1, 1, 1)


def one_by_one(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A mask and a convolution for one example after the other."""
    images = []
    for image in x.unsqueeze(1):
        mask = torch.rand_like(layer.weight) > FAILURE
        images.append(F.conv2d(image, mask * layer.weight / (1 - FAILURE), layer.bias, padding=layer.padding))
    return torch.cat(images)


def module(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer itself."""
    return layer(x)  # type: ignore[no-any-return]


def synaptome(backend: str, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Synaptome's layer, served by a given backend."""
    os.environ["SYNAPTOME_BACKEND"] = backend
    return module(layer, x)


FORMS: dict[str, tuple[str | None, Callable[[nn.Conv2d, Tensor], Tensor]]] = {
    "explicit": (None, explicit),
    "one-by-one": (None, one_by_one),
    "reference": ("bernoulli", partial(synaptome, "reference")),
    "cpu": ("bernoulli", partial(synaptome, "cpu")),
    "gaussian": ("gaussian", module),
    "plain": (None, module),
}


def setup(form: str, shape: tuple[int, int, int, int], backward: bool) -> Work:
    """The work of one contestant."""
    batch, inputs, outputs, side = shape
    noise, function = FORMS[form]
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, KERNEL, padding=1)
    if noise is not None:
        layer = FailingConv2d.from_dense(layer, failure=FAILURE, noise=noise)
    layer.requires_grad_(backward)
    x = torch.randn(batch, inputs, side, side, requires_grad=backward)
    grad = torch.randn(batch, outputs, side, side)

    def work() -> None:
        y = function(layer, x)
        if backward:
            torch.autograd.grad(y, (x, *layer.parameters()), grad)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    shape = QUICK_SHAPE if options.quick else SHAPE
    results = []
    for threads in options.threads:
        for backward in (False, True):
            work = "forward + backward" if backward else "forward"
            batch, inputs, outputs, side = shape
            results += compare(
                "failing-conv2d",
                [Contestant(form, partial(setup, form, shape, backward)) for form in FORMS],
                baseline="cpu",
                rounds=2 if options.quick else 15,
                threads=threads,
                note=f"{work}, {batch} images {inputs} x {side} x {side} to {outputs} channels, kernels {KERNEL} x "
                f"{KERNEL}, failure {FAILURE}, float32",
                memory=not options.quick and threads == 1,
            )
    save(results, options.out)


if __name__ == "__main__":
    main()
