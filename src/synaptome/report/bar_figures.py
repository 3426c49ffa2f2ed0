"""Figures of shares as stacked bars, in panels side by side: the data, the same as CSV, and the drawing."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from synaptome.report import drawing
from synaptome.report.drawing import STAND_INS, drawn, lighter
from synaptome.report.markup import Html
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, BESIDE, BAR = 380, 44, 24  # CSS pixels: the width, and the height of the axis and of a bar with its gap
WRITTEN = 0.1  # least share of a bar in which its number has room


class Part(NamedTuple):
    """A part of every bar: its name, its colour and that of the number on it, both names of `drawing.STAND_INS`."""

    name: str
    colour: str
    ink: str


@dataclass(frozen=True)
class Bar:
    """A bar, by its name, and the counts [parts] of which it shows the shares; not all of them are 0."""

    name: str
    counts: Array


@dataclass(frozen=True)
class BarPanel:
    """The bars of one group."""

    group: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class BarRow:
    """Panels side by side, one a group, of what the title says."""

    title: str
    panels: tuple[BarPanel, ...]


@dataclass(frozen=True)
class BarFigure:
    """Rows of panels of stacked bars, each bar as long as all others.

    Attributes:
        name: stem of the CSV file.
        heading: says the quantity.
        parts: of every bar, from left to right.
        rows: at least one, each with at least one panel with at least one bar.
        note: what a reader should know, below the figure.
    """

    name: str
    heading: str
    parts: tuple[Part, ...]
    rows: tuple[BarRow, ...]
    note: str = ""

    def legend(self) -> Html:
        """What the colours stand for."""
        return drawing.legend((drawing.block(part.colour), part.name) for part in self.parts)

    def csv_text(self) -> str:
        """`group,panel,bar` and the count of each part, a line for each bar."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "panel", "bar", *(part.name for part in self.parts)])
        for row in self.rows:
            for panel in row.panels:
                writer.writerows([clean(panel.group), row.title, bar.name, *map(str, bar.counts)] for bar in panel.bars)
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """For each row its title and its drawings, each with the label of its group. `prefix` begins their ids."""
        return [
            (
                row.title,
                [(panel.group, self._svg(row, panel, f"{prefix}-{y}-{x}-")) for x, panel in enumerate(row.panels)],
            )
            for y, row in enumerate(self.rows)
        ]

    def _svg(self, row: BarRow, panel: BarPanel, prefix: str) -> Html:
        label = f"{self.heading}, {row.title}, {panel.group}: {', '.join(bar.name for bar in panel.bars)}"
        size = WIDTH, BESIDE + BAR * len(panel.bars)
        return lighter(drawn(partial(_draw, parts=self.parts, bars=panel.bars), prefix, label, size))


def _draw(canvas: Figure, parts: tuple[Part, ...], bars: tuple[Bar, ...]) -> None:
    axes = canvas.add_subplot(facecolor="none")
    counts = np.stack([bar.counts for bar in bars]).astype(np.float64)
    shares = counts / counts.sum(1, keepdims=True)
    starts = np.cumsum(shares, axis=1) - shares
    places = range(len(bars))
    for part, left, share in zip(parts, starts.T, shares.T, strict=True):
        axes.barh(places, share, 0.72, left, color=STAND_INS[part.colour], linewidth=0)
        for place, begin, length in zip(places, left, share, strict=True):
            if length >= WRITTEN:
                number, ink = f"{100 * length:.1f}", STAND_INS[part.ink]
                axes.text(begin + length / 2, place, number, color=ink, ha="center", va="center_baseline", fontsize=11)
    _dress(axes, bars)


def _dress(axes: Axes, bars: tuple[Bar, ...]) -> None:
    from matplotlib.ticker import FixedLocator, PercentFormatter

    drawing.plain(axes)
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(bars) - 0.5, -0.5)  # the first bar at the top
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
