"""Batches in flight: what a block keeps of each until a tensor of it arrives from another block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synaptome.learning.parallel.replicas import ALONE, Replicas


class Kept(NamedTuple):
    """Of a batch: this replica's examples of some tensors, and how many there are in the whole batch."""

    tensors: tuple[Tensor, ...]
    examples: int


class InFlight:
    """Batches whose tensor from another block has not been used, and such tensors, both in the order of the batches.

    Attributes:
        pending: the batches, oldest first.
        arrived: tensors of the oldest of them that have come.
        replicas: of the block.
    """

    def __init__(self) -> None:
        self.pending: deque[Kept] = deque()
        self.arrived: deque[Tensor] = deque()
        self.replicas: Replicas = ALONE
        self._here = 0

    @property
    def owed(self) -> list[Kept]:
        """The batches whose tensor has not arrived, oldest first."""
        return list(self.pending)[len(self.arrived) :]

    def look(self) -> None:
        """Let what has arrived by now be due at once; of several replicas, what has arrived at all of them."""
        self._here = self.replicas.least(len(self.arrived))

    def due(self, delay: int, fetch: Callable[[], Tensor], most: int | None = None) -> list[tuple[Kept, Tensor]]:
        """Take out the batches that are due, oldest first, each with its tensor.

        Args:
            delay: how many batches may stay.
            fetch: waits for the next tensor.
            most: how many to take out if no more have to be; all that `look` has seen if None.
        """
        due: list[tuple[Kept, Tensor]] = []
        while len(self.pending) > delay or (self._here > 0 and (most is None or len(due) < most)):
            due.append((self.pending.popleft(), self.arrived.popleft() if self.arrived else fetch()))
            self._here -= 1
        return due

    def state_dict(self) -> dict[str, Any]:
        """This replica's share of it."""
        return {"arrived": list(self.arrived), "pending": [list(kept.tensors) for kept in self.pending]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take this replica's share of the state of the whole batches."""

        def own(tensor: Tensor) -> Tensor:
            return self.replicas.share(tensor).to(device)

        self.arrived = deque(own(tensor) for tensor in state["arrived"])
        self.pending = deque(Kept(tuple(map(own, kept)), len(kept[0])) for kept in state["pending"])
        self._here = 0


def whole(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of the whole batches, from those of all replicas, in their order; see `InFlight.state_dict`."""
    return {
        "arrived": [torch.cat(parts) for parts in zip(*(share["arrived"] for share in shares), strict=True)],
        "pending": [
            [torch.cat(parts) for parts in zip(*kept, strict=True)]
            for kept in zip(*(share["pending"] for share in shares), strict=True)
        ],
    }
