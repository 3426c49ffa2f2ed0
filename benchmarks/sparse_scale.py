"""A multilayer perceptron with three hidden layers of a million neurons: what it costs to make, train and rewire.

784 inputs, three hidden layers of 1 000 000 neurons, 10 outputs, 30 million connections, ReLU and cross-entropy,
float32, SGD with momentum. `step` is a whole training step; `change` is what SET does to the connections, 30 % of which
die and are born; `build` makes the network. As dense layers the weights alone would be 8 TB.

Bytes are counted, not estimated: all parameters, gradients, momentum and indices that the network holds after a step.
Activations, which depend on the batch, are in the memory at work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution

WIDTHS = (784, 1_000_000, 1_000_000, 1_000_000, 10)
CONNECTIONS = (10_000_000, 10_000_000, 9_900_000, 100_000)
QUICK_WIDTHS, QUICK_CONNECTIONS = (20, 3000, 3000, 3000, 10), (9000, 9000, 8000, 1000)


def network(widths: Sequence[int], connections: Sequence[int]) -> nn.Sequential:
    """The perceptron."""
    layers: list[nn.Module] = []
    for (inputs, outputs), nnz in zip(pairwise(widths), connections, strict=True):
        layers += [SparseLinear(inputs, outputs, nnz=nnz), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def training(
    widths: Sequence[int], connections: Sequence[int], batch: int
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """The network, its optimizer and a training step."""
    torch.manual_seed(0)
    model = network(widths, connections)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, targets = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = F.cross_entropy(model(x), targets)
        loss.backward()
        optimizer.step()

    return model, optimizer, step


def build(widths: Sequence[int], connections: Sequence[int], batch: int) -> Work:
    """Making the network."""
    return lambda: network(widths, connections)


def step(widths: Sequence[int], connections: Sequence[int], batch: int) -> Work:
    """A training step."""
    return training(widths, connections, batch)[2]


def change(widths: Sequence[int], connections: Sequence[int], batch: int) -> Work:
    """SET's change of the connections, of a network that has taken a step."""
    model, optimizer, learn = training(widths, connections, batch)
    learn()
    return Evolution(model, optimizer, drop="set", grow="random", fraction=0.3).step


def bytes_held(widths: Sequence[int], connections: Sequence[int]) -> tuple[float, float]:
    """What the network holds after a step for each connection, and for each neuron (bias, start of its row, ...)."""
    model, optimizer, learn = training(widths, connections, 1)
    learn()
    held: list[Tensor] = list(model.buffers())
    for parameter in model.parameters():
        state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
        held += [parameter, *([] if parameter.grad is None else [parameter.grad]), *state]
    of_connections = sum(t.numel() * t.element_size() for t in held if t.numel() in connections)
    in_all = sum(t.numel() * t.element_size() for t in held)
    return of_connections / sum(connections), (in_all - of_connections) / sum(widths)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    size = (QUICK_WIDTHS, QUICK_CONNECTIONS) if options.quick else (WIDTHS, CONNECTIONS)
    of_connection, of_neuron = bytes_held(*size)
    note = (
        f"{'-'.join(map(str, size[0]))}, {sum(size[1])} connections of {of_connection:.1f} bytes, neurons of "
        f"{of_neuron:.1f}, batch {options.batch}, float32"
    )
    results = []
    for threads in options.threads:
        results += compare(
            "sparse-scale",
            [Contestant(work.__name__, partial(work, *size, options.batch)) for work in (step, change, build)],
            baseline="step",
            rounds=2 if options.quick else 3,
            threads=threads,
            note=note,
            fresh=True,  # one network in memory at a time
        )
    save(results, options.out)


if __name__ == "__main__":
    main()
