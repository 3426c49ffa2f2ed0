"""The workers of parallel variable distribution in processes of their own, under torchrun."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.distribution_blocks import Partition
from synaptome.learning.distribution_worker import Start, WorkerPoint
from synaptome.learning.parallel.groups import leave_at_exit

AGREEMENT = 1e-4  # of the objective at the start, relatively: what other machines may round differently


class Processes:
    """The processes of `torch.distributed`, of which each does the work of worker rank, rank + processes, and so on.

    Every process must make one, for a rule of the same model with the same parameters, and give it the same batches;
    all then go on with the same parameters, to the bit. Processes that have more to do than others are waited for.

    Args:
        timeout: seconds that a process waits for the others at any one time, above 0; longer than a worker of the
            slowest process takes. Then, or as soon as one of them has ended, the step raises a `WorkerLostError`.

    Raises:
        ConfigurationError: `torch.distributed` has no process group, or the timeout is out of range.
    """

    def __init__(self, timeout: float = 300.0) -> None:
        if not 0 < timeout < math.inf:  # also refuses NaN
            raise ConfigurationError(f"a timeout is a finite number of seconds above 0; given {timeout}")
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ConfigurationError(
                "there is no process group: start this program with torchrun, and call "
                "torch.distributed.init_process_group('gloo') first"
            )
        self.timeout = timeout
        leave_at_exit()
        # A group of its own: torch takes a timeout when a group is made, and the default one's is half an hour.
        self._group = distributed.new_group(timeout=timedelta(seconds=timeout))
        self._rank, self._count = distributed.get_rank(), distributed.get_world_size()

    def mine(self, workers: int) -> range:
        """The workers whose work this process does."""
        return range(self._rank, workers, self._count)

    def exchange(self, partition: Partition, start: Start, points: Mapping[int, WorkerPoint]) -> list[WorkerPoint]:
        """Give the points of this process's workers to all processes; those of all workers, in their order.

        Raises:
            ConfigurationError: the objective at the start is another one elsewhere.
            WorkerLostError: a process did not answer in time, or ended.
        """
        shapes = [partition.take(start.values, block) for block in range(len(partition.blocks))]
        letters = []
        for block, pieces in enumerate(shapes):
            if block in points:
                letters.append(_packed(start.objective, points[block]))
            else:
                size = 8 * (3 + len(shapes)) + sum(piece.numel() * piece.element_size() for piece in pieces)
                letters.append(torch.empty(size, dtype=torch.uint8, device=pieces[0].device))
        # All at once: together they are an all_gather of letters of different lengths.
        with self._listening():
            pending = [
                distributed.broadcast(letter, block % self._count, group=self._group, async_op=True)
                for block, letter in enumerate(letters)
            ]
            for work in pending:
                work.wait()
        read = [_unpacked(letter, pieces) for letter, pieces in zip(letters, shapes, strict=True)]
        for block, (objective, _) in enumerate(read):
            if not math.isclose(objective, start.objective, rel_tol=AGREEMENT):
                raise ConfigurationError(
                    f"process {block % self._count} starts from the objective {objective}, and process {self._rank} "
                    f"from {start.objective}; give all of them the same parameters and the same batch, and no layers "
                    f"that draw noise of their own in each process"
                )
        return [point for _, point in read]

    def agree(self, values: Mapping[str, Tensor]) -> None:
        """Write the values of process 0 over those of the others, in the order of their names."""
        with self._listening():
            for value in values.values():
                distributed.broadcast(value, 0, group=self._group)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise WorkerLostError(
                f"process {self._rank} of {self._count} waited for the others, and one of them has ended or did not "
                f"answer within {self.timeout:g} s ({str(error).splitlines()[0]}); see what the others say, and give "
                f"a longer timeout if their work takes longer"
            ) from error


def _packed(objective: float, point: WorkerPoint) -> Tensor:
    """A point as bytes: the objective at the start, what is known of the point, mu, and the pieces."""
    head = torch.cat([point.mu.new_tensor([objective, point.objective, point.evaluations]), point.mu])
    parts = [head.to(point.pieces[0].device), *point.pieces]
    return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])


def _unpacked(letter: Tensor, like: Sequence[Tensor]) -> tuple[float, WorkerPoint]:
    """The objective at the sender's start, and its point; the pieces are of the shapes and dtypes of `like`."""
    sizes = [piece.numel() * piece.element_size() for piece in like]
    head, *parts = torch.split(letter, [len(letter) - sum(sizes), *sizes])
    numbers = head.cpu().clone().view(torch.float64)
    pieces = [part.clone().view(piece.dtype).view(piece.shape) for part, piece in zip(parts, like, strict=True)]
    return numbers[0].item(), WorkerPoint(pieces, numbers[3:], numbers[1].item(), int(numbers[2].item()))
