"""Accuracy against the failure rate at inference, for all groups in one chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synaptome.report import figures
from synaptome.report.curves import Chart, Curve, csv_text
from synaptome.report.markup import Html
from synaptome.report.measured import Array
from synaptome.report.table import Group, Statistic


@dataclass(frozen=True)
class RobustnessFigure:
    """A chart as a figure of measures; `several` as in `figures.panels`."""

    chart: Chart
    several: bool
    name: str = "robustness"
    heading: str = "Test accuracy with failures at inference"
    note: str = "The trained network, each of its synapses failing at this rate while it is tested."

    def legend(self) -> Html:
        """What the curves stand for."""
        return figures.legend(self.chart, self.several)

    def csv_text(self) -> str:
        """See `curves.csv_text`."""
        return csv_text(self.chart)

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """The one drawing."""
        return [("", [("", svg) for _, svg in figures.panels(self.chart, self.several, prefix)])]


def robustness(groups: Sequence[Group], measured: Sequence[Iterable[Mapping[str, Array]]]) -> list[RobustnessFigure]:
    """The figure, if any run measured it.

    Args:
        groups: of the page.
        measured: for each group, of each run the final measures: `rate` [R] and `accuracy` [R, passes].

    A point is the mean over all passes of all seeds that measured this rate; rates that a seed lacks are left out.
    """
    curves = []
    for index, (group, runs) in enumerate(zip(groups, measured, strict=True)):
        seeds = [points for run in runs if (points := _points(run))]
        shared = sorted(set.intersection(*map(set, seeds))) if seeds else []
        found = {rate: Statistic.of(value for points in seeds for value in points[rate]) for rate in shared}
        whole = {rate: statistic for rate, statistic in found.items() if statistic}
        if whole:
            curves.append(Curve(index, group.label, "test", tuple(whole), tuple(whole.values())))
    chart = Chart("accuracy", "failure rate", tuple(curves), "passes and seeds")
    return [RobustnessFigure(chart, len(groups) > 1)] if curves else []


def _points(run: Mapping[str, Array]) -> dict[float, list[float]]:
    """Accuracies of the passes at each rate."""
    rates, accuracies = run.get("rate"), run.get("accuracy")
    if rates is None or accuracies is None or len(rates) != len(accuracies):
        return {}
    # float32 0.1 and float64 0.1 are the same rate.
    return {round(float(rate), 6): passes.tolist() for rate, passes in zip(rates, accuracies, strict=True)}
