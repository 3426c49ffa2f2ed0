"""The table of a population of networks: how many learned their task, how soon, and what certifies their stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from synaptome.analysis.populations import NAME, overview
from synaptome.errors import SynaptomeError
from synaptome.report.markup import Html, table, tag
from synaptome.report.table import Group
from synaptome.report.text import clean
from synaptome.training.measures import read_final

if TYPE_CHECKING:
    from rich.table import Table

SHARES = {
    "solved": "solved at the end",
    "held": "and in each of the last 10 epochs",
    "ever_solved": "solved at some epoch",
    "not_finite": "not finite",
    "settled": "at rest within the tolerance",
    "resting": "at rest within 1e-6",
    "stable": "and Jacobian stable there",
    "gershgorin_rows": "Gershgorin by row passed",
    "gershgorin_columns": "Gershgorin by column passed",
    "sparsity": "zeros among allowed connections",
}
NOTE = (
    "At rest: the last change of a state in the free phase, on every pattern; a tolerance of 0 asks for the same bits, "
    "and one above 1e-6 stands in both rows. Jacobian stable: every eigenvalue λ of the units that are not clipped has "
    "|1 + dt λ| < 1, so that small disturbances decay; Gershgorin's discs are sufficient for stability only. Epochs to "
    "solve are those of networks that solved the task at some epoch; the error is that of finite networks."
)


def population_columns(groups: Sequence[Group]) -> tuple[dict[str, list[str]], list[str]]:
    """The table, heading to cells: a column of what is counted and one for each group, over all its runs' networks.

    Groups without such measures are left out.

    Returns:
        The table, empty if there is no such group; and what is wrong with the files, a sentence each.
    """
    columns: dict[str, list[str]] = {}
    problems: list[str] = []
    for group in groups:
        runs = [found for run in group.runs if (found := _measured(run.path, problems))]
        if runs:
            numbers = overview({name: torch.cat([run[name] for run in runs]) for name in runs[0]})
            shares = [f"{100 * numbers[name]:.3g} %" for name in SHARES]
            epoch, error = (numbers[name] for name in ("median_epoch", "median_error"))
            medians = ["–" if math.isnan(epoch) else f"{epoch:g}", "–" if math.isnan(error) else f"{error:.3g}"]
            columns[group.label] = [f"{numbers['networks']:g}", *shares, *medians]
    heads = ["networks", *SHARES.values(), "median epochs to solve", "median squared error"]
    return {"": heads, **columns} if columns else {}, problems


def _measured(run: Path, problems: list[str]) -> dict[str, Tensor]:
    try:
        return read_final(run, NAME)
    except (SynaptomeError, OSError) as error:
        problems.append(clean(error))
        return {}


def population_table(groups: Sequence[Group]) -> Table | None:
    """The same for the terminal, which leaves damaged files to the page; None if no group has such measures."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns, _ = population_columns(groups)
    if not columns:
        return None
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(columns):
        shown.add_column(Text(heading), justify="right" if index else "left", no_wrap=bool(index))
    for cells in zip(*columns.values(), strict=True):
        shown.add_row(*(Text(cell) for cell in cells))
    return shown


def population_section(groups: Sequence[Group]) -> Html | None:
    """The same for the page; None if no group has such measures."""
    columns, problems = population_columns(groups)
    label = "Networks"
    parts = [tag("p", tag("strong", "Damaged:"), f" {problem}.", class_="notice") for problem in problems]
    if columns:
        parts.append(table(list(columns), list(zip(*columns.values(), strict=True)), label, ("",)))
        parts.append(tag("p", NOTE, class_="note"))
    return tag("section", tag("h2", label), *parts) if parts else None
