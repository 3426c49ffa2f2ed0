"""Ways to share the work of backpropagation out among processes, for recipes: data parallel, and pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

from torch import distributed, nn

from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.optimization import MakeOptimizer, MakeScheduler
from synaptome.learning.parallel.data_parallel import DataParallel, Replica
from synaptome.learning.parallel.orders import serve
from synaptome.learning.parallel.pipeline import Pipeline
from synaptome.learning.parallel.pipeline_block import Microbatches, Order, PipelineBlock
from synaptome.learning.rule import LearningRule
from synaptome.recipes.process_group import joined, processes

MICROBATCHES = 4
PIPELINES = ("gpipe", "1f1b")
SHARED = {"ddp": "backprop, data parallel", "gpipe": "backprop, GPipe pipeline", "1f1b": "backprop, 1F1B pipeline"}


class Part(NamedTuple):
    """What this process does: it has the rule, with what ends the others, or it works for the one that has."""

    rule: LearningRule
    work: Callable[[], None] | None = None
    close: Callable[[], None] | None = None


def shared(
    method: str,
    rule: Backprop,
    optimizer: MakeOptimizer,
    scheduler: MakeScheduler,
    shapes: Sequence[Sequence[int]],
    microbatches: Microbatches,
    timeout: float,
) -> Part:
    """The part of this process in backpropagation by all.

    In one process that is the rule itself, which goes on from what several have saved.

    Args:
        method: of `SHARED`.
        rule: backpropagation of all blocks, as one `torch.nn.Sequential` of them.
        optimizer, scheduler: those of each block.
        shapes: of an example's input, of its activity after each block, and so of its output.
        microbatches: how a batch goes through a pipeline; of ddp only its number of examples counts.
        timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        ConfigurationError: a pipeline has not as many processes as blocks, or takes no such optimizer or device.
        WorkerLostError: the processes did not all come in time.
    """
    if processes() == 1:
        return Part(rule)
    joined(timeout, next(rule.model.parameters()).device)
    if method == "ddp":
        replica = Replica(rule, shapes[0], timeout)
        if distributed.get_rank():
            return Part(rule, work=partial(serve, replica, microbatches.batch, timeout))
        parallel = DataParallel(replica, microbatches.batch)
        return Part(parallel, close=parallel.close)
    blocks = [*cast(nn.Sequential, rule.model)]
    block = PipelineBlock(blocks, optimizer, shapes, microbatches, timeout, loss=rule.loss, scheduler=scheduler)
    if distributed.get_rank():
        return Part(rule, work=partial(serve, block, microbatches.batch, timeout))
    pipeline = Pipeline(block)
    return Part(pipeline, close=pipeline.close)


def microbatches_of(method: str, count: int, batch: int, blocks: int) -> Microbatches:
    """How batches go through the blocks; a ConfigurationError where the method cannot have it so."""
    if method not in PIPELINES and count != MICROBATCHES:
        raise ConfigurationError(f"microbatches belong to the methods gpipe and 1f1b; given with {method}")
    found = Microbatches(cast(Order, method if method in PIPELINES else "gpipe"), count, batch)
    found.check(blocks)
    return found


def check_start(method: str, blocks: int) -> None:
    """Refuse to start in one process what shares its work out: a ConfigurationError that says how to start it."""
    if method in SHARED and processes() == 1:
        raise ConfigurationError(
            f"the method {method} shares its work out among processes, and there is one: start it with torchrun "
            f"--nproc-per-node {max(2, blocks)} -m synaptome run decoupled --method {method} ..."
        )
