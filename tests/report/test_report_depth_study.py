"""The study of depth: which runs make a line, what its points are, and how runs without a result are told."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure

from synaptome.report import depth_study, group_runs, write_report
from synaptome.report.measures import find


@pytest.fixture
def deep(make_run):
    """A run of a network of some depth; without an accuracy it came to no end."""

    def make(name, depth, accuracy, seed=0, dynamics="verlet", **options):
        summary = None if accuracy is None else {"test/accuracy": accuracy, "test/loss": 0.1}
        return make_run(name, [], summary, {"dynamics": dynamics, "depth": depth, **options}, "stable", seed)

    return make


def study_of(*runs):
    (figure,) = depth_study.depth_study(group_runs(runs))
    return figure


def rows_of(*runs):
    head, *rows = csv.reader(study_of(*runs).csv_text().splitlines())
    assert head == ["group", "depth", "mean", "min", "max", "n", "without a result"]
    return [(row[0], *(float(cell) if cell else None for cell in row[1:])) for row in rows]


def test_a_line_for_each_dynamics_has_the_mean_and_range_over_seeds_at_each_depth(deep):
    runs = [
        deep(f"{dynamics}-{depth}-{seed}", depth, 0.9 - 0.1 * seed - 0.001 * depth, seed, dynamics)
        for depth in (64, 4, 16)
        for dynamics in ("euler", "verlet")
        for seed in (0, 1, 2)
    ]
    expected = [
        (f"dynamics={dynamics}", depth, *(pytest.approx(value - 0.001 * depth) for value in (0.8, 0.7, 0.9)), 3, 0)
        for dynamics in ("euler", "verlet")
        for depth in (4, 16, 64)
    ]
    assert rows_of(*runs) == expected


def test_runs_without_a_result_are_counted_and_marked(deep):
    runs = [deep("a", 4, 0.9), deep("b", 16, None), deep("c", 16, 0.8, 1), deep("d", 64, None), deep("e", 64, None, 1)]
    assert rows_of(*runs) == [
        ("stable", 4, 0.9, 0.9, 0.9, 1, 0),
        ("stable", 16, 0.8, 0.8, 0.8, 1, 1),
        ("stable", 64, None, None, None, 0, 2),
    ]
    legend = study_of(*runs).legend()
    assert "a run without a result" in legend
    assert "over seeds" not in legend
    assert "without" not in study_of(*runs[:1], runs[2]).legend()


def test_crosses_stand_at_the_bottom_and_apart_from_one_another_and_from_the_lines(deep):
    runs = [
        deep(f"{dynamics}-{depth}", depth, None if depth == 64 and dynamics != "verlet" else 0.5, dynamics=dynamics)
        for dynamics in ("euler", "leapfrog", "verlet")
        for depth in (4, 64)
    ]
    figure, canvas = study_of(*runs), Figure()
    depth_study._draw(canvas, figure, figure._looks)
    (axes,) = canvas.axes
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[64], [64]]
    heights = [line.get_ydata()[0] for line in crosses]
    assert 0 < heights[0] < heights[1] - 0.03
    bottom, top = axes.get_ylim()
    assert bottom + heights[1] * (top - bottom) < 0.5
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "64"]


def test_the_band_and_the_line_are_what_is_drawn(deep):
    runs = [deep(f"{depth}-{seed}", depth, 0.9 - 0.1 * seed, seed) for depth in (4, 8) for seed in (0, 1)]
    figure, canvas = study_of(*runs), Figure()
    depth_study._draw(canvas, figure, figure._looks)
    (axes,) = canvas.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[4, 0.85], [8, 0.85]])
    corners = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [[4, 0.8], [8, 0.9]])


def test_levels_double_the_depth(deep):
    runs = [deep("a", 16, 0.9, levels=1), deep("b", 16, 0.8, levels=3), deep("c", 8, 0.7, levels=2)]
    assert [(row[1], row[2], row[5]) for row in rows_of(*runs)] == [(16, pytest.approx(0.8), 2), (64, 0.8, 1)]


def test_lines_are_told_apart_by_all_that_differs(deep):
    runs = [
        deep(f"{dynamics}-{width}-{depth}", depth, 0.9, dynamics=dynamics, width=width, time=10)
        for dynamics, width in (("euler", 4), ("verlet", 4), ("verlet", 8))
        for depth in (4, 8)
    ]
    labels = list(dict.fromkeys(row[0] for row in rows_of(*runs)))
    assert labels == ["dynamics=euler, width=4", "dynamics=verlet, width=4", "dynamics=verlet, width=8"]


def test_without_several_depths_or_any_result_there_is_no_study(deep, finished):
    assert depth_study.depth_study(group_runs([deep("a", 4, 0.9), deep("b", 4, 0.8, 1)])) == []
    assert depth_study.depth_study(group_runs([deep("c", 4, None), deep("d", 8, None)])) == []
    assert depth_study.depth_study(group_runs([finished("e"), finished("f", failure=0.5)])) == []
    for name, (one, other) in {"none": (None, 4), "text": ("4", 8), "zero": (0, 4)}.items():
        assert depth_study.depth_study(group_runs([deep(f"{name}-1", one, 0.9), deep(f"{name}-2", other, 0.9)])) == []


def test_the_study_is_on_the_page(deep, tmp_path):
    runs = [deep("a", 4, 0.9), deep("b", 1024, 0.8), deep("c", 1024, None, 1)]
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert "Test accuracy against depth" in page
    assert "its loss stopped being finite" in page
    assert (tmp_path / "r-data" / "depth-study.csv").read_text() == find(group_runs(runs)).figures[0].csv_text()
