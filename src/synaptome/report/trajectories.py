"""Figures of the paths that the features of examples take through the layers: as lines, and as a film of points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.drawing import STAND_INS
from synaptome.report.film import MOST_FRAMES, SIZE, Film, FilmFigure, thinned
from synaptome.report.measured import Array, Measures
from synaptome.report.plane import Extent, PlaneFigure, class_colours, class_keys, classes_of, dots, rgb, square

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PATHS = 40  # drawn as lines
RADIUS = 3  # of a point of a film, in pixels


@dataclass(frozen=True)
class TrajectoryPanel:
    """The paths of one group.

    Attributes:
        group: its label.
        axes: what is across, and what is up.
        times: of the layers [frames].
        points: where the examples are then [frames, n, 2].
        labels: their classes [n].
        numbers: of the examples [n], in the CSV.
        count: of the classes in the figure.
    """

    group: str
    axes: tuple[str, str]
    times: Array
    points: Array
    labels: Array
    numbers: Array
    count: int

    @property
    def extent(self) -> Extent:
        """A square around all points at all times."""
        return square(self.points[..., 0], self.points[..., 1])

    def draw(self, axes: Axes) -> None:
        """Lines in pale colours, each with a point at its end."""
        gap = np.full((1, len(self.labels), 2), np.nan)
        lines = np.concatenate((self.points, gap)).swapaxes(0, 1)  # one line of each class, with gaps
        for label, colour in enumerate(class_colours(self.count)):
            own = lines[self.labels == label].reshape(-1, 2)
            axes.plot(own[:, 0], own[:, 1], color=STAND_INS[colour], linewidth=0.8, alpha=0.5)
        for label, colour in enumerate(class_colours(self.count)):
            ends = self.points[-1, self.labels == label]
            dots(axes, ends[:, 0], ends[:, 1], colour, 5, edge="paper")

    def rows(self) -> Iterator[Sequence[object]]:
        """Each point at each time."""
        for number, label, path in zip(self.numbers, self.labels, self.points.swapaxes(0, 1), strict=True):
            for time, (x, y) in zip(self.times, path, strict=True):
                yield number, label, time, x, y


def trajectories(measured: Sequence[Measures]) -> list[PlaneFigure | FilmFigure]:
    """Paths of some examples of each run that kept them, and a film of all of its examples."""
    kept = [each for each in measured if _fits(each)]
    if not kept:
        return []
    count = max(classes_of(each.final["trajectory/labels"]) for each in kept)
    panels = [_panel(each, count) for each in kept]
    few = tuple(_thinned(panel) for panel in panels)
    heading = "Paths of the features through time"
    columns = ("example", "class", "time", "first", "second")
    note = "A line for each of some test examples, from the first layer to the point behind the last one."
    figure = PlaneFigure("trajectories", heading, few, columns, class_keys(count), note)
    note = "More examples in the same plane; a frame for each layer, or for some of many."
    every = replace(figure, name="trajectories-film", heading=f"{heading}, as a film", panels=tuple(panels), note=note)
    frames = max(len(panel.times) for panel in panels)
    films = tuple(thinned(_film(panel), frames) for panel in panels)
    palette = b"".join(rgb(colour) for colour in class_colours(count))
    return [figure, *([FilmFigure(films, every, palette)] if frames > 1 else [])]


def _fits(each: Measures) -> bool:
    names = ("time", "points", "labels", "variance", "width")
    if any(f"trajectory/{name}" not in each.final for name in names):
        return False
    times, points, labels = (each.final[f"trajectory/{name}"] for name in names[:3])
    fits = points.shape == (len(times), len(labels), 2) and len(times) <= MOST_FRAMES
    return fits and classes_of(labels) > 0


def _panel(each: Measures, count: int) -> TrajectoryPanel:
    first, second = (f"{100 * share:.0f} % of the variance" for share in each.final["trajectory/variance"])
    axes = f"first component ({first})", f"second component ({second})"
    if each.final["trajectory/width"] == 2:
        axes = "first feature", "second feature"
    times, points, labels = (each.final[f"trajectory/{name}"] for name in ("time", "points", "labels"))
    return TrajectoryPanel(each.group, axes, times, points, labels, np.arange(1, len(labels) + 1), count)


def _thinned(panel: TrajectoryPanel) -> TrajectoryPanel:
    """Some of its examples, evenly: those of each class, where they are sorted."""
    most = min(MOST_PATHS, len(panel.labels))
    chosen = np.linspace(0, len(panel.labels) - 1, most).round().astype(int)
    return replace(panel, points=panel.points[:, chosen], labels=panel.labels[chosen], numbers=panel.numbers[chosen])


def _film(panel: TrajectoryPanel) -> Film:
    """A picture of each time: discs in the colours of their classes, on paper."""
    frames = np.full((len(panel.times), SIZE, SIZE), panel.count, np.uint8)
    places = []
    for values, (low, high) in zip(np.moveaxis(panel.points, 2, 0), panel.extent, strict=True):
        places.append(RADIUS + np.floor((values - low) / (high - low) * (SIZE - 2 * RADIUS)).astype(int))
    column, row = places[0], SIZE - 1 - places[1]
    at = np.arange(len(frames))
    # In an order without classes: of points on one another, each class is above as often.
    order = np.random.default_rng(0).permutation(len(panel.labels))
    reach = range(-RADIUS, RADIUS + 1)
    disc = [(x, y) for x in reach for y in reach if x * x + y * y <= RADIUS * (RADIUS + 1)]
    for example in order:
        for x, y in disc:
            frames[at, row[:, example] + y, column[:, example] + x] = panel.labels[example]
    return Film(panel.group, tuple(f"t = {time:.3g}" for time in panel.times), frames)
