"""The part of the page on what was measured of the synapses: which figures, of which runs, and their HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol, TypeVar
from urllib.parse import quote

from synaptome.analysis.equilibria import NAME as EQUILIBRIA
from synaptome.report import activity, connections, connectivity, equilibria, modes, stability, weights
from synaptome.report.alignment import gradient_alignment
from synaptome.report.band_figures import BandFigure
from synaptome.report.chart_figures import ChartFigure
from synaptome.report.convergence import convergence, read_learned
from synaptome.report.decision_maps import decision_maps
from synaptome.report.depth_study import DepthFigure, depth_study
from synaptome.report.film import FilmFigure, Table
from synaptome.report.line_figures import LineFigure
from synaptome.report.markup import Html, join, tag
from synaptome.report.measured import MOST_GROUPS, read, read_all, read_final_of_all
from synaptome.report.network_graphs import network_graphs
from synaptome.report.regions import regions
from synaptome.report.robustness import pruning, robustness
from synaptome.report.table import Group
from synaptome.report.text import plural
from synaptome.report.trajectories import trajectories

_T = TypeVar("_T")


class MeasureFigure(Table, Protocol):
    """What every figure here can say of itself."""

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """Rows `(title, drawings)`, each drawing with the label of its group; ids begin with `prefix`."""


@dataclass(frozen=True)
class Found:
    """What there is to show.

    Attributes:
        themes: headings, each with at least one figure.
        drawn: group and run of what is drawn side by side.
        left_out: labels of groups that are not.
        several: whether the page has more than one group.
        seeds: whether a group has more than one run.
        problems: what is wrong with the files, a sentence each.
    """

    themes: dict[str, tuple[MeasureFigure, ...]]
    drawn: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    several: bool
    seeds: bool
    problems: tuple[str, ...]

    @property
    def figures(self) -> list[MeasureFigure]:
        """All figures, in order."""
        return [figure for figures in self.themes.values() for figure in figures]

    def __bool__(self) -> bool:
        return bool(self.themes or self.problems)


def find(groups: Sequence[Group]) -> Found:
    """Read the measures of all runs and choose the figures; nothing is drawn yet."""
    problems: list[str] = []

    def taken(found: tuple[list[_T], list[str]]) -> list[_T]:
        problems.extend(found[1])
        return found[0]

    found, wired = taken(read(groups, "spectra")), taken(read(groups, "connections"))
    failing, pruned, graphs, noisy = (
        taken(read_final_of_all(groups, name)) for name in ("robustness", "pruning", "connections", "noise")
    )
    gated, flowing, rested = (taken(read_all(groups, name)) for name in ("connectivity", "stability", EQUILIBRIA))
    firsts, starts, rests = ([runs[0] for runs in each] for each in (gated, flowing, rested))
    measured, sparse, learned = found[:MOST_GROUPS], wired[:MOST_GROUPS], firsts[:MOST_GROUPS]
    stable, resting = starts[:MOST_GROUPS], rests[:MOST_GROUPS]
    populations = taken(read_learned(groups))
    themes: dict[str, Sequence[MeasureFigure]] = {
        "Depth": depth_study(groups),
        "Convergence": convergence(populations),
        "Networks": network_graphs(resting),
        "Decisions": decision_maps(resting),
        "Features": [*regions(stable), *trajectories(stable)],
        "Relaxation": [*equilibria.relaxation(rested[:MOST_GROUPS]), *equilibria.spectra(resting)],
        "Gradient": gradient_alignment(groups),
        "Stability": [*stability.eigenvalues(stable), *stability.over_depth(groups, flowing[:MOST_GROUPS])],
        "Robustness": [
            *robustness(groups, failing, "range" if gated else "std"),
            *pruning(groups, pruned),
            *stability.noise(groups, noisy),
        ],
        "Connections": [
            *connections.maps(sparse),
            *connections.profile(groups, graphs),
            *connections.degrees(sparse),
            *connections.changes(sparse),
        ],
        "Learned connectivity": [
            *connectivity.changes(gated[:MOST_GROUPS]),
            *connectivity.counts(learned),
            *connectivity.scores(learned),
        ],
        "Singular values": modes.singular_values(measured),
        "Overlap of adjacent layers": modes.overlap(measured),
        "Alignment with the teacher": modes.alignment(measured),
        "Weights": [*weights.participation(measured), *weights.norms(measured), *weights.histograms(measured)],
        "Activity": activity.hidden(measured),
        "Inputs": activity.inputs(measured),
    }
    kinds = (found, wired, firsts, starts, rests)
    return Found(
        {title: tuple(figures) for title, figures in themes.items() if figures},
        tuple(dict.fromkeys((each.group, each.run) for each in (*measured, *sparse, *learned, *stable, *resting))),
        tuple(dict.fromkeys(each.group for kind in kinds for each in kind[MOST_GROUPS:])),
        len(groups) > 1,
        any(len(group.runs) > 1 for group in groups),
        tuple(dict.fromkeys(problems)),
    )


def gif_name(data: str) -> str:
    """The address of a film's GIF, by that of its CSV file."""
    return f"{data.removesuffix('.csv')}.gif"


def style() -> str:
    """What the page's stylesheet needs in addition."""
    return resources.files(__package__).joinpath("measures.css").read_text(encoding="utf-8")


def section(found: Found, addresses: Mapping[str, str]) -> Html:
    """The part of the page.

    Args:
        found: from `find`.
        addresses: for the name of each figure the address of its CSV file, relative to the page.
    """
    parts = [tag("p", tag("strong", "Damaged:"), f" {problem}.", class_="notice") for problem in found.problems]
    parts += [tag("p", text, class_="note") for text in _said(found)]
    for position, (title, figures) in enumerate(found.themes.items(), 1):
        cards = [
            _card(figure, addresses[figure.name], f"measure{position}-{index}", found.several)
            for index, figure in enumerate(figures)
        ]
        parts += [tag("h3", title, class_="theme"), tag("div", join(cards, "\n"), class_="charts")]
    return tag("section", tag("h2", "Synaptic measures"), join(parts, "\n"), class_="measures")


def _said(found: Found) -> list[str]:
    """Which of several runs are drawn."""
    said = []
    if found.seeds and found.drawn:
        runs = ", ".join(f"{run} ({group})" if found.several else run for group, run in found.drawn)
        what = "each group's first run with measures" if found.several else "the first run with measures"
        over_all = any(_over_all(figure) for figure in found.figures)
        but = "Charts of mean and spread are over all runs; all other figures are" if over_all else "These figures are"
        said.append(f"{but} of {what}: {runs}.")
    if found.left_out:
        drawn, left = plural(len(found.drawn), "group"), "; ".join(found.left_out)
        said.append(f"The first {drawn} are drawn side by side. Left out: {left}.")
    return said


def _over_all(figure: MeasureFigure) -> bool:
    return isinstance(figure, ChartFigure | DepthFigure | BandFigure) or (
        isinstance(figure, LineFigure) and figure.banded
    )


def _card(figure: MeasureFigure, address: str, prefix: str, several: bool) -> Html:
    """A figure with one drawing, or a wide one: a row for each title with a panel for each of several groups."""
    rows = figure.drawings(prefix)
    note = f"{figure.note} " if figure.note else ""
    links = ["Data: ", tag("a", address, href=quote(address))]
    if isinstance(figure, FilmFigure):
        film = gif_name(address)
        links += [". As a GIF: ", tag("a", film, href=quote(film))]
    caption = tag("figcaption", note, *links)
    heading, legend = tag("h4", figure.heading), figure.legend()
    if len(rows) == 1 and len(rows[0][1]) == 1:
        ((label, svg),) = rows[0][1]
        parts = [part for part in (rows[0][0], label if several else "") if part]
        return tag("figure", heading, legend, *(tag("h5", part) for part in parts), svg, caption)
    if not several:  # rows of one panel each fit side by side
        content = [_panels([(title, svg) for title, ((_, svg),) in rows])]
    else:
        content = [
            join([*([tag("h5", title, class_="row")] if title else []), _panels(panels)]) for title, panels in rows
        ]
    return tag("figure", heading, legend, *content, caption, class_="wide")


def _panels(panels: Sequence[tuple[str, Html]]) -> Html:
    drawn = [tag("div", tag("h5", label) if label else "", svg, class_="panel") for label, svg in panels]
    return tag("div", *drawn, class_="charts")
