"""Ways to train one network side by side: how fast each is, how soon it is good, and what it takes.

A run that was measured so has a `parallel.json`, which `synaptome compare-parallel` writes, and columns of the time of
its steps in the metrics.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from synaptome.report.markup import Html, table, tag
from synaptome.report.table import ACCURACY, Statistic, percent
from synaptome.report.text import ABSENT, clean, number
from synaptome.training.run import read_json
from synaptome.training.stopwatch import SECONDS, STEP_MS

if TYPE_CHECKING:
    from rich.table import Table

    from synaptome.training.run import RunRecord

FILE = "parallel.json"
BASELINE = "backprop"
NOTE = (
    "A step lasts from the end of the one before; evaluation and checkpoints do not count, nor do they in the seconds "
    "to an accuracy. Speed: the milliseconds of backprop on one thread over those of the way, seed by seed; above 1 is "
    "faster. Predicted: the speed that the cost of its parts promises. Peak: the most memory of each process."
)


@dataclass(frozen=True)
class Way:
    """One way to train, over the seeds.

    Attributes:
        name: of the way.
        processes, threads: how many processes, and threads in each.
        step_ms: milliseconds of a step, the median of a run.
        per_second: training examples a second; None without a finished run.
        target: the accuracy that was asked about, in (0, 1].
        reached: for each finished run the seconds of training until the test accuracy was that; None if it never was.
        accuracy: on the test examples, at the end.
        peak_mb: of each process, in MB of 10^6 bytes, the most over the seeds.
        speed: how many times as many steps a second as the baseline, the median over the seeds.
        predicted: the same by the cost model.
        failures: why runs ended before they were done.
        unpredicted: why there is no prediction where there should be one; else empty.
    """

    name: str
    processes: int
    threads: int
    step_ms: Statistic | None
    per_second: float | None
    target: float
    reached: tuple[float | None, ...]
    accuracy: Statistic | None
    peak_mb: tuple[float, ...]
    speed: float | None
    predicted: float | None
    failures: tuple[str, ...]
    unpredicted: str = ""


def ways(runs: Sequence[RunRecord]) -> list[Way]:
    """The ways that were measured, in the order in which they were; runs that are none of them are left out.

    Raises:
        RunError: what was measured of a run cannot be read.
    """
    measured: dict[str, list[tuple[RunRecord, dict[str, Any]]]] = {}
    for run in runs:
        if (run.path / FILE).exists():
            cost = read_json(run.path / FILE)
            measured.setdefault(clean(cost.get("way", ABSENT)), []).append((run, cost))
    steps = {run.recipe.get("seed"): _step(run) for run, _ in measured.get(BASELINE, [])}
    found = [(_whole(each[0][1], "place"), _way(name, each, steps)) for name, each in measured.items()]
    return [way for _, way in sorted(found, key=lambda pair: pair[0])]


def _way(name: str, runs: Sequence[tuple[RunRecord, dict[str, Any]]], baseline: dict[Any, float | None]) -> Way:
    first = runs[0][1]
    target = number(first.get("accuracy")) or 1.0
    done = [(run, cost) for run, cost in runs if run.summary and not cost.get("failure")]
    steps = [(run, step) for run, _ in done if (step := _step(run))]
    speeds = [base / step for run, step in steps if (base := baseline.get(run.recipe.get("seed")))]
    predictions = [value for _, cost in done if (value := _predicted(cost)) is not None]
    lists = [each for _, cost in done if isinstance(each := cost.get("peak_mb"), list)]
    peaks = [[number(peak) or 0.0 for peak in each] for each in lists]
    median = statistics.median(step for _, step in steps) if steps else None
    return Way(
        name=name,
        processes=_whole(first, "processes"),
        threads=_whole(first, "threads"),
        step_ms=Statistic.of(step for _, step in steps),
        per_second=1e3 * _whole(first, "batch") / median if median else None,
        target=target,
        reached=tuple(_seconds_to(target, run) for run, _ in done),
        accuracy=Statistic.of(value for run, _ in done if (value := number(run.summary.get(ACCURACY))) is not None),
        peak_mb=tuple(max(each) for each in zip(*peaks, strict=False)),
        speed=statistics.median(speeds) if speeds else None,
        predicted=statistics.median(predictions) if predictions else None,
        failures=tuple(clean(cost["failure"]) for _, cost in runs if cost.get("failure")),
        unpredicted=next((clean(cost["prediction_failure"]) for _, cost in runs if cost.get("prediction_failure")), ""),
    )


def _step(run: RunRecord) -> float | None:
    """Milliseconds of a step of a finished run."""
    return number(run.summary.get(STEP_MS))


def _predicted(cost: dict[str, Any]) -> float | None:
    prediction = cost.get("prediction")
    return number(prediction.get("speed")) if isinstance(prediction, dict) else None


def _seconds_to(target: float, run: RunRecord) -> float | None:
    for row in run.metrics:
        if (number(row.get(ACCURACY)) or 0.0) >= target and (seconds := number(row.get(SECONDS))) is not None:
            return seconds
    return None


def _whole(cost: dict[str, Any], key: str) -> int:
    return int(number(cost.get(key)) or 0)


def columns(found: Sequence[Way]) -> dict[str, list[str]]:
    """The table as it is shown: heading to cells. Columns that would say nothing are left out."""
    shown = {
        "way": [way.name for way in found],
        "processes x threads": [f"{way.processes} x {way.threads}" for way in found],
        "ms a step": [_spread(way.step_ms) for way in found],
        "examples a second": [ABSENT if way.per_second is None else f"{way.per_second:,.0f}" for way in found],
    }
    predicted = any(way.predicted is not None for way in found)
    shown["speed (predicted)" if predicted else "speed"] = [_speed(way) for way in found]
    targets = list(dict.fromkeys(way.target for way in found))
    for target in targets:
        shown[f"s to {100 * target:g} %"] = [_reached(way) if way.target == target else ABSENT for way in found]
    shown["test accuracy"] = [percent(way.accuracy) for way in found]
    shown["peak MB"] = [" + ".join(f"{peak:.0f}" for peak in way.peak_mb) or ABSENT for way in found]
    if any(len(way.reached) > 1 for way in found):
        shown["n"] = [str(len(way.reached)) for way in found]
    if any(way.failures for way in found):
        shown["failed"] = [f"{len(way.failures)}" if way.failures else ABSENT for way in found]
    return shown


def _spread(statistic: Statistic | None) -> str:
    if statistic is None:
        return ABSENT
    spread = "" if statistic.std is None else f" ± {statistic.std:.2g}"
    return f"{statistic.mean:.3g}{spread}"


def _speed(way: Way) -> str:
    measured = ABSENT if way.speed is None else f"{way.speed:.2f}"
    return measured if way.predicted is None else f"{measured} ({way.predicted:.2f})"


def _reached(way: Way) -> str:
    """Seconds of training, or how many of the seeds never came so far."""
    seconds = [value for value in way.reached if value is not None]
    if not seconds:
        return "not reached" if way.reached else ABSENT
    some = "" if len(seconds) == len(way.reached) else f" ({len(seconds)} of {len(way.reached)})"
    return _spread(Statistic.of(seconds)) + some


def ways_table(runs: Sequence[RunRecord]) -> Table | None:
    """The table for the terminal; None if no run was measured so."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not (found := ways(runs)):
        return None
    shown = columns(found)
    drawn = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in shown:  # on several lines, and numbers never broken: the table fits 80 columns
        least = 7 if heading.startswith("s to ") else {"way": 9, "peak MB": 5}.get(heading)
        lines = textwrap.fill(heading, 9, break_long_words=False)
        justify: Literal["left", "right"] = "left" if heading == "way" else "right"
        drawn.add_column(lines, justify=justify, no_wrap=least is None, min_width=least)
    for cells in zip(*shown.values(), strict=True):
        drawn.add_row(*(Text(cell) for cell in cells))
    return drawn


def ways_section(found: Sequence[Way], address: str) -> Html:
    """The table for the page.

    Args:
        found: of `ways`, at least one.
        address: of the same as CSV, relative to the page.
    """
    shown = columns(found)
    failed = [
        tag("p", tag("strong", f"{way.name} failed:"), f" {failure}", class_="notice")
        for way in found
        for failure in way.failures
    ]
    failed += [
        tag("p", tag("strong", "No prediction:"), f" {way.unpredicted}", class_="notice")
        for way in found
        if way.unpredicted
    ]
    body = table(list(shown), list(zip(*shown.values(), strict=True)), "Ways side by side", ("way",))
    data = tag("p", "Data: ", tag("a", address, href=address), class_="note")
    return tag("section", tag("h2", "Ways side by side"), *failed, body, tag("p", NOTE, class_="note"), data)


def ways_csv(found: Sequence[Way]) -> str:
    """The table with a row for each way and numbers in full; what is not known is empty."""
    processes = max((len(way.peak_mb) for way in found), default=0)
    text = io.StringIO()
    heads = [
        "way", "processes", "threads", "step_ms", "step_ms_std", "examples_per_second", "speed", "predicted_speed",
        "target_accuracy", "seconds_to_accuracy", "reached", "test_accuracy", "test_accuracy_std", "runs",
        *(f"peak_mb_{number}" for number in range(processes)), "failure",
    ]  # fmt: skip
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for way in found:
        seconds = [value for value in way.reached if value is not None]
        numbers = [
            *_mean_and_std(way.step_ms), way.per_second, way.speed, way.predicted, way.target,
            statistics.fmean(seconds) if seconds else None, len(seconds), *_mean_and_std(way.accuracy),
            len(way.reached), *way.peak_mb, *[None] * (processes - len(way.peak_mb)),
        ]  # fmt: skip
        cells = ["" if value is None or not math.isfinite(value) else f"{value:.6g}" for value in numbers]
        writer.writerow([way.name, way.processes, way.threads, *cells, "; ".join(way.failures)])
    return text.getvalue()


def _mean_and_std(statistic: Statistic | None) -> tuple[float | None, float | None]:
    return (None, None) if statistic is None else (statistic.mean, statistic.std)
