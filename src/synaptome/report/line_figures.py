"""Figures of lines, in panels that share their axes: the data, the same as CSV, and the drawing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from synaptome.report import drawing
from synaptome.report.drawing import SHADES, STAND_INS, Look, drawn, lighter, padded
from synaptome.report.markup import Html
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Literal["linear", "log", "share"]
SIZE = 380, 250
DEEPEST = 1e-9  # end of a logarithmic axis, of the largest value: what is below is mostly rounding
HEADROOM = 0.03  # around an axis from 0 to 1, so that a line at 1 is seen whole


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: what it is, in the CSV.
        x, y: the points, both [n]; a y that is not finite is a gap.
        look: its colour and dashes.
        key: what the legend says; `name` if empty. Lines of one key share an entry.
        band: where y is a mean over seeds, the least and the largest of their values, both [n].
    """

    name: str
    x: Array
    y: Array
    look: Look
    key: str = ""
    band: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class LinePanel:
    """The lines of one group (or of all of them, if the label is empty)."""

    group: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class LineRow:
    """Panels side by side, one a group, of what the title says."""

    title: str
    panels: tuple[LinePanel, ...]

    @property
    def lines(self) -> list[Line]:
        """All lines of its panels."""
        return [line for panel in self.panels for line in panel.lines]


@dataclass(frozen=True)
class LineFigure:
    """Rows of panels; all panels have the same axes, unless rows are apart.

    Attributes:
        name: stem of the CSV file.
        title: the heading; says the quantity on the y axis.
        rows: at least one, each with at least one panel with at least one line.
        x: label of the x axis; `step` makes it an axis for training steps.
        y: scale of the y axis: linear, logarithmic, or linear from 0 to 1.
        note: what a reader should know, below the figure.
        stairs: whether y is the density in a bin with x in its middle.
        apart: whether each row has an x axis of its own.
    """

    name: str
    title: str
    rows: tuple[LineRow, ...]
    x: str = "step"
    y: Scale = "linear"
    note: str = ""
    stairs: bool = False
    apart: bool = False

    @property
    def lines(self) -> list[Line]:
        """All lines of all panels."""
        return [line for row in self.rows for line in row.lines]

    @property
    def heading(self) -> str:
        """The title with the scale, where it is not linear."""
        return f"{self.title} (log scale)" if self.y == "log" else self.title

    @property
    def banded(self) -> bool:
        """Whether there are means over seeds."""
        return any(line.band is not None for line in self.lines)

    def legend(self) -> Html:
        """What the lines stand for."""
        looks = {line.key or line.name: line.look for line in self.lines}
        bands = [(drawing.BAND, "mean, and minimum to maximum over seeds")] if self.banded else []
        return drawing.legend([*((drawing.swatch(look), key) for key, look in looks.items()), *bands])

    def csv_text(self) -> str:
        """`group,panel,line,<x>,value`, one line a point, each number in the shortest form that reads back the same.

        Where a line has a band, `min,max` follow.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "panel", "line", self.x, "value", *(["min", "max"] if self.banded else [])])
        for row in self.rows:
            for panel in row.panels:
                for line in panel.lines:
                    head = [clean(panel.group), row.title, line.name]
                    points = zip(line.x, line.y, *(line.band or ()), strict=True)
                    writer.writerows([*head, *map(str, point)] for point in points)
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

    def _svg(self, row: LineRow, panel: LinePanel, prefix: str) -> Html:
        keys = dict.fromkeys(line.key or line.name for line in panel.lines)
        shown = ", ".join(part for part in (self.title, row.title, panel.group) if part)
        label = f"{shown}, by {self.x}: {', '.join(keys)}"
        return lighter(drawn(partial(_draw, figure=self, row=row, panel=panel), prefix, label, SIZE))


def shade(place: int, last: int) -> str:
    """The colour of layer `place` of `last` (from 1): a sequential map from the first to the last."""
    return f"s{round((place - 1) * (SHADES - 1) / max(1, last - 1))}"


def scale_of(values: Iterable[Array]) -> Scale:
    """Logarithmic for values that are not negative, the positive ones over more than a decade."""
    together = np.concatenate([each.ravel() for each in values])
    positive = together[together > 0]
    spread = positive.size and positive.max() > 10 * positive.min()
    return "log" if spread and together.min() >= 0 else "linear"


def _draw(canvas: Figure, figure: LineFigure, row: LineRow, panel: LinePanel) -> None:
    axes = canvas.add_subplot(facecolor="none")
    xs = _finite(line.x for line in (row.lines if figure.apart else figure.lines))
    ys = _finite(values for line in figure.lines for values in (line.y, *(line.band or ())))
    if figure.x == "step":
        _step_axis(axes, xs)
    else:
        _value_axis(axes, xs)
    axes.set_xlabel(figure.x, color=STAND_INS["muted"])
    _quantity_axis(axes, ys, figure.y)
    drawing.plain(axes)
    positive = ys[ys > 0]
    # On a logarithmic axis stairs go down to the floor where nothing is; other lines have a gap.
    nothing = positive.min() / 1000 if figure.stairs and positive.size else np.nan
    # What is in the background is muted.
    for line in sorted(panel.lines, key=lambda line: line.look.colour != "muted"):
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=STAND_INS[line.look.colour], alpha=0.18, linewidth=0)
        alone = int(np.isfinite(line.y).sum()) == 1
        axes.plot(
            line.x,
            np.where(line.y > 0, line.y, nothing) if figure.y == "log" else line.y,
            color=STAND_INS[line.look.colour],
            linewidth=line.look.width,
            linestyle=(0, line.look.dashes) if line.look.dashes else "-",
            marker="o" if alone else "none",
            markersize=5,
            markeredgewidth=0,
            drawstyle="steps-mid" if figure.stairs else "default",
        )


def _finite(arrays: Iterable[Array]) -> Array:
    values: Array = np.concatenate([np.asarray(each, dtype=np.float64) for each in arrays])
    finite: Array = values[np.isfinite(values)]
    return finite


def _step_axis(axes: Axes, steps: Array) -> None:
    """Steps on a logarithmic axis with a place for step 0, unless they are evenly spaced."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    positive = np.unique(steps[steps > 0])
    if positive.size < 3 or np.median(positive) > 0.3 * positive[-1]:
        axes.set_xlim(*padded(steps.min(), steps.max()))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
        return
    first = positive[0]
    zero = steps.min() == 0
    axes.set_xscale("symlog", linthresh=first, linscale=0.35)
    axes.set_xlim(-0.1 * first if zero else first * 0.9, positive[-1] ** 1.02)
    decades = range(math.ceil(math.log10(first)), math.floor(math.log10(positive[-1])) + 1)
    ticks = [10.0**decade for decade in decades][:: math.ceil(len(decades) / 6) or 1]
    if len(ticks) < 2:
        ticks = [first, positive[-1]]
    axes.xaxis.set_major_locator(FixedLocator([*([0.0] if zero else []), *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """0, 1, 10, 100, then 10³ and so on, so that powers of ten fit under an axis."""
    exponent = round(math.log10(value)) if value >= 1000 else 0
    if not exponent or value != 10.0**exponent:
        return f"{value:,.9g}"
    return "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _value_axis(axes: Axes, values: Array) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(*padded(values.min(), values.max()))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))


def _quantity_axis(axes: Axes, values: Array, scale: Scale) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    positive = values[values > 0]
    if scale == "log" and positive.size:
        drawing.set_logarithmic(axes, max(positive.min(), DEEPEST * positive.max()), positive.max())
        return
    if scale == "share":
        axes.set_ylim(-HEADROOM, 1 + HEADROOM)
    elif values.size:
        axes.set_ylim(*padded(values.min(), values.max()))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))


def rows_of(panels: Iterable[tuple[str, LinePanel]]) -> tuple[LineRow, ...]:
    """Panels in rows by their titles, in order of first appearance, without lines that have no point."""
    found: dict[str, list[LinePanel]] = {}
    for title, panel in panels:
        lines = tuple(line for line in panel.lines if (np.isfinite(line.x) & np.isfinite(line.y)).any())
        if lines:
            found.setdefault(title, []).append(LinePanel(panel.group, lines))
    return tuple(LineRow(title, tuple(shown)) for title, shown in found.items())
