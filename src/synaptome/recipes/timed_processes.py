"""Fresh processes for one timed run, started, watched and ended together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from synaptome.errors import SynaptomeError
from synaptome.recipes.recipe import RunSettings
from synaptome.training.interrupt import StopRequest

POLL_SECONDS = 0.05
GRACE_SECONDS = 30.0  # beyond the timeout of the run, that processes have to end when one of them has failed
MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """How the processes ended.

    Attributes:
        told: what each of them wrote, in the order of their ranks; nothing of one that was killed.
        exit_code: see `synaptome.errors`.
        failure: what went wrong, a sentence; empty if nothing did.
    """

    told: tuple[dict[str, Any], ...]
    exit_code: int = 0
    failure: str = ""


def together(
    where: str, settings: RunSettings, processes: int, timeout: float, stop: StopRequest, *, quiet: bool
) -> Ended | None:
    """Run `synaptome.recipes.timed_run` in so many processes, until all have ended.

    Args:
        where: its first word.
        settings: of the run; each process has as many threads as they say.
        processes: how many.
        timeout: of the run, in seconds.
        stop: ends all of them when it is asked for.
        quiet: no progress.

    Returns:
        How they ended; None if they were stopped.
    """
    words = [sys.executable, "-m", "synaptome.recipes.timed_run", where, json.dumps(settings.document())]
    with _started([*words, "--quiet"] if quiet else words, processes, settings.threads) as every:
        until = float("inf")
        while any(process.poll() is None for process in every):
            if stop.signum is not None:
                return None
            if until == float("inf") and any(process.returncode for process in every):
                until = time.monotonic() + timeout + GRACE_SECONDS
            if time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)
        told = []
        for process in every:
            if process.poll() is None:
                process.kill()
            told.append(_read(process.communicate()[0]))
        return _ended(told, [process.returncode for process in every])


@contextmanager
def _started(words: Sequence[str], processes: int, threads: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, which are killed in the end if they have not ended."""
    environment = {key: value for key, value in os.environ.items() if key not in MEETING}
    environment["OMP_NUM_THREADS"] = str(threads)
    if processes > 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        environment |= meeting | {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # torch warns of a process that ends before others
    every: list[subprocess.Popen[str]] = []
    try:
        for number in range(processes):
            own = {"RANK": str(number)} if processes > 1 else {}
            # A session of its own: a Ctrl-C is for the process that has started them, which ends them all.
            every.append(
                subprocess.Popen(
                    words, env=environment | own, stdout=subprocess.PIPE, text=True, start_new_session=True
                )
            )
        yield every
    finally:
        for process in every:
            if process.poll() is None:  # all of its session: what it has started itself holds its pipe
                os.killpg(process.pid, signal.SIGKILL)
        for process in every:
            with suppress(ValueError):  # already read to its end
                process.communicate()


def _ended(told: Sequence[dict[str, Any]], codes: Sequence[int]) -> Ended:
    if not any(codes):
        return Ended(tuple(told))
    failures = [
        (code, str(words.get("error", f"process {number} of {len(codes)} {_how(code)}")))
        for number, (words, code) in enumerate(zip(told, codes, strict=True))
        if code
    ]
    code, failure = next(((code, said) for code, said in failures if code > 0), failures[0])
    return Ended(tuple(told), code if code > 0 else SynaptomeError.exit_code, failure)


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _read(output: str) -> dict[str, Any]:
    """The last line that a process wrote, which is its own; nothing if it was killed before."""
    with suppress(ValueError, IndexError):
        found = json.loads(output.splitlines()[-1])
        return found if isinstance(found, dict) else {}
    return {}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
