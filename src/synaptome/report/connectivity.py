"""Figures of learned connectivity: how many synapses are not as they were drawn, which signs there are, the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from synaptome.report.bar_figures import Bar, BarFigure, BarPanel, BarRow, Part
from synaptome.report.drawing import Look
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of, shade
from synaptome.report.measured import AFTER, Array, Measures
from synaptome.report.weights import MOST_LAYERS, NARROWEST, compared

SIGNS = (Part("negative", "c1", "paper"), Part("zero", "grid", "ink"), Part("positive", "c0", "paper"))
WHOLE = "whole network"


def changes(groups: Sequence[Sequence[Measures]]) -> list[LineFigure]:
    """Share of synapses changed over training, of each layer and of the whole network: mean and range over seeds.

    Args:
        groups: for each group the measures of its runs, at least one.
    """
    layers = [[each.layers("changed") for each in runs] for runs in groups]
    depth = max((number for found in layers for each in found for number in each), default=0)
    rows = rows_of(
        ("", LinePanel(runs[0].group, tuple(_changed(runs, found, depth))))
        for runs, found in zip(groups, layers, strict=True)
    )
    if not rows:
        return []
    title = "Share of synapses changed, layer by layer"
    note = "A synapse has changed if it is not as it was drawn: masked, or of the other sign."
    return [LineFigure("changed-layers", title, rows, note=note)]


def counts(measured: Sequence[Measures]) -> list[BarFigure]:
    """How many masks and effective weights of each layer are negative, zero and positive, after training."""
    rows = []
    for measure, title in (("masks", "masks"), ("weights", "effective weights")):
        panels = [BarPanel(each.group, _bars(each, measure)) for each in measured]
        if whole := tuple(panel for panel in panels if panel.bars):
            rows.append(BarRow(title, whole))
    if not rows:
        return []
    heading = "Signs of masks and of effective weights after training"
    note = "Share of a layer's synapses in percent. An effective weight is the weight times its mask."
    return [BarFigure("connectivity", heading, SIGNS, tuple(rows), note)]


def scores(measured: Sequence[Measures]) -> list[LineFigure]:
    """Distribution of each layer's scores after training."""
    layers = [_densities(each) for each in measured]
    depth = max((number for found in layers for number in found), default=0)
    rows = rows_of(
        (panel, LinePanel(each.group, tuple(lines)))
        for each, found in zip(measured, layers, strict=True)
        for panel, lines in compared(found, depth)
    )
    if not rows:
        return []
    title = "Distribution of the scores"
    note = "Share of a layer's scores for each unit of score."
    stairs = depth <= MOST_LAYERS
    return [LineFigure("scores", title, rows, x="score", y="log", note=note, stairs=stairs)]


def _changed(runs: Sequence[Measures], layers: Sequence[Mapping[int, Array]], depth: int) -> list[Line]:
    """A line for each layer, and one for the whole network where it has several."""
    numbers = sorted({number for each in layers for number in each})
    lines = [
        _mean(
            f"layer {number}",
            Look(shade(number, depth)),
            [(run.steps, each[number]) for run, each in zip(runs, layers, strict=True) if number in each],
        )
        for number in numbers
    ]
    whole = [(run.steps, run.series["changed"]) for run in runs if "changed" in run.series]
    return [*lines, _mean(WHOLE, Look("ink", dashes=(5, 2.5)), whole)] if whole and len(numbers) != 1 else lines


def _mean(name: str, look: Look, seeds: Sequence[tuple[Array, Array]]) -> Line:
    """Mean and range over the seeds at the steps that all of them have."""
    steps = reduce(np.intersect1d, [steps for steps, _ in seeds])
    values = np.stack([values[np.isin(own, steps)] for own, values in seeds])
    band = (values.min(0), values.max(0)) if len(seeds) > 1 else None
    return Line(name, steps, values.mean(0), look, band=band)


def _bars(each: Measures, measure: str) -> tuple[Bar, ...]:
    """A bar for each layer that has synapses; of an unfinished run those of its last snapshot."""
    found = {number: counts[-1] for number, counts in each.layers(measure).items()}
    found |= each.layers(measure, final=True)
    return tuple(Bar(f"layer {number}", counts) for number, counts in sorted(found.items()) if counts.sum() > 0)


def _densities(each: Measures) -> dict[int, dict[str, tuple[Array, Array]]]:
    """By layer: the middles of the bins, and the density in them."""
    edges = each.layers("score_edges", final=True)
    found = {}
    for number, counts in each.layers("score_counts", final=True).items():
        widths, total = np.diff(edges[number]), counts.sum()
        if total > 0 and widths.min() > NARROWEST:
            found[number] = {AFTER: ((edges[number][1:] + edges[number][:-1]) / 2, counts / total / widths)}
    return found
