"""Figures of what networks say all over the square of their two inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.drawing import STAND_INS
from synaptome.report.measured import Array, Measures
from synaptome.report.pictures import LEVELS, Picture, PictureFigure, paint, signed_scale
from synaptome.report.plane import dots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "mean"
MARGIN = 0.04  # around the square, so that a pattern in its corner is seen whole
NAMES = ("maps", "seeds", "mean", "networks", "threshold", "patterns", "labels")


@dataclass(frozen=True)
class MapPicture:
    """The map of one network, or the mean of several.

    Attributes:
        group: the group's label.
        values: `[rows, columns]` on a grid over [0, 1]²; the first row has the second input at 0.
        threshold: from which value on 1 is predicted.
        reach: a value as far from the threshold has the strongest colour.
        patterns: `[M, 2]`.
        labels: the values that they should have, 0 or 1, `[M]`.
    """

    group: str
    values: Array
    threshold: float
    reach: float
    patterns: Array
    labels: Array

    size = (320, 310)

    def draw(self, canvas: Figure) -> None:
        """Areas that grow stronger away from the threshold, the line where the prediction changes, the patterns."""
        axes = canvas.add_subplot(facecolor="none")
        ticks = [np.linspace(0, 1, count) for count in self.values.shape[::-1]]
        away = np.clip((self.values - self.threshold) / self.reach, -1, 1)
        for sign in (-1, 1):
            below = 0.0
            for level in range(1, LEVELS + 1):
                edge = (level - 0.5) / LEVELS
                colour, opacity = paint(level * sign)
                # Areas lie on one another rather than side by side, where a seam would be seen between them.
                more, below = 1 - (1 - opacity) / (1 - below), opacity
                if (sign * away >= edge).any():
                    axes.contourf(*ticks, sign * away, levels=[edge, 2], colors=[STAND_INS[colour]], alpha=more)
        if self.values.min() < self.threshold <= self.values.max():
            axes.contour(*ticks, self.values, levels=[self.threshold], colors=[STAND_INS["ink"]], linewidths=1.4)
        for label in (0, 1):
            x, y = self.patterns[self.labels == label].T
            dots(axes, x, y, paint(2 * label - 1)[0], 9, edge="ink")
        for set_limits in (axes.set_xlim, axes.set_ylim):
            set_limits(-MARGIN, 1 + MARGIN)
        axes.set_aspect("equal")
        for axis, which in ((axes.xaxis, "first"), (axes.yaxis, "second")):
            axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])
            axis.set_label_text(f"{which} input", color=STAND_INS["muted"])
        axes.tick_params(colors=STAND_INS["muted"], length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def rows(self) -> Iterator[Sequence[object]]:
        """The second input of a row of the grid, and its values."""
        for y, row in zip(_ticks(len(self.values)), self.values, strict=True):
            yield y, *row


def decision_maps(measured: Sequence[Measures]) -> list[PictureFigure]:
    """The maps of some networks of each run that kept them, and their mean over more of them."""
    fitting = [each for each in measured if _fits(each)]
    # Of one version all grids are the same; they share the heads of the CSV file.
    kept = [each for each in fitting if _side(each) == _side(fitting[0])]
    rows: dict[str, list[Picture]] = {}
    for each in kept:
        own = {name: each.final[f"decision/{name}"] for name in NAMES}
        threshold = float(own["threshold"])
        # Of the difference of two outputs, or of one, in [0, 1].
        reach = 0.5 if threshold > 0 else 1.0
        pictures = dict(zip((f"network of seed {seed}" for seed in own["seeds"]), own["maps"], strict=True))
        pictures[f"{MEAN} of {own['networks']} networks"] = own["mean"]
        for title, values in pictures.items():
            picture = MapPicture(each.group, values, threshold, reach, own["patterns"], own["labels"])
            rows.setdefault(title, []).append(picture)
    if not rows:
        return []
    thresholds = {float(each.final["decision/threshold"]) for each in kept}
    ends = {0.5: ("0", "0.5", "1"), 0.0: ("-1", "0", "1")}.get(min(thresholds), ("", "", ""))
    what = {0.5: "The output", 0.0: "The second output less the first"}.get(min(thresholds), "")
    if len(thresholds) > 1:
        ends, what = ("0", "", "1"), "What speaks for 1: the output, or the second output less the first"
    note = (
        f"{what} after a free phase on each point of a {_side(kept[0])} by {_side(kept[0])} grid, all from one start. "
        "Line: where the prediction changes. Points: the patterns, in the colour that they should have."
    )
    heading = "Decision maps over the square of the inputs"
    titled = tuple((title, tuple(row)) for title, row in rows.items())
    columns = ("second input", *(f"first input {x}" for x in _ticks(_side(kept[0]))))
    return [PictureFigure("decision-maps", heading, titled, columns, signed_scale(ends), note)]


def _fits(each: Measures) -> bool:
    if any(f"decision/{name}" not in each.final for name in NAMES):
        return False
    maps, seeds, mean, _, _, patterns, labels = (each.final[f"decision/{name}"] for name in NAMES)
    square = maps.shape[1:] == mean.shape == (len(mean), len(mean)) and len(mean) >= 2
    return square and len(maps) == len(seeds) and patterns.shape == (len(labels), 2)


def _side(each: Measures) -> int:
    return len(each.final["decision/mean"])


def _ticks(count: int) -> list[float]:
    return [round(place / (count - 1), 6) for place in range(count)]
