"""Where runs work side by side, by joblib: in processes of this machine, or in the workers of a Dask cluster."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol, TypeVar

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.training.interrupt import SIGNALS, StopRequest
from synaptome.training.lock import RunLock

IDLE_SECONDS = 30.0  # after which a process without work ends; soon, for its parent may have been killed
CONNECT_SECONDS = 10.0
LOST_SECONDS = 5.0

_Call = TypeVar("_Call")
_Result = TypeVar("_Result")


class Pool(Protocol):
    """Calls a function many times, side by side."""

    def results(self, function: Callable[[_Call], _Result], calls: Iterable[_Call]) -> Iterator[_Result]:
        """What the function returns for each of the calls, in the order in which it does.

        Args:
            function: at the top of a module, since it is sent by name; it must not raise.
            calls: its arguments, taken from threads of the pool when there is room for them.

        Raises:
            BrokenExecutor: a worker died, and the others with it.
        """
        ...

    def ask_to_stop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Send SIGTERM to every worker or, where signals do not reach, call the function in each."""
        ...

    def check(self) -> None:
        """Look for a loss that `results` would wait out for ever.

        Raises:
            WorkerLostError: there is one.
        """
        ...

    def abandon(self) -> None:
        """Let `results`, in its thread, end as soon as it can, whatever the workers are doing."""
        ...

    def close(self) -> None:
        """Let the workers go, once `results` has ended."""
        ...


class Processes:
    """Processes of this machine.

    Args:
        workers: how many, at least 2: with one, joblib would stay in this process.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def results(self, function: Callable[[_Call], _Result], calls: Iterable[_Call]) -> Iterator[_Result]:
        """See `Pool`."""
        import joblib

        # Inherited by the processes, which let the signals through when they are ready to take them. Python's tracker
        # of shared resources would be started with the first process, and would let them through in this thread.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        parallel = joblib.Parallel(
            n_jobs=self._workers,
            backend="loky",
            return_as="generator_unordered",
            pre_dispatch="n_jobs",
            batch_size=1,
            initializer=_take_signals,
            idle_worker_timeout=IDLE_SECONDS,
        )
        try:
            yield from parallel(joblib.delayed(function)(call) for call in calls)
        except BrokenExecutor as error:
            codes = re.search(r"SIG[A-Z]+|EXIT\(\d+\)", str(error))
            raise BrokenExecutor(f"a worker process died{f' ({codes[0]})' if codes else ''}") from None

    def ask_to_stop(self, function: Callable[..., None], *arguments: Any) -> None:
        """See `Pool`."""
        self._send(signal.SIGTERM)

    def check(self) -> None:
        """See `Pool`; `results` tells all losses by itself."""

    def abandon(self) -> None:
        """See `Pool`; the processes are killed, and their runs go on from their checkpoints another time."""
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """See `Pool`."""
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)

    def _send(self, signum: int) -> None:
        for child in multiprocessing.active_children():
            if child.name.startswith("LokyProcess") and child.pid is not None:  # there may be other children
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signum)


class Cluster:
    """The workers of a Dask cluster: those that are there, and those that join later.

    Args:
        address: of its scheduler, such as host:8786 or tcp://host:8786.

    Raises:
        ConfigurationError: Dask is not installed, or nobody answers there, or there are no workers.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise ConfigurationError("a cluster needs Dask; install it: pip install 'synaptome[cluster]'") from None
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs as errors is told below
        try:
            self._client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"no Dask scheduler answers at {address!r}: {error}") from None
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            self._client.close()
            raise ConfigurationError(f"the Dask cluster at {address} has no workers; start some: dask worker") from None
        self._address = address
        self._asked = self._busy = time.monotonic()

    def results(self, function: Callable[[_Call], _Result], calls: Iterable[_Call]) -> Iterator[_Result]:
        """See `Pool`."""
        import joblib

        with joblib.parallel_config(backend=_dask_backend(self._client)):
            parallel = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all", batch_size=1)
            try:
                yield from parallel(joblib.delayed(function)(call) for call in calls)
            except CancelledError:
                raise self._loss() from None

    def ask_to_stop(self, function: Callable[..., None], *arguments: Any) -> None:
        """See `Pool`."""
        if time.monotonic() - self._asked > 1:
            with suppress(OSError, TimeoutError):  # from a scheduler that is gone
                self._client.run(function, *arguments, on_error="ignore")
            self._asked = time.monotonic()

    def check(self) -> None:
        """See `Pool`. Dask gives a task up whose workers died again and again, and joblib is not told."""
        if any(state.status == "pending" for state in list(self._client.futures.values())):
            self._busy = time.monotonic()
        elif time.monotonic() - self._busy > LOST_SECONDS:
            raise self._loss()

    def abandon(self) -> None:
        """See `Pool`; the workers are left to themselves."""
        self.close()

    def close(self) -> None:
        """See `Pool`."""
        self._client.close()

    def _loss(self) -> WorkerLostError:
        return WorkerLostError(f"the cluster at {self._address} is gone, or gave up runs whose workers died repeatedly")


def claim(path: Path, sweep: str) -> None:
    """Say, in a cluster's worker, that it takes over a run of a sweep, and free it from a worker that was lost.

    A lock that names another host is believed, because nobody can see from here whether its process lives. The
    scheduler can: it gives a run to a second worker only when it has lost the first.
    """
    import distributed

    client = distributed.get_client()
    lost = client.get_metadata([sweep, str(path)], default=None)
    with suppress(OSError, ValueError):  # no lock, or one of a process that was killed before it had named itself
        if lost is not None and json.loads((path / "lock").read_text(encoding="utf-8")) == lost:
            RunLock(path, force=True).release()
    client.set_metadata([sweep, str(path)], {"pid": os.getpid(), "host": socket.gethostname()})


def _take_signals() -> None:
    """In a new process: from now on a signal stops the run that is at work, or the next before it begins."""
    StopRequest().__enter__()  # for as long as the process lives
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _dask_backend(client: Any) -> Any:
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            """At least 2: on a cluster of one thread, joblib would run everything in this process."""
            threads: int = super().effective_n_jobs(n_jobs)
            return max(2, threads)

    return Backend(client=client)
