"""Figures of the connections of sparse layers: where they are on the input, how many neurons have, which ones stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from synaptome.analysis.wiring import centred_means, degree_edges
from synaptome.report.chart_figures import ChartFigure
from synaptome.report.curves import Chart, Curve
from synaptome.report.drawing import Look
from synaptome.report.film import Film, FilmFigure
from synaptome.report.heat_maps import HeatFigure, HeatMap, HeatPanel
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of
from synaptome.report.measured import AFTER, BEFORE, Array, Measures
from synaptome.report.table import Group, Statistic
from synaptome.report.weights import MOST_LAYERS, compared, layers_over_training, over_training

MAP = "input/connections"
MOST_MAPS = 6  # snapshots of a run drawn side by side
PIXELS = "Connections of each input pixel"


def maps(measured: Sequence[Measures]) -> list[HeatFigure | FilmFigure]:
    """Connections of each input pixel: some snapshots side by side, and all of them (or many) as a film."""
    found = {each.group: pictures for each in measured if (pictures := _pictures(each))}
    if not found:
        return []
    values = [picture for pictures in found.values() for _, picture in pictures]
    low = float(min(picture.min() for picture in values))
    high = float(max(picture.max() for picture in values))
    panels = tuple(
        HeatPanel(group, tuple(HeatMap(name, picture) for name, picture in _some(pictures)))
        for group, pictures in found.items()
    )
    kept = [each.series.get(MAP, each.final.get(MAP)) for each in measured]
    colour = any(values is not None and values.shape[-3] > 1 for values in kept)
    note = "The mean over the channels of the image." if colour else ""
    down, across = "pixel row", "pixel column"
    figures: list[HeatFigure | FilmFigure] = [HeatFigure("connections", PIXELS, panels, down, across, low, high, note)]
    moving = {group: pictures for group, pictures in found.items() if len(pictures) > 1}
    films = tuple(
        Film(group, tuple(name for name, _ in pictures), np.stack([picture for _, picture in pictures]))
        for group, pictures in moving.items()
    )
    return figures + FilmFigure.of("connections-film", f"{PIXELS}, over training", films, low, high)


def profile(groups: Sequence[Group], finals: Sequence[Iterable[Mapping[str, Array]]]) -> list[ChartFigure]:
    """Connections of a pixel against the side of the centred square over which they are averaged.

    Args:
        groups: of the page.
        finals: for each group, of each run the final measures.
    """
    curves = []
    for index, (group, runs) in enumerate(zip(groups, finals, strict=True)):
        for when, key in ((AFTER, MAP), (BEFORE, f"start/{MAP}")):
            seeds = [_means(run[key]) for run in runs if key in run]
            sides = sorted(set.intersection(*map(set, seeds))) if seeds else []
            means = [Statistic.of(seed[side] for seed in seeds) for side in sides]
            if sides:
                curves.append(
                    Curve(index, group.label, when, tuple(map(float, sides)), tuple(mean for mean in means if mean))
                )
    if not curves:
        return []
    chart = Chart("connections of a pixel", "side of the centred square in pixels", tuple(curves))
    heading = "Connections of a pixel, mean over centred squares"
    note = (
        "A line falls where connections gather in the middle of the input, and rises where they gather in its margin."
    )
    return [ChartFigure(chart, len(groups) > 1, "connections-centred", heading, note)]


def degrees(measured: Sequence[Measures]) -> list[LineFigure]:
    """Distribution of the neurons' degrees in the first and the last snapshot, layer by layer."""
    note = "Share of the neurons for each single degree; degrees from 32 on are counted in bins."
    figures = []
    for measure, title in (
        ("out_degree", "Distribution of the out-degree, the connections of an input"),
        ("in_degree", "Distribution of the in-degree, the connections of an output"),
    ):
        layers = [_distributions(each, measure) for each in measured]
        depth = max((number for found in layers for number in found), default=0)
        rows = rows_of(
            (panel, LinePanel(each.group, tuple(lines)))
            for each, found in zip(measured, layers, strict=True)
            for panel, lines in compared(found, depth)
        )
        if rows:
            name, x = measure.replace("_", "-"), measure.replace("_", "-")
            stairs = depth <= MOST_LAYERS
            figures.append(LineFigure(name, title, rows, x, "log", note, stairs, apart=True))
    return figures


def changes(measured: Sequence[Measures]) -> list[LineFigure]:
    """What is left of the initial graph, how much was ever visited, and the signs and numbers of the connections."""
    figures = []
    if any((values < 1).any() for each in measured for values in each.layers("initial_present").values()):
        title = "Connections of the initial graph that are present"
        note = (
            "Share of the initial graph's places that hold a connection; one that was dropped and grew back counts. "
            "An unrelated graph would share about the layer's density of them."
        )
        figures += over_training(measured, "initial_present", "connections-initial", title, "share", note)
    visited = rows_of(
        ("", LinePanel(each.group, (Line("ITOP rate", each.steps, each.series["itop_rate"], Look("c0")),)))
        for each in measured
        if "itop_rate" in each.series
    )
    if visited:
        note = "Share of all places of the sparse layers that hold or once held a connection."
        title = "In-time over-parameterisation (ITOP) rate"
        figures.append(LineFigure("itop-rate", title, visited, y="share", note=note))
    signs = [each.layers("signs") for each in measured]
    positive = [{number: _positive(counts) for number, counts in found.items()} for found in signs]
    note = "Of the weights that are not 0."
    figures += layers_over_training(measured, positive, "positive", "Share of positive weights", "share", note)
    totals = [{number: counts.sum(1) for number, counts in found.items()} for found in signs]
    if any((counts != counts[0]).any() for found in totals for counts in found.values()):
        figures += layers_over_training(measured, totals, "connections-number", "Connections of each layer")
    return figures


def _pictures(each: Measures) -> list[tuple[str, Array]]:
    """Maps [height, width] by the name of their snapshot; a single one where none differs from the first."""
    if MAP in each.series:
        pictures = each.series[MAP].mean(1)
        if (pictures == pictures[0]).all():
            return [("at every snapshot" if len(pictures) > 1 else f"step {each.steps[0]:,}", pictures[0])]
        return [(f"step {step:,}", picture) for step, picture in zip(each.steps, pictures, strict=True)]
    ends = {BEFORE: f"start/{MAP}", AFTER: MAP}
    return [(when, each.final[key].mean(0)) for when, key in ends.items() if key in each.final]


def _some(pictures: Sequence[tuple[str, Array]]) -> list[tuple[str, Array]]:
    """The first, the last, and some evenly between them."""
    chosen = np.linspace(0, len(pictures) - 1, min(MOST_MAPS, len(pictures))).round().astype(int)
    return [pictures[index] for index in chosen]


def _means(pixels: Array) -> dict[int, float]:
    """Means of a map [channels, height, width] by the side of the square."""
    import torch

    sides, means = centred_means(torch.from_numpy(pixels))
    return dict(zip(sides.tolist(), means.tolist(), strict=True))


def _distributions(each: Measures, measure: str) -> dict[int, dict[str, tuple[Array, Array]]]:
    """By layer, for the first and the last snapshot: the middles of the bins, and the share of neurons a degree."""
    if found := each.layers(measure):
        ends = {number: {when: counts[at] for when, at in each.ends.items()} for number, counts in found.items()}
    else:
        ends = {
            number: {BEFORE: each.final[key], AFTER: counts}
            if (key := f"start/layer{number}/{measure}") in each.final
            else {AFTER: counts}
            for number, counts in each.layers(measure, final=True).items()
        }
    return {number: shares for number, counts in ends.items() if (shares := _shares(counts))}


def _shares(counts: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Cut to the bins that hold a neuron in any of the snapshots, with an empty one on both sides."""
    bins = max(map(len, counts.values()))
    edges = degree_edges(bins).numpy().astype(np.float64)
    middles, widths = (edges[1:] + edges[:-1] - 1) / 2, np.diff(edges)
    full = {when: np.pad(each, (0, bins - len(each))) for when, each in counts.items()}
    held = np.flatnonzero(sum(full.values()) > 0)
    if not len(held):
        return {}
    kept = slice(max(held[0] - 1, 0), held[-1] + 2)
    return {
        when: (middles[kept], (each / (each.sum() * widths))[kept]) for when, each in full.items() if each.sum() > 0
    }


def _positive(counts: Array) -> Array:
    """Share of positive weights [n], of counts [n, 3] of negative, zero and positive ones; NaN where all are 0."""
    negative, positive = counts[:, 0].astype(np.float64), counts[:, 2].astype(np.float64)
    shares = np.full(len(counts), np.nan)
    np.divide(positive, negative + positive, out=shares, where=negative + positive > 0)
    return shares
