"""What it takes a process to hand an activity to the next block, and to take in the gradient that comes back."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException, spawn

from synaptome.errors import WorkerLostError
from synaptome.learning.parallel.groups import leave_at_exit
from synaptome.learning.parallel.lines import Line
from synaptome.learning.parallel.messages import ACTIVITY

ROUNDS, EXCHANGES = 25, 20
TIMEOUT = 60.0


def measured_transfers(shapes: Sequence[Sequence[int]], batch: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """Seconds that a process works for each border between two blocks in a step: on one tensor each way.

    Measured over gloo, between two fresh processes of this machine, which a script must guard itself from with
    `if __name__ == "__main__":`. Each gives a tensor away and takes one in, again and again. Time of the processor
    counts, of all threads, and not that of waiting: what comes while a block computes is not waited for.

    Args:
        shapes: of an example's activity at each border.
        batch: examples a step.
        dtype: of activities.

    Returns:
        For each border the median of some rounds.

    Raises:
        WorkerLostError: a process could not be started, or was ended.
    """
    if not shapes:
        return []
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        try:
            spawn(_exchange, (Path(folder) / "meeting", told, shapes, batch, dtype), nprocs=2)  # type: ignore[no-untyped-call]
        except (ProcessException, OSError) as error:
            raise WorkerLostError(
                f"transfers between two processes could not be measured ({str(error).splitlines()[-1]}); see what they "
                f"say, and whether this machine lets a program start two more"
            ) from error
        found: list[float] = json.loads(told.read_text())
        return found


def _exchange(
    rank: int, meeting: Path, told: Path, shapes: Sequence[Sequence[int]], batch: int, dtype: torch.dtype
) -> None:
    """What each of the two processes does; the first one tells."""
    torch.set_num_threads(1)
    leave_at_exit()
    # Not by the path's address: torch takes an escaped one, of a space or an accent, as it stands.
    store = distributed.FileStore(str(meeting), 2)  # type: ignore[attr-defined]
    seconds = timedelta(seconds=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=seconds)
    line = Line(1 - rank, TIMEOUT)
    found = [_median(line, torch.zeros(batch, *shape, dtype=dtype)) for shape in shapes]
    if rank == 0:
        told.write_text(json.dumps(found))
    distributed.barrier()


def _median(line: Line, tensor: torch.Tensor) -> float:
    seconds = []
    for _ in range(ROUNDS):
        line.expect(tensor.shape, ACTIVITY, tensor.dtype)
        line.send(tensor, ACTIVITY)
        start = time.process_time()
        for _ in range(EXCHANGES):
            line.expect(tensor.shape, ACTIVITY, tensor.dtype)
            line.send(tensor, ACTIVITY)
            line.take(ACTIVITY)
        seconds.append((time.process_time() - start) / EXCHANGES)
        line.take(ACTIVITY)
        line.flush()
    return statistics.median(seconds)
