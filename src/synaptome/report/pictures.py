"""Figures of single networks: a picture for each, in rows that have titles; the data as CSV; and their signed scale."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from synaptome.report.drawing import drawn, lighter
from synaptome.report.markup import Html, tag
from synaptome.report.measured import Array
from synaptome.report.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEGATIVE, POSITIVE = "c1", "c0"
LEVELS = 10  # of opacity, on either side of the middle
STRONGEST = 0.9  # opacity, through which a line below is still seen


class Picture(Protocol):
    """What is drawn of one network of one group."""

    @property
    def group(self) -> str:
        """The group's label."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels."""

    def draw(self, canvas: Figure) -> None:
        """Draw on an empty figure."""

    def rows(self) -> Iterable[Sequence[object]]:
        """The data: for each column of the figure a value."""


@dataclass(frozen=True)
class PictureFigure:
    """Rows of pictures, in each one a group.

    Attributes:
        name: stem of the CSV file.
        heading: says the quantity.
        pictures: rows, each with its title and at least one picture.
        columns: of the CSV file, after the group and the title of the row.
        key: what the colours stand for.
        note: what a reader should know, below the figure.
    """

    name: str
    heading: str
    pictures: tuple[tuple[str, tuple[Picture, ...]], ...]
    columns: tuple[str, ...]
    key: Html
    note: str = ""

    def legend(self) -> Html:
        """What the colours stand for."""
        return self.key

    def csv_text(self) -> str:
        """The group, the title of the row, and the columns; numbers in the shortest form that reads back the same."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "picture", *self.columns])
        for title, row in self.pictures:
            for picture in row:
                writer.writerows([clean(picture.group), title, *map(str, values)] for values in picture.rows())
        return out.getvalue()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """Rows `(title, drawings)`, each drawing with the label of its group; `prefix` begins their ids."""
        return [
            (title, [(each.group, self._svg(title, each, f"{prefix}-{y}-{x}-")) for x, each in enumerate(row)])
            for y, (title, row) in enumerate(self.pictures)
        ]

    def _svg(self, title: str, picture: Picture, prefix: str) -> Html:
        label = ", ".join(part for part in (self.heading, title, picture.group) if part)
        return lighter(drawn(picture.draw, prefix, label, picture.size))


def strengths(values: Array) -> Array:
    """Signed levels of values in [-1, 1], whole numbers from -LEVELS to LEVELS; 0 is transparent."""
    found: Array = np.clip(np.rint(np.asarray(values, np.float64) * LEVELS), -LEVELS, LEVELS).astype(np.int64)
    return found


def paint(level: int) -> tuple[str, float]:
    """The colour, a name of `STAND_INS`, and the opacity of a signed level."""
    return (POSITIVE if level > 0 else NEGATIVE), STRONGEST * abs(level) / LEVELS


def signed_scale(ends: tuple[str, str, str]) -> Html:
    """A bar of all signed levels, with what stands below its left end, its middle and its right end."""
    width = 2 * LEVELS + 1
    blocks = []
    for place, level in enumerate(range(-LEVELS, LEVELS + 1)):
        colour, opacity = paint(level)
        fill = f"fill: var(--{colour}); fill-opacity: {opacity:.2f}"
        blocks.append(f'<rect x="{place}" y="0" width="1" height="1" style="{fill}"></rect>')
    view = f'viewBox="0 0 {width} 1" preserveAspectRatio="none" aria-hidden="true" shape-rendering="crispEdges"'
    bar = Html(f'<svg class="scale" width="100%" {view}>{"".join(blocks)}</svg>')
    return tag("div", bar, tag("span", *(tag("span", end) for end in ends), class_="ends"), class_="heat")
