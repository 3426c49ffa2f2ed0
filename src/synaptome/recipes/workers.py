"""Prepared runs, one after another or several at a time, each to its end; one that fails does not stop the rest."""

from __future__ import annotations

import queue
import signal
import threading
import traceback
import uuid
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from synaptome.errors import (
    ConfigurationError,
    DataError,
    Interrupted,
    NumericError,
    RunError,
    SynaptomeError,
    WorkerLostError,
)
from synaptome.recipes.pools import Cluster, Pool, Processes, claim
from synaptome.training.interrupt import StopRequest
from synaptome.training.sweep_progress import SweepView

DEATHS = 3  # of workers of this machine that one call of `run_each` survives
POLL_SECONDS = 0.1
JOIN_SECONDS = 2.0
_CLASSES = {cls.exit_code: cls for cls in (ConfigurationError, DataError, NumericError, RunError)}

# A cluster's workers run tasks in threads, but torch's random numbers and switches belong to the whole process.
_one_at_a_time = threading.Lock()
_at_work: dict[str, StopRequest] = {}
_stopped: set[str] = set()


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        index: which of the runs.
        exit_code: see `synaptome.errors`.
        message: what went wrong; empty if nothing did.
    """

    index: int
    exit_code: int = 0
    message: str = ""


class Call(NamedTuple):
    """The arguments of `work`."""

    number: int
    path: Path
    sweep: str
    on_cluster: bool
    checkpoint_seconds: float


def run_each(
    paths: Sequence[Path], workers: int, view: SweepView, *, checkpoint_seconds: float, cluster: str | None = None
) -> None:
    """Run or resume each prepared folder to its end; one that fails does not keep the rest from theirs.

    Args:
        paths: prepared run folders; those that are finished stay as they are.
        workers: how many at a time: 1 in this process, more in processes of their own.
        view: shows how far they are.
        checkpoint_seconds: as for `Trainer`.
        cluster: address of a Dask scheduler whose workers are used instead; they must find the same folders under
            the same absolute paths.

    Raises:
        ConfigurationError: workers is less than 1, or the cluster is not there; nothing was started.
        SynaptomeError: after all have run, if any failed: of the class of the worst failure; each run is named.
        WorkerLostError: more than `DEATHS` workers died, or the cluster gave runs up; what was saved is kept.
        Interrupted: this process or a worker was asked to stop; so were all, and they have saved.
    """
    if workers < 1:
        raise ConfigurationError(f"workers is a whole number of at least 1; given {workers}")
    workers = min(workers, len(paths))
    outcomes: dict[int, Outcome] = {}
    sweep, deaths = uuid.uuid4().hex, 0
    with ExitStack() as stack:
        pool: Pool | None = None
        if cluster is not None:
            pool = stack.enter_context(closing(Cluster(cluster)))
        elif workers > 1:
            pool = stack.enter_context(closing(Processes(workers)))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(view.watching(paths))
        while len(outcomes) < len(paths) and stop.signum is None:
            calls = (
                Call(index, path.resolve() if cluster else path, sweep, cluster is not None, checkpoint_seconds)
                for index, path in enumerate(paths)
                if index not in outcomes
            )
            try:
                with closing(_here(calls) if pool is None else _fetched(pool, calls, sweep, stop)) as results:
                    for outcome in results:
                        outcomes[outcome.index] = outcome
                        view.ended(paths[outcome.index], outcome.exit_code)
                        if outcome.exit_code > 128 and stop.signum is None:  # a worker was asked to stop: so are all
                            stop.signum = outcome.exit_code - 128
            except BrokenExecutor as death:
                if stop.signum is not None:
                    break
                deaths += 1
                if deaths > DEATHS:
                    raise WorkerLostError(f"{death}, as did {DEATHS} before it; {_how_to_go_on(paths)}") from None
                view.say(f"{death}; new ones go on from what is saved")
            except WorkerLostError as loss:
                raise WorkerLostError(f"{loss}; {_how_to_go_on(paths)}") from None
    _tell_failures(paths, outcomes, stop.signum)


def work(call: Call) -> Outcome:
    """Run or resume a prepared folder in this process, whichever it is, and say how that ended."""
    from synaptome.recipes import running  # whose `resume_each` sends its runs here

    with _one_at_a_time, StopRequest() as stop:
        _at_work[call.sweep] = stop
        try:
            if call.sweep in _stopped or stop.signum is not None:
                return Outcome(call.number, 128 + (stop.signum or signal.SIGTERM), f"{call.path} was not started")
            if call.on_cluster:
                claim(call.path, call.sweep)
            running.resume(call.path, checkpoint_seconds=call.checkpoint_seconds)
            return Outcome(call.number)
        except SynaptomeError as error:
            message = str(error) if str(call.path) in str(error) else f"{call.path}: {error}"
            return Outcome(call.number, error.exit_code, message)
        except Exception:  # a fault in one run is told at the end, like any other failure
            return Outcome(call.number, SynaptomeError.exit_code, f"{call.path}: {traceback.format_exc()}")
        finally:
            del _at_work[call.sweep]


def ask_to_stop(sweep: str, signum: int) -> None:
    """Let this process's run of a sweep stop after its step, and no other begin; for where signals do not reach."""
    _stopped.add(sweep)
    if sweep in _at_work:
        _at_work[sweep].signum = signum


def _here(calls: Iterable[Call]) -> Generator[Outcome, None, None]:
    """The outcomes of `work` in this process."""
    yield from map(work, calls)


def _fetched(pool: Pool, calls: Iterable[Call], sweep: str, stop: StopRequest) -> Generator[Outcome, None, None]:
    """The outcomes of `work` in a pool.

    They are awaited in a thread of their own, so that this one is free to pass a stop on and to look for losses.
    """
    results: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            for outcome in pool.results(work, calls):
                results.put(outcome)
            results.put(None)
        except BaseException as error:
            results.put(error)

    thread = threading.Thread(target=fetch, name="synaptome-sweep", daemon=True)
    thread.start()
    try:
        while True:
            try:
                result = results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if stop.signum is not None:
                    pool.ask_to_stop(ask_to_stop, sweep, stop.signum)
                pool.check()
                continue
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        if thread.is_alive():  # a second Ctrl-C: the thread cleans up, and nobody at the same time
            pool.abandon()
        thread.join(JOIN_SECONDS)


def _tell_failures(paths: Sequence[Path], outcomes: dict[int, Outcome], signum: int | None) -> None:
    """Raise what `run_each` promises."""
    done = sum(outcome.exit_code == 0 for outcome in outcomes.values())
    failed = [outcome for _, outcome in sorted(outcomes.items()) if 0 < outcome.exit_code < 128]
    if signum is not None and done + len(failed) < len(paths):
        whole = f"{done} of {len(paths)} runs are finished, and the others saved"
        raise Interrupted(signum, f"{whole}; {_how_to_go_on(paths)}")
    if failed:
        codes = {outcome.exit_code for outcome in failed}
        worst = SynaptomeError if SynaptomeError.exit_code in codes else _CLASSES[max(codes)]
        told = "; ".join(outcome.message for outcome in failed)
        raise worst(f"{len(failed)} of {len(paths)} runs stopped: {told}")


def _how_to_go_on(paths: Sequence[Path]) -> str:
    return f"go on with: synaptome resume {paths[0].parent if len(paths) > 1 else paths[0]}"
