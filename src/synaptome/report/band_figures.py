"""Figures of a quantity over many members: median, quartiles, range, and a mean where asked for; data, CSV, drawing."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report import drawing
from synaptome.report.drawing import STAND_INS, Look, drawn, lighter, padded, set_logarithmic, swatch
from synaptome.report.line_figures import DEEPEST, SIZE, Scale
from synaptome.report.markup import Html, tag
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "c0"
RANGE, QUARTILES = 0.12, 0.26  # opacity of the bands; that of the quartiles lies on the other
MEDIAN, MEAN = Look(COLOUR), Look("ink", dashes=(5.0, 2.5), width=1.4)
NAMES = ("minimum", "first quartile", "median", "third quartile", "maximum")


@dataclass(frozen=True)
class BandPanel:
    """The members of one group.

    Attributes:
        group: its label.
        x: `[n]`, increasing.
        values: `[n, members]`; members that are NaN do not count there. Each x has one that is not.
    """

    group: str
    x: Array
    values: Array

    @property
    def quantiles(self) -> Array:
        """Minimum, quartiles and median, and maximum, `[5, n]`; those between two values are interpolated."""
        found: Array = np.nanquantile(self.values, (0, 0.25, 0.5, 0.75, 1), axis=1)
        return found

    @property
    def mean(self) -> Array:
        """The mean of the members, `[n]`."""
        found: Array = np.nanmean(self.values, axis=1)
        return found


@dataclass(frozen=True)
class BandFigure:
    """Panels side by side, one a group, with the same axes.

    Attributes:
        name: stem of the CSV file.
        title: the heading; says the quantity on the y axis.
        panels: at least one.
        x: label of the x axis.
        over: what the members are, such as `networks`.
        y: scale of the y axis. On a logarithmic one a curve has a gap where it is 0, and a band goes down to the axis.
        mean: whether to draw the mean too.
        note: what a reader should know, below the figure.
    """

    name: str
    title: str
    panels: tuple[BandPanel, ...]
    x: str
    over: str
    y: Scale = "linear"
    mean: bool = False
    note: str = ""

    @property
    def heading(self) -> str:
        """The title with the scale, where it is not linear."""
        return f"{self.title} (log scale)" if self.y == "log" else self.title

    def legend(self) -> Html:
        """What lines and bands stand for."""
        bands = [(_band(1 - (1 - RANGE) * (1 - QUARTILES)), "quartiles"), (_band(RANGE), "minimum to maximum")]
        means = [(swatch(MEAN), "mean")] if self.mean else []
        return drawing.legend([(swatch(MEDIAN), f"median over {self.over}"), *means, *bands])

    def csv_text(self) -> str:
        """`group,<x>,<over>,mean,minimum,...,maximum`: a line for each x, with the number of members."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", self.x, self.over, "mean", *NAMES])
        for panel in self.panels:
            counts = np.isfinite(panel.values).sum(1)
            for x, count, mean, quantiles in zip(panel.x, counts, panel.mean, panel.quantiles.T, strict=True):
                writer.writerow([clean(panel.group), *map(str, (x, count, mean, *quantiles))])
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """The drawings, as a row without a title: each with the label of its group. `prefix` begins their ids."""
        return [("", [(panel.group, self._svg(panel, f"{prefix}-{at}-")) for at, panel in enumerate(self.panels)])]

    def _svg(self, panel: BandPanel, prefix: str) -> Html:
        shown = ", ".join(part for part in (self.title, panel.group) if part)
        label = f"{shown}, by {self.x}: median, quartiles and range over {self.over}"
        return lighter(drawn(partial(_draw, figure=self, panel=panel), prefix, label, SIZE))


def _band(opacity: float) -> Html:
    return tag("span", class_="band", style=f"background: var(--{COLOUR}); opacity: {opacity:.2f}")


def _draw(canvas: Figure, figure: BandFigure, panel: BandPanel) -> None:
    axes = canvas.add_subplot(facecolor="none")
    _dress(axes, figure)
    low, first, median, third, high = panel.quantiles
    if figure.y == "log":
        floor = axes.get_ylim()[0]
        low, first, third, high = (np.maximum(edge, floor) for edge in (low, first, third, high))
        median = np.where(median > 0, median, np.nan)
    for edges, opacity in (((low, high), RANGE), ((first, third), QUARTILES)):
        axes.fill_between(panel.x, *edges, color=STAND_INS[COLOUR], alpha=opacity, linewidth=0)
    lines = [(median, MEDIAN), *([(panel.mean, MEAN)] if figure.mean else [])]
    for values, look in lines:
        alone = int(np.isfinite(values).sum()) == 1
        axes.plot(
            panel.x,
            values,
            color=STAND_INS[look.colour],
            linewidth=look.width,
            linestyle=(0, look.dashes) if look.dashes else "-",
            marker="o" if alone else "none",
            markersize=5,
            markeredgewidth=0,
        )


def _dress(axes: Axes, figure: BandFigure) -> None:
    """Axes that are the same in all panels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    xs = np.concatenate([panel.x for panel in figure.panels])
    values = np.concatenate([panel.values.ravel() for panel in figure.panels])
    values = values[np.isfinite(values)]
    axes.set_xlim(*padded(xs.min(), xs.max()))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    positive = values[values > 0]
    if figure.y == "log" and positive.size:
        set_logarithmic(axes, max(positive.min(), DEEPEST * positive.max()), positive.max())
    else:
        axes.set_ylim(*padded(values.min(), values.max()))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
    axes.set_xlabel(figure.x, color=STAND_INS["muted"])
    drawing.plain(axes)
