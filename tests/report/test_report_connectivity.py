"""The figures of learned connectivity: their numbers as CSV, bars and bands, against what was measured."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import synaptome as syn
from synaptome.analysis import connectivity
from synaptome.report import bar_figures, figures, group_runs, line_figures, write_report
from synaptome.report.curves import charts
from synaptome.report.measures import find

STEPS = (0, 5, 10)


def series_of(seed=0, layers=3, steps=STEPS):
    draw = np.random.default_rng(seed)
    found = {"step": steps, "changed": np.sort(draw.random(len(steps)))}
    for layer in range(1, layers + 1):
        found[f"layer{layer}/masks"] = draw.integers(1, 50, (len(steps), 3))
        found[f"layer{layer}/weights"] = draw.integers(1, 50, (len(steps), 3))
        found[f"layer{layer}/changed"] = np.sort(draw.random(len(steps)))
    return found


def final_of(series, seed=0, bins=6):
    draw = np.random.default_rng(100 + seed)
    found = {key: values[-1] for key, values in series.items() if key != "step"}
    for layer in [key.removesuffix("masks") for key in series if key.endswith("masks")]:
        found[f"{layer}score_edges"] = np.linspace(-0.3, 0.5, bins + 1)
        found[f"{layer}score_counts"] = draw.integers(1, 90, bins)
    return found


@pytest.fixture
def gated(finished, write_measures):
    """A finished run that learned its connectivity, with its series and final measures."""

    def make(name, seed=0, failure=0.0, **options):
        run = finished(name, seed, failure)
        series = series_of(seed, **options)
        final = final_of(series, seed)
        write_measures(run, "connectivity", series, final)
        return run, series, final

    return make


def figure_of(name, *runs):
    return next(figure for figure in find(group_runs(runs)).figures if figure.name == name)


def names_of(*runs):
    return [figure.name for figure in find(group_runs(runs)).figures]


def rows_of(name, *runs):
    return list(csv.reader(figure_of(name, *runs).csv_text().splitlines()))


def lines_of(name, *runs):
    lines = defaultdict(list)
    for group, panel, line, *numbers in rows_of(name, *runs)[1:]:
        lines[group, panel, line].append([float(number) for number in numbers])
    return {key: np.array(points).T for key, points in lines.items()}


def test_the_share_changed_of_a_layer_is_a_mean_with_a_range_over_seeds(gated):
    runs = [gated(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in (0, 1, 2)]
    drawn = lines_of("changed-layers", *(run for run, _, _ in runs))
    assert len(drawn) == 2 * 4
    for (group, _, line), (steps, mean, low, high) in drawn.items():
        key = "changed" if line == "whole network" else f"layer{line.removeprefix('layer ')}/changed"
        values = [series[key] for run, series, _ in runs if f"failure={run.path.name[:3]}" == group]
        np.testing.assert_array_equal(steps, STEPS)
        np.testing.assert_allclose(mean, np.mean(values, 0), rtol=1e-15)
        np.testing.assert_array_equal([low, high], [np.min(values, 0), np.max(values, 0)])
    assert "minimum to maximum over seeds" in figure_of("changed-layers", *(run for run, _, _ in runs)).legend()


def test_seeds_are_aligned_on_the_steps_they_share(gated):
    (first, one, _), (second, other, _) = gated("a"), gated("b", 1, steps=(0, 10, 20))
    steps, mean, low, high = lines_of("changed-layers", first, second)["failing", "", "layer 2"]
    assert steps.tolist() == [0, 10]
    pairs = np.stack([one["layer2/changed"][[0, 2]], other["layer2/changed"][:2]])
    np.testing.assert_allclose([mean, low, high], [pairs.mean(0), pairs.min(0), pairs.max(0)], rtol=1e-15)


def test_a_single_run_has_no_band(gated):
    run, series, _ = gated("a")
    assert rows_of("changed-layers", run)[0] == ["group", "panel", "line", "step", "value"]
    np.testing.assert_array_equal(
        lines_of("changed-layers", run)["failing", "", "layer 3"][1], series["layer3/changed"]
    )
    assert "over seeds" not in figure_of("changed-layers", run).legend()


def test_a_single_layer_is_the_whole_network(gated):
    run, _, _ = gated("a", layers=1)
    assert [line for _, _, line in lines_of("changed-layers", run)] == ["layer 1"]


def test_the_band_of_a_line_is_what_is_drawn(gated):
    figure = figure_of("changed-layers", gated("a")[0], gated("b", 1)[0])
    (row,), canvas = figure.rows, Figure()
    line_figures._draw(canvas, figure, row, row.panels[0])
    bands = canvas.axes[0].collections
    assert len(bands) == 4
    corners = bands[1].get_paths()[0].vertices
    line = row.panels[0].lines[1]
    for x, low, high in zip(line.x, *line.band, strict=True):
        assert {low, high} <= set(corners[corners[:, 0] == x, 1])
    bottom, top = canvas.axes[0].get_ylim()
    assert bottom <= min(line.band[0].min() for line in row.lines)
    assert max(line.band[1].max() for line in row.lines) <= top


def changing(make_run, name, seed, shares, accuracies):
    pairs = enumerate(zip(shares, accuracies, strict=True))
    metrics = [
        {"step": 10 * n, "epoch": n, "connections/changed": share, "test/accuracy": accuracy}
        for n, (share, accuracy) in pairs
    ]
    return make_run(name, metrics, seed=seed)


def test_curves_of_learned_connectivity_have_the_range_over_seeds(make_run, tmp_path):
    runs = [
        changing(make_run, "a", 0, (0.0, 0.1, 0.4), (0.1, 0.9, 0.95)),
        changing(make_run, "b", 1, (0.0, 0.2, 0.3), (0.2, 0.8, 0.97)),
        changing(make_run, "c", 2, (0.0, 0.6, 0.2), (0.1, 0.7, 0.96)),
    ]
    page = write_report(runs, tmp_path / "r.html").read_text()
    with (tmp_path / "r-data" / "changed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["min"]), float(row["max"])) for row in rows] == [(0, 0), (0.1, 0.6), (0.2, 0.4)]
    assert float(rows[1]["mean"]) == pytest.approx(0.3)
    assert float(rows[1]["std"]) == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    with (tmp_path / "r-data" / "accuracy.csv").open(newline="") as file:
        assert [float(row["max"]) for row in csv.DictReader(file)] == [0.2, 0.9, 0.97]
    assert "<h3>share of synapses changed</h3>" in page
    assert "mean, and minimum to maximum over seeds" in page
    assert "mean ±" not in page
    (chart,) = [chart for chart in charts(group_runs(runs)) if chart.name == "changed"]
    canvas = Figure()
    figures._draw(canvas, chart, [(chart.curves[0], figures.look(chart.curves[0], chart, False))])
    (axes,) = canvas.axes
    corners = axes.collections[0].get_paths()[0].vertices
    assert {0.1, 0.6} <= set(corners[corners[:, 0] == 1, 1])
    assert axes.get_ylim()[0] <= 0 <= 0.6 <= axes.get_ylim()[1]  # from the untrained network on
    assert axes.yaxis.get_major_formatter()(0.125, 0) == "12.5 %"


def test_curves_of_other_runs_keep_their_standard_deviation(finished):
    for chart in charts(group_runs([finished("a"), finished("b", 1)])):
        assert "std" in figures.legend(chart, False)
        assert "minimum" not in figures.legend(chart, False)


def test_masks_and_effective_weights_are_counted_after_training(gated):
    runs = [gated("a"), gated("b", 1, failure=0.5)]
    head, *rows = rows_of("connectivity", *(run for run, _, _ in runs))
    assert head == ["group", "panel", "bar", "negative", "zero", "positive"]
    assert len(rows) == 2 * 2 * 3
    finals = {f"failure={failure}": final for failure, (_, _, final) in zip((0.0, 0.5), runs, strict=True)}
    for group, panel, bar, *counts in rows:
        measure = {"masks": "masks", "effective weights": "weights"}[panel]
        assert list(map(int, counts)) == finals[group][f"{bar.replace(' ', '')}/{measure}"].tolist()


def test_an_unfinished_run_shows_the_counts_of_its_last_snapshot(finished, write_measures):
    run = finished("early")
    series = series_of(layers=1)
    write_measures(run, "connectivity", series)
    assert [list(map(int, row[3:])) for row in rows_of("connectivity", run)[1:]] == [
        series["layer1/masks"][-1].tolist(),
        series["layer1/weights"][-1].tolist(),
    ]


def test_bars_are_as_long_as_their_shares(gated):
    run, _, final = gated("a")
    figure = figure_of("connectivity", run)
    canvas = Figure()
    bars = figure.rows[0].panels[0].bars
    bar_figures._draw(canvas, figure.parts, bars)
    (axes,) = canvas.axes
    drawn = np.array([[patch.get_x(), patch.get_width()] for patch in axes.patches]).reshape(3, 3, 2)  # part, layer
    for layer in range(3):
        counts = final[f"layer{layer + 1}/masks"]
        np.testing.assert_allclose(drawn[:, layer, 1], counts / counts.sum(), rtol=1e-12)
        np.testing.assert_allclose(drawn[1:, layer, 0], np.cumsum(counts / counts.sum())[:2], rtol=1e-12)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 1", "layer 2", "layer 3"]
    assert axes.yaxis_inverted()
    shares = {f"{100 * share:.1f}" for bar in bars for share in bar.counts / bar.counts.sum() if share >= 0.1}
    assert {text.get_text() for text in axes.texts} == shares


def test_scores_are_drawn_as_densities(gated):
    run, _, final = gated("a")
    drawn = lines_of("scores", run)
    assert list(drawn) == [("failing", f"layer {layer}", "after training") for layer in (1, 2, 3)]
    for (_, panel, _), (middles, density) in drawn.items():
        edges, counts = (final[f"{panel.replace(' ', '')}/score_{what}"] for what in ("edges", "counts"))
        np.testing.assert_allclose(middles, (edges[1:] + edges[:-1]) / 2, atol=1e-15)
        np.testing.assert_allclose(density * np.diff(edges) * counts.sum(), counts)


def test_what_a_network_learned_is_what_the_figures_show(finished, write_measures):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))
    syn.rewire(model, syn.Learned("ternary"))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.scores.normal_(0.02, 0.03)
    run = finished("a")
    snapshots = [{"step": torch.tensor(step)} | connectivity.snapshot(model) for step in (0, 4)]
    series = {key: torch.stack([each[key] for each in snapshots]) for key in snapshots[0]}
    write_measures(run, "connectivity", series, connectivity.final(model))
    bars = {(panel, bar): list(map(int, counts)) for _, panel, bar, *counts in rows_of("connectivity", run)[1:]}
    for number, layer in ((1, model[0]), (2, model[2])):
        masks = [(layer.scores < -0.01).sum(), (layer.scores.abs() <= 0.01).sum(), (layer.scores > 0.01).sum()]
        assert bars["masks", f"layer {number}"] == [int(count) for count in masks]
        effective = layer.effective_weight()
        signs = [(effective < 0).sum(), (effective == 0).sum(), (effective > 0).sum()]
        assert bars["effective weights", f"layer {number}"] == [int(count) for count in signs]
        changed = 1 - (layer.scores > 0.01).double().mean().item()
        assert lines_of("changed-layers", run)["failing", "", f"layer {number}"][1] == pytest.approx([changed] * 2)
        middles, density = lines_of("scores", run)["failing", f"layer {number}", "after training"]
        width = middles[1] - middles[0]
        inverted = (density * width)[middles < 0].sum()
        assert inverted == pytest.approx((layer.scores < 0).double().mean().item())


def test_of_many_layers_each_has_a_bar_and_all_share_a_panel_of_scores(gated, tmp_path):
    run, _, _ = gated("a", layers=22)
    figure = figure_of("connectivity", run)
    assert [len(row.panels[0].bars) for row in figure.rows] == [22, 22]
    assert figure.rows[0].panels[0].bars[-1].name == "layer 22"
    ((_, [(_, svg)]), _) = figure.drawings("")
    assert f'viewBox="0 0 380 {44 + 22 * 24}"' in svg
    assert {panel for _, panel, _ in lines_of("scores", run)} == {"after training"}
    assert "Learned connectivity" in write_report([run], tmp_path / "r.html").read_text()


def test_any_measure_may_be_missing(gated, finished, write_measures):
    _, series, final = gated("whole", layers=2)
    everything = set(names_of(gated("again")[0]))
    assert everything == {"changed-layers", "connectivity", "scores"}
    for index, key in enumerate([*series, *final]):
        if key == "step":
            continue
        run = finished(f"without-{index}")
        some = {name: values for name, values in series.items() if name != key}
        write_measures(run, "connectivity", some, {name: values for name, values in final.items() if name != key})
        drawn = find(group_runs([run])).figures
        assert {figure.name for figure in drawn} == everything
        assert all(figure.csv_text().count("\n") > 1 for figure in drawn)


def test_what_cannot_be_drawn_is_told(tmp_path, finished, write_measures):
    run = finished("a")
    series = {
        "step": [0, 5],
        "changed": [0.0, 1.5],
        "layer1/changed": [-0.1, 0.5],
        "layer2/changed": [[0.0], [0.5]],
        "layer1/masks": np.ones((2, 2)),
        "layer2/masks": [[1, 2, 3], [1, -2, 3]],
    }
    final = {
        "layer1/weights": [np.nan, 1.0, 1.0],
        "layer1/score_counts": [1, 2, 3],
        "layer2/score_counts": [1, 2, 3],
        "layer2/score_edges": [0.0, 1.0, 2.0],
        "layer3/score_counts": [1, 2],
        "layer3/score_edges": [0.0, 2.0, 1.0],
        "layer4/score_counts": [1, -2],
        "layer4/score_edges": [0.0, 1.0, 2.0],
    }
    write_measures(run, "connectivity", series, final)
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text()
    assert sorted(problem.partition("measures: ")[2] for problem in told) == [
        "changed holds numbers outside [0, 1], and is not drawn",
        "layer1/changed holds numbers outside [0, 1], and is not drawn",
        "layer1/masks has 2 entries, not 3, and is not drawn",
        "layer1/score_counts lacks its bins, and is not drawn",
        "layer1/weights holds numbers that are not finite, or beyond 1e+100, and is not drawn",
        "layer2/changed has 2 axes where 1 are expected, and is not drawn",
        "layer2/masks holds numbers below 0, and is not drawn",
        "layer2/score_counts lacks its bins, and is not drawn",
        "layer3/score_counts lacks its bins, and is not drawn",
        "layer4/score_counts holds numbers below 0, and is not drawn",
    ]
    assert "Learned connectivity" not in page
    assert page.count("Damaged:") == len(told)


def test_a_damaged_file_is_told_and_the_rest_is_drawn(tmp_path, gated):
    run, _, _ = gated("a")
    file = run.path / "measures" / "connectivity.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text()
    assert len(told) == 1
    assert "connectivity.safetensors" in told[0]
    assert "Share of synapses changed, layer by layer" in page
    assert "Distribution of the scores" not in page


@pytest.mark.parametrize("value", [0.0, 1e-300, 1.0])
def test_unlikely_numbers_can_be_drawn(tmp_path, finished, write_measures, value):
    run, series = finished("odd"), series_of()
    final = final_of(series)
    filled = {key: values if key == "step" else np.full(np.shape(values), value) for key, values in series.items()}
    scored = {key: np.full(np.shape(values), value) for key, values in final.items() if not key.endswith("edges")}
    edges = {key: values * 1e-120 for key, values in final.items() if key.endswith("edges")}
    write_measures(run, "connectivity", filled, scored | edges)
    assert "Share of synapses changed, layer by layer" in write_report([run], tmp_path / "r.html").read_text()


def test_the_page_says_which_runs_are_drawn(gated, tmp_path):
    runs = [gated(f"r{index}-{seed}", seed, index / 10)[0] for index in range(8) for seed in (0, 1)]
    found = find(group_runs(runs))
    assert [run for _, run in found.drawn] == [f"r{index}-0" for index in range(6)]
    assert found.left_out == ("failure=0.6", "failure=0.7")
    assert len(figure_of("changed-layers", *runs).rows[0].panels) == 6
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert "Charts of mean and spread are over all runs" in page
    assert "Left out: failure=0.6; failure=0.7" in page


def test_robustness_compares_what_learned_masks_with_what_learned_weights(finished, gated, write_measures):
    """Of each group the mean over seeds, and from the least to the largest seed, each the mean of its passes."""
    masks = [gated(f"masks-{seed}", seed)[0] for seed in range(3)]
    weights = [finished(f"weights-{seed}", seed, 0.5) for seed in range(3)]
    for group, accuracy in ((masks, 0.5), (weights, 0.75)):
        for seed, run in enumerate(group):
            passes = [accuracy + seed / 16 - 1 / 32, accuracy + seed / 16 + 1 / 32]
            write_measures(run, "robustness", None, {"rate": [0.0, 0.5], "accuracy": [[0.875, 0.875], passes]})
    head, *rows = rows_of("robustness", *masks, *weights)
    assert head == ["group", "split", "failure rate", "mean", "std", "n", "min", "max"]
    assert [(row[0], *(float(row[column]) for column in (2, 3, 5, 6, 7))) for row in rows] == [
        ("failure=0.0", 0.0, 0.875, 3, 0.875, 0.875),
        ("failure=0.0", 0.5, 0.5625, 3, 0.5, 0.625),
        ("failure=0.5", 0.0, 0.875, 3, 0.875, 0.875),
        ("failure=0.5", 0.5, 0.8125, 3, 0.75, 0.875),
    ]
    figure = figure_of("robustness", *masks, *weights)
    assert "mean, and minimum to maximum over seeds" in figure.legend()
    assert [[title for title, _ in figure.drawings("figure")]] == [[""]]  # one drawing for all groups
