"""Figures of small recurrent networks: each as a graph of its neurons, and its weights as a heat map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.drawing import STAND_INS
from synaptome.report.measured import Array, Measures
from synaptome.report.pictures import LEVELS, Picture, PictureFigure, paint, signed_scale, strengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

RING = 0.37  # radius of the circle of hidden neurons, of a picture that is 1 high
RADIUS = 0.037  # of a neuron
HEAD = 0.032, 0.012  # length and half the width of an arrow's head
BEND = 0.16  # how far a connection is bent to its left, by its length: so those in both directions are seen apart
NAMES = ("matrix", "allowed", "sizes", "seeds")


@dataclass(frozen=True)
class Net:
    """A small network.

    Attributes:
        group: the label of its group.
        weight: `[N, N]`, from row to column.
        allowed: which connections it may have, `[N, N]`.
        bias: of the neurons that are no inputs; empty if there are none.
        sizes: how many inputs, hidden neurons and outputs.
        largest: absolute value of the strongest weight or bias of the figure, above 0.
    """

    group: str
    weight: Array
    allowed: Array
    bias: Array
    sizes: tuple[int, int, int]
    largest: float


@dataclass(frozen=True)
class GraphPicture:
    """A network as a graph: inputs on the left, outputs on the right, hidden neurons on a circle between them."""

    net: Net

    size = (340, 290)

    @property
    def group(self) -> str:
        """The label of the group."""
        return self.net.group

    def draw(self, canvas: Figure) -> None:
        """Connections as arrows, strong ones above weak ones, and neurons with their numbers."""
        axes = canvas.add_subplot(facecolor="none")
        places = layout(self.net.sizes)
        levels = strengths(self.net.weight / self.net.largest)
        for level in sorted(range(-LEVELS, LEVELS + 1), key=abs):
            ends = np.argwhere((levels == level) & (self.net.allowed != 0))
            if level and len(ends):
                _draw_arrows(axes, places[ends], *paint(level))
        for number, (x, y) in enumerate(places, 1):
            _draw_neuron(axes, x, y, str(number))
        width, height = self.size
        axes.set_xlim(0.5 - 0.5 * width / height, 0.5 + 0.5 * width / height)
        axes.set_ylim(0, 1)
        axes.set_axis_off()

    def rows(self) -> Iterator[Sequence[object]]:
        """The weight of each connection, and each bias."""
        for source, target in np.argwhere(self.net.allowed != 0):
            yield source + 1, target + 1, self.net.weight[source, target]
        for target, bias in enumerate(self.net.bias, self.net.sizes[0] + 1):
            yield "bias", target, bias


@dataclass(frozen=True)
class MatrixPicture:
    """The weights of a network: a row for each neuron that they come from, and one for biases."""

    net: Net

    size = (340, 310)

    @property
    def group(self) -> str:
        """The label of the group."""
        return self.net.group

    def draw(self, canvas: Figure) -> None:
        """Cells in the colours of the scale; where there can be no connection, struck through."""
        axes = canvas.add_subplot(facecolor="none")
        net, inputs = self.net, self.net.sizes[0]
        values, allowed = net.weight[:, inputs:], net.allowed[:, inputs:] != 0
        if len(net.bias):
            values = np.concatenate((values, net.bias[None]))
            allowed = np.concatenate((allowed, np.ones((1, len(net.bias)), bool)))
        levels = strengths(values / net.largest)
        for row, column in np.argwhere(~allowed):
            axes.plot([column, column + 1], [row + 1, row], color=STAND_INS["muted"], linewidth=0.8)
        for level in range(-LEVELS, LEVELS + 1):
            if level:
                _draw_cells(axes, np.argwhere(allowed & (levels == level)), *paint(level))
        height, width = values.shape
        neurons = len(net.weight)
        for edge in (inputs, neurons - net.sizes[2], *([neurons] if height > neurons else [])):
            axes.plot([0, width], [edge, edge], color=STAND_INS["muted"], linewidth=0.8)
        axes.plot([net.sizes[1]] * 2, [0, height], color=STAND_INS["muted"], linewidth=0.8)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        # The first neuron of each kind.
        shown = sorted({0, net.sizes[1]})
        axes.set_xticks([place + 0.5 for place in shown], [str(inputs + place + 1) for place in shown])
        shown = sorted({0, inputs, inputs + net.sizes[1]})
        named = {place: str(place + 1) for place in shown} | ({neurons: "bias"} if height > neurons else {})
        axes.set_yticks([place + 0.5 for place in named], list(named.values()))
        axes.set_xlabel("to neuron", color=STAND_INS["muted"])
        axes.set_ylabel("from neuron", color=STAND_INS["muted"])
        axes.tick_params(colors=STAND_INS["muted"], length=0)
        for spine in axes.spines.values():
            spine.set_color(STAND_INS["muted"])

    def rows(self) -> Iterator[Sequence[object]]:
        """None: the graph has told them."""
        return iter(())


def network_graphs(measured: Sequence[Measures]) -> list[PictureFigure]:
    """Graph and weights of some networks of each run that kept them; one scale for all."""
    kept = [each for each in measured if _fits(each)]
    if not kept:
        return []
    numbers = [each.final[f"network/{name}"] for each in kept for name in ("matrix", "bias") if _has(each, name)]
    largest = max(float(np.abs(values).max()) for values in numbers) or 1.0
    graphs: dict[str, list[Picture]] = {}
    matrices: dict[str, list[Picture]] = {}
    for each in kept:
        weights, allowed, sizes, seeds = (each.final[f"network/{name}"] for name in NAMES)
        biases = each.final["network/bias"] if _has(each, "bias") else np.zeros((len(seeds), 0))
        inputs, hidden, outputs = sizes.tolist()
        for seed, weight, bias in zip(seeds, weights, biases, strict=True):
            net = Net(each.group, weight, allowed, bias, (inputs, hidden, outputs), largest)
            graphs.setdefault(f"network of seed {seed}", []).append(GraphPicture(net))
            matrices.setdefault(f"weights, seed {seed}", []).append(MatrixPicture(net))
    rows = tuple((title, tuple(row)) for title, row in (*graphs.items(), *matrices.items()))
    note = (
        "Inputs left, outputs right. A connection is bent to the left of its direction; one below "
        f"{100 * 0.5 / LEVELS:g} % of the strongest weight is not drawn. Struck through: there is no connection."
    )
    ends = f"{-largest:.3g}", "0", f"{largest:.3g}"
    return [PictureFigure("networks", "Trained networks", rows, ("from", "to", "weight"), signed_scale(ends), note)]


def layout(sizes: tuple[int, int, int]) -> Array:
    """Where neurons are drawn, `[N, 2]`, in a picture that is 1 high, with its middle at (0.5, 0.5)."""
    inputs, hidden, outputs = sizes
    places = [(-0.04, y) for y in _spread(inputs)]
    for place in range(hidden):
        # From the top, clockwise; none of them on the line from inputs to outputs.
        angle = math.tau * (place + (0.5 if hidden % 4 == 0 else 0)) / hidden
        radius = RING if hidden > 1 else 0.0
        places.append((0.5 + radius * math.sin(angle), 0.5 + radius * math.cos(angle)))
    return np.array(places + [(1.04, y) for y in _spread(outputs)])


def _spread(count: int) -> list[float]:
    """Heights in a column, from the top."""
    step = min(0.3, 0.84 / max(1, count - 1))
    return [0.5 + step * ((count - 1) / 2 - place) for place in range(count)]


def _draw_arrows(axes: Axes, ends: Array, colour: str, opacity: float) -> None:
    """Connections `[n, 2, 2]` of one strength, in two paths: of the lines, and of the heads."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    lines, heads = zip(*(_arrow(*pair) for pair in ends), strict=True)
    line = Path.make_compound_path(*lines)
    axes.add_patch(PathPatch(line, fill=False, edgecolor=STAND_INS[colour], alpha=opacity, linewidth=1.3))
    head = Path.make_compound_path(*heads)
    axes.add_patch(PathPatch(head, facecolor=STAND_INS[colour], alpha=opacity, linewidth=0))


def _arrow(start: Array, end: Array) -> tuple[Path, Path]:
    """A bent line from the edge of one neuron to the head of the arrow, and the head, at the edge of the other."""
    from matplotlib.path import Path

    along = end - start
    middle = (start + end) / 2 + BEND * np.array([-along[1], along[0]])
    out, into = ((b - a) / np.hypot(*(b - a)) for a, b in ((start, middle), (middle, end)))
    tip = end - RADIUS * into
    base = tip - HEAD[0] * into
    side = HEAD[1] * np.array([-into[1], into[0]])
    line = Path([start + RADIUS * out, middle, base], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    return line, Path([base + side, tip, base - side, base + side], closed=True)


def _draw_neuron(axes: Axes, x: float, y: float, name: str) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(
        Circle((x, y), RADIUS, facecolor=STAND_INS["paper"], edgecolor=STAND_INS["ink"], linewidth=1.1, zorder=2)
    )
    axes.text(x, y, name, color=STAND_INS["ink"], fontsize=10, ha="center", va="center_baseline", zorder=3)


def _draw_cells(axes: Axes, cells: Array, colour: str, opacity: float) -> None:
    """Cells `[n, 2]`, of a row and a column, of one colour, in one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if len(cells):
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
        path = Path.make_compound_path(*(Path(cell[::-1] + corners, closed=True) for cell in cells))
        # Without smoothing, or a seam would be seen between two cells.
        axes.add_patch(
            PathPatch(path, facecolor=STAND_INS[colour], alpha=opacity, linewidth=0, antialiased=False, zorder=0.5)
        )


def _has(each: Measures, name: str) -> bool:
    return f"network/{name}" in each.final


def _fits(each: Measures) -> bool:
    if not all(_has(each, name) for name in NAMES):
        return False
    weights, allowed, sizes, seeds = (each.final[f"network/{name}"] for name in NAMES)
    neurons = len(allowed)
    fits = weights.shape == (len(seeds), neurons, neurons) and allowed.shape == (neurons, neurons)
    bias = each.final["network/bias"].shape if _has(each, "bias") else (len(seeds), neurons - sizes[0])
    return fits and len(sizes) == 3 and sizes.sum() == neurons and bias == (len(seeds), neurons - sizes[0])
