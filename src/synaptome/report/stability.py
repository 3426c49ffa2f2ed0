"""Figures of the stability of trained networks: eigenvalues, gradients and energy over depth, noise on the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.chart_figures import ChartFigure
from synaptome.report.curves import Chart, Curve
from synaptome.report.drawing import COLOURS, SHADES, STAND_INS, Look, block, swatch
from synaptome.report.line_figures import Line, LineFigure, LinePanel, Scale, rows_of, scale_of, shade
from synaptome.report.measured import Array, Measures
from synaptome.report.plane import Extent, PlaneFigure, dots, square
from synaptome.report.table import Group, Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 600  # eigenvalues drawn in a panel
ARC = 1001  # points of the unit circle, of those that may be in a drawing
BEYOND = (5.0, 2.5)  # dashes of a line that comes when all colours are taken

Noisy = Sequence[Iterable[Mapping[str, Array]]]  # for each group, of each run: `std` [S], others [S, passes]


@dataclass(frozen=True)
class EigenvaluePanel:
    """The eigenvalues of one group.

    Attributes:
        group: its label.
        times: of the layers [n].
        values: real and imaginary parts of the eigenvalues of each layer [n, eigenvalues, 2].
    """

    group: str
    times: Array
    values: Array

    axes = ("real part", "imaginary part")

    @property
    def extent(self) -> Extent:
        """A square around all of them."""
        return square(self.values[..., 0], self.values[..., 1])

    def draw(self, axes: Axes) -> None:
        """The unit circle, and each layer's eigenvalues in its shade."""
        x, y = _unit_circle(self.extent)
        axes.plot(x, y, color=STAND_INS["muted"], linewidth=1)
        layers, eigenvalues, _ = self.values.shape
        chosen = np.linspace(0, eigenvalues - 1, min(eigenvalues, max(1, MOST_DOTS // layers))).round().astype(int)
        for place, own in enumerate(self.values[:, chosen], 1):
            dots(axes, own[:, 0], own[:, 1], shade(place, layers), 3.5)

    def rows(self) -> Iterator[Sequence[object]]:
        """Each eigenvalue of each layer."""
        for time, own in zip(self.times, self.values, strict=True):
            for real, imaginary in own:
                yield time, real, imaginary


def eigenvalues(measured: Sequence[Measures]) -> list[PlaneFigure]:
    """Eigenvalues of the Jacobians of some layers' steps in the complex plane, of each run that kept them."""
    panels = []
    for each in measured:
        times, values = each.final.get("jacobian/time"), each.final.get("jacobian/eigenvalues")
        if times is not None and values is not None and len(times) == len(values):
            panels.append(EigenvaluePanel(each.group, times, values))
    if not panels:
        return []
    heading = "Eigenvalues of the Jacobians of the steps"
    note = (
        "By the carried state, at some test examples. A disturbance along the eigenvector of one outside the circle "
        "grows in that step."
    )
    keys = (
        (block("s0"), "first layer"),
        (block(f"s{SHADES - 1}"), "last layer drawn"),
        (swatch(Look("muted", width=1)), "unit circle"),
    )
    return [PlaneFigure("eigenvalues", heading, tuple(panels), ("time", "real", "imaginary"), keys, note)]


def over_depth(groups: Sequence[Group], measured: Sequence[Sequence[Measures]]) -> list[LineFigure]:
    """Spectral abscissa, gradient norms and energy over the layers: mean and range over seeds, a line for each group.

    Args:
        groups: of the page; their places choose the colours, as in its charts.
        measured: of some of these groups the measures of their runs, at least one.
    """
    places = {group.label: place for place, group in enumerate(groups)}
    runs = {places[each[0].group]: each for each in measured}
    # Rounded, or an axis of rounding errors would look like a result.
    abscissa = _lines(runs, "jacobian", "abscissa", decimals=6)
    norms = _lines(runs, "gradient", "norms")
    ratios = [f"{line.name}, last / first {line.y[-1] / line.y[0]:.3g}" if line.y[0] > 0 else "" for line in norms]
    norms = [replace(line, key=key) for line, key in zip(norms, ratios, strict=True)]
    figures = _figure(
        "abscissa",
        "Spectral abscissa of the layers, per unit of time",
        "Largest real part of the eigenvalues of the Jacobian of the differential equation, over some test examples. "
        "Where layers change slowly, some disturbance grows if it is above 0, and all decay if it is below 0.",
        abscissa,
    )
    figures += _figure(
        "gradients",
        "Gradient norm over depth",
        "Norm of the gradient of the loss by the states of some test examples before a layer, and at the end behind "
        "the last one. The legend gives the norm at the end over that at the start.",
        norms,
        scale_of(line.y for line in norms) if norms else "linear",
    )
    figures += _figure(
        "energy",
        "Energy gained since the start",
        "Of the Hamiltonian dynamics, as a share of the energy at the start, mean over some test examples: the error "
        "of the steps, and the work of weights that change in time.",
        _lines(runs, "energy", "total"),
    )
    return figures + _figure(
        "energy-steps",
        "Energy drift of the steps",
        "The part of the energy gained that is an error of the steps; it falls with the square of the step.",
        _lines(runs, "energy", "steps"),
    )


def noise(groups: Sequence[Group], measured: Noisy) -> list[ChartFigure]:
    """Accuracy, and change of the outputs, against the noise on the inputs, for all groups in a chart each."""
    figures = []
    for key, name, metric, heading, note in (
        ("accuracy", "noise-accuracy", "accuracy", "Test accuracy with noise on the inputs", ""),
        (
            "change",
            "noise-change",
            "change of the outputs",
            "Change of the outputs by noise on the inputs",
            "Norm of the change over the norm of the outputs without noise. ",
        ),
    ):
        curves = [
            Curve(index, group.label, "test", tuple(points), tuple(points.values()))
            for index, (group, runs) in enumerate(zip(groups, measured, strict=True))
            if (points := _over_seeds([found for run in runs if (found := _means(run, key))]))
        ]
        if curves:
            chart = Chart(metric, "standard deviation of the noise", tuple(curves), band="range")
            note += "Of each seed the mean over its passes."
            figures.append(ChartFigure(chart, len(groups) > 1, name, heading, note))
    return figures


def _unit_circle(extent: Extent) -> tuple[Array, Array]:
    """Points of the part of the unit circle that is in a square, or just outside."""
    (left, right), (bottom, top) = extent
    x, y, reach = (left + right) / 2, (bottom + top) / 2, 0.8 * (right - left)
    distance = np.hypot(x, y)
    # From its middle a disc around the square is seen under this angle on both sides, or all around.
    half = np.arcsin(reach / distance) if reach < distance else np.pi
    angles = np.arctan2(y, x) + np.linspace(-half, half, ARC)
    across, up = np.cos(angles), np.sin(angles)
    across[np.hypot(across - x, up - y) > reach] = np.nan
    return across, up


def _figure(name: str, title: str, note: str, lines: Sequence[Line], y: Scale = "linear") -> list[LineFigure]:
    """A figure of one panel, if there is anything to draw."""
    rows = rows_of([("", LinePanel("", tuple(lines)))])
    return [LineFigure(name, title, rows, x="time", y=y, note=note)] if rows else []


def _lines(
    groups: Mapping[int, Sequence[Measures]], place: str, measure: str, decimals: int | None = None
) -> list[Line]:
    """A line for each group that has `place/measure`, against `place/time`; the largest over examples."""
    lines = []
    for index, runs in groups.items():
        seeds = [
            (times, values if values.ndim == 1 else values.max(1))
            for each in runs
            if (times := each.final.get(f"{place}/time")) is not None
            and (values := each.final.get(f"{place}/{measure}")) is not None
            and len(times) == len(values)
        ]
        if not seeds:
            continue
        # Runs of one group have the same layers, unless they were written by different versions.
        times = seeds[0][0]
        values = np.stack([values for own, values in seeds if np.array_equal(own, times)])
        values = values if decimals is None else values.round(decimals)
        band = (values.min(0), values.max(0)) if len(values) > 1 else None
        dashes = BEYOND if index >= COLOURS else ()
        lines.append(Line(runs[0].group, times, values.mean(0), Look(f"c{index % COLOURS}", dashes=dashes), band=band))
    return lines


def _means(run: Mapping[str, Array], key: str) -> dict[float, float]:
    """Over the passes, at each standard deviation."""
    stds, values = run.get("std"), run.get(key)
    if stds is None or values is None or len(stds) != len(values):
        return {}
    return dict(zip(stds.tolist(), values.mean(1).tolist(), strict=True))


def _over_seeds(seeds: Sequence[Mapping[float, float]]) -> dict[float, Statistic]:
    """At the standard deviations that each of them has."""
    shared = sorted(set.intersection(*map(set, seeds))) if seeds else []
    found = {std: Statistic.of(points[std] for points in seeds) for std in shared}
    return {std: statistic for std, statistic in found.items() if statistic}
