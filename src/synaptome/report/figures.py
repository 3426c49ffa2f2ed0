"""Charts of metrics as inline SVG for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from synaptome.report.curves import SPLITS, Chart, Curve
from synaptome.report.drawing import (
    BAND,
    COLOURS,
    SHAPES,
    STAND_INS,
    Look,
    drawn,
    padded,
    plain,
    set_logarithmic,
    swatch,
)
from synaptome.report.drawing import legend as listed
from synaptome.report.markup import Html
from synaptome.report.measured import AFTER, BEFORE
from synaptome.report.table import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTLED = 0.1  # an accuracy's axis is for what comes after this share of the training
MARKED_POINTS = 9

SPLIT_COLOURS = {"train": 0, "validation": 2, "test": 1, BEFORE: 3, AFTER: 0}
DASHES: dict[str, tuple[float, ...]] = {
    "train": (5, 2.5),
    "validation": (1.6, 2.2),
    "test": (),
    "connections": (),
    BEFORE: (5, 2.5),
    AFTER: (),
}
OTHER_DASHES: tuple[tuple[float, ...], ...] = ((8, 2, 1.6, 2), (10, 3), (8, 2, 1.6, 2, 1.6, 2), (3, 1.5))


def look(curve: Curve, chart: Chart, several: bool) -> Look:
    """Several groups: the group chooses colour and marker, the split the dashes. One group: the split chooses all."""
    others = [split for split in chart.splits if split not in SPLITS]
    place = others.index(curve.split) if curve.split in others else 0
    dashes = DASHES.get(curve.split, OTHER_DASHES[place % len(OTHER_DASHES)])
    if several:
        return Look(f"c{curve.group % COLOURS}", curve.group % len(SHAPES), dashes)
    colour = SPLIT_COLOURS.get(curve.split, len(SPLITS) + place)
    return Look(f"c{colour % COLOURS}", colour % len(SHAPES), dashes)


def logarithmic(chart: Chart) -> bool:
    """Whether the y axis is logarithmic: a loss, all of it positive, over more than a decade."""
    values = [point.mean for curve in chart.curves for point in curve.y]
    return "loss" in chart.name.lower() and min(values) > 0 and max(values) > 10 * min(values)


def crowded(chart: Chart) -> bool:
    """Whether the splits in one drawing would be a tangle: they are, as soon as there is more than one group."""
    return len({curve.group for curve in chart.curves}) > 1


def panels(chart: Chart, several: bool, prefix: str) -> list[tuple[str, Html]]:
    """The chart as one or more drawings `(title, svg)`; with several groups there is one for each split.

    Args:
        chart: what to draw.
        several: whether colours stand for groups (True) or for splits.
        prefix: begins every id inside the drawings; must differ between the charts of a page.
    """
    parts = [[split] for split in chart.splits] if crowded(chart) else [chart.splits]
    found = []
    for index, splits in enumerate(parts):
        title = chart.title(splits)
        described = f"{title} by {chart.axis}: one line for each of " + ", ".join(
            f"{curve.label} {curve.split}" for curve in chart.curves if curve.split in splits
        )
        shown = [curve for curve in chart.curves if curve.split in splits]
        draw = partial(_draw, chart=chart, looks=[(curve, look(curve, chart, several)) for curve in shown])
        found.append((title, drawn(draw, f"{prefix}-{index}-", described)))
    return found


def legend(chart: Chart, several: bool) -> Html:
    """What colours, markers and lines stand for, as a list."""
    looks = [(curve, look(curve, chart, several)) for curve in chart.curves]
    if several:
        groups = {curve.label: swatch(Look(seen.colour, seen.shape)) for curve, seen in looks}
        lines = {curve.split: swatch(Look("ink", dashes=seen.dashes)) for curve, seen in looks}
        # Panels for single splits say in their titles which split they show.
        entries = [*groups.items(), *((split, lines[split]) for split in chart.splits if not crowded(chart))]
    else:
        swatches = {curve.split: swatch(seen) for curve, seen in looks}
        entries = [(split, swatches[split]) for split in chart.splits]
    if chart.spread > 1:
        band = "mean × and ÷ (1 + std / mean)" if logarithmic(chart) else "mean ± std"
        shown = "mean, and minimum to maximum" if chart.band == "range" else band
        entries.append((f"{shown} over {chart.over}", BAND))
    return listed((shown, name) for name, shown in entries)


def _draw(figure: Figure, chart: Chart, looks: Sequence[tuple[Curve, Look]]) -> None:
    axes = figure.add_subplot(facecolor="none")
    _dress(axes, chart)
    for curve, shown in looks:
        _line(axes, curve, shown, chart)


def _dress(axes: Axes, chart: Chart) -> None:
    """Axes, ticks and limits; those of all panels of a chart are the same, so that panels can be compared."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    xs = [x for curve in chart.curves for x in curve.x]
    points = [(x, point) for curve in chart.curves for x, point in zip(curve.x, curve.y, strict=True)]
    means = [point.mean for _, point in points]
    # What an untrained network reaches would squeeze all that matters into the top of the axis.
    settled = min(xs) + SETTLED * (max(xs) - min(xs)) if chart.settles else min(xs)
    edges = [edge for x, point in points if x >= settled for edge in _band(point, chart)]
    low, high = min(edges), max(edges)
    axes.set_xlim(*padded(min(xs), max(xs)))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=chart.over_training))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
    if logarithmic(chart):
        set_logarithmic(axes, low, high)
    else:
        bottom, top = padded(low, high)
        whole = chart.fraction and max(means) <= 1
        axes.set_ylim(bottom, min(top, 1 + 0.2 * (top - high)) if whole else top)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        factor, unit = (100, " %") if whole else (1, "")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:,.9g}{unit}"))
    axes.set_xlabel(chart.axis, color=STAND_INS["muted"])
    plain(axes)


def _band(point: Statistic, chart: Chart) -> tuple[float, float]:
    """Where what is drawn around a mean begins and ends; a std is as wide on both sides, on either kind of axis."""
    if chart.band == "range":
        return point.low, point.high
    std = point.std or 0.0
    return (point.mean**2 / (point.mean + std) if logarithmic(chart) else point.mean - std), point.mean + std


def _line(axes: Axes, curve: Curve, shown: Look, chart: Chart) -> None:
    colour = STAND_INS[shown.colour]
    means = [point.mean for point in curve.y]
    if any(point.std is not None for point in curve.y):
        below, above = zip(*(_band(point, chart) for point in curve.y), strict=True)
        axes.fill_between(curve.x, below, above, color=colour, alpha=0.18, linewidth=0)
    apart = math.ceil(len(means) / MARKED_POINTS)
    shape = shown.shape or 0
    axes.plot(
        curve.x,
        means,
        color=colour,
        linewidth=shown.width,
        linestyle=(0, shown.dashes) if shown.dashes else "-",
        marker=SHAPES[shape],
        markersize=6.5,
        markeredgewidth=0,
        # Curves that lie on one another show their markers in turn.
        markevery=((shape + len(curve.split)) % apart, apart),
    )
