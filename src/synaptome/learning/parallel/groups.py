"""Groups of processes: made, left before Python ends, and what torch raises of a process that is gone."""

from __future__ import annotations

import atexit
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

from torch import distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.parallel.lines import Line

# What tells errors of gloo, which has no class for them: its files, and the one message that does not name its place.
OF_GLOO = ("/gloo/", "Application timeout caused pair closure")
LETTING_GO = 0.02  # seconds


def own_group(timeout: float) -> distributed.ProcessGroup:
    """A group of all processes whose waits end after `timeout` seconds; every process must ask for it.

    Raises:
        ConfigurationError: there is one process only, or the timeout is out of range.
        WorkerLostError: the others did not all come in time.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        raise ConfigurationError(
            "a batch is shared out among two processes or more, which torch.distributed.init_process_group('gloo') has "
            "joined; start them with torchrun --nproc-per-node 2"
        )
    Line(0, timeout)  # which refuses what is no timeout
    leave_at_exit()
    with listening(timeout):
        group: distributed.ProcessGroup = distributed.new_group(timeout=timedelta(seconds=timeout))
    return group


@cache
def leave_at_exit() -> None:
    """Let this process leave all groups, the user's too, when it ends; for all that makes collective calls.

    A thread of torch holds the tensors of a collective call a little longer than the call takes. If it lets go of them
    when Python is being taken down, the process is aborted, with exit code -6 after all of its work
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    atexit.register(_leave)


def _leave() -> None:
    gc.collect()  # a group that nobody refers to waits for its threads when it is destroyed
    if distributed.is_initialized():
        with suppress(Exception):  # of a group that has lost a process; its error has been told
            distributed.destroy_process_group()
    time.sleep(LETTING_GO)  # of a group that is referred to, threads take Python's lock in this time


@contextmanager
def listening(timeout: float) -> Iterator[None]:
    """What torch raises of a process that is gone, as a `WorkerLostError`; other errors stay what they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(mark in str(error) for mark in OF_GLOO):
            raise
        raise WorkerLostError(
            f"process {distributed.get_rank()} of {distributed.get_world_size()} waited for the others, and one of "
            f"them has ended, or did not answer within {timeout:g} s ({str(error).splitlines()[0]}); see what they say"
        ) from error
