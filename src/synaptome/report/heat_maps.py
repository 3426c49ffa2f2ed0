"""Figures of matrices as heat maps, in panels of one colour scale: the data, the same as CSV, and the drawing."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from synaptome.report.drawing import STAND_INS, drawn
from synaptome.report.markup import Html, tag
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"  # its brightness rises from end to end; it reads on white as on black
WIDTH, LEAST_HEIGHT = 380, 160  # in which the label of the rows fits
FLATTEST = 0.15  # height of a picture by its width, and the other way round
LEVELS = 64  # more cannot be told apart, and make the picture heavier


@dataclass(frozen=True)
class HeatMap:
    """A matrix [rows, columns] and its name; the first row is drawn at the top."""

    name: str
    values: Array


@dataclass(frozen=True)
class HeatPanel:
    """The heat maps of one group (or of all of them, if the label is empty), in one drawing."""

    group: str
    maps: tuple[HeatMap, ...]


@dataclass(frozen=True)
class HeatFigure:
    """Panels side by side, one a group; all maps have the same colour scale.

    Attributes:
        name: stem of the CSV file.
        heading: says the quantity.
        panels: at least one, each with at least one map.
        down, across: what the rows and the columns of the matrices are.
        low, high: values at the ends of the colour scale.
        note: what a reader should know, below the figure.
    """

    name: str
    heading: str
    panels: tuple[HeatPanel, ...]
    down: str
    across: str
    low: float = 0.0
    high: float = 1.0
    note: str = ""

    def legend(self) -> Html:
        """The colour bar."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        colours = ", ".join(to_hex(colormaps[COLOUR_MAP](stop / 8)) for stop in range(9))
        bar = tag("span", class_="scale", style=f"background: linear-gradient(to right, {colours})")
        middle = (self.low + self.high) / 2
        ends = [tag("span", f"{value:.3g}") for value in (self.low, middle, self.high)]
        return tag("div", bar, tag("span", *ends, class_="ends"), class_="heat")

    def csv_text(self) -> str:
        """`group,panel,row,1,2,...`, a line for each row of a matrix; numbers in the shortest form that reads back."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        widest = max(each.values.shape[1] for panel in self.panels for each in panel.maps)
        writer.writerow(["group", "panel", "row", *range(1, widest + 1)])
        for panel in self.panels:
            for each in panel.maps:
                for index, values in enumerate(each.values, 1):
                    writer.writerow([clean(panel.group), each.name, index, *map(str, values)])
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """The drawings, as a row without a title: each with the label of its group. `prefix` begins their ids."""
        return [("", [(panel.group, self._svg(panel, f"{prefix}-{at}-")) for at, panel in enumerate(self.panels)])]

    def _svg(self, panel: HeatPanel, prefix: str) -> Html:
        shown = ": ".join(part for part in (self.heading, panel.group) if part)
        label = ", ".join([f"{shown}, as a heat map", *(each.name for each in panel.maps if each.name)])
        return drawn(partial(_draw, figure=self, panel=panel), prefix, label, _size(self))


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of a grid that is about as wide as it is high."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def _size(figure: HeatFigure) -> tuple[int, int]:
    """Width and height of all drawings: room for the highest map in every row of the largest grid."""
    rows, columns = _grid(max(len(panel.maps) for panel in figure.panels))
    highest = min(1.0, max(_height(each) for panel in figure.panels for each in panel.maps))
    return WIDTH, max(LEAST_HEIGHT, round((WIDTH - 40) / columns * rows * highest) + 30 * rows + 40)


def _height(each: HeatMap) -> float:
    """Of the picture, by its width; matrices with few rows or columns are stretched."""
    rows, columns = each.values.shape
    return float(min(max(rows / columns, FLATTEST), 1 / FLATTEST))


def _draw(canvas: Figure, figure: HeatFigure, panel: HeatPanel) -> None:
    rows, columns = _grid(len(panel.maps))
    for place, each in enumerate(panel.maps, 1):
        axes = canvas.add_subplot(rows, columns, place, facecolor="none")
        _draw_map(axes, figure, each)
        axes.tick_params(labelsize=12 if columns < 3 else 9)
        axes.set_title(each.name, color=STAND_INS["muted"], fontsize=12 if columns < 3 else 10, pad=4)
    canvas.supxlabel(figure.across, color=STAND_INS["muted"], fontsize=12)
    canvas.supylabel(figure.down, color=STAND_INS["muted"], fontsize=12)


def _draw_map(axes: Axes, figure: HeatFigure, each: HeatMap) -> None:
    from matplotlib import colormaps

    height, width = each.values.shape
    axes.imshow(
        each.values,
        cmap=colormaps[COLOUR_MAP].resampled(LEVELS),
        vmin=figure.low,
        vmax=figure.high,
        interpolation="none",
        extent=(0.5, width + 0.5, height + 0.5, 0.5),
        aspect="auto",
    )
    axes.set_box_aspect(_height(each))
    axes.set_xticks(sorted({1, width}))
    axes.set_yticks(sorted({1, height}))
    axes.tick_params(which="both", colors=STAND_INS["muted"], length=0)
    for spine in axes.spines.values():
        spine.set_color(STAND_INS["grid"])
