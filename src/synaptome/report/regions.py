"""Figures of decision regions: the class that a network gives to each point of the plane, and examples on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.drawing import STAND_INS
from synaptome.report.measured import Array, Measures
from synaptome.report.plane import Extent, PlaneFigure, class_colours, class_keys, classes_of, dots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EDGES = 0.499, 0.501  # of regions with even and odd classes, between the squares inside (1) and outside (0)


@dataclass(frozen=True)
class RegionPanel:
    """The regions of one group.

    Attributes:
        group: its label.
        regions: classes [rows, columns] of the squares of a grid over the extent, the lowest row first.
        extent: of the plane.
        examples: points [n, 2].
        labels: their classes [n].
        count: of the classes in the figure.
    """

    group: str
    regions: Array
    extent: Extent
    examples: Array
    labels: Array
    count: int

    axes = ("first feature", "second feature")

    def draw(self, axes: Axes) -> None:
        """Areas in pale colours, with no seam between them, and the examples as points."""
        across, up = (_centres(*ends, count) for ends, count in zip(self.extent, self.regions.shape[::-1], strict=True))
        for label, colour in enumerate(class_colours(self.count)):
            inside = np.pad(self.regions == label, 1, mode="edge").astype(np.float64)
            if inside.any():
                # Of two regions that touch by a corner only, one goes through there: else there would be a hole.
                edge = EDGES[label % 2]
                axes.contourf(across, up, inside, levels=[edge, 1.5], colors=[STAND_INS[colour]], alpha=0.25)
        for label, colour in enumerate(class_colours(self.count)):
            own = self.examples[self.labels == label]
            dots(axes, own[:, 0], own[:, 1], colour, 4.5, edge="paper")

    def rows(self) -> Iterator[Sequence[object]]:
        """Each run of squares of one class in a row of the grid, from one edge to the other; then the examples."""
        (left, right), (bottom, top) = self.extent
        rows, columns = self.regions.shape
        edges = np.linspace(left, right, columns + 1)
        for centre, row in zip(_centres(bottom, top, rows)[1:-1], self.regions, strict=True):
            ends = [0, *(np.flatnonzero(np.diff(row)) + 1), columns]
            for start, end in pairwise(ends):
                yield "region", row[start], edges[start], edges[end], centre
        for (x, y), label in zip(self.examples, self.labels, strict=True):
            yield "example", label, x, x, y


def regions(measured: Sequence[Measures]) -> list[PlaneFigure]:
    """Decision regions of each run that kept them."""
    kept = [(each, found) for each in measured if (found := _kept(each))]
    if not kept:
        return []
    count = max(classes for _, (_, _, classes) in kept)
    panels = []
    for each, (regions, extent, _) in kept:
        examples, labels = each.final["regions/examples"], each.final["regions/labels"]
        panels.append(RegionPanel(each.group, regions, extent, examples, labels, count))
    heading = "Decision regions"
    note = "Pale: the class that the trained network gives to a point of the plane. Points: test examples."
    columns = ("what", "class", "first feature from", "to", "second feature")
    return [PlaneFigure("regions", heading, tuple(panels), columns, class_keys(count), note)]


def _kept(each: Measures) -> tuple[Array, Extent, int] | None:
    """Regions, their extent and the number of classes, if all is there and fits."""
    names = ("classes", "extent", "examples", "labels")
    if any(f"regions/{name}" not in each.final for name in names):
        return None
    classes, extent, examples, labels = (each.final[f"regions/{name}"] for name in names)
    regions = classes.astype(np.int64)
    count = max(classes_of(regions), classes_of(labels))
    fits = extent.shape == (2, 2) and (np.diff(extent) > 0).all() and len(examples) == len(labels)
    if not fits or not classes_of(regions) or not classes_of(labels):
        return None
    (left, right), (bottom, top) = extent.tolist()
    return regions, ((left, right), (bottom, top)), count


def _centres(low: float, high: float, count: int) -> Array:
    """The middles of so many parts of a span, and its ends."""
    edges = np.linspace(low, high, count + 1)
    return np.concatenate(([low], (edges[1:] + edges[:-1]) / 2, [high]))
