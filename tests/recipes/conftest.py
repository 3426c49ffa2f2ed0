"""Several processes that work at one run."""

import os
import socket
import subprocess
import sys

import pytest


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def started():
    """Starts what torchrun would, but each process for itself, so that its exit code can be seen."""
    every = []

    def start(words, processes=2):
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        some = [
            subprocess.Popen(
                [sys.executable, "-m", "synaptome", *map(str, words)],
                env=os.environ | meeting | {"RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        every.extend(some)
        return some

    yield start
    for process in every:
        process.kill()
        process.communicate()


@pytest.fixture
def ended():
    """Gives the exit codes of started processes, and what each said as an error."""

    def end(processes, seconds=120):
        said = [process.communicate(timeout=seconds)[1] for process in processes]
        return [process.returncode for process in processes], said

    return end
