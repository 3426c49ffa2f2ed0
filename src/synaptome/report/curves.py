"""What the figures show, as numbers: for each metric one curve a group and split, mean and spread over the seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from synaptome.report.table import Group, Statistic
from synaptome.report.text import clean, number

if TYPE_CHECKING:
    from synaptome.training.run import RunRecord

SPLITS = ("train", "validation", "test")
FIRST = ("loss", "accuracy")
TIME = ("epoch", "step")
Band = Literal["std", "range"]
CHANGED = "connections/changed"  # share of the synapses of learned layers that are not as they were drawn
ALIGNMENT = "alignment"  # cosines of gradients by layer, which have a figure of their own
TITLES = {CHANGED: "share of synapses changed"}


@dataclass(frozen=True)
class Curve:
    """One metric of one split over training, for one group.

    Attributes:
        group: index of the group, which chooses the colour and the marker.
        label: the group's label.
        split: `train`, `validation`, `test` or another first part of a metric's name.
        x: epochs, steps or other values that all seeds share, increasing.
        y: at each x the statistic over the seeds.
    """

    group: int
    label: str
    split: str
    x: tuple[float, ...]
    y: tuple[Statistic, ...]


@dataclass(frozen=True)
class Chart:
    """All curves of one metric, such as `loss`.

    Attributes:
        name: the metric's.
        axis: what x is: `epoch`, `step`, or a quantity other than time such as `failure rate`.
        curves: one for each group and split.
        over: what the mean and the spread of a point are taken over.
        band: what is drawn around a mean: its standard deviation to both sides, or all from the least value to the
            largest.
    """

    name: str
    axis: str
    curves: tuple[Curve, ...]
    over: str = "seeds"
    band: Band = "std"

    @property
    def splits(self) -> list[str]:
        """The splits that have a curve: train, validation and test first, others in alphabetical order."""
        return _ordered({curve.split for curve in self.curves}, SPLITS)

    @property
    def fraction(self) -> bool:
        """Whether the values are fractions that read best as percentages."""
        return "accuracy" in self.name.lower() or CHANGED in [f"{split}/{self.name}" for split in self.splits]

    @property
    def settles(self) -> bool:
        """Whether the first values are those of an untrained network, far from all that follow."""
        return "accuracy" in self.name.lower() and self.over_training

    @property
    def over_training(self) -> bool:
        """Whether x is time."""
        return self.axis in TIME

    @property
    def spread(self) -> int:
        """The largest number of values behind a point."""
        return max(point.n for curve in self.curves for point in curve.y)

    def title(self, splits: Sequence[str]) -> str:
        """What a drawing of some of the splits shows."""
        return TITLES.get(f"{splits[0]}/{self.name}", f"{self.name}, {splits[0]}") if len(splits) == 1 else self.name


def charts(groups: Sequence[Group]) -> list[Chart]:
    """A chart for each metric found in any row of any run: loss, accuracy, then the others by name.

    Metrics are the keys `<split>/<name>`, but for `alignment/<layer>`, which `gradient_alignment` draws. The x axis is
    the epoch; it is the step where a row of the metric has no epoch, or where two rows of one run share an epoch. A
    point that a seed lacks (or that is not finite) is left out of its group's curve; a seed without any value of the
    metric does not shorten it. A step that was logged twice, as after a resume, counts with its last row. On a page
    with learned connectivity bands reach from the least value to the largest.
    """
    keys = {
        key
        for group in groups
        for run in group.runs
        for row in run.metrics
        for key in row
        if all(key.partition("/")) and not key.startswith(f"{ALIGNMENT}/")
    }
    band: Band = "range" if CHANGED in keys else "std"
    drawn = []
    for name in _ordered({key.partition("/")[2] for key in keys}, FIRST):
        splits = _ordered({key.partition("/")[0] for key in keys if key.partition("/")[2] == name}, SPLITS)
        metrics = [f"{split}/{name}" for split in splits]
        by_epoch = all(_by_epoch(run, key) for group in groups for run in group.runs for key in metrics)
        axis = "epoch" if by_epoch else "step"
        curves = [
            curve
            for index, group in enumerate(groups)
            for split, key in zip(splits, metrics, strict=True)
            if (curve := _curve(index, group, split, [_points(run, key, axis) for run in group.runs])).x
        ]
        if curves:
            drawn.append(Chart(name, axis, tuple(curves), band=band))
    return drawn


def csv_text(chart: Chart) -> str:
    """The chart's data as CSV: `group,split,<axis>,mean,std,n`, numbers to full precision, one line a point.

    Where bands reach from the least value to the largest, `min,max` follow.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ranged = chart.band == "range"
    writer.writerow(["group", "split", chart.axis, "mean", "std", "n", *(["min", "max"] if ranged else [])])
    for curve in chart.curves:
        for x, y in zip(curve.x, curve.y, strict=True):
            extremes = [y.low, y.high] if ranged else []
            writer.writerow([clean(curve.label), clean(curve.split), x, y.mean, y.std, y.n, *extremes])
    return out.getvalue()


def _ordered(names: set[str], first: Sequence[str]) -> list[str]:
    return [name for name in first if name in names] + sorted(names.difference(first))


def _by_epoch(run: RunRecord, key: str) -> bool:
    """Whether the epoch tells this metric's rows apart as well as their step does."""
    rows = [row for row in run.metrics if number(row.get(key)) is not None]
    epochs = {number(row.get("step")): number(row.get("epoch")) for row in rows}
    return None not in epochs.values() and len(set(epochs.values())) == len(epochs)


def _points(run: RunRecord, key: str, axis: str) -> dict[float, float]:
    found = {}
    for row in run.metrics:
        x, y = number(row.get(axis)), number(row.get(key))
        if x is not None and y is not None:
            found[x] = y
    return found


def _curve(index: int, group: Group, split: str, seeds: Sequence[dict[float, float]]) -> Curve:
    present = [points for points in seeds if points]
    shared = sorted(set.intersection(*(set(points) for points in present))) if present else []
    statistics = (Statistic.of(points[x] for points in present) for x in shared)
    return Curve(index, group.label, split, tuple(shared), tuple(each for each in statistics if each is not None))
