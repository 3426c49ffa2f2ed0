"""Figures of what flows through the network: the inputs' covariance and the hidden activity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synaptome.report.drawing import Look
from synaptome.report.heat_maps import HeatFigure, HeatMap, HeatPanel
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of, scale_of
from synaptome.report.measured import Array, Measures
from synaptome.report.weights import after_training, over_training, ranks

SAME = "The same in all groups drawn."


def hidden(measured: Sequence[Measures]) -> list[LineFigure]:
    """Mean, spread and silence of each layer's activity over training, and each unit's activity after it."""
    figures = [
        *over_training(measured, "activity_mean", "activity-mean", "Mean activity"),
        *over_training(measured, "activity_std", "activity-spread", "Standard deviation of the activity"),
    ]
    if any(values.any() for each in measured for values in each.layers("activity_silent").values()):
        title = "Silence: share of activities that are exactly 0"
        figures += over_training(measured, "activity_silent", "activity-silent", title, "share")
    title = "Activity of each unit after training, root mean square"
    return [*figures, *after_training(measured, "activity", "activity-units", title, "unit, by activity")]


def inputs(measured: Sequence[Measures]) -> list[HeatFigure | LineFigure]:
    """Covariance of the inputs and its eigenvalues; once, where all groups have the same."""
    figures: list[HeatFigure | LineFigure] = []
    maps, note = _told_apart(measured, "input/covariance")
    if maps:
        low = float(min(values.min() for values in maps.values()))
        high = float(max(values.max() for values in maps.values()))
        panels = tuple(HeatPanel(group, (HeatMap("", values),)) for group, values in maps.items())
        note = f"Uncentred: X'X / n over n examples. {note}".strip()
        figures.append(
            HeatFigure("input-covariance", "Covariance of the inputs", panels, "input", "input", low, high, note)
        )
    spectra, note = _told_apart(measured, "input/spectrum")
    rows = rows_of(
        ("", LinePanel(group, (Line("eigenvalue", ranks(values), values, Look("c0")),)))
        for group, values in spectra.items()
    )
    if rows:
        title = "Eigenvalues of the inputs' covariance"
        figures.append(LineFigure("input-spectrum", title, rows, x="rank", y=scale_of(spectra.values()), note=note))
    return figures


def _told_apart(measured: Sequence[Measures], key: str) -> tuple[dict[str, Array], str]:
    """A final measure by group, or once without a label, with a note, where several groups have the same."""
    found = {each.group: each.final[key] for each in measured if key in each.final}
    values = list(found.values())
    if len(values) > 1 and all(np.array_equal(values[0], other) for other in values[1:]):
        return {"": values[0]}, SAME
    return found, ""
