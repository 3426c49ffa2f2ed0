"""The summary of runs: which belong together, and one row with mean and spread for each group.

Runs that differ in nothing but their seed (and their number of threads) are one group, unless they have the same seed
and other numbers of threads; a group is named by what sets it apart from the others.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from synaptome.report.text import ABSENT, clean, flatten, number, show

if TYPE_CHECKING:
    from rich.table import Table

    from synaptome.training.run import RunRecord

ACCURACY, LOSS = "test/accuracy", "test/loss"


@dataclass(frozen=True)
class Statistic:
    """Of `n` values mean, sample standard deviation (n - 1 in the denominator; None for one), least and largest."""

    mean: float
    std: float | None
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic | None:
        """The statistic of some finite values; None if there are none."""
        found = list(values)
        if not found:
            return None
        std = statistics.stdev(found) if len(found) > 1 else None
        return cls(statistics.fmean(found), std, len(found), min(found), max(found))


@dataclass(frozen=True)
class Group:
    """Runs of one recipe with the same options on the same kind of device: repetitions with other seeds.

    Attributes:
        label: what sets the group apart, such as `failure=0.5, depth=3`; the recipe's name for a single group.
        runs: in the order given.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return _recipe(self.runs[0])

    @property
    def device(self) -> str:
        """The device that was asked for."""
        return show(self.runs[0].recipe.get("device", ABSENT))

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's options, nested ones under dotted names."""
        return flatten(self.runs[0].recipe.get("options"))

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that have a summary."""
        return tuple(run for run in self.runs if run.summary)


@dataclass(frozen=True)
class Row:
    """One group's line of the table.

    Attributes:
        label: the group's.
        synapse, rule: as the summaries name them; a dash while unknown.
        metric: `test/accuracy`, or `test/loss` where there is no accuracy, or None where there is neither.
        score: of that metric (an accuracy in [0, 1]).
        parameters, active_synapses: counts.
        products: bytes of each file that a run leaves beside its records, by the file's name.
        seconds: wall time of a run.
        n: finished runs, one for each seed.
        unfinished: runs without a summary; they are in no statistic.
    """

    label: str
    synapse: str
    rule: str
    metric: str | None
    score: Statistic | None
    parameters: Statistic | None
    active_synapses: Statistic | None
    products: Mapping[str, Statistic]
    seconds: Statistic | None
    n: int
    unfinished: int


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Sort runs into groups, in order of first appearance; a folder given twice counts once."""
    grouped: dict[str, dict[str, RunRecord]] = {}
    for run in runs:
        grouped.setdefault(_identity(run), {})[str(run.path.resolve())] = run
    unnamed = [Group("", members) for same in grouped.values() for members in _apart(tuple(same.values()))]
    groups: list[Group] = []
    for group, label in zip(unnamed, _labels(unnamed), strict=True):
        taken = {other.label for other in groups}
        # Different values can read the same (1 and "1"): a label must still name one group only.
        candidates = (label if count == 1 else f"{label} ({count})" for count in range(1, len(unnamed) + 1))
        groups.append(Group(next(name for name in candidates if name not in taken), group.runs))
    return groups


def _identity(run: RunRecord) -> str:
    return json.dumps([run.recipe.get(key) for key in ("recipe", "options", "device")], sort_keys=True)


def _apart(runs: tuple[RunRecord, ...]) -> list[tuple[RunRecord, ...]]:
    """Runs that differ in seed and threads: together, unless a seed occurs with several numbers of threads."""
    seeds = {show(run.recipe.get("seed")) for run in runs}
    threads = dict.fromkeys(_threads(run) for run in runs)
    if len(threads) == 1 or len(seeds) == len(runs):
        return [runs]
    return [tuple(run for run in runs if _threads(run) == number) for number in threads]


def _threads(run: RunRecord) -> str:
    return show(run.recipe.get("threads", ABSENT))


def _recipe(run: RunRecord) -> str:
    return show(run.recipe.get("recipe", ABSENT))


def _labels(groups: Sequence[Group]) -> list[str]:
    """The recipe's name if there are several, then what differs among the groups of one recipe, then the device."""
    recipes = {group.recipe for group in groups}
    several_devices = len({group.device for group in groups}) > 1
    telling = {recipe: _differing([group.options for group in groups if group.recipe == recipe]) for recipe in recipes}
    labels = []
    for group in groups:
        parts = [
            f"{clean(name)}={show(group.options[name])}" for name in telling[group.recipe] if name in group.options
        ]
        parts += [f"device={group.device}"] if several_devices else []
        twins = [other for other in groups if _identity(other.runs[0]) == _identity(group.runs[0])]
        parts += [f"threads={_threads(group.runs[0])}"] if len(twins) > 1 else []
        named = [group.recipe] if len(recipes) > 1 or not parts else []
        labels.append(" ".join([*named, ", ".join(parts)]).strip())
    return labels


def _differing(options: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in options for name in each)
    return [name for name in names if len({show(each[name]) if name in each else None for each in options}) > 1]


def _named(group: Group, key: str) -> str:
    return ", ".join(dict.fromkeys(show(run.summary[key]) for run in group.finished if key in run.summary)) or ABSENT


def _statistic(group: Group, key: str) -> Statistic | None:
    return Statistic.of(value for run in group.finished if (value := number(run.summary.get(key))) is not None)


def _products(group: Group) -> dict[str, Statistic]:
    """Of the bytes of each product, by the name of its file."""
    sizes: dict[str, list[float]] = {}
    for run in group.finished:
        listed = run.summary.get("products")
        for name, file in listed.items() if isinstance(listed, dict) else ():
            if isinstance(file, dict) and (size := number(file.get("bytes"))) is not None:
                sizes.setdefault(name, []).append(size)
    return {name: found for name, each in sizes.items() if (found := Statistic.of(each))}


def group_row(group: Group) -> Row:
    """The line of one group."""
    scores = {metric: _statistic(group, metric) for metric in (ACCURACY, LOSS)}
    metric = next((name for name, score in scores.items() if score), None)
    return Row(
        label=group.label,
        synapse=_named(group, "synapse"),
        rule=_named(group, "rule"),
        metric=metric,
        score=scores[metric] if metric else None,
        parameters=_statistic(group, "parameters"),
        active_synapses=_statistic(group, "active_synapses"),
        products=_products(group),
        seconds=_statistic(group, "seconds"),
        n=len(group.finished),
        unfinished=len(group.runs) - len(group.finished),
    )


def summary_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """One row for each group of runs, in order of first appearance."""
    return [group_row(group) for group in group_runs(runs)]


def _spread(statistic: Statistic | None, form: Callable[[float], str], unit: str = "") -> str:
    if statistic is None:
        return ABSENT
    spread = "" if statistic.std is None else f" ± {form(statistic.std)}"
    return f"{form(statistic.mean)}{spread}{unit}"


def _count(statistic: Statistic | None) -> str:
    exact = statistic is None or not statistic.std  # a count that all seeds share has no spread worth showing
    return _spread(replace(statistic, std=None) if statistic and exact else statistic, "{:,.0f}".format)


def _seconds(statistic: Statistic | None) -> str:
    places = 0 if statistic is None or statistic.mean >= 100 else 1 if statistic.mean >= 10 else 2
    return _spread(statistic, f"{{:,.{places}f}}".format)


def percent(statistic: Statistic | None) -> str:
    """A share with its spread: `97.31 ± 0.12 %`."""
    return _spread(statistic, lambda value: f"{100 * value:.2f}", " %")


def score_text(row: Row) -> str:
    """The score with its spread: `97.31 ± 0.12 %`, or a loss to four significant digits of its mean."""
    if row.score is None or row.metric == ACCURACY:
        text = percent(row.score)
    else:
        size = abs(row.score.mean)
        places = max(0, 3 - math.floor(math.log10(size))) if size else 4
        text = _spread(row.score, f"{{:.{places}f}}".format if places <= 6 else "{:.3e}".format)
    return text + (f" (n = {row.score.n})" if row.score and row.score.n != row.n else "")


def columns(rows: Sequence[Row], *, products: bool = True) -> dict[str, list[str]]:
    """The table as it is shown: heading to cells, with or without the sizes of products.

    Columns that would say nothing are left out.
    """
    metrics = {row.metric for row in rows if row.metric}
    single = metrics.pop() if len(metrics) == 1 else None
    # Where one option differs and shows in the synapse or the rule, the label would say it twice.
    distinct = len({(row.synapse, row.rule) for row in rows}) == len(rows)
    told = distinct and all(row.n and "," not in row.label for row in rows)
    shown = {} if told else {"runs": [row.label for row in rows]}
    shown["synapse"] = [row.synapse for row in rows]
    shown["rule"] = [row.rule for row in rows]
    if single or not any(row.metric for row in rows):
        shown[(single or ACCURACY).replace("/", " ")] = [score_text(row) for row in rows]
    else:  # an accuracy and a loss in one column: each cell says which it is
        shown["test result"] = [f"{score_text(row)} ({row.metric})" if row.metric else ABSENT for row in rows]
    shown["parameters"] = [_count(row.parameters) for row in rows]
    shown["active synapses"] = [_count(row.active_synapses) for row in rows]
    files = {name: clean(name).partition(".")[0] for row in rows for name in row.products if products}
    for name, stem in files.items():  # compact.safetensors: compact bytes
        heading = stem if list(files.values()).count(stem) == 1 else clean(name)
        shown[f"{heading} bytes"] = [_count(row.products.get(name)) for row in rows]
    shown["seconds"] = [_seconds(row.seconds) for row in rows]
    if any(row.n > 1 for row in rows):
        shown["n"] = [str(row.n) for row in rows]
    if any(row.unfinished for row in rows):
        shown["unfinished"] = [f"{row.unfinished} of {row.unfinished + row.n}" for row in rows]
    return shown


TEXT_COLUMNS = frozenset({"runs", "synapse", "rule"})


def summary_table(runs: Sequence[RunRecord]) -> Table:
    """The summary as a table for the terminal: mean ± sample standard deviation over the `n` seeds of each group."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = columns(summary_rows(runs), products=False)  # for which 80 columns have no room
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in shown:
        text = heading in TEXT_COLUMNS
        # Headings on two lines, and numbers never broken: the table fits 80 columns.
        table.add_column(heading.replace(" ", "\n"), justify="left" if text else "right", no_wrap=not text)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))  # Text: brackets in a label are not rich's markup
    return table
