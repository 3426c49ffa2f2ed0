"""One training step of a deep network on two cores: blocks that learn apart, and every other way to share the work.

Two processes of one thread each, over gloo, against one process with one thread and with two. Each way trains the same
network (32 layers of the given width, tanh, ten classes) on the same batch with SGD:

| way | what the second core does |
|---|---|
| `backprop` | nothing |
| `backprop, 2 threads` | half of each product |
| `synthetic` | the second half of the layers, at once: a linear synthesiser conditioned on labels, delay 1 |
| `synthetic, free` | the same at a free pace, gradients up to 4 steps late |
| `stale` | the same as `synthetic` with true gradients of the batch before, on which the first half runs again |
| `locked` | the second half of the layers, when the first has done its own: no overlap |
| `GPipe`, `1F1B` | the same in microbatches, of which several are under way: `synaptome.learning.parallel.pipeline` |
| `DDP` | half of each batch, which the first process sends it: `synaptome.learning.parallel.data_parallel` |

The first process measures; a call is some steps. `predicted` in the note is what the cost model says of `synthetic`
(`synaptome.learning.block_costs`), with what transfers take and without.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Work, compare, save
from torch import distributed, multiprocessing, optim

from synaptome.data.dataset import Batch
from synaptome.learning.backprop import Backprop
from synaptome.learning.block_costs import measured_costs, predicted_speedup
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.parallel.blocks import BlockProcesses
from synaptome.learning.parallel.data_parallel import DataParallel, Replica
from synaptome.learning.parallel.orders import Worker
from synaptome.learning.parallel.orders import serve as serve_orders
from synaptome.learning.parallel.pipeline import Pipeline
from synaptome.learning.parallel.pipeline_block import Microbatches, Order, PipelineBlock
from synaptome.learning.parallel.service import serve
from synaptome.learning.parallel.transfers import measured_transfers
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import border_shapes, even, split
from synaptome.networks.synthesisers import Synthesiser

DEPTH, CLASSES, STEPS = 32, 10, 60  # steps enough that the first and the last of a call hardly count
SIZES = ((256, 64), (512, 64), (784, 64))  # width, batch
MICROBATCHES = 4
SECONDS = 120.0
MakeSteps = Callable[[int, int], Callable[[int], None]]  # of width and batch; then steps of this process

rate = partial(optim.SGD, lr=0.01)


def network(width: int) -> FeedForward:
    """The same in every process."""
    torch.manual_seed(0)
    return FeedForward([width] * DEPTH + [CLASSES], activation="tanh")


def example(width: int, batch: int) -> Batch:
    """A batch of noise; what is learned does not matter here."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, width, generator=generator)
    return Batch(inputs, torch.randint(CLASSES, (batch,), generator=generator))


def backprop(width: int, batch: int, threads: int) -> Work:
    """One process."""
    model, data = network(width), example(width, batch)
    rule = Backprop(model, rate(model.parameters()))

    def work() -> None:
        torch.set_num_threads(threads)
        for _ in range(STEPS):
            rule.step(data)
        torch.set_num_threads(1)

    return work


def blocks(how: Decoupling, width: int, batch: int) -> Callable[[int], None]:
    """Half of the layers in each process."""
    rule, shapes = halves(how, width)
    data = example(width, batch)

    def steps(count: int) -> None:
        if distributed.get_rank():
            serve(rule, shapes, batch, SECONDS)
        else:
            elsewhere = BlockProcesses(rule, batch, SECONDS)
            for _ in range(count):
                elsewhere.step(data)
            elsewhere.close()

    return steps


def halves(how: Decoupling, width: int) -> tuple[SyntheticGradients, list[tuple[int, ...]]]:
    """The rule of two blocks, and the shapes between them."""
    parts = split(network(width), even(DEPTH, 2))
    shapes = border_shapes(parts, (width,))
    return SyntheticGradients(parts, rate, [Synthesiser(shape, CLASSES) for shape in shapes], how=how), shapes


def pipeline(order: Order, width: int, batch: int) -> Callable[[int], None]:
    """Half of the layers in each process, on microbatches."""
    parts = split(network(width), even(DEPTH, 2))
    shapes = [(width,), *border_shapes(parts, (width,)), (CLASSES,)]
    block = PipelineBlock([*parts], rate, shapes, Microbatches(order, MICROBATCHES, batch), SECONDS)
    return partial(together, block, lambda: Pipeline(block), example(width, batch))


def data_parallel(width: int, batch: int) -> Callable[[int], None]:
    """Half of each batch in each process."""
    model = network(width)
    replica = Replica(Backprop(model, rate(model.parameters())), (width,), SECONDS)
    return partial(together, replica, lambda: DataParallel(replica, batch), example(width, batch))


def together(worker: Worker, rule: Callable[[], Pipeline | DataParallel], data: Batch, count: int) -> None:
    """So many steps of the rule in the first process, for which the other one works."""
    if distributed.get_rank():
        serve_orders(worker, len(data.targets), SECONDS)
        return
    leading = rule()
    for _ in range(count):
        leading.step(data)
    leading.close()


WAYS: dict[str, MakeSteps] = {
    "synthetic": partial(blocks, Decoupling(delay=1)),
    "synthetic, free": partial(blocks, Decoupling(delay=4, free=True)),
    "stale": partial(blocks, Decoupling(delay=1, true_share=1.0)),
    "locked": partial(blocks, Decoupling(delay=0, true_share=1.0)),
    "GPipe": partial(pipeline, "gpipe"),
    "1F1B": partial(pipeline, "1f1b"),
    "DDP": data_parallel,
}


def assist(rank: int, port: int) -> None:
    """The second process: for each way that it is told of, what the first one does."""
    meet(rank, port)
    ways: dict[tuple[int, ...], Callable[[int], None]] = {}
    while True:
        way, width, batch, count = told(torch.zeros(4, dtype=torch.int64))
        if count == 0:
            break
        key = (way, width, batch)
        if key not in ways:
            ways[key] = list(WAYS.values())[way](width, batch)
        ways[key](count)
    distributed.destroy_process_group()


def told(what: torch.Tensor) -> list[int]:
    """Numbers that the first process has, in both."""
    distributed.broadcast(what, 0)
    return [int(number) for number in what]


def meet(rank: int, port: int) -> None:
    """Join the group of two."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))


@contextmanager
def assisted() -> Iterator[None]:
    """With a second process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    other = multiprocessing.get_context("spawn").Process(target=assist, args=(1, port))
    other.start()
    meet(0, port)
    try:
        yield
        told(torch.zeros(4, dtype=torch.int64))
        distributed.destroy_process_group()
        other.join(SECONDS)
    finally:
        other.kill()


def shared(name: str, width: int, batch: int, count: int) -> Work:
    """Steps of a way in both processes."""
    number = list(WAYS).index(name)

    def both(steps: Callable[[int], None], count: int) -> None:
        told(torch.tensor([number, width, batch, count]))
        steps(count)

    told(torch.tensor([number, width, batch, 1]))
    steps = WAYS[name](width, batch)
    steps(1)
    return partial(both, steps, count)


def prediction(width: int, batch: int) -> str:
    """The speed-up of `synthetic` that the costs of its parts promise, with transfers and without."""
    rule, shapes = halves(Decoupling(), width)
    costs = measured_costs(rule, example(width, batch), measured_transfers(shapes, batch))
    without = [replace(cost, transfer=0.0) for cost in costs]
    return f"{predicted_speedup(costs):.2f} ({predicted_speedup(without):.2f} without transfers)"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a narrow network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    options = parser.parse_args()
    sizes, rounds = (((16, 8),), 2) if options.quick else (SIZES, 9)
    results = []
    torch.set_num_threads(1)
    with assisted():
        for width, batch in sizes:
            contestants = [
                Contestant("backprop", partial(backprop, width, batch, 1)),
                Contestant("backprop, 2 threads", partial(backprop, width, batch, 2)),
                *(Contestant(name, partial(shared, name, width, batch, STEPS)) for name in WAYS),
            ]
            note = f"{DEPTH} layers of {width}, batch {batch}; predicted {prediction(width, batch)}"
            results += compare(
                "parallel", contestants, baseline="backprop", rounds=rounds, amount=STEPS, unit="steps", note=note,
                limit=100.0,
            )  # fmt: skip
    save(results, options.out)


if __name__ == "__main__":
    main()
