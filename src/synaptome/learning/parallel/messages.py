"""What processes that have a block each say to each other: which tags, which orders, and who stands where."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from synaptome.errors import ConfigurationError
from synaptome.learning.block_learner import BlockLearner
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.in_flight import whole
from synaptome.learning.parallel.lines import AHEAD, Line
from synaptome.learning.parallel.replicas import ALONE, ReplicaProcesses, Replicas

ACTIVITY, GRADIENT, MEANS = range(3, 6)  # tags, beside those of orders


class Places:
    """Which block and replica a process has: process `block * replicas + replica`.

    Args:
        blocks, replicas: how many; together as many as there are processes.
        timeout: seconds after which a process that does not answer counts as lost.

    Attributes:
        block, replica: of this process, from 0.
        group: of all replicas of its block.

    Raises:
        ConfigurationError: there are more or fewer processes, or the timeout is out of range.
    """

    def __init__(self, blocks: int, replicas: int, timeout: float) -> None:
        rank = check_processes(blocks, replicas)
        self.blocks, self.replicas, self.timeout = blocks, replicas, timeout
        self.block, self.replica = divmod(rank, replicas)
        self.group: Replicas = ALONE if replicas == 1 else ReplicaProcesses(blocks, replicas, timeout)

    def rank(self, block: int, replica: int) -> int:
        """The process of a replica of a block."""
        return block * self.replicas + replica

    def line(self, peer: int, how: Decoupling, watched: int | None = None) -> Line:
        """To another process, as far ahead of it as blocks may be.

        Args:
            peer: its rank.
            how: in which way blocks learn.
            watched: the tag that blocks which run freely do not wait for.
        """
        ahead = 2 * (self.blocks * how.delay + 2)  # an order and a tensor for each batch
        return Line(peer, self.timeout, ahead=max(AHEAD, ahead), watched=watched if how.free else None)


def check_processes(blocks: int, replicas: int = 1) -> int:
    """The rank of this process; a ConfigurationError if there are not as many as blocks and replicas take."""
    processes, needed = distributed.get_world_size(), max(blocks, 2) * replicas
    if processes != needed or blocks < 2:
        if replicas > 1 and blocks >= 2:
            raise ConfigurationError(
                f"{blocks} blocks x {replicas} replicas need {needed} processes; given {processes}: start as many "
                f"(torchrun --nproc-per-node {needed}), or choose other numbers of blocks and replicas"
            )
        raise ConfigurationError(
            f"each block has a process of its own, and there are at least two; given {blocks} blocks and {processes} "
            f"processes: start as many as there are blocks (torchrun --nproc-per-node {needed}), or choose as many "
            f"blocks"
        )
    return distributed.get_rank()


def take_what_is_here(learner: BlockLearner, before: Line | None, after: Line | None) -> None:
    """Let a learner that runs freely have what has come by now, and look at it."""
    while after is not None and after.here(GRADIENT):
        _take_gradient(learner, after)
    while before is not None and learner.inputs is not None and before.here(ACTIVITY):
        _take_activity(learner, before)
    learner.look()


def take_in(learner: BlockLearner, before: Line | None, after: Line | None) -> None:
    """Let a learner have all true gradients and activities that were sent to it, or will be."""
    while after is not None and after.expected(GRADIENT) > learner.due_later:
        _take_gradient(learner, after)
    while before is not None and learner.inputs is not None and before.expected(ACTIVITY):
        _take_activity(learner, before)


def expect_again(learner: BlockLearner, after: Line) -> None:
    """Make room for the true gradients that a learner of another state waits for, and for no others."""
    after.restart(GRADIENT)
    for (_, activity, _), _ in learner.gradients.owed:
        after.expect(activity.shape, GRADIENT, activity.dtype)


def share_of(state: dict[str, Any]) -> dict[str, Any]:
    """What only this replica knows of its learner's state: the batches in flight."""
    flight = {name: state[name] for name in ("arrived", "pending")}
    return flight | ({"inputs": share_of(state["inputs"])} if "inputs" in state else {})


def of_all(first: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of a learner of whole batches, from that of the first replica and the shares of the others."""
    if not others:
        return first
    state = first | whole([first, *others])
    if "inputs" in first:
        state["inputs"] = of_all(first["inputs"], [share["inputs"] for share in others])
    return state


def _take_gradient(learner: BlockLearner, after: Line) -> None:
    learner.gradients.arrived.append(after.take(GRADIENT).to(_device(learner)))


def _take_activity(learner: BlockLearner, before: Line) -> None:
    assert learner.inputs is not None
    learner.inputs.activities.arrived.append(before.take(ACTIVITY).to(_device(learner)))


def _device(learner: BlockLearner) -> torch.device:
    return next(learner.block.parameters()).device
