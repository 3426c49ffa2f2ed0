"""What changes over training or over depth, as a film: a strip of pictures that the page's stylesheet moves, and a GIF.

The page needs no script: all frames stand below one another in one small picture, of which one is seen at a time.
Who asks the system for less motion sees the last frame, and so does the reader of a print.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from synaptome.report.heat_maps import COLOUR_MAP, LEVELS, HeatFigure, HeatMap, HeatPanel
from synaptome.report.markup import Html, join, tag
from synaptome.report.measured import Array

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 280  # of a picture's longer side, at most, in CSS pixels; fits a phone
MOST_FRAMES = 60
MOST_PIXELS = 180_000  # of all frames of a figure: a byte each before compression, 4/3 of it on the page
SECONDS_A_FRAME = 0.16
MOVING = 0.85  # share of the time; then the last frame stands
WHITE, BLACK = b"\xff\xff\xff", b"\x00\x00\x00"  # after the colours of a palette
GAP, LINE = 16, 24  # between the pictures of a GIF, and above them for the step, in its pixels


@dataclass(frozen=True)
class Film:
    """Frames [n, height, width] of one group, and what to call each."""

    group: str
    names: tuple[str, ...]
    frames: Array


class Table(Protocol):
    """The figure whose numbers a film shows."""

    @property
    def name(self) -> str:
        """Stem of the files beside the page."""

    @property
    def heading(self) -> str:
        """The quantity."""

    @property
    def note(self) -> str:
        """What a reader should know."""

    def legend(self) -> Html:
        """What the colours stand for."""

    def csv_text(self) -> str:
        """The data."""


@dataclass(frozen=True)
class FilmFigure:
    """Films side by side, one a group, of the same colours and the same number of frames.

    Attributes:
        films: at least one, of at least two frames; each pixel is the place of its colour in the palette, uint8. The
            place after the last one is paper: white, or what is behind it on the page.
        table: the same numbers.
        palette: red, green and blue of at most 254 colours, a byte each.
    """

    films: tuple[Film, ...]
    table: Table
    palette: bytes

    @classmethod
    def of(cls, name: str, heading: str, films: Sequence[Film], low: float, high: float) -> list[FilmFigure]:
        """The figure of matrices; none where there is no film, or none that is small enough.

        Args:
            name: stem of the files beside the page.
            heading: says the quantity.
            films: of at least two frames each; of many some are left out, the first and the last never.
            low, high: values at the ends of the colour scale.
        """
        shown = [film for film in films if max(film.frames.shape[1:]) <= SIZE]
        pixels = sum(film.frames[0].size for film in shown)
        if not shown or pixels * 2 > MOST_PIXELS:
            return []
        count = min(MOST_FRAMES, max(len(film.frames) for film in shown), MOST_PIXELS // pixels)
        films = [thinned(film, count) for film in shown]
        panels = tuple(
            HeatPanel(film.group, tuple(HeatMap(*frame) for frame in zip(film.names, film.frames, strict=True)))
            for film in films
        )
        coloured = tuple(replace(film, frames=_levels(film.frames, low, high)) for film in films)
        return [cls(coloured, HeatFigure(name, heading, panels, "row", "column", low, high), _colour_scale())]

    @property
    def name(self) -> str:
        """Stem of the files beside the page."""
        return self.table.name

    @property
    def heading(self) -> str:
        """The quantity."""
        return self.table.heading

    @property
    def note(self) -> str:
        """What a reader should know."""
        return self.table.note

    def legend(self) -> Html:
        """What the colours stand for, and the switch that stops the film."""
        switch = tag("label", tag("input", type="checkbox"), " pause", class_="pause")
        return join([self.table.legend(), switch])

    def csv_text(self) -> str:
        """The numbers of all frames."""
        return self.table.csv_text()

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """The films in a row, each with the label of its group."""
        return [("", [(film.group, self._reel(film)) for film in self.films])]

    def gif(self) -> bytes:
        """All films side by side in the order of the page, with the step above each; without labels of groups."""
        from PIL.Image import new
        from PIL.ImageDraw import Draw
        from PIL.ImageFont import load_default

        scales = [_scale(film, SIZE // 2) for film in self.films]  # at full size the file is several times as large
        sizes = [
            (scale * film.frames.shape[2], scale * film.frames.shape[1])
            for scale, film in zip(scales, self.films, strict=True)
        ]
        width = sum(width for width, _ in sizes) + GAP * (len(sizes) + 1)
        height = max(height for _, height in sizes) + LINE + GAP
        white = len(self.palette) // 3
        count = len(self.films[0].frames)
        pictures = []
        for index in range(count):
            picture = new("P", (width, height), white)
            picture.putpalette(self.palette + WHITE + BLACK)
            left = GAP
            for film, scale, (across, _) in zip(self.films, scales, sizes, strict=True):
                large = np.kron(film.frames[index], np.ones((scale, scale), np.uint8))
                picture.paste(_image(large, self.palette), (left, LINE))
                Draw(picture).text((left, 4), film.names[index], fill=white + 1, font=load_default(14))
                left += across + GAP
            pictures.append(picture)
        still = SECONDS_A_FRAME * count * (1 - MOVING) / MOVING
        durations = [round(1000 * SECONDS_A_FRAME)] * (count - 1) + [round(1000 * (SECONDS_A_FRAME + still))]
        out = io.BytesIO()
        pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
        return out.getvalue()

    def _reel(self, film: Film) -> Html:
        """One film as an element of a page."""
        out = io.BytesIO()
        picture = _image(film.frames.reshape(-1, film.frames.shape[2]), self.palette)
        picture.save(out, "PNG", optimize=True, transparency=len(self.palette) // 3)
        count, scale = len(film.frames), _scale(film, SIZE)
        height, width = (scale * size for size in film.frames.shape[1:])
        alternative = f"{self.heading}: a film from {film.names[0]} to {film.names[-1]}"
        strip = tag(
            "img",
            class_="reel",
            alt=alternative,
            src=f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}",
        )
        names = tag("div", *(tag("span", name) for name in film.names), class_="reel")
        time = SECONDS_A_FRAME * count / MOVING
        style = f"--frames: {count}; --width: {width}px; --height: {height}px; --time: {time:.2f}s"
        step = tag("div", names, class_="names", aria_hidden="true")
        return tag("div", step, tag("div", strip, class_="screen"), class_="film", style=style)


def thinned(film: Film, count: int) -> Film:
    """`count` of its frames, evenly by their order; a film that has fewer shows some of them longer."""
    chosen = np.linspace(0, len(film.frames) - 1, count).round().astype(int)
    return replace(film, names=tuple(film.names[index] for index in chosen), frames=film.frames[chosen])


def _scale(film: Film, size: int) -> int:
    """Whole pixels for each entry, so that no edge is blurred."""
    return max(1, size // int(max(film.frames.shape[1:])))


def _levels(values: Array, low: float, high: float) -> NDArray[np.uint8]:
    """Places on the colour scale."""
    span = high - low
    share = (values - low) / span if span > 0 else np.zeros_like(values, dtype=np.float64)
    return cast(NDArray[np.uint8], (share * LEVELS).clip(0, LEVELS - 1).astype(np.uint8))


def _image(levels: Array, palette: bytes) -> Image:
    from PIL.Image import fromarray

    image = fromarray(levels).convert("P")
    image.putpalette(palette + WHITE + BLACK)
    return image


def _colour_scale() -> bytes:
    """The colours of the levels."""
    from matplotlib import colormaps

    return bytes(colormaps[COLOUR_MAP].resampled(LEVELS)(np.arange(LEVELS), bytes=True)[:, :3].astype(np.uint8))
