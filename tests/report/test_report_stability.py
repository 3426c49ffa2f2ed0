"""The figures of stability: eigenvalues, curves over depth and noise, against what was measured."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from synaptome.report import group_runs, plane, write_report
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find

TIMES = np.linspace(0, 8, 5)


def final_of(seed=0, layers=4, examples=3, energy=True):
    """Measures such as those of a trained network with a state of two numbers."""
    draw = np.random.default_rng(seed)
    found = {
        "jacobian/time": np.arange(layers) * 2.0,
        "jacobian/eigenvalues": draw.normal(size=(layers, 2 * examples, 2)).astype(np.float32),
        "jacobian/abscissa": draw.normal(size=(layers, examples)),
        "gradient/time": TIMES,
        "gradient/norms": np.exp(draw.normal(size=5)),
    }
    if energy:
        found |= {"energy/time": TIMES, "energy/total": draw.normal(size=5), "energy/steps": draw.normal(size=5)}
    return found


@pytest.fixture
def stable(finished, write_measures):
    """A finished run with measures of its stability."""

    def make(name, seed=0, failure=0.0, **options):
        run = finished(name, seed, failure)
        final = final_of(seed + round(100 * failure), **options)
        write_measures(run, "stability", None, final)
        return run, final

    return make


def figures_of(*runs):
    return {figure.name: figure for figure in find(group_runs(runs)).figures}


def rows_of(name, *runs):
    return list(csv.reader(figures_of(*runs)[name].csv_text().splitlines()))


def line_of(name, group, *runs):
    """x and the rest of the numbers of the line of a group."""
    head, *rows = rows_of(name, *runs)
    assert head[:4] == ["group", "panel", "line", "time"]
    return np.array([[float(number) for number in row[3:]] for row in rows if row[2] == group]).T


def test_eigenvalues_are_those_that_were_measured(stable):
    (one, first), (other, second) = stable("a"), stable("b", failure=0.5)
    head, *rows = rows_of("eigenvalues", one, other)
    assert head == ["group", "time", "real", "imaginary"]
    for group, final in (("failure=0.0", first), ("failure=0.5", second)):
        drawn = np.array([[float(number) for number in row[1:]] for row in rows if row[0] == group])
        np.testing.assert_array_equal(drawn[:, 0], np.repeat(final["jacobian/time"], 6))
        np.testing.assert_array_equal(drawn[:, 1:].astype(np.float32), final["jacobian/eigenvalues"].reshape(-1, 2))


def drawn_of(panel):
    """The axes of a panel as matplotlib has them."""
    canvas = Figure()
    plane._draw(canvas, panel)
    return canvas.axes[0]


def test_eigenvalues_are_drawn_in_the_shade_of_their_layer_around_the_unit_circle(stable):
    run, final = stable("a")
    (panel,) = figures_of(run)["eigenvalues"].panels
    axes = drawn_of(panel)
    circle, *layers = axes.lines
    x, y = circle.get_data()
    seen = np.isfinite(x)
    np.testing.assert_allclose(np.hypot(x[seen], y[seen]), 1)
    assert seen.sum() > 100
    for line, own in zip(layers, final["jacobian/eigenvalues"], strict=True):
        np.testing.assert_array_equal(np.stack(line.get_data(), 1), own)
    assert [to_hex(line.get_color()) for line in layers] == [STAND_INS[f"s{shade}"] for shade in (0, 3, 7, 10)]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(top - bottom)
    reals, imaginaries = np.moveaxis(final["jacobian/eigenvalues"], 2, 0)
    assert left < reals.min() < reals.max() < right
    assert bottom < imaginaries.min() < imaginaries.max() < top


def test_many_eigenvalues_are_thinned_and_a_circle_nearby_is_seen(finished, write_measures):
    run = finished("a")
    values = [1, 0] + 1e-4 * np.random.default_rng(0).normal(size=(9, 500, 2))
    write_measures(run, "stability", None, {"jacobian/time": np.arange(9.0), "jacobian/eigenvalues": values})
    (panel,) = figures_of(run)["eigenvalues"].panels
    circle, *layers = drawn_of(panel).lines
    assert sum(len(line.get_xdata()) for line in layers) <= 600
    x, y = circle.get_data()
    inside = (np.abs(x - 1) < 1e-4) & (np.abs(y) < 1e-4)
    assert inside.sum() > 20
    assert np.isfinite(x).sum() < 1000  # of all of the circle only what is near
    assert len(rows_of("eigenvalues", run)) == 1 + 9 * 500


def test_the_abscissa_is_the_largest_over_examples_with_a_range_over_seeds(stable):
    runs = [stable(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in (0, 1, 2)]
    for failure in (0.0, 0.5):
        group = f"failure={failure}"
        largest = [final["jacobian/abscissa"].max(1) for run, final in runs if run.path.name.startswith(str(failure))]
        x, mean, low, high = line_of("abscissa", group, *(run for run, _ in runs))
        np.testing.assert_array_equal(x, [0, 2, 4, 6])
        np.testing.assert_allclose(mean, np.mean(largest, 0), atol=1e-6)
        np.testing.assert_allclose([low, high], [np.min(largest, 0), np.max(largest, 0)], atol=1e-6)


def test_an_abscissa_of_rounding_errors_is_0(finished, write_measures):
    run = finished("a")
    tiny = np.array([[1e-16], [-3e-17], [2e-9]])
    write_measures(run, "stability", None, {"jacobian/time": np.arange(3.0), "jacobian/abscissa": tiny})
    assert line_of("abscissa", "failing", run)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "key"), [("gradients", "gradient/norms"), ("energy", "energy/total"), ("energy-steps", "energy/steps")]
)
def test_curves_over_depth_are_what_was_measured(stable, name, key):
    run, final = stable("a")
    x, y = line_of(name, "failing", run)
    np.testing.assert_array_equal(x, TIMES)
    np.testing.assert_array_equal(y, final[key])


def test_the_legend_tells_the_ratio_of_the_gradients(stable):
    run, final = stable("a")
    norms = final["gradient/norms"]
    assert f"failing, last / first {norms[-1] / norms[0]:.3g}" in figures_of(run)["gradients"].legend()


def test_gradients_that_are_0_can_be_drawn(finished, write_measures, tmp_path):
    run = finished("a")
    write_measures(run, "stability", None, {"gradient/time": TIMES, "gradient/norms": np.zeros(5)})
    assert "last / first" not in figures_of(run)["gradients"].legend()
    assert "Gradient norm over depth" in write_report([run], tmp_path / "r.html").read_text()


def test_colours_are_those_of_the_groups_on_the_page(stable, finished, write_measures):
    runs = [finished("none"), stable("b", failure=0.5)[0], stable("c", failure=0.7)[0]]
    write_measures(runs[1], "noise", None, {"std": [0.0, 0.1], "accuracy": [[1.0], [0.5]]})
    (row,) = figures_of(*runs)["gradients"].rows
    assert [line.look.colour for line in row.lines] == ["c1", "c2"]
    (curve,) = figures_of(*runs)["noise-accuracy"].chart.curves
    assert curve.group == 1


def test_noise_is_drawn_over_seeds(finished, write_measures):
    runs = [finished(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in (0, 1)]
    accuracies = [0.9, 0.8, 0.7, 0.6]
    for run, accuracy in zip(runs, accuracies, strict=True):
        measured = {
            "std": [0.0, 0.25],
            "accuracy": [[1.0, 1.0], [accuracy, accuracy - 0.1]],
            "change": [[0.0, 0.0], [1 - accuracy, 1 - accuracy]],
        }
        write_measures(run, "noise", None, measured)
    head, *rows = rows_of("noise-accuracy", *runs)
    assert head == ["group", "split", "standard deviation of the noise", "mean", "std", "n", "min", "max"]
    numbers = [float(number) for number in rows[1][2:]]
    assert numbers == pytest.approx([0.25, 0.8, np.std([0.85, 0.75], ddof=1), 2, 0.75, 0.85])
    assert [float(number) for number in rows[3][2:]][1] == pytest.approx(0.6)
    change = [float(row[3]) for row in rows_of("noise-change", *runs)[1:]]
    assert change == pytest.approx([0, 0.15, 0, 0.35])
    assert "minimum to maximum over seeds" in figures_of(*runs)["noise-accuracy"].legend()


def test_what_is_missing_or_of_another_length_is_passed_over(stable, finished, write_measures, tmp_path):
    _, final = stable("whole")
    everything = set(figures_of(stable("again")[0]))
    assert everything == {"eigenvalues", "abscissa", "gradients", "energy", "energy-steps"}
    for index, key in enumerate(final):
        for change in ("gone", "shorter"):
            run = finished(f"{change}-{index}")
            some = dict(final)
            if change == "gone":
                del some[key]
            else:
                some[key] = some[key][:-1]
            write_measures(run, "stability", None, some)
            drawn = find(group_runs([run])).figures
            assert everything > {figure.name for figure in drawn}
            assert all(figure.csv_text().count("\n") > 1 for figure in drawn)
    noisy = finished("noisy")
    write_measures(noisy, "noise", None, {"std": [0.0, 0.1], "accuracy": [[1.0]], "change": np.ones((2, 0))})
    assert not {"noise-accuracy", "noise-change"} & set(figures_of(noisy))


def test_what_cannot_be_drawn_is_told(finished, write_measures, tmp_path):
    run = finished("a")
    odd = {
        "jacobian/eigenvalues": np.ones((2, 2, 3)),
        "jacobian/abscissa": np.ones(3),
        "gradient/norms": [1.0, -1.0],
        "energy/total": [1.0, np.nan],
    }
    write_measures(run, "stability", None, odd)
    write_measures(run, "noise", None, {"std": [-0.1], "accuracy": [[0.5]]})
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text()
    assert sorted(problem.partition("measures: ")[2] for problem in told) == [
        "energy/total holds numbers that are not finite, or beyond 1e+100, and is not drawn",
        "gradient/norms holds numbers below 0, and is not drawn",
        "jacobian/abscissa has 1 axes where 2 are expected, and is not drawn",
        "jacobian/eigenvalues has 3 entries, not 2, and is not drawn",
        "std holds numbers below 0, and is not drawn",
    ]
    assert page.count("Damaged:") == len(told)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-300, 1e99])
def test_unlikely_numbers_can_be_drawn(finished, write_measures, tmp_path, value):
    run = finished("odd")
    filled = {key: np.full(values.shape, value) for key, values in final_of().items()}
    write_measures(run, "stability", None, filled)
    assert "Eigenvalues of the Jacobians" in write_report([run], tmp_path / "r.html").read_text()
