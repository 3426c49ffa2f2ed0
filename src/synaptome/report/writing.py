"""Putting a report on disk: everything is written aside first, then renamed into place, the page last."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synaptome.errors import ConfigurationError, RunError
from synaptome.report import measures
from synaptome.report.curves import charts, csv_text
from synaptome.report.film import FilmFigure
from synaptome.report.page import render
from synaptome.report.prediction import costs_section, first_prediction
from synaptome.report.table import group_runs
from synaptome.report.ways import ways, ways_csv, ways_section

if TYPE_CHECKING:
    from synaptome.training.run import RunRecord


def write_report(
    runs: Sequence[RunRecord], destination: Path, tell: Callable[[str], object] = lambda problem: None
) -> Path:
    """Write the report of one run, or the comparison of several, as a single HTML file.

    The data of each figure go beside it as CSV: `runs/demo/report.html` comes with `runs/demo/report-data/loss.csv`;
    films also as GIF. The folder's CSV and GIF files belong to the report: those of an earlier one that are no longer
    drawn are removed.
    The same runs give the same bytes.

    Args:
        runs: at least one, finished or not; see `synaptome.training.run.read_run`.
        destination: the .html file; folders above it are made.
        tell: is told of each file of measures that is damaged, and therefore left out.

    Returns:
        The destination.

    Raises:
        ConfigurationError: there is no run, or the destination's name does not end in .html.
        RunError: something cannot be written; no partial file is left, and an earlier page is as it was.
    """
    destination = Path(destination)
    if not runs:
        raise ConfigurationError("a report needs at least one run, but none was given")
    if destination.suffix.lower() != ".html":
        raise ConfigurationError(f"a report is an HTML file: expected a name ending in .html, not {destination.name!r}")
    groups = group_runs(runs)
    folder = destination.with_name(f"{destination.stem}-data")
    curves, found, compared = charts(groups), measures.find(groups), ways(runs)
    predicted = first_prediction(runs)
    figures = [*(chart.name for chart in curves), *(each.name for each in found.figures)]
    first, second, *names = _file_names(["ways", "blocks", *figures])
    drawn = dict(zip(names, curves, strict=False))
    measured = dict(zip(names[len(curves) :], found.figures, strict=True))
    addresses = {figure.name: f"{folder.name}/{name}" for name, figure in measured.items()}
    shown = {f"{folder.name}/{name}": chart for name, chart in drawn.items()}
    sections = [
        *([ways_section(compared, f"{folder.name}/{first}")] if compared else []),
        *([costs_section(predicted, f"{folder.name}/{second}")] if predicted else []),
    ]
    page = render(groups, shown, found, addresses, sections)
    texts = {name: csv_text(chart) for name, chart in drawn.items()}
    texts |= {name: figure.csv_text() for name, figure in measured.items()}
    texts |= {first: ways_csv(compared)} if compared else {}
    texts |= {second: predicted.csv_text()} if predicted else {}
    data = {name: text.encode() for name, text in texts.items()}
    data |= {measures.gif_name(name): each.gif() for name, each in measured.items() if isinstance(each, FilmFigure)}
    try:
        _write(destination, page.encode(), folder, data)
    except OSError as error:
        raise RunError(f"the report {destination} cannot be written: {error}") from None
    for problem in found.problems:
        tell(problem)
    return destination


def _file_names(figures: Sequence[str]) -> list[str]:
    """A safe and distinct file name for each figure; a metric's name comes from a run folder and may hold anything."""
    names: list[str] = []
    for figure in figures:
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", figure).strip("-")[:80] or "metric"
        taken = {name.lower() for name in names}  # some file systems do not tell A from a
        candidates = (f"{stem}{suffix}.csv" for suffix in ["", *(f"-{count}" for count in range(2, len(figures) + 1))])
        names.append(next(name for name in candidates if name.lower() not in taken))
    return names


def _write(destination: Path, page: bytes, folder: Path, data: dict[str, bytes]) -> None:
    if destination.is_dir():  # known before anything is touched
        raise IsADirectoryError(f"{destination} is a folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.stem}-", dir=destination.parent))
    try:
        for name, content in {destination.name: page, **data}.items():
            (aside / name).write_bytes(content)
        if data:
            folder.mkdir(exist_ok=True)
        for name in data:
            (aside / name).replace(folder / name)
        for stale in folder.glob("*"):
            if stale.suffix in (".csv", ".gif") and stale.name not in data:
                stale.unlink()
        (aside / destination.name).replace(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
