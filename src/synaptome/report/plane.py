"""Figures of the plane, in panels whose two axes have one scale: the data as CSV, and what their drawings share."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import TYPE_CHECKING, Protocol

import numpy as np

from synaptome.report import drawing
from synaptome.report.drawing import COLOURS, SHADES, STAND_INS, drawn, lighter
from synaptome.report.line_figures import shade
from synaptome.report.markup import Html
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360
BESIDE, BELOW = 64, 52  # the plane, for its labels
ROUNDING = 1e-6  # of the farthest coordinate: float32 points no farther from one another are one point
MOST_CLASSES = SHADES  # each with a colour of its own

Extent = tuple[tuple[float, float], tuple[float, float]]


class PlanePanel(Protocol):
    """What is drawn of one group."""

    @property
    def group(self) -> str:
        """Its label."""

    @property
    def axes(self) -> tuple[str, str]:
        """What is across, and what is up."""

    @property
    def extent(self) -> Extent:
        """The part of the plane that is drawn: lowest and highest values across, and up."""

    def draw(self, axes: Axes) -> None:
        """Draw on axes with these limits."""

    def rows(self) -> Iterable[Sequence[object]]:
        """The data: for each column of the figure a value."""


@dataclass(frozen=True)
class PlaneFigure:
    """Panels side by side, one a group, each with limits of its own.

    Attributes:
        name: stem of the CSV file.
        heading: says the quantity.
        panels: at least one.
        columns: of the CSV file, after the group.
        keys: entries of the legend, each a swatch and what it stands for.
        note: what a reader should know, below the figure.
    """

    name: str
    heading: str
    panels: tuple[PlanePanel, ...]
    columns: tuple[str, ...]
    keys: tuple[tuple[Html, str], ...]
    note: str = ""

    def legend(self) -> Html:
        """What the colours stand for."""
        return drawing.legend(self.keys)

    def csv_text(self) -> str:
        """The group and the columns; numbers in the shortest form that reads back the same."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", *self.columns])
        for panel in self.panels:
            writer.writerows([clean(panel.group), *map(str, row)] for row in panel.rows())
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """The drawings, as a row without a title: each with the label of its group. `prefix` begins their ids."""
        return [("", [(panel.group, self._svg(panel, f"{prefix}-{at}-")) for at, panel in enumerate(self.panels)])]

    def _svg(self, panel: PlanePanel, prefix: str) -> Html:
        shown = ", ".join(part for part in (self.heading, panel.group) if part)
        label = f"{shown}: {panel.axes[1]} by {panel.axes[0]}"
        (left, right), (bottom, top) = panel.extent
        size = WIDTH, round((WIDTH - BESIDE) * (top - bottom) / (right - left)) + BELOW
        return lighter(drawn(partial(_draw, panel=panel), prefix, label, size))


def square(x: Array, y: Array) -> Extent:
    """The smallest square around points, with some room."""
    ends = [(float(values.min()), float(values.max())) for values in (x, y)]
    widest = max(high - low for low, high in ends)
    farthest = max(map(abs, (end for pair in ends for end in pair)))
    half = 0.54 * widest if widest > ROUNDING * farthest else 0.05 * farthest or 0.5
    across, up = (((low + high) / 2 - half, (low + high) / 2 + half) for low, high in ends)
    return across, up


def class_colours(count: int) -> list[str]:
    """Names of `STAND_INS` for so many classes, the last colour left out, which is as dark as a letter."""
    return [f"c{index}" if count < COLOURS else shade(index + 1, count) for index in range(count)]


def class_keys(count: int) -> tuple[tuple[Html, str], ...]:
    """Entries of a legend for so many classes, counted from 0."""
    return tuple((drawing.block(colour), f"class {index}") for index, colour in enumerate(class_colours(count)))


def classes_of(labels: Array) -> int:
    """How many classes labels tell of; 0 if they are none, or too many to draw."""
    count = int(labels.max()) + 1 if labels.size and np.issubdtype(labels.dtype, np.integer) else 0
    return count if 0 < count <= MOST_CLASSES and labels.min() >= 0 else 0


@cache
def rgb(colour: str) -> bytes:
    """Red, green and blue of a colour of `STAND_INS`, as the page has it on white."""
    sheets = resources.files(__package__)
    style = "".join(sheets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "measures.css"))
    found = re.search(rf"--{colour}: #([0-9a-f]{{6}})", style)
    assert found is not None
    return bytes.fromhex(found[1])


def dots(axes: Axes, x: Array, y: Array, colour: str, size: float, edge: str = "none") -> None:
    """Points in a colour of `STAND_INS`."""
    line = "none" if edge == "none" else STAND_INS[edge]
    axes.plot(
        x,
        y,
        "o",
        color=STAND_INS[colour],
        markersize=size,
        markeredgecolor=line,
        markeredgewidth=0.5 * (edge != "none"),
    )


def _draw(canvas: Figure, panel: PlanePanel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = canvas.add_subplot(facecolor="none")
    axes.set_xlim(*panel.extent[0])
    axes.set_ylim(*panel.extent[1])
    axes.set_aspect("equal")
    for axis, label in zip((axes.xaxis, axes.yaxis), panel.axes, strict=True):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
        axis.set_label_text(label, color=STAND_INS["muted"])
    axes.tick_params(which="both", colors=STAND_INS["muted"], length=0)
    for spine in axes.spines.values():
        spine.set_color(STAND_INS["grid"])
    panel.draw(axes)
