"""The figures of synaptic measures: their numbers as CSV against what was measured."""

from __future__ import annotations

import csv
import re
from collections import defaultdict

import numpy as np
import pytest
from matplotlib.figure import Figure

from synaptome.report import group_runs, write_report
from synaptome.report.line_figures import _quantity_axis, _step_axis
from synaptome.report.measures import find


@pytest.fixture
def data(tmp_path):
    """The lines of a report's CSV file without its header."""

    def read(name, *runs):
        write_report(runs, tmp_path / "out" / "report.html")
        with (tmp_path / "out" / "report-data" / f"{name}.csv").open(newline="") as file:
            return list(csv.reader(file))[1:]

    return read


def text_of(name, *runs):
    """The CSV of a figure by `(group, panel, line)`: what is in the file, without the drawing."""
    (figure,) = [figure for figure in find(group_runs(runs)).figures if figure.name == name]
    lines = defaultdict(list)
    for group, panel, line, x, value in list(csv.reader(figure.csv_text().splitlines()))[1:]:
        lines[group, panel, line].append((float(x), float(value)))
    return {key: tuple(np.array(column) for column in zip(*points, strict=True)) for key, points in lines.items()}


def names_of(*runs):
    return [figure.name for figure in find(group_runs(runs)).figures]


def figure_of(name, *runs):
    return next(figure for figure in find(group_runs(runs)).figures if figure.name == name)


def test_end_to_end_singular_values_against_the_teachers(learned):
    run, series, final = learned("a")
    drawn = text_of("singular-values-product", run)
    assert set(drawn) == {("failing", "", f"{of}mode {mode}") for of in ("", "teacher, ") for mode in (1, 2)}
    for mode in (1, 2):
        steps, values = drawn["failing", "", f"mode {mode}"]
        np.testing.assert_array_equal(steps, series["step"])
        np.testing.assert_array_equal(values.astype(np.float32), series["product/singular_values"][:, mode - 1])
        steps, values = drawn["failing", "", f"teacher, mode {mode}"]
        np.testing.assert_array_equal(steps, series["step"][[0, -1]])
        np.testing.assert_array_equal(values.astype(np.float32), final["teacher/singular_values"][[mode - 1] * 2])


def test_singular_values_of_few_layers_have_a_panel_each(learned):
    run, series, _ = learned("a")
    drawn = text_of("singular-values-layers", run)
    for layer, modes in ((1, 8), (2, 8), (3, 2)):  # the last layer is 2 x 8
        shown = {key: xy for key, xy in drawn.items() if key[1] == f"layer {layer}" and "teacher" not in key[2]}
        assert [line for _, _, line in shown] == [f"mode {mode}" for mode in range(1, modes + 1)]
        values = np.stack([y for _, y in shown.values()], axis=1)
        np.testing.assert_array_equal(values.astype(np.float32), series[f"layer{layer}/singular_values"])
    _, teacher = drawn["failing", "layer 2", "teacher, mode 2"]
    assert teacher == pytest.approx([0.2 ** (1 / 3)] * 2)  # three balanced layers multiply to 0.2


def test_of_many_singular_values_the_leading_ones_and_some_others_are_drawn(learned):
    run, series, _ = learned("a", features=40, steps=3)
    drawn = text_of("singular-values-layers", run)
    modes = [int(line.split()[1]) for _, panel, line in drawn if panel == "layer 1" and "teacher" not in line]
    assert modes[:5] == [1, 2, 3, 4, 5]
    assert (len(modes), modes[-1]) == (16, 40)
    _, last = drawn["failing", "layer 1", "mode 40"]
    np.testing.assert_array_equal(last.astype(np.float32), series["layer1/singular_values"][:, 39])
    assert figure_of("singular-values-layers", run).note.startswith("Of 40 modes, 16 are drawn")


def test_ten_layers_share_panels_and_come_in_the_order_of_their_numbers(learned):
    run, series, _ = learned("a", depth=10, steps=5)
    in_order = [f"layer {layer}" for layer in range(1, 11)]
    for name in ("participation-ratio", "norms", "singular-values-final"):
        assert [line for _, _, line in text_of(name, run)] == in_order
    drawn = text_of("singular-values-layers", run)
    assert [line for _, panel, line in drawn if panel == "mode 2"] == [*in_order, "teacher, mode 2"]
    _, values = drawn["failing", "mode 2", "layer 10"]
    np.testing.assert_array_equal(values.astype(np.float32), series["layer10/singular_values"][:, 1])
    legend = figure_of("norms", run).legend()
    assert re.findall(r"<span>([^<]*)</span>", legend) == in_order
    shades = re.findall(r"--s(\d+)", legend)
    assert shades == [str(shade) for shade in sorted(map(int, shades))]
    assert (shades[0], shades[-1], len(set(shades))) == ("0", "10", 10)
    assert {panel for _, panel, _ in text_of("weights", run)} == {"before training", "after training"}
    assert [each.name for each in figure_of("overlap", run).panels[0].maps][-2:] == ["8 to 9", "9 to 10"]


def test_the_final_overlap_is_a_matrix_with_rows_of_the_later_layer(data, learned):
    run, _, final = learned("a")
    rows = data("overlap", run)
    for layer, shape in ((1, (8, 8)), (2, (2, 8))):
        found = [row for row in rows if row[1] == f"{layer} to {layer + 1}"]
        assert [int(row[2]) for row in found] == list(range(1, shape[0] + 1))
        values = np.array([row[3:] for row in found], dtype=np.float32)
        assert values.shape == shape
        np.testing.assert_array_equal(values, final[f"layer{layer}/overlap"])


def test_a_large_overlap_is_cut_to_its_leading_modes(learned):
    run, _, final = learned("a", depth=2, features=70, d=1, steps=1)
    figure = figure_of("overlap", run)
    np.testing.assert_array_equal(figure.panels[0].maps[0].values, final["layer1/overlap"][:, :64])
    assert figure.note == "The leading 64 of 70 modes are shown."


def test_overlap_of_the_same_mode_over_training(learned):
    run, series, _ = learned("a")
    drawn = text_of("overlap-diagonal", run)
    assert [line for _, panel, line in drawn if panel == "layers 2 to 3"] == ["mode 1", "mode 2"]
    for mode in (1, 2):
        _, values = drawn["failing", "layers 2 to 3", f"mode {mode}"]
        np.testing.assert_array_equal(values.astype(np.float32), series["layer2/overlap"][:, mode - 1, mode - 1])


@pytest.mark.parametrize("d", [1, 2])
def test_alignment_is_of_each_mode_with_the_teachers_of_the_same_rank(learned, d):
    run, series, _ = learned("a", d=d)
    drawn = text_of("teacher-alignment", run)
    expected = {
        ("output side", "end to end"): "product/left",
        ("output side", "last layer"): "teacher/left",
        ("input side", "end to end"): "product/right",
        ("input side", "first layer"): "teacher/right",
    }
    assert len(drawn) == 4 * d
    for (side, part), key in expected.items():
        for mode in range(d):
            _, values = drawn["failing", side, f"{part}, mode {mode + 1}"]
            np.testing.assert_array_equal(values.astype(np.float32), series[key][:, mode, mode])


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("norms", "norm"),
        ("participation-ratio", "participation_ratio"),
        ("activity-mean", "activity_mean"),
        ("activity-spread", "activity_std"),
    ],
)
def test_one_number_a_layer_over_training(learned, name, measure):
    run, series, _ = learned("a")
    for (_, _, line), (steps, values) in text_of(name, run).items():
        np.testing.assert_array_equal(steps, series["step"])
        np.testing.assert_array_equal(
            values.astype(np.float32), series[f"layer{line.removeprefix('layer ')}/{measure}"]
        )


def test_weights_are_drawn_as_densities_before_and_after_training(learned):
    run, series, _ = learned("a")
    drawn = text_of("weights", run)
    for when, at in (("before training", 0), ("after training", -1)):
        middles, density = drawn["failing", "layer 2", when]
        edge, counts = float(series["layer2/histogram_edge"][at]), series["layer2/histogram"][at]
        borders = np.linspace(-edge, edge, 42)
        np.testing.assert_allclose(middles, (borders[1:] + borders[:-1]) / 2, atol=1e-12)
        np.testing.assert_allclose(density * np.diff(borders) * 64, counts)  # 8 x 8 weights


def test_weights_of_the_trained_network_alone_and_weights_that_are_all_zero(finished, write_measures):
    run = finished("a")
    counts = np.bincount([20] * 5, minlength=41)
    final = {"layer1/histogram": counts, "layer1/histogram_edge": 0.5, "layer2/histogram": counts}
    write_measures(run, "spectra", None, final | {"layer2/histogram_edge": 0.0})
    ((key, (_, density)),) = text_of("weights", run).items()
    assert key == ("failing", "layer 1", "after training")
    assert density[20] == pytest.approx(41)  # all of them in one of 41 bins of the unit interval


def test_units_are_sorted_by_their_activity(learned):
    run, _, final = learned("a")
    ranks, values = text_of("activity-units", run)["failing", "", "layer 1"]
    assert ranks.tolist() == list(range(1, 9))
    np.testing.assert_array_equal(values.astype(np.float32), sorted(final["layer1/activity"], reverse=True))


def test_silence_is_drawn_where_there_is_any(finished, learned, write_measures):
    assert "activity-silent" not in names_of(learned("linear")[0])
    run = finished("relu")
    write_measures(run, "spectra", {"step": [0, 5], "layer1/activity_silent": [0.0, 0.25]})
    assert text_of("activity-silent", run)["failing", "", "layer 1"][1].tolist() == [0.0, 0.25]


def test_inputs_are_drawn_once_where_groups_share_them(data, learned):
    same = [learned(f"f{failure}", failure=failure) for failure in (0.0, 0.5)]
    rows = data("input-covariance", *(run for run, _, _ in same))
    assert {row[0] for row in rows} == {""}
    np.testing.assert_array_equal(np.array([row[3:] for row in rows], np.float32), same[0][2]["input/covariance"])
    other = learned("other", seed=1, failure=0.7)
    groups = [key[0] for key in text_of("input-spectrum", same[0][0], other[0])]
    assert groups == ["failure=0.0", "failure=0.7"]


def test_eigenvalues_have_a_logarithmic_axis_that_ends_above_rounding(finished, write_measures):
    run = finished("a")
    write_measures(run, "spectra", None, {"input/spectrum": [3.0, 1e-3, 1e-16, 0.0]})
    ((ranks, values),) = text_of("input-spectrum", run).values()
    assert (ranks.tolist(), values.tolist()) == ([1, 2, 3, 4], [3.0, 1e-3, 1e-16, 0.0])
    figure = figure_of("input-spectrum", run)
    assert figure.heading.endswith("(log scale)")
    axes = Figure().add_subplot()
    _quantity_axis(axes, values, figure.y)
    assert axes.get_yscale() == "log"
    assert 1e-10 < axes.get_ylim()[0] < 3e-9


def test_robustness_is_over_passes_and_seeds_at_rates_that_all_seeds_have(data, finished, write_measures):
    runs = [finished(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in (0, 1)]
    for run in runs[:3]:
        seed = run.recipe["seed"]
        accuracy = [[0.9, 0.8], [0.5 + seed / 10, 0.3 + seed / 10], [0.1, 0.1]]
        kept = slice(0, 3 - seed)  # the second seed lacks the last rate
        write_measures(run, "robustness", None, {"rate": [0.0, 0.25, 0.5][kept], "accuracy": accuracy[kept]})
    rows = [(row[0], float(row[2]), float(row[3]), float(row[4]), int(row[5])) for row in data("robustness", *runs)]
    spread = np.std([0.5, 0.3, 0.6, 0.4], ddof=1)
    assert [row[:2] for row in rows] == [
        ("failure=0.0", 0.0),
        ("failure=0.0", 0.25),
        ("failure=0.5", 0.0),
        ("failure=0.5", 0.25),
        ("failure=0.5", 0.5),
    ]
    assert rows[1][2:] == (pytest.approx(0.45), pytest.approx(spread), 4)
    assert rows[3][2:] == (pytest.approx(0.4), pytest.approx(np.std([0.5, 0.3], ddof=1)), 2)


def test_any_measure_may_be_missing(finished, learned, write_measures):
    _, series, final = learned("whole")
    everything = set(names_of(learned("again")[0]))
    for index, key in enumerate([*series, *final]):
        if key == "step":
            continue
        run = finished(f"without-{index}")
        some = {name: values for name, values in series.items() if name != key}
        write_measures(run, "spectra", some, {name: values for name, values in final.items() if name != key})
        figures = find(group_runs([run])).figures
        assert everything.issuperset(figure.name for figure in figures)
        assert all(figure.csv_text().count("\n") > 1 for figure in figures)


def test_each_half_of_the_measures_stands_alone(data, finished, learned, write_measures):
    _, series, final = learned("whole")
    first, second = finished("series"), finished("final")
    write_measures(first, "spectra", series)
    write_measures(second, "spectra", None, final)
    assert "overlap" in names_of(first)  # that of the last snapshot
    assert "overlap" in names_of(second)
    assert data("weights", second)
    assert not find(group_runs([finished("none")]))


def test_measures_of_other_recipes_and_odd_shapes_are_not_drawn(finished, write_measures):
    run = finished("a")
    odd = {"step": [0, 5], "layer1/norm": [[1.0], [2.0]], "layerx/norm": [1.0, 2.0], "layer2/loss": [1.0, 2.0]}
    write_measures(run, "spectra", odd | {"norm": [1.0, 2.0], "layer3/overlap": np.ones((2, 0, 4))}, {"a/left": [1.0]})
    found = find(group_runs([run]))
    assert found.figures == []
    assert [problem.partition("measures: ")[2] for problem in found.problems] == [
        "layer1/norm has 2 axes where 1 are expected, and is not drawn",
        "a/left has 1 axes where 2 are expected, and is not drawn",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_no_axis_holds_are_told(data, finished, write_measures, value):
    run = finished("a")
    write_measures(run, "spectra", {"step": [0, 1], "layer1/norm": [1.0, value], "layer2/norm": [1.0, 2.0]})
    assert [row[2] for row in data("norms", run)] == ["layer 2", "layer 2"]
    (problem,) = find(group_runs([run])).problems
    assert "layer1/norm holds numbers that are not finite, or beyond 1e+100, and is not drawn" in problem


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300])
def test_unlikely_numbers_can_be_drawn(tmp_path, finished, learned, write_measures, value):
    _, series, final = learned("whole", steps=2)
    run = finished("odd")
    odd = {
        key: values if key == "step" else np.where(values == values.flat[0], value, values)
        for key, values in series.items()
    }
    write_measures(
        run, "spectra", odd, {key: np.full_like(values, value, dtype=float) for key, values in final.items()}
    )
    assert "Synaptic measures" in write_report([run], tmp_path / "r.html").read_text()


def test_the_first_seed_with_measures_is_drawn(finished, learned):
    empty = finished("empty", seed=0)
    first, series, _ = learned("first", seed=1)
    second, _, _ = learned("second", seed=2)
    _, values = text_of("norms", empty, first, second)["failing", "", "layer 1"]
    np.testing.assert_array_equal(values.astype(np.float32), series["layer1/norm"])
    assert find(group_runs([empty, first, second])).drawn == (("failing", "first"),)


@pytest.mark.parametrize(
    ("steps", "scale", "labels"),
    [
        ([0, 1, 3, 10, 32, 100, 316, 1000, 12000], "symlog", ["0", "1", "10", "100", "10³", "10⁴"]),
        ([1, 10, 100, 1000], "symlog", ["1", "10", "100", "10³"]),
        ([0, 11, 12, 99], "symlog", ["0", "11", "99"]),
        ([2001, 2010, 9000], "symlog", ["2,001", "9,000"]),
        ([0, *(10**decade for decade in range(15))], "symlog", ["0", "1", "10³", "10⁶", "10⁹", "10¹²"]),
        (range(0, 1001, 100), "linear", None),
        ([0, 7], "linear", None),
    ],
)
def test_the_axis_of_steps_is_logarithmic_where_they_are(steps, scale, labels):
    axes = Figure().add_subplot()
    _step_axis(axes, np.array(steps, dtype=float))
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    assert low <= min(steps) < max(steps) <= high
    if labels:
        axes.figure.draw_without_rendering()
        assert [label.get_text() for label in axes.get_xticklabels()] == labels
