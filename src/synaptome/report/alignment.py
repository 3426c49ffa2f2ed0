"""The figure of how well a learning rule's gradient agrees with that of backpropagation, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synaptome.report.curves import ALIGNMENT
from synaptome.report.drawing import Look
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of, shade
from synaptome.report.measured import MOST_GROUPS
from synaptome.report.table import Group
from synaptome.report.text import clean, number

Points = dict[float, float]


def gradient_alignment(groups: Sequence[Group]) -> list[LineFigure]:
    """The metrics `alignment/<layer>` over the epochs: mean and range over seeds, a panel for each group.

    Args:
        groups: of the page; those whose runs have no such metrics are left out, and those after the first few that do.
    """
    found = [(group.label, layers) for group in groups if (layers := _layers(group))][:MOST_GROUPS]
    rows = rows_of(
        ("", LinePanel(label, tuple(_line(name, place, len(layers), seeds) for place, (name, seeds) in each)))
        for label, layers in found
        if (each := list(enumerate(layers.items(), 1)))
    )
    if not rows:
        return []
    title = "Alignment with backpropagation through time"
    note = (
        "Cosine of the angle between the rule's gradient and the other, by the weights and biases of a layer, on some "
        "training examples; 1 is the same direction."
    )
    return [LineFigure("alignment", title, rows, "epoch", note=note)]


def _layers(group: Group) -> dict[str, list[Points]]:
    """By layer, in the order of the metrics, for each run that has it the cosines by epoch."""
    found: dict[str, list[Points]] = {}
    for run in group.runs:
        own: dict[str, Points] = {}
        for row in run.metrics:
            epoch = number(row.get("epoch"))
            for key in row:
                split, _, layer = key.partition("/")
                value = number(row[key])
                if split == ALIGNMENT and layer and epoch is not None and value is not None:
                    own.setdefault(layer, {})[epoch] = value
        for layer, points in own.items():
            found.setdefault(layer, []).append(points)
    return found


def _line(layer: str, place: int, last: int, seeds: Sequence[Points]) -> Line:
    """Mean and range over the seeds at the epochs that all of them have."""
    epochs = np.array(sorted(set.intersection(*map(set, seeds))))
    values = np.array([[points[epoch] for epoch in epochs] for points in seeds])
    band = (values.min(0), values.max(0)) if len(seeds) > 1 else None
    return Line(clean(layer), epochs, values.mean(0), Look(shade(place, last)), band=band)
