"""Blocks that learn apart, in this process or in processes of their own, for recipes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import distributed

from synaptome.errors import ConfigurationError
from synaptome.learning.parallel.blocks import BlockProcesses
from synaptome.learning.parallel.messages import check_processes
from synaptome.learning.parallel.service import serve
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.recipes.process_group import joined, processes
from synaptome.recipes.shared_batches import Part

APART = ("synthetic", "stale", "locked")  # methods of blocks that learn apart


def apart(rule: SyntheticGradients, shapes: Sequence[Sequence[int]], batch: int, replicas: int, timeout: float) -> Part:
    """The part of this process: all blocks, if there is no other, or one.

    Args:
        rule: of all blocks, on the device of this process.
        shapes: of an example's input, and of its activity between each block and the next.
        batch: examples a step, at most.
        replicas: processes of each block.
        timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        ConfigurationError: there are not as many processes as blocks and replicas take.
        WorkerLostError: the processes did not all come in time.
    """
    if processes() == 1:
        return Part(rule)
    joined(timeout, next(rule.model.parameters()).device)
    check_processes(len(rule.learners), replicas)
    if distributed.get_rank():
        inputs, *between = shapes
        return Part(rule, work=partial(serve, rule, between, batch, timeout, replicas=replicas, inputs=inputs))
    together = BlockProcesses(rule, batch, timeout, replicas=replicas)
    return Part(together, close=together.close)


def check_replicas(method: str, blocks: int, replicas: int, batch: int) -> None:
    """Refuse replicas of what has none, or more than a batch has examples: a ConfigurationError."""
    if replicas > 1 and method not in APART:
        raise ConfigurationError(f"replicas belong to the methods {', '.join(APART)}; given with {method}")
    if replicas > 1 and blocks < 2:
        raise ConfigurationError("replicas are of two blocks or more; of one block choose the method ddp")
    if replicas > batch:
        raise ConfigurationError(
            f"a batch has an example for each replica; given batch {batch} and {replicas} replicas"
        )


def check_replicas_start(blocks: int, replicas: int) -> None:
    """Refuse to start replicas in one process: a ConfigurationError that says how to start them."""
    if replicas > 1 and processes() == 1:
        needed = blocks * replicas
        raise ConfigurationError(
            f"{blocks} blocks x {replicas} replicas need {needed} processes; given 1: start it with torchrun "
            f"--nproc-per-node {needed} -m synaptome run decoupled --blocks {blocks} --replicas {replicas} ..."
        )
