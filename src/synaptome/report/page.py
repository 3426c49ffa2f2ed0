"""The report as one HTML file that loads nothing: neither scripts nor fonts nor pictures from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote

from synaptome.report import citations, figures, measures
from synaptome.report.curves import Chart
from synaptome.report.markup import Html, join, preformatted, table, tag
from synaptome.report.populations import population_section
from synaptome.report.table import ACCURACY, TEXT_COLUMNS, Group, Row, columns, group_row, score_text
from synaptome.report.text import ABSENT, clean, flatten, number, plural, show

if TYPE_CHECKING:
    from synaptome.training.run import RunRecord

# Should markup ever slip through, it still may not load or run anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_NAMED = 3  # runs in a notice


def render(
    groups: Sequence[Group],
    charts: Mapping[str, Chart],
    found: measures.Found,
    addresses: Mapping[str, str],
    first: Sequence[Html] = (),
) -> str:
    """The whole page.

    Args:
        groups: at least one, from `group_runs`.
        charts: what to draw, by the address of its data relative to the page, such as `report-data/loss.csv`.
        found: what was measured of the synapses; the page has no section on it if that is nothing.
        addresses: of the data of each figure of `found`, by the figure's name.
        first: sections above the results, such as those of `synaptome.report.ways`.
    """
    runs = [run for group in groups for run in group.runs]
    names = _names(runs)
    rows = [group_row(group) for group in groups]
    title = _title(groups, names)
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # or a browser asks the server for one
        tag("style", Html(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))),
        *([tag("style", Html(measures.style()))] if found else []),
    ]
    body = [
        tag("header", tag("h1", title), tag("p", _headline(groups, rows), class_="headline"), *_notices(runs, names)),
        *first,
        _results(rows),
        *([networks] if (networks := population_section(groups)) else []),
        _curves(groups, charts),
        *([measures.section(found, addresses)] if found else []),
        _configuration(groups),
        _environment(runs, names),
        _runs(groups, names),
        _citations(runs),
        tag("footer", "Made by synaptome."),
    ]
    page = tag("html", tag("head", *head), tag("body", join(body, "\n")), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Each run's folder, below the deepest folder that holds them all."""
    folders = [run.path.resolve() for run in runs]
    above = os.path.commonpath([folder.parent for folder in folders])
    return [clean(folder.relative_to(above)) for folder in folders]


def _title(groups: Sequence[Group], names: Sequence[str]) -> str:
    recipes = ", ".join(dict.fromkeys(group.recipe for group in groups))
    if len(names) == 1:
        return recipes if recipes == names[0] else f"{recipes}: {names[0]}"
    among = f"{plural(len(groups), 'group')}, " if len(groups) > 1 else ""
    return f"{recipes}: {among}{plural(len(names), 'run')}"


def _headline(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """The one line to take away; results are ranked only where they measure the same thing."""
    scored = [row for row in rows if row.score]
    if not scored:
        return "No result yet."
    first, metric = scored[0], str(scored[0].metric)
    name = metric.replace("/", " ")
    if len(rows) == 1:
        seeds = f" over {plural(first.n, 'seed')}" if first.n > 1 else ""
        cost = f"{first.parameters.mean:,.0f} parameters" if first.parameters else "an unknown number of parameters"
        return f"{name.capitalize()} {score_text(first)}{seeds}, with {cost}, on {groups[0].device}."
    comparable = len({row.metric for row in scored}) == 1
    if len(scored) < 2 or not comparable or (metric != ACCURACY and len({group.recipe for group in groups}) > 1):
        return f"{len(groups)} groups side by side, {plural(len(scored), 'group')} with a result."
    ranked = sorted(scored, key=lambda row: row.score.mean if row.score else 0.0, reverse=metric == ACCURACY)
    best, last = ranked[0], ranked[-1]
    extreme = "Highest" if metric == ACCURACY else "Lowest"
    mean = " mean" if any(row.n > 1 for row in scored) else ""
    return f"{extreme}{mean} {name}: {score_text(best)} ({best.label}), against {score_text(last)} ({last.label})."


def _notices(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Html]:
    """What a reader must know before believing the numbers."""
    notices = []
    pairs = list(zip(runs, names, strict=True))
    unfinished = [f"{name} ({_progress(run)})" for run, name in pairs if not run.summary]
    if len(unfinished) > MOST_NAMED:
        unfinished = [*unfinished[:MOST_NAMED], f"and {len(unfinished) - MOST_NAMED} more, see Runs"]
    if unfinished:
        text = f" no summary yet, so in no statistic of the table: {'; '.join(unfinished)}."
        notices.append(tag("p", tag("strong", "Unfinished:"), text, class_="notice"))
    silent = [name for run, name in pairs if run.summary and not run.metrics]
    if silent:
        text = f" {', '.join(silent)}: finished, but without a row of metrics, so without curves."
        notices.append(tag("p", tag("strong", "No metrics:"), text, class_="notice"))
    return notices


def _progress(run: RunRecord) -> str:
    if not run.metrics:
        return "no metrics yet"
    last = run.metrics[-1]
    reached = [f"{axis} {value:,.9g}" for axis in ("epoch", "step") if (value := number(last.get(axis))) is not None]
    return f"last metrics at {', '.join(reached) or 'an unknown step'}"


def _section(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content)


def _results(rows: Sequence[Row]) -> Html:
    shown = columns(rows)
    cells = list(zip(*shown.values(), strict=True))
    notes = []
    if any(row.n > 1 for row in rows):
        notes.append("± is the sample standard deviation over n finished runs with different seeds.")
    if any(row.seconds for row in rows):
        notes.append("Seconds are the wall time of one run.")
    note = tag("p", " ".join(notes), class_="note")
    return _section("Results", table(list(shown), cells, "Results", TEXT_COLUMNS, "results"), note)


def _curves(groups: Sequence[Group], charts: Mapping[str, Chart]) -> Html:
    if not charts:
        return _section("Learning curves", tag("p", "There are no metrics yet, so there is nothing to draw."))
    several = len(groups) > 1
    drawn = []
    for position, (data, chart) in enumerate(charts.items(), 1):
        scale = " (log scale)" if figures.logarithmic(chart) else ""
        caption = tag("figcaption", "Data: ", tag("a", data, href=quote(data)))
        key = figures.legend(chart, several)
        panels = [
            (tag("h3", f"{title}{scale}"), svg) for title, svg in figures.panels(chart, several, f"figure{position}")
        ]
        if len(panels) == 1:
            ((heading, svg),) = panels
            drawn.append(tag("figure", heading, key, svg, caption))
        else:  # one legend for all
            inner = tag("div", *(tag("div", heading, svg, class_="panel") for heading, svg in panels), class_="charts")
            drawn.append(tag("figure", key, inner, caption, class_="wide"))
    return _section("Learning curves", tag("div", join(drawn, "\n"), class_="charts"))


def _pairs(values: Mapping[str, object], label: str) -> Html:
    return table(["name", "value"], list(values.items()), label, ("name", "value"), "pairs")


def _configuration(groups: Sequence[Group]) -> Html:
    settings: list[dict[str, str]] = [
        {"recipe": group.recipe, "device": group.device}
        | {clean(name): show(value) for name, value in group.options.items()}
        for group in groups
    ]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if _differs(name, settings)]
    shared = {name: _shared(name, settings) for name in names if name not in differing}
    common = _pairs(shared, "Options")
    if not differing:
        return _section("Configuration", common)
    headings = ["runs", *differing]
    lines = [
        [group.label, *(each.get(name, ABSENT) for name in differing)]
        for group, each in zip(groups, settings, strict=True)
    ]
    return _section(
        "Configuration",
        tag("h3", "What differs"),
        table(headings, lines, "Options that differ", headings),
        tag("details", tag("summary", f"What they share ({len(shared)})"), common),
    )


def _differs(name: str, settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether groups have different values, or one group lacks what another of its recipe has."""
    values = {each[name] for each in settings if name in each}
    lacking = {each["recipe"] for each in settings if name not in each}
    return len(values) > 1 or any(each["recipe"] in lacking for each in settings if name in each)


def _shared(name: str, settings: Sequence[Mapping[str, str]]) -> str:
    """The value that all groups share, with the recipes that have it where others know no such option."""
    holders = [each for each in settings if name in each]
    recipes = "" if len(holders) == len(settings) else ", ".join(dict.fromkeys(each["recipe"] for each in holders))
    return holders[0][name] + (f" ({recipes} only)" if recipes else "")


def _environment(runs: Sequence[RunRecord], names: Sequence[str]) -> Html:
    found: dict[str, dict[str, list[str]]] = {}
    for run, name in zip(runs, names, strict=True):
        for key, value in flatten(run.environment).items():
            found.setdefault(clean(key), {}).setdefault(show(value), []).append(name)
    if not found:
        return _section("Environment", tag("p", "No environment was recorded."))
    everywhere = {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
    differing = {
        key: "; ".join(f"{value} ({', '.join(holders)})" for value, holders in values.items())
        for key, values in found.items()
        if len(values) > 1
    }
    varied = [tag("h3", "What differs"), _pairs(differing, "Environments that differ")] if differing else []
    folded = tag("details", tag("summary", f"Environment ({len(everywhere)})"), _pairs(everywhere, "Environment"))
    return _section("Environment", *varied, folded)


def _runs(groups: Sequence[Group], names: Sequence[str]) -> Html:
    members = [(group, run) for group in groups for run in group.runs]
    lines = [
        [
            name,
            group.label,
            show(run.recipe.get("seed", ABSENT)),
            show(run.recipe.get("threads", ABSENT)),
            "finished" if run.summary else f"unfinished: {_progress(run)}",
        ]
        for (group, run), name in zip(members, names, strict=True)
    ]
    listed = table(["folder", "runs", "seed", "threads", "state"], lines, "Runs", ("folder", "runs", "state"))
    seeds = [f"{group.label}: {run.recipe.get('seed')}" for group, run in members]
    warning = "A seed occurs more than once in a group: its runs are counted as if they were independent."
    repeated = [tag("p", tag("strong", warning), class_="notice")] if len(set(seeds)) < len(seeds) else []
    return _section("Runs", *repeated, listed)


def _citations(runs: Sequence[RunRecord]) -> Html:
    known, unknown = citations.cited(runs)
    parts = [preformatted("\n\n".join(citations.BIBTEX[key] for key in known))]
    if unknown:
        parts.append(tag("p", "Also named by the runs, without an entry here: ", ", ".join(unknown), "."))
    if not all(run.summary for run in runs):
        parts.append(
            tag("p", "A run names its methods when it ends; those of unfinished runs are missing.", class_="note")
        )
    return _section("Citations", *parts)
