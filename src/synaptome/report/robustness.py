"""Accuracy of trained networks that are hurt: against the failure rate at inference, and against the share removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from synaptome.report.chart_figures import ChartFigure
from synaptome.report.curves import Band, Chart, Curve
from synaptome.report.measured import Array
from synaptome.report.table import Group, Statistic

Tested = Sequence[Iterable[Mapping[str, Array]]]  # for each group, of each run: `rate` [R] and `accuracy` [R, passes]


def robustness(groups: Sequence[Group], measured: Tested, band: Band = "std") -> list[ChartFigure]:
    """Accuracy against the failure rate at inference, for all groups in one chart; if any run measured it.

    Args:
        groups: of the page.
        measured: of their runs.
        band: `std` over all passes of all seeds, or `range`, from the least to the largest mean over the passes of a
            seed.
    """
    heading = "Test accuracy with failures at inference"
    note = "The trained network, each of its synapses failing at this rate while it is tested."
    if band == "std":
        return _accuracy(groups, measured, "failure rate", "passes and seeds", "robustness", heading, note)
    means = [[_mean_of_passes(run) for run in runs] for runs in measured]
    note += " Of each seed the mean over its passes."
    return _accuracy(groups, means, "failure rate", "seeds", "robustness", heading, note, band)


def pruning(groups: Sequence[Group], measured: Tested) -> list[ChartFigure]:
    """Accuracy against the share of connections removed, for all groups in one chart; if any run measured it."""
    heading = "Test accuracy when the weakest connections are removed"
    note = "The trained network, without this share of each layer's positive and negative weights: those nearest to 0."
    return _accuracy(groups, measured, "share removed", "seeds", "pruning", heading, note)


def _accuracy(
    groups: Sequence[Group],
    measured: Tested,
    axis: str,
    over: str,
    name: str,
    heading: str,
    note: str,
    band: Band = "std",
) -> list[ChartFigure]:
    """A point is the mean over all passes of all seeds that measured its rate; rates that a seed lacks are left out."""
    curves = []
    for index, (group, runs) in enumerate(zip(groups, measured, strict=True)):
        seeds = [points for run in runs if (points := _points(run))]
        shared = sorted(set.intersection(*map(set, seeds))) if seeds else []
        found = {rate: Statistic.of(value for points in seeds for value in points[rate]) for rate in shared}
        whole = {rate: statistic for rate, statistic in found.items() if statistic}
        if whole:
            curves.append(Curve(index, group.label, "test", tuple(whole), tuple(whole.values())))
    chart = Chart("accuracy", axis, tuple(curves), over, band)
    return [ChartFigure(chart, len(groups) > 1, name, heading, note)] if curves else []


def _mean_of_passes(run: Mapping[str, Array]) -> Mapping[str, Array]:
    accuracies = run.get("accuracy")
    return run if accuracies is None else {**run, "accuracy": accuracies.mean(1, keepdims=True)}


def _points(run: Mapping[str, Array]) -> dict[float, list[float]]:
    """Accuracies of the passes at each rate."""
    rates, accuracies = run.get("rate"), run.get("accuracy")
    if rates is None or accuracies is None or len(rates) != len(accuracies):
        return {}
    # float32 0.1 and float64 0.1 are the same rate.
    return {round(float(rate), 6): passes.tolist() for rate, passes in zip(rates, accuracies, strict=True)}
