"""Figures of how networks come to rest: residual and energy along a free phase, and spectra where they rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synaptome.report.band_figures import BandFigure, BandPanel
from synaptome.report.drawing import STAND_INS, Look, block, swatch
from synaptome.report.line_figures import scale_of
from synaptome.report.measured import Array, Measures
from synaptome.report.plane import Extent, PlaneFigure, dots, square

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 2000  # eigenvalues drawn in a panel
POINTS = 2001  # of the circle, of those that may be in a drawing
ROUNDING = 1e-9  # of the energies: a rise no larger is none
WHERE = ("seed", "pattern", "example")  # which network and which of its equilibria an eigenvalue belongs to
MEMBERS = "inputs"


@dataclass(frozen=True)
class SpectrumPanel:
    """The eigenvalues of one group.

    Attributes:
        group: its label.
        values: real and imaginary parts `[n, 2]`.
        places: columns `[n]` that say where each belongs, by the names in `WHERE`; empty for those that say nothing.
        dt: of an Euler step.
    """

    group: str
    values: Array
    places: tuple[Array, ...]
    dt: float

    axes = ("real part", "imaginary part")

    @property
    def grows(self) -> Array:
        """Which modes do not decay under the step, bool `[n]`."""
        steps = 1 + self.dt * (self.values[:, 0] + 1j * self.values[:, 1].astype(np.float64))
        found: Array = np.abs(steps) >= 1
        return found

    @property
    def extent(self) -> Extent:
        """A square around all of them and 0, where the limits of step and flow meet."""
        with_origin = np.concatenate((self.values, np.zeros((1, 2))))
        return square(with_origin[:, 0], with_origin[:, 1])

    def draw(self, axes: Axes) -> None:
        """The limits of stability of the step and of the flow, and the eigenvalues."""
        axes.plot(*_circle(self.extent, self.dt), color=STAND_INS["muted"], linewidth=1.2)
        axes.plot([0, 0], self.extent[1], color=STAND_INS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        # All that grow, and of the others as many as can be told apart.
        inside = np.flatnonzero(~self.grows)
        inside = inside[np.linspace(0, len(inside) - 1, min(len(inside), MOST_DOTS)).round().astype(int)]
        for chosen, colour in ((inside, "c0"), (np.flatnonzero(self.grows)[:MOST_DOTS], "c1")):
            dots(axes, self.values[chosen, 0], self.values[chosen, 1], colour, 3.5)

    def rows(self) -> Iterator[Sequence[object]]:
        """Each eigenvalue, and where it belongs."""
        for at, (real, imaginary) in enumerate(self.values):
            yield *(place[at] if len(place) else "" for place in self.places), real, imaginary


def spectra(measured: Sequence[Measures]) -> list[PlaneFigure]:
    """Eigenvalues of the Jacobians of unclipped units at free equilibria, of each run that kept them."""
    panels = []
    for each in measured:
        values, dt = each.final.get("jacobian/lambda"), each.final.get("jacobian/dt")
        if values is not None and dt is not None and dt > 0:
            places = tuple(each.final.get(f"jacobian/{name}", np.zeros(0)) for name in WHERE)
            if all(len(place) in (0, len(values)) for place in places):
                panels.append(SpectrumPanel(each.group, values, places, float(dt)))
    if not panels:
        return []
    note = (
        "Of the units that are not clipped, at the equilibria of several inputs. A small disturbance along the "
        "eigenvector of an eigenvalue λ inside the circle |1 + dt λ| = 1 decays under the Euler steps; left of the "
        "dashed line it decays under the flow, the limit of small steps."
    )
    keys = (
        (block("c0"), "decays"),
        *([(block("c1"), "does not")] if any(panel.grows.any() for panel in panels) else []),
        (swatch(Look("muted", width=1.2)), "|1 + dt λ| = 1"),
        (swatch(Look("muted", dashes=(4, 3), width=1)), "real part 0"),
    )
    heading = "Spectrum of the Jacobian at free equilibria"
    return [PlaneFigure("equilibrium-spectrum", heading, tuple(panels), (*WHERE, "real", "imaginary"), keys, note)]


def relaxation(groups: Sequence[Sequence[Measures]]) -> list[BandFigure]:
    """Residual, and energy where there is one, along the free phase: a panel for each group, over all its runs.

    Args:
        groups: for each group the measures of its runs, at least one.
    """
    residuals = _panels(groups, "residual", lambda each: each.final["residual/values"])
    if not residuals:
        return []
    described = [runs for runs in groups if any(map(_described, runs))]
    note = (
        "The largest change of a unit in a step, by input, and in a population by network. A curve ends where it is 0 "
        "to the bit, or too small for the axis."
    )
    if not described:
        note += (
            " There is no energy to draw: the weights are not symmetric, and in general no Lyapunov function is known "
            "then."
        )
    title = "Residual along the free phase"
    scale = scale_of(panel.values for panel in residuals)
    figures = [BandFigure("residual-curves", title, residuals, "step", MEMBERS, scale, note=note)]
    if described:
        kept = [[each for each in runs if _described(each)] for runs in described]
        panels = _panels(kept, "energy", lambda each: each.final["energy/values"] - each.final["energy/lowest"])
        title = "Energy above the lowest reached"
        risen = [_rise(runs, len(kept) > 1) for runs in kept]
        note = " ".join(["The lowest is that of this free phase, or of one that goes on to rest.", *risen])
        scale = scale_of(panel.values for panel in panels)
        figures.append(BandFigure("energy-curves", title, panels, "step", MEMBERS, scale, note=note))
    return figures


def _panels(
    groups: Sequence[Sequence[Measures]], name: str, values: Callable[[Measures], Array]
) -> tuple[BandPanel, ...]:
    """For each group that has them, the values `[T, n]` of all its runs that have the steps of the first one."""
    panels = []
    for runs in groups:
        fitting = [each for each in runs if _fits(each, name)]
        if fitting:
            steps = fitting[0].final[f"{name}/steps"]
            same = [each for each in fitting if np.array_equal(each.final[f"{name}/steps"], steps)]
            panels.append(BandPanel(runs[0].group, steps, np.concatenate([values(each) for each in same], axis=1)))
    return tuple(panels)


def _fits(each: Measures, name: str) -> bool:
    steps, values = each.final.get(f"{name}/steps"), each.final.get(f"{name}/values")
    return steps is not None and values is not None and len(steps) == len(values)


def _described(each: Measures) -> bool:
    """Whether it has energies, with the largest rise, and the lowest one, of each input."""
    found = (each.final.get(f"energy/{name}") for name in ("rise", "lowest"))
    return _fits(each, "energy") and all(
        values is not None and len(values) == each.final["energy/values"].shape[1] for values in found
    )


def _rise(runs: Sequence[Measures], several: bool) -> str:
    """A sentence on the largest increase of the energy in a step."""
    rise = max(float(each.final["energy/rise"].max()) for each in runs)
    largest = max(float(np.abs(each.final["energy/values"]).max()) for each in runs)
    whose = f" ({runs[0].group})" if several else ""
    if rise <= ROUNDING * largest:
        return f"In no step does the energy rise{whose}."
    return f"The largest rise in a step is {rise:.3g}{whose}: steps of this size need not descend the energy."


def _circle(extent: Extent, dt: float) -> tuple[Array, Array]:
    """Points of the part of the circle |1 + dt λ| = 1 that is in a square, or just outside."""
    (left, right), (bottom, top) = extent
    x, y, reach = (left + right) / 2, (bottom + top) / 2, 0.8 * (right - left)
    centre = -1 / dt
    distance = np.hypot(x - centre, y)
    # From the centre a disc around the square is seen under this angle on both sides, or all around.
    half = np.arcsin(reach / distance) if reach < distance else np.pi
    angles = np.arctan2(y, x - centre) + np.linspace(-half, half, POINTS)
    across, up = centre + np.cos(angles) / dt, np.sin(angles) / dt
    across[np.hypot(across - x, up - y) > reach] = np.nan
    return across, up
