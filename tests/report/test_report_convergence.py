"""The figures of how populations converge, against the errors that were recorded."""

import csv
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from synaptome.report import group_runs, write_report
from synaptome.report.band_figures import BandFigure, BandPanel, _draw
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find


@pytest.fixture
def population(finished, write_measures):
    """A finished run of 5 networks over 8 epochs, of which the last one diverges in epoch 4."""

    def make(name, seed=0, failure=0.0):
        run = finished(name, seed, failure)
        draw = np.random.default_rng(seed)
        error = draw.uniform(0.1, 0.5, (9, 5))
        right = draw.choice([0.5, 1.0], (9, 5))
        finite = np.ones((9, 5))
        finite[4:, 4] = 0
        error[0] = right[0] = 0
        write_measures(run, "networks", {"step": np.arange(9), "error": error, "right": right, "finite": finite})
        return run, error, right

    return make


def figures_of(*runs):
    found = find(group_runs(runs))
    assert not found.problems
    return {figure.name: figure for figure in found.figures}


def rows_of(figure):
    head, *rows = csv.reader(io.StringIO(figure.csv_text()))
    return head, rows


def test_bands_are_those_of_the_finite_networks_of_all_runs(population):
    runs, errors, _ = zip(*(population(f"r{seed}", seed) for seed in range(3)), strict=True)
    head, rows = rows_of(figures_of(*runs)["network-errors"])
    assert head == [
        *("group", "epoch", "networks", "mean"),
        *("minimum", "first quartile", "median", "third quartile", "maximum"),
    ]
    assert [int(row[1]) for row in rows] == list(range(1, 9))
    for row in rows:
        epoch = int(row[1])
        seen = np.sort(np.concatenate([error[epoch, : 4 if epoch >= 4 else 5] for error in errors]))
        assert int(row[2]) == len(seen) == (12 if epoch >= 4 else 15)
        assert float(row[3]) == pytest.approx(sum(seen) / len(seen))
        assert (float(row[4]), float(row[8])) == (seen[0], seen[-1])
        if len(seen) == 15:  # quartiles at positions 3.5, 7 and 10.5
            expected = [(seen[3] + seen[4]) / 2, seen[7], (seen[10] + seen[11]) / 2]
            assert [float(cell) for cell in row[5:8]] == pytest.approx(expected)


def test_the_share_counts_diverged_networks_as_wrong_and_has_a_range_over_runs(population):
    runs, _, rights = zip(*(population(f"r{seed}", seed) for seed in range(3)), strict=True)
    shares = []
    for right in rights:
        counted = right == 1
        counted[4:, 4] = False
        shares.append(counted[1:].sum(1) / 5)
    _, rows = rows_of(figures_of(*runs)["network-shares"])
    told = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_allclose(told.T, [np.arange(1, 9), np.mean(shares, 0), np.min(shares, 0), np.max(shares, 0)])


def test_groups_have_panels_of_their_own(population, tmp_path):
    runs = [population(f"{failure}", 0, failure)[0] for failure in (0.0, 0.5)]
    figures = figures_of(*runs)
    assert [panel.group for panel in figures["network-errors"].panels] == ["failure=0.0", "failure=0.5"]
    looks = {line.name: line.look.colour for line in figures["network-shares"].lines}
    assert looks == {"failure=0.0": "c0", "failure=0.5": "c1"}
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert page.count('aria-label="Mean squared error of the networks') == 2


def test_an_epoch_without_a_finite_network_is_left_out(finished, write_measures):
    run = finished("r")
    finite = np.array([[1, 1], [1, 0], [0, 0]])
    write_measures(
        run, "networks", {"step": np.arange(3), "error": np.ones((3, 2)), "right": np.ones((3, 2)), "finite": finite}
    )
    figures = figures_of(run)
    assert [row[1:3] for row in rows_of(figures["network-errors"])[1]] == [["1", "1"]]
    assert [row[4] for row in rows_of(figures["network-shares"])[1]] == ["0.5", "0.0"]


def test_a_run_without_an_epoch_has_no_such_figures(finished, write_measures):
    run = finished("r")
    series = {"step": np.zeros(1, int), "error": np.zeros((1, 2)), "right": np.zeros((1, 2)), "finite": np.ones((1, 2))}
    write_measures(run, "networks", series)
    assert not figures_of(run)


def test_damage_is_told_by_name(population):
    run, *_ = population("r")
    (file, *_) = sorted((run.path / "measures" / "networks").glob("*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = find(group_runs([run]))
    assert file.name in found.problems[0]
    assert not found.themes


def drawn_of(figure):
    canvas = Figure()
    _draw(canvas, figure, figure.panels[0])
    return canvas.axes[0]


def test_what_is_drawn_is_what_was_measured():
    values = np.array([[1.0, 2, 4, 8, np.nan], [2, 4, 6, 100, 102], [3, 3, 3, 3, 3]])
    figure = BandFigure("f", "f", (BandPanel("g", np.array([1, 2, 3]), values),), "epoch", "networks", mean=True)
    axes = drawn_of(figure)
    median, mean = axes.lines
    np.testing.assert_allclose(median.get_ydata(), [3, 6, 3])
    np.testing.assert_allclose(mean.get_ydata(), [3.75, 42.8, 3])
    assert [to_hex(line.get_color()) for line in axes.lines] == [STAND_INS["c0"], STAND_INS["ink"]]
    edges = [band.get_paths()[0].vertices for band in axes.collections]
    for corners, lows, highs in zip(edges, ([1, 2, 3], [1.75, 4, 3]), ([8, 102, 3], [5, 100, 3]), strict=True):
        for x, low, high in zip((1, 2, 3), lows, highs, strict=True):
            own = corners[corners[:, 0] == x][:, 1]
            assert (own.min(), own.max()) == (low, high)


def test_on_a_logarithmic_axis_a_median_of_0_is_a_gap():
    values = np.array([[1.0, 2, 3], [0, 0, 1], [0, 1e-3, 1]])
    figure = BandFigure("f", "f", (BandPanel("g", np.arange(3), values),), "step", "patterns", "log")
    axes = drawn_of(figure)
    (median,) = axes.lines
    np.testing.assert_array_equal(median.get_ydata(), [2, np.nan, 1e-3])
    assert figure.heading == "f (log scale)"
    assert all((band.get_paths()[0].vertices[:, 1] > 0).all() for band in axes.collections)
