"""What a command prints of finished runs: the table, what it leaves no room for, and where the report is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from synaptome.report.measured import read_final_of_all
from synaptome.report.populations import population_table
from synaptome.report.prediction import Prediction, costs_table, first_prediction
from synaptome.report.robustness import pruning
from synaptome.report.table import Group, group_runs, percent, summary_table
from synaptome.report.ways import ways_table
from synaptome.report.writing import write_report
from synaptome.training.run import RunRecord


def show(records: Sequence[RunRecord], destination: Path, *, timed: bool = False) -> None:
    """Print the tables of the runs, write their report, and say where it is.

    Args:
        records: at least one.
        destination: of the report, an HTML file.
        timed: whether they are ways to train that were timed, of which the table of ways says enough.

    Raises:
        RunError: the report cannot be written; or the measures of a population of networks are damaged.
    """
    console, groups = Console(), group_runs(records)
    compared = ways_table(records)
    if not timed:
        console.print(summary_table(records))
    if compared is not None:
        console.print(compared)
    if (networks := population_table(groups)) is not None:
        console.print(networks)
    if (prediction := first_prediction(records)) is not None:
        _print_costs(prediction, console)
    _show_pruned(groups)
    print(f"report: {write_report(records, destination, tell=_warn)}")


def show_costs(prediction: dict[str, Any]) -> None:
    """Print what `synaptome.recipes.block_prediction.predicted` has found."""
    read = Prediction.of(prediction)
    assert read is not None
    _print_costs(read, Console())


def _print_costs(prediction: Prediction, console: Console) -> None:
    console.print(costs_table(prediction))
    console.print(f"{prediction.said()} Costs are in milliseconds of a step.", soft_wrap=True)


def _show_pruned(groups: Sequence[Group]) -> None:
    """Print a line for each group of runs that were tested without their weakest connections."""
    measured = read_final_of_all(groups, "pruning")[0]  # what is damaged there, the report tells
    for curve in (curve for figure in pruning(groups, measured) for curve in figure.chart.curves):
        tested = (f"{100 * rate:g} %: {percent(accuracy)}" for rate, accuracy in zip(curve.x, curve.y, strict=True))
        whose = f"{curve.label}: " if len(groups) > 1 else ""
        print(f"{whose}test accuracy without the weakest {'; '.join(tested)}")


def _warn(problem: str) -> None:
    print(f"synaptome: left out of the report: {problem}", file=sys.stderr)
