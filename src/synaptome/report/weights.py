"""Figures of the weights as a whole: participation ratio, norms, histograms, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from synaptome.report.drawing import Look
from synaptome.report.line_figures import Line, LineFigure, LinePanel, Scale, rows_of, scale_of, shade
from synaptome.report.measured import AFTER, Array, Measures

NARROWEST = 1e-100  # bin; that of weights that are all 0 has no density
MOST_LAYERS = 4  # with a panel for each; more share one for the first and one for the last snapshot


def over_training(
    measured: Sequence[Measures], measure: str, name: str, title: str, scale: Scale | None = None, note: str = ""
) -> list[LineFigure]:
    """One number a layer, over training: a panel for each group with a line for each layer.

    Args:
        measured: the runs.
        measure: the number's name in a layer's measures.
        name: stem of the CSV file.
        title: the heading.
        scale: of the y axis; None for a logarithmic one where the values span more than a decade.
        note: below the figure.
    """
    return layers_over_training(measured, [each.layers(measure) for each in measured], name, title, scale, note)


def layers_over_training(
    measured: Sequence[Measures],
    layers: Sequence[Mapping[int, Array]],
    name: str,
    title: str,
    scale: Scale | None = None,
    note: str = "",
) -> list[LineFigure]:
    """The same of numbers [n] that are given, of each run by the layer's number."""
    depth = max((number for found in layers for number in found), default=0)
    rows = rows_of(
        (
            "",
            LinePanel(
                each.group, tuple(layer_line(each.steps, values, number, depth) for number, values in found.items())
            ),
        )
        for each, found in zip(measured, layers, strict=True)
    )
    if not rows:
        return []
    return [
        LineFigure(name, title, rows, y=scale or scale_of(values for f in layers for values in f.values()), note=note)
    ]


def after_training(
    measured: Sequence[Measures], measure: str, name: str, title: str, x: str, note: str = ""
) -> list[LineFigure]:
    """A vector a layer, of the trained network, in descending order: a panel for each group, a line for each layer.

    Args:
        measured: the runs.
        measure: the vector's name in a layer's measures.
        name: stem of the CSV file.
        title: the heading.
        x: what the ranks are ranks of.
        note: below the figure.
    """
    layers = [each.layers(measure, final=True) for each in measured]
    depth = max((number for found in layers for number in found), default=0)
    rows = rows_of(
        ("", LinePanel(each.group, tuple(layer_line(ranks(y), np.sort(y)[::-1], at, depth) for at, y in found.items())))
        for each, found in zip(measured, layers, strict=True)
    )
    scale = scale_of(values for found in layers for values in found.values()) if rows else "linear"
    return [LineFigure(name, title, rows, x=x, y=scale, note=note)] if rows else []


def ranks(values: Array) -> Array:
    """1, 2, ... for each of some values."""
    return np.arange(1, len(values) + 1)


def layer_line(x: Array, y: Array, number: int, depth: int) -> Line:
    """The line of a layer, in its shade."""
    return Line(f"layer {number}", x, y, Look(shade(number, depth)))


def participation(measured: Sequence[Measures]) -> list[LineFigure]:
    """Participation ratio (Σs)² / (n Σs²) of the n singular values s of each layer."""
    note = "(Σs)² / (n Σs²) of the n singular values s: 1 if all are equal, 1/n if only one is not 0."
    return over_training(
        measured,
        "participation_ratio",
        "participation-ratio",
        "Participation ratio of the singular values",
        "share",
        note,
    )


def norms(measured: Sequence[Measures]) -> list[LineFigure]:
    """Frobenius norm of each layer."""
    return over_training(measured, "norm", "norms", "Frobenius norm of the weights")


def histograms(measured: Sequence[Measures]) -> list[LineFigure]:
    """The weights' distribution in the first and the last snapshot."""
    depth = max((number for each in measured for number in _bins(each)), default=0)
    rows = rows_of(
        (title, LinePanel(each.group, tuple(lines)))
        for each in measured
        for title, lines in compared(_bins(each), depth)
    )
    if not rows:
        return []
    title = "Distribution of the weights"
    note = "Share of a layer's weights for each unit of weight."
    return [LineFigure("weights", title, rows, x="weight", y="log", note=note, stairs=depth <= MOST_LAYERS)]


def _bins(each: Measures) -> dict[int, dict[str, tuple[Array, Array]]]:
    """By layer, for the first and the last snapshot: middles of the bins, and the density in them."""
    edges, final_edges = each.layers("histogram_edge"), each.layers("histogram_edge", final=True)
    found: dict[int, dict[str, tuple[Array, Array]]] = {}
    for number, counts in each.layers("histogram", final=True).items():
        if number in final_edges:
            found[number] = {AFTER: _density(counts, float(final_edges[number]))}
    for number, counts in each.layers("histogram").items():
        if number in edges:
            found[number] = {when: _density(counts[at], float(edges[number][at])) for when, at in each.ends.items()}
    return dict(sorted(found.items()))


def _density(counts: Array, edge: float) -> tuple[Array, Array]:
    width = 2 * edge / len(counts)
    middles = (np.arange(len(counts)) + 0.5) * width - edge
    if not counts.sum() > 0 or width < NARROWEST:
        return middles, np.full(len(counts), np.nan)
    return middles, counts / (counts.sum() * width)


def compared(found: Mapping[int, Mapping[str, tuple[Array, Array]]], depth: int) -> Iterator[tuple[str, list[Line]]]:
    """Panels `(title, lines)`: of a layer with its snapshots, or of a snapshot with all of many layers.

    Args:
        found: x and y by layer and snapshot, `after training` and others.
        depth: the largest number of a layer in any panel of the figure.
    """
    if depth <= MOST_LAYERS:
        for number, snapshots in found.items():
            looks = {when: Look("muted", dashes=(3, 1.5)) for when in snapshots} | {AFTER: Look("c0")}
            yield f"layer {number}", [Line(when, *bins, looks[when]) for when, bins in snapshots.items()]
        return
    for when in dict.fromkeys(when for snapshots in found.values() for when in snapshots):
        yield (
            when,
            [layer_line(*snapshots[when], number, depth) for number, snapshots in found.items() if when in snapshots],
        )
