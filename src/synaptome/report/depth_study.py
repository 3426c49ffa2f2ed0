"""A study of depth: the accuracy of networks against their number of layers, and which runs came to no result."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from synaptome.report import drawing
from synaptome.report.drawing import BAND, COLOURS, HEIGHT, SHAPES, STAND_INS, WIDTH, Look, drawn, padded, swatch
from synaptome.report.markup import Html
from synaptome.report.table import ACCURACY, Group, Statistic
from synaptome.report.text import clean, number, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEPTH, LEVELS = "depth", "levels"  # options of a recipe; each level after the first doubles the depth
LOWEST, APART = 0.04, 0.06  # place of a cross above the bottom of the axes, and of the next group's above it
CROSS = Html(
    '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
    '<path d="M13 2L21 10M21 2L13 10" style="stroke: var(--ink)" stroke-width="1.8"></path></svg>'
)


@dataclass(frozen=True)
class Depth:
    """The runs of one depth: their accuracy, if any has one, and how many have none."""

    depth: int
    accuracy: Statistic | None
    without: int


@dataclass(frozen=True)
class DepthFigure:
    """Accuracy against depth.

    Attributes:
        series: by its label, what was found at each depth, ascending.
    """

    series: dict[str, tuple[Depth, ...]]

    name = "depth-study"
    heading = "Test accuracy against depth"
    note = (
        "A cross at the bottom marks a depth at which a run has no result: its loss stopped being finite, or it was "
        "not run to its end."
    )

    def legend(self) -> Html:
        """What colours and markers stand for."""
        entries = [(swatch(look), label) for label, look in self._looks.items()]
        found = [each for depths in self.series.values() for each in depths]
        if any(each.accuracy and each.accuracy.n > 1 for each in found):
            entries.append((BAND, "mean, and minimum to maximum over seeds"))
        if any(each.without for each in found):
            entries.append((CROSS, "a run without a result"))
        return drawing.legend(entries)

    def csv_text(self) -> str:
        """`group,depth,mean,min,max,n,without a result`, one line a depth; empty where no run has an accuracy."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "depth", "mean", "min", "max", "n", "without a result"])
        for label, depths in self.series.items():
            for each in depths:
                found = each.accuracy
                numbers = [found.mean, found.low, found.high, found.n] if found else ["", "", "", 0]
                writer.writerow([clean(label), each.depth, *numbers, each.without])
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """One drawing."""
        label = f"{self.heading}: one line for each of {', '.join(self.series)}"
        return [
            ("", [("", drawn(partial(_draw, figure=self, looks=self._looks), f"{prefix}-", label, (WIDTH, HEIGHT)))])
        ]

    @property
    def _looks(self) -> dict[str, Look]:
        return {label: Look(f"c{at % COLOURS}", at % len(SHAPES)) for at, label in enumerate(self.series)}


def depth_study(groups: Sequence[Group]) -> list[DepthFigure]:
    """The figure, where groups differ in their depth.

    Groups that differ in nothing but their depth are one line, so that a sweep over depth and dynamics has a line for
    each dynamics. Where a network is made deeper while it learns (`levels`), its depth is that at the end.
    """
    alike: dict[str, dict[int, list[Group]]] = {}
    for group in groups:
        depth = _depth(group.options)
        if depth is not None:
            rest = {name: value for name, value in group.options.items() if name not in (DEPTH, LEVELS)}
            key = json.dumps([group.recipe, group.device, rest], sort_keys=True)
            alike.setdefault(key, {}).setdefault(depth, []).append(group)
    studied = [depths for depths in alike.values() if len(depths) > 1]
    firsts = [next(iter(depths.values()))[0] for depths in studied]
    labels = _labels(firsts)
    series = {
        label: tuple(_found(depth, depths[depth]) for depth in sorted(depths))
        for label, depths in zip(labels, studied, strict=True)
    }
    return [DepthFigure(series)] if any(each.accuracy for depths in series.values() for each in depths) else []


def _depth(options: dict[str, Any]) -> int | None:
    """Of the trained network; None of one without."""
    depth, levels = options.get(DEPTH), options.get(LEVELS, 1)
    whole = isinstance(depth, int) and isinstance(levels, int) and depth >= 1 and 1 <= levels <= 32
    return depth * 2 ** (levels - 1) if whole and depth is not None else None


def _labels(groups: Sequence[Group]) -> list[str]:
    """What differs among the groups besides their depth, with a number where that reads the same."""
    options = [group.options for group in groups]
    names = [name for name in dict.fromkeys(name for each in options for name in each) if name not in (DEPTH, LEVELS)]
    telling = [name for name in names if len({show(each.get(name)) for each in options}) > 1]
    parts = [
        [f"{clean(name)}={show(group.options[name])}" for name in telling if name in group.options] for group in groups
    ]
    labels = [", ".join(part) or group.recipe for part, group in zip(parts, groups, strict=True)]
    return labels if len(set(labels)) == len(labels) else [f"{label} ({at})" for at, label in enumerate(labels, 1)]


def _found(depth: int, groups: Sequence[Group]) -> Depth:
    runs = [run for group in groups for run in group.runs]
    scores = [score for run in runs if (score := number(run.summary.get(ACCURACY))) is not None]
    return Depth(depth, Statistic.of(scores), len(runs) - len(scores))


def _draw(canvas: Figure, figure: DepthFigure, looks: dict[str, Look]) -> None:
    axes = canvas.add_subplot(facecolor="none")
    _dress(axes, figure)
    crossed = 0
    for label, depths in figure.series.items():
        look, colour = looks[label], STAND_INS[looks[label].colour]
        known = [(each.depth, each.accuracy) for each in depths if each.accuracy]
        x = [depth for depth, _ in known]
        if any(found.n > 1 for _, found in known):
            low, high = [found.low for _, found in known], [found.high for _, found in known]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = SHAPES[look.shape or 0]
        means = [found.mean for _, found in known]
        axes.plot(x, means, color=colour, linewidth=look.width, marker=marker, markersize=6.5, markeredgewidth=0)
        if without := [each.depth for each in depths if each.without]:
            # In parts of the axes' height, in a row for each line that has any.
            height = [LOWEST + APART * crossed] * len(without)
            axes.plot(without, height, "x", color=colour, markersize=7, mew=1.8, transform=axes.get_xaxis_transform())
            crossed += 1


def _dress(axes: Axes, figure: DepthFigure) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    found = [each for depths in figure.series.values() for each in depths]
    depths = sorted({each.depth for each in found})
    values = [edge for each in found if each.accuracy for edge in (each.accuracy.low, each.accuracy.high)]
    axes.set_xscale("log", base=2)
    axes.set_xlim(depths[0] / 1.15, depths[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(depths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.9g}"))
    bottom, top = padded(min(values), max(values))
    crosses = sum(any(each.without for each in depths) for depths in figure.series.values())
    axes.set_ylim(bottom - crosses * APART * (top - bottom), top)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:,.9g} %"))
    axes.set_xlabel("depth, in layers", color=STAND_INS["muted"])
    drawing.plain(axes)
