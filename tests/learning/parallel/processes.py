"""Processes for the tests of rules that share a batch's work out: started, met, lost."""

import faulthandler
import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from synaptome.errors import WorkerLostError

SECONDS = 30.0
HUNG = 240.0  # seconds, before the test itself is given up
LOSSES = (signal.SIGKILL, signal.SIGSTOP)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def joined(rank, count, port, seconds=SECONDS):
    faulthandler.dump_traceback_later(HUNG, exit=True)  # a process that hangs says where, and ends
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=seconds))


def ran(what, count, *arguments):
    """Run `what(rank, count, port, ...)` in so many processes; what they raise is raised here."""
    multiprocessing.spawn(what, (count, free_port(), *arguments), nprocs=count, join=True)


def struck(learn, signum):
    """The method, which from its fourth call on finds its process killed or stopped."""
    count = 0

    def strike(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            os.kill(os.getpid(), signum)
        return learn(*arguments)

    return strike


def bereaved(work, seconds):
    """Expect a `WorkerLostError` of some work, in time, and end with an exit code of its own."""
    started = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"ended, or did not answer within"):
        work()
    assert time.monotonic() - started < seconds + 10
    os._exit(6)


def survivors_end_in_time(what, count, victim, signum, seconds):
    """Run `what(rank, count, port, victim, signum, seconds)`; all processes but the victim end with exit code 6."""
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=what, args=(rank, count, port, victim, signum, seconds)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        for rank, process in enumerate(processes):
            if rank != victim:
                process.join(60)
                assert process.exitcode == 6, rank
    finally:
        for process in processes:
            process.kill()
            process.join()


def same_form(first, second, path=""):
    """Assert that two states have the same keys, types, shapes and dtypes, and nearly the same numbers."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12, msg=lambda told: f"{path}: {told}")
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            same_form(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            same_form(one, other, f"{path}/{number}")
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-9), path
    else:
        assert first == second, path
