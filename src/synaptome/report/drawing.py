"""What all drawings share: matplotlib under our own settings, and its SVG as an element of a page.

Matplotlib writes stand-in colours, which become CSS variables here: one drawing serves light and dark. Labels that come
from a run stay out of the drawing; they are in headings and legends, which are HTML and wrap on a narrow screen.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptome.report.markup import Html, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 420, 270  # CSS pixels at full size; on a phone 380 px wide they shrink by a sixth only

# One more shape than colours, so that 56 groups pass before a pair repeats. Corners in [-1, 1].
COLOURS = 7
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    tuple((math.cos(math.tau * corner / 16), math.sin(math.tau * corner / 16)) for corner in range(16)),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0.0, 1.0), (1.0, -0.8), (-1.0, -0.8)),
    ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0)),
    ((0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)),
    ((-1.0, 0.9), (1.0, 0.9), (-1.0, -0.9), (1.0, -0.9)),
    ((1.0, 0.0), (-0.8, 1.0), (-0.8, -1.0)),
    ((-1.0, 0.0), (0.8, 1.0), (0.8, -1.0)),
)
SHADES = 11  # steps of the sequential map from the first to the last layer

STAND_INS = (
    {"ink": "#010203", "muted": "#010204", "grid": "#010205", "paper": "#010206"}
    | {f"c{index}": f"#0a0b{index:02x}" for index in range(COLOURS)}
    | {f"s{index}": f"#0a0c{index:02x}" for index in range(SHADES)}
)


BAND = Html('<span class="band"></span>')  # in a legend


@dataclass(frozen=True)
class Look:
    """How a curve is told from the others.

    Attributes:
        colour: a name of `STAND_INS`.
        shape: of the markers, an index of `SHAPES`; None for no markers.
        dashes: lengths of dashes and gaps; empty for a solid line.
        width: of the line, in CSS pixels.
    """

    colour: str
    shape: int | None = None
    dashes: tuple[float, ...] = ()
    width: float = 1.8


def drawn(draw: Callable[[Figure], None], prefix: str, label: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Html:
    """A drawing as an element of a page.

    Args:
        draw: draws on the empty figure it is given. Matplotlib's settings are ours meanwhile whatever the user's are,
            and are put back after.
        prefix: begins every id inside the drawing; must differ between the drawings of a page.
        label: what the drawing shows, for those who hear the page.
        size: width and height in CSS pixels, at which the letters are as large as the page's small ones.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "synaptome",
                "text.parse_math": False,
                "font.size": 12,
                "lines.scale_dashes": False,
            }
        )
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained", facecolor="none")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return page_svg(out.getvalue(), prefix, label, size)


def lighter(svg: Html) -> Html:
    """A drawing whose paths are told to the hundredth of a pixel, in half the letters."""
    rounded = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return Html(rounded)


def plain(axes: Axes) -> None:
    """Axes with nothing but what is needed to read a value."""
    axes.grid(True, axis="y", color=STAND_INS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=STAND_INS["muted"], length=0)
    axes.tick_params(axis="x", which="major", length=4)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(STAND_INS["muted"])


def padded(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis that leave some room around the data."""
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - pad, high + pad


def set_logarithmic(axes: Axes, low: float, high: float) -> None:
    """A logarithmic y axis from a positive `low` to `high`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    bottom, top = padded(math.log10(low), math.log10(high))
    axes.set_ylim(10**bottom, 10**top)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if top - bottom < 3 else (1.0,)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def swatch(shown: Look) -> Html:
    """A piece of the line, for a legend."""
    colour = f"var(--{shown.colour})"
    dashes = f' stroke-dasharray="{" ".join(map(str, shown.dashes))}"' if shown.dashes else ""
    line = f'<line x1="1" y1="6" x2="33" y2="6" style="stroke: {colour}" stroke-width="{shown.width}"{dashes}></line>'
    marker = ""
    if shown.shape is not None:
        corners = " ".join(f"{17 + 4 * x:.2f},{6 - 4 * y:.2f}" for x, y in SHAPES[shown.shape])
        marker = f'<polygon points="{corners}" style="fill: {colour}"></polygon>'
    return Html(f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{line}{marker}</svg>')


def block(colour: str) -> Html:
    """A filled piece of a colour of `STAND_INS`, for a legend."""
    shape = f'<rect x="1" y="1" width="32" height="10" style="fill: var(--{colour})"></rect>'
    return Html(f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{shape}</svg>')


def legend(entries: Iterable[tuple[object, object]]) -> Html:
    """A list of swatches, each with what it stands for."""
    return tag("ul", *(tag("li", shown, tag("span", name)) for shown, name in entries), class_="legend")


def page_svg(svg: str, prefix: str, label: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Html:
    """Matplotlib's file as an element of a page: no header, no fixed size or font, ids of its own, CSS colours."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", body)
    body = re.sub(r"font: (?:[\w ]+ )?([\d.]+px) [^;\"]*", r"font-size: \1", body)  # matplotlib before 3.11
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for name, colour in STAND_INS.items():
        body = body.replace(colour, f"var(--{name})")
    return tag("svg", Html(body), viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=label)
