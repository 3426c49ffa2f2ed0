"""Figures of how the networks of a population converge: their errors over the epochs, and the share that is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from synaptome.analysis.populations import NAME
from synaptome.errors import SynaptomeError
from synaptome.report.band_figures import BandFigure, BandPanel
from synaptome.report.drawing import COLOURS, Look
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of, scale_of
from synaptome.report.measured import MOST_GROUPS, Array
from synaptome.report.table import Group
from synaptome.report.text import clean
from synaptome.training.measures import read_series

TOLD = ("error", "right", "finite")
BEYOND = (5.0, 2.5)  # dashes of a line that comes when all colours are taken


@dataclass(frozen=True)
class Learned:
    """What the networks of one run did after each of some epochs.

    Attributes:
        group: index of the run's group.
        label: the group's.
        epochs: `[n]`, from 1 on.
        error: mean squared, `[n, networks]`; NaN where a network has diverged.
        right: whether it was right on all patterns, bool `[n, networks]`.
    """

    group: int
    label: str
    epochs: Array
    error: Array
    right: Array


def read_learned(groups: Sequence[Group]) -> tuple[list[list[Learned]], list[str]]:
    """The runs of each group that recorded a population; groups without one are left out. And what is wrong."""
    problems: list[str] = []
    found = []
    for index, group in enumerate(groups):
        runs = []
        for run in group.runs:
            try:
                series = {name: tensor.numpy() for name, tensor in read_series(run.path, NAME).items()}
            except (SynaptomeError, OSError) as error:
                problems.append(clean(error))
                continue
            if series.keys() >= {"step", *TOLD} and series["step"][-1] > 0:
                done = series["step"] > 0  # before the first epoch there is no error yet
                errors, right, finite = (series[name][done] for name in TOLD)
                errors = np.where(finite == 1, errors, np.nan)
                # A step is an epoch.
                runs.append(Learned(index, group.label, series["step"][done], errors, (right == 1) & (finite == 1)))
        found += [runs] if runs else []
    return found, list(dict.fromkeys(problems))


def convergence(learned: Sequence[Sequence[Learned]]) -> list[BandFigure | LineFigure]:
    """Errors over the epochs, a panel for each group, and the share of right networks, a line for each group.

    Args:
        learned: from `read_learned`.
    """
    shown = learned[:MOST_GROUPS]
    panels = tuple(panel for runs in shown if (panel := _errors(runs)))
    figures: list[BandFigure | LineFigure] = []
    if panels:
        title = "Mean squared error of the networks"
        note = "In the free phase of an epoch, before its change of the weights. Of networks that are finite then."
        note += f" Of the first {MOST_GROUPS} groups." if len(learned) > MOST_GROUPS else ""
        scale = scale_of([panel.values[np.isfinite(panel.values)] for panel in panels])
        figures.append(BandFigure("network-errors", title, panels, "epoch", "networks", scale, True, note))
    rows = rows_of([("", LinePanel("", tuple(_share(runs) for runs in shown)))])
    if rows:
        title = "Share of the networks that are right on all patterns"
        note = "In the free phase of an epoch. One that has diverged counts as wrong."
        figures.append(LineFigure("network-shares", title, rows, "epoch", "share", note))
    return figures


def _errors(runs: Sequence[Learned]) -> BandPanel | None:
    """Over the networks of all runs, at the epochs that all of these have, as long as there is a finite one."""
    epochs = _shared(runs)
    values = np.concatenate([run.error[np.isin(run.epochs, epochs)] for run in runs], axis=1)
    left = np.isfinite(values).any(1)
    return BandPanel(runs[0].label, epochs[left], values[left]) if left.any() else None


def _share(runs: Sequence[Learned]) -> Line:
    """Mean over runs, and their range."""
    epochs = _shared(runs)
    shares = np.stack([run.right[np.isin(run.epochs, epochs)].mean(1) for run in runs])
    place = runs[0].group
    look = Look(f"c{place % COLOURS}", dashes=BEYOND if place >= COLOURS else ())
    band = (shares.min(0), shares.max(0)) if len(shares) > 1 else None
    return Line(runs[0].label, epochs, shares.mean(0), look, band=band)


def _shared(runs: Sequence[Learned]) -> Array:
    return reduce(np.intersect1d, [run.epochs for run in runs])
