"""Threads for the CPU kernels: torch's own, over disjoint ranges of rows.

torch's OpenMP threads spin for a while after each of its operations, and threads of any other pool would share the
cores with them. So the kernels, which run without the interpreter's lock, go to torch's own team where its runtime can
be found (libgomp, which the Linux wheels carry), and to plain Python threads elsewhere.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

LEAST_WORK = 2**18  # multiply-adds below which a second thread costs more than it saves

Job = Callable[[int, int], None]


def in_threads(job: Job, rows: int, work: int) -> None:
    """Call `job(start, stop)` so that its ranges cover `rows` rows once, in parallel where that pays.

    Args:
        job: does a range of rows, independently of all others.
        rows: how many there are.
        work: multiply-adds of all rows together.
    """
    threads = min(torch.get_num_threads(), rows) if work >= LEAST_WORK else 1
    if threads <= 1:
        job(0, rows)
        return
    ranges = list(pairwise(rows * part // threads for part in range(threads + 1)))
    # A forked child has neither the team's threads nor the pool's: it makes a pool of its own.
    run = _team() if os.getpid() == _HOME else None
    if run is None:
        _in_pool(job, ranges)
    else:
        _in_team(run, job, ranges)


def _in_team(run: Callable[..., None], job: Job, ranges: list[tuple[int, int]]) -> None:
    """Each thread of torch's team takes ranges until none is left: inside another team there may be only one."""
    waiting: Iterator[tuple[int, int]] = iter(ranges)
    errors: list[BaseException] = []

    def take(_: int | None) -> None:
        try:
            for part in waiting:  # one step of an iterator over a list is atomic
                job(*part)
        except BaseException as error:  # must not leave through C
            errors.append(error)

    run(_BODY(take), None, len(ranges), 0)
    if errors:
        raise errors[0]


def _in_pool(job: Job, ranges: list[tuple[int, int]]) -> None:
    own, *parts = ranges
    others = [_pool(os.cpu_count() or 1).submit(job, *part) for part in parts]
    try:
        job(*own)
    finally:
        for other in others:
            other.result()


_HOME = os.getpid()
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team() -> Callable[..., None] | None:
    """`GOMP_parallel(body, data, threads, flags)` of the runtime that torch brought; None if there is none."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            run = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        run.restype, run.argtypes = None, [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        return run
    return None


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="synaptome")


os.register_at_fork(after_in_child=_pool.cache_clear)
