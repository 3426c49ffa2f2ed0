"""Figures of singular modes: their strengths, how adjacent layers share them, how they come to be the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from synaptome.report.drawing import Look
from synaptome.report.heat_maps import HeatFigure, HeatMap, HeatPanel
from synaptome.report.line_figures import Line, LineFigure, LinePanel, rows_of, shade
from synaptome.report.measured import Array, Measures
from synaptome.report.weights import after_training

MOST_LAYERS = 4  # with a panel for each; more layers share panels, one for each mode
LEADING = 4  # modes with a colour of their own
WIDTHS = (3.0, 2.2, 1.6, 1.1)  # of their lines: those that lie on one another are all seen
OTHERS = 12  # further modes that are drawn, evenly spaced among those there are
HEAT_MODES = 64  # shown in a heat map: more would each be smaller than a pixel
FURTHER = Look("muted", width=0.8)
TEACHER = Look("ink", dashes=(5, 2.5), width=1.4)
POWER = "teacher, to the power 1/L"


def singular_values(measured: Sequence[Measures]) -> list[LineFigure]:
    """Singular values over training: of the end-to-end product, and of each layer; against the teacher's."""
    end_to_end = rows_of(
        ("", LinePanel(each.group, (*_by_mode(each.steps, values), *_teacher(each, 1))))
        for each in measured
        if (values := each.series.get("product/singular_values")) is not None
    )
    layers = {each.group: each.layers("singular_values") for each in measured}
    rows = rows_of(
        (title, LinePanel(each.group, (*lines, *_teacher(each, max(layers[each.group]), mode))))
        for each in measured
        for title, mode, lines in _by_layer(each, layers[each.group], _depth(layers), "layer {}")
    )
    powered = any(line.key == POWER for row in rows for panel in row.panels for line in panel.lines)
    power = " The teacher's singular values to the power 1/L are what each of L balanced layers would have."
    figures: list[LineFigure] = []
    if end_to_end:
        figures.append(LineFigure("singular-values-product", "Singular values, end to end", end_to_end))
    if rows:
        note = _thinned(layers) + (power if powered else "")
        figures.append(LineFigure("singular-values-layers", "Singular values of the layers", rows, note=note.strip()))
    title = "All singular values after training"
    return [*figures, *after_training(measured, "singular_values", "singular-values-final", title, "rank")]


def overlap(measured: Sequence[Measures]) -> list[HeatFigure | LineFigure]:
    """How the modes of adjacent layers match: |V_{l+1}' U_l| of the trained network, and its diagonal over training."""
    panels = []
    cut = 0
    for each in measured:
        found = each.layers("overlap", final=True) or {
            number: values[-1] for number, values in each.layers("overlap").items()
        }
        cut = max([cut, *(size for values in found.values() for size in values.shape)])
        maps = [
            HeatMap(f"{number} to {number + 1}", values[:HEAT_MODES, :HEAT_MODES]) for number, values in found.items()
        ]
        panels += [HeatPanel(each.group, tuple(maps))] if maps else []
    layers = {
        each.group: {number: np.diagonal(values, axis1=1, axis2=2) for number, values in each.layers("overlap").items()}
        for each in measured
    }
    rows = rows_of(
        (title, LinePanel(each.group, tuple(lines)))
        for each in measured
        for title, _, lines in _by_layer(each, layers[each.group], _depth(layers), "layers {} to {}")
    )
    figures: list[HeatFigure | LineFigure] = []
    if panels:
        note = f"The leading {HEAT_MODES} of {cut} modes are shown." if cut > HEAT_MODES else ""
        heading = "Overlap of adjacent layers, after training"
        figures.append(
            HeatFigure("overlap", heading, tuple(panels), "mode, later layer", "mode, earlier layer", note=note)
        )
    if rows:
        title = "Overlap of the same mode in adjacent layers"
        figures.append(LineFigure("overlap-diagonal", title, rows, y="share", note=_thinned(layers)))
    return figures


def alignment(measured: Sequence[Measures]) -> list[LineFigure]:
    """Overlap of each mode with the teacher's mode of the same rank, on the side of the outputs and of the inputs."""
    sides = {
        "output side": {"product/left": "end to end", "teacher/left": "last layer"},
        "input side": {"product/right": "end to end", "teacher/right": "first layer"},
    }
    rows = rows_of(
        (side, LinePanel(each.group, tuple(_aligned(each, keys)))) for side, keys in sides.items() for each in measured
    )
    return [LineFigure("teacher-alignment", "Overlap with the teacher's modes", rows, y="share")] if rows else []


def _aligned(each: Measures, keys: Mapping[str, str]) -> Iterator[Line]:
    for (key, part), dashes in zip(keys.items(), ((), (5, 2.5)), strict=True):
        if key in each.series:
            diagonal = np.diagonal(each.series[key], axis1=1, axis2=2)
            for mode in range(min(LEADING, diagonal.shape[1])):
                legend = f"{part if part == 'end to end' else 'first or last layer'}, mode {mode + 1}"
                yield Line(f"{part}, mode {mode + 1}", each.steps, diagonal[:, mode], _mode(mode, dashes), legend)


def _depth(layers: Mapping[str, Mapping[int, Array]]) -> int:
    return max((number for found in layers.values() for number in found), default=0)


def _thinned(layers: Mapping[str, Mapping[int, Array]]) -> str:
    """What to say where `_by_mode` leaves modes out."""
    most = max((values.shape[1] for found in layers.values() for values in found.values()), default=0)
    if _depth(layers) > MOST_LAYERS or most <= LEADING + OTHERS:
        return ""
    return f"Of {most} modes, {LEADING + OTHERS} are drawn: the leading ones, and others evenly spaced by rank."


def _by_layer(
    each: Measures, layers: Mapping[int, Array], depth: int, name: str
) -> Iterator[tuple[str, int | None, list[Line]]]:
    """Values [n, modes] of layers, as panels `(title, mode, lines)`.

    A few layers have a panel each, with a line for each mode. Many layers share a panel for each leading mode, with
    a line for each layer.
    """
    if depth <= MOST_LAYERS:
        for number, values in layers.items():
            yield name.format(number, number + 1), None, _by_mode(each.steps, values)
        return
    ranks = each.final.get("teacher/singular_values")
    for mode in range(min(LEADING, max(2, 0 if ranks is None else len(ranks)))):
        lines = [
            Line(name.format(number, number + 1), each.steps, values[:, mode], Look(shade(number, depth), width=1.6))
            for number, values in layers.items()
            if mode < values.shape[1]
        ]
        if lines:
            yield f"mode {mode + 1}", mode, lines


def _by_mode(steps: Array, values: Array) -> list[Line]:
    """A line for each leading mode, and thinner ones for some of the others."""
    modes = values.shape[1]
    leading, further = range(min(LEADING, modes)), np.arange(min(LEADING, modes), modes)
    if len(further) > OTHERS:
        further = further[np.linspace(0, len(further) - 1, OTHERS).round().astype(int)]
    return [
        *(Line(f"mode {mode + 1}", steps, values[:, mode], _mode(mode)) for mode in leading),
        *(Line(f"mode {mode + 1}", steps, values[:, mode], FURTHER, "further modes") for mode in further),
    ]


def _mode(mode: int, dashes: tuple[float, ...] = ()) -> Look:
    return Look(f"c{mode}", dashes=dashes, width=WIDTHS[mode])


def _teacher(each: Measures, layers: int, mode: int | None = None) -> list[Line]:
    """The teacher's singular values (one of them, or all), to the power 1/layers, as lines across the panel.

    Only for linear networks: it is the end-to-end product that is compared with the teacher.
    """
    values = each.final.get("teacher/singular_values")
    if values is None or not len(each.steps) or "product/singular_values" not in each.series:
        return []
    ends, key = each.steps[[0, -1]], "teacher" if layers == 1 else POWER
    chosen = range(len(values)) if mode is None else range(mode, min(mode + 1, len(values)))
    return [
        Line(f"teacher, mode {index + 1}", ends, np.repeat(max(values[index], 0.0) ** (1 / layers), 2), TEACHER, key)
        for index in chosen
    ]
