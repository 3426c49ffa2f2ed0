"""Side-by-side measurements: contestants in alternating order, ratios paired round by round, a table and a CSV."""

from __future__ import annotations

import csv
import gc
import multiprocessing
import os
import pickle
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from synaptome.errors import ConfigurationError, unknown
from synaptome.training.environment import describe_environment, peak_megabytes

RESULTS = Path(__file__).parent / "results"

Work = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """Something to measure: `setup()` makes all that is needed, untimed, and returns the work that is timed."""

    name: str
    setup: Callable[[], Work]


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant.

    Attributes:
        row: name, unit, note, and the environment, as columns of the CSV.
        seconds: of each round's call.
        ratios: of each round, its seconds over those of the baseline in the same round.
        amount: units of work a call does.
        setup_mb: resident memory that `setup` kept, in MB of 10^6 bytes; None if not measured.
        peak_mb: how far resident memory then rose above that while working, the warm-up included.
    """

    row: dict[str, Any]
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    amount: float
    setup_mb: float | None
    peak_mb: float | None

    def columns(self) -> dict[str, Any]:
        """The contestant's row of the CSV."""
        (low, median, high), (ratio_low, ratio, ratio_high) = _quartiles(self.seconds), _quartiles(self.ratios)
        numbers = {"per_second": self.amount / median, "median_s": median, "q1_s": low, "q3_s": high}
        numbers |= {"min_s": min(self.seconds), "max_s": max(self.seconds)}
        numbers |= {"ratio": ratio, "ratio_q1": ratio_low, "ratio_q3": ratio_high}
        rounded = {key: float(f"{value:.6g}") for key, value in numbers.items()}
        memory = {"setup_mb": self.setup_mb, "peak_mb": self.peak_mb}.items()
        own: dict[str, Any] = {"rounds": len(self.seconds), "amount": self.amount} | rounded
        own |= {key: None if megabytes is None else round(megabytes, 2) for key, megabytes in memory}
        return {key: self.row[key] for key in ("contestant", "threads")} | own | self.row


def compare(
    name: str,
    contestants: Sequence[Contestant],
    *,
    baseline: str,
    rounds: int,
    warmup: int = 1,
    threads: int = 1,
    amount: float = 1.0,
    unit: str = "calls",
    note: str = "",
    limit: float = float("inf"),
    fresh: bool = False,
    memory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Measure each contestant once a round, in an order reversed every round.

    Args:
        name: of the measurement and its CSV: small letters, digits and hyphens.
        contestants: with different names.
        baseline: the name of the one the others are divided by.
        rounds: at least 1.
        warmup: untimed calls of each contestant before its first timed one; with `fresh`, before every timed one.
        threads: of torch, within an operation.
        amount: how many units of work a call does.
        unit: what they are, in plural.
        note: what a reader must know of the measurement; a column of the CSV.
        limit: seconds after which no new round begins.
        fresh: whether every call has a process of its own.
        memory: whether to measure memory, which takes a fresh process for each contestant.
        clock: gives seconds, in this process.

    Returns:
        A result for each contestant, in their order.

    Raises:
        ConfigurationError: a name or a number is not as above, or a setup cannot be sent to a fresh process.
    """
    names = [contestant.name for contestant in contestants]
    _check(name, names, baseline, {"rounds": (rounds, 1), "threads": (threads, 1), "warmup": (warmup, 0)})
    if fresh or memory:
        for contestant in contestants:
            _check_portable(contestant)
    before, load_before = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(threads)
    try:
        environment = _environment()
        works = {} if fresh else {c.name: _warm(c.setup(), warmup) for c in contestants}
        seconds: dict[str, list[float]] = {one: [] for one in names}
        memories: dict[str, tuple[float | None, float | None]] = dict.fromkeys(names, (None, None))
        started = clock()
        for number in range(rounds):
            if number and clock() - started >= limit:
                break
            for contestant in contestants[:: -1 if number % 2 else 1]:
                if fresh:
                    taken, *kept = _in_fresh_process(contestant, warmup, threads)
                    memories[contestant.name] = (kept[0], kept[1])
                else:
                    taken = _timed(works[contestant.name], clock)
                seconds[contestant.name].append(taken)
    finally:
        torch.set_num_threads(before)
    if memory and not fresh:
        memories = {c.name: _in_fresh_process(c, 0, threads)[1:] for c in contestants}
    row = {"unit": unit, "note": note, "threads": threads, "baseline": baseline} | environment
    row |= {"load_before": round(load_before, 2), "load_after": round(os.getloadavg()[0], 2)}
    return [
        Result(
            {"measurement": name, "contestant": one} | row,
            tuple(seconds[one]),
            tuple(own / base for own, base in zip(seconds[one], seconds[baseline], strict=True)),
            amount,
            *memories[one],
        )
        for one in names
    ]


def save(results: Sequence[Result], folder: Path = RESULTS, *, tables: bool = True) -> Path:
    """Print the results as tables if asked, and write them to `folder/NAME.csv`, a row each; returns that file."""
    rows = [result.columns() for result in results]
    first = rows[0]
    console = Console(width=max(Console().width, 120), soft_wrap=True)  # a log's table is as wide as it needs
    for note in dict.fromkeys(row["note"] for row in rows if tables):
        console.print(_table([row for row in rows if row["note"] == note]))
    environment = ("synaptome", "python", "torch", "numpy", "processor", "cores", "blas", "load_before", "load_after")
    console.print(", ".join(f"{key} {first[key]}" for key in environment))
    console.print(f"ratio: seconds over those of {first['baseline']} in the same round, median of the rounds")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{first['measurement']}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows(rows)
    console.print(f"written to {path}")
    return path


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    first = rows[0]
    table = Table(title=f"{first['measurement']}: {first['note']}", title_justify="left")
    for column in ("contestant", "threads", "rounds", f"{first['unit']}/s", "s (quartiles)", "ratio (quartiles)"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    table.add_column("MB set up + at work", justify="right")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("contestant", "threads", "rounds")),
            f"{row['per_second']:.4g}",
            f"{row['median_s']:.4g} ({row['q1_s']:.4g} to {row['q3_s']:.4g})",
            f"{row['ratio']:.3f} ({row['ratio_q1']:.3f} to {row['ratio_q3']:.3f})",
            "" if row["peak_mb"] is None else f"{row['setup_mb']:.0f} + {row['peak_mb']:.0f}",
        )
    return table


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)


def _check(name: str, names: list[str], baseline: str, numbers: dict[str, tuple[int, int]]) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigurationError(
            f"a measurement's name is small letters and digits, with single hyphens between; given {name!r}"
        )
    if len(set(names)) < len(names) or not all(names):
        raise ConfigurationError(f"contestants need names, each another; given {names}")
    if baseline not in names:
        raise unknown("baseline", baseline, names)
    for what, (given, least) in numbers.items():
        if given < least:
            raise ConfigurationError(f"{what} must be at least {least}; given {given}")


def _check_portable(contestant: Contestant) -> None:
    try:
        pickle.dumps(contestant)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"the setup of {contestant.name!r} cannot be sent to a fresh process ({error}); "
            "let it be a module's function, or functools.partial of one"
        ) from error


def _environment() -> dict[str, Any]:
    described = describe_environment()
    plain = ("synaptome", "commit", "python", "processor", "cores", "blas")
    versions = {package: described["packages"][package] for package in ("torch", "numpy")}
    system = {"system": f"{platform.system()} {platform.machine()}"}
    when = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    return {key: described[key] for key in plain} | versions | system | when


def _warm(work: Work, calls: int) -> Work:
    for _ in range(calls):
        work()
    return work


def _timed(work: Work, clock: Callable[[], float]) -> float:
    gc.collect()  # another contestant's garbage is not this one's work
    started = clock()
    work()
    return clock() - started


def _in_fresh_process(contestant: Contestant, warmup: int, threads: int) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_alone, contestant, warmup, threads).result()


def _alone(contestant: Contestant, warmup: int, threads: int) -> tuple[float, float, float]:
    """Seconds, MB kept by the setup, and MB that the peak of the work lies above them."""
    torch.set_num_threads(threads)
    start = _new_peak()
    work = contestant.setup()
    base = _new_peak()
    seconds = _timed(_warm(work, warmup), time.perf_counter)
    return seconds, max(base - start, 0.0), peak_megabytes() - base


def _new_peak() -> float:
    """Forget the peak so far, where the system can (Linux); returns the peak that is left, in MB."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()
