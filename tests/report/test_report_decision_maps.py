"""The figure of decision maps, against what was measured."""

import csv
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from synaptome.report import group_runs, write_report
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find
from synaptome.report.pictures import LEVELS, STRONGEST, paint, strengths

SIDE = 11
PATTERNS = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])


def maps_of(seed=0, one_hot=False):
    draw = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    maps = np.stack([np.clip(draw.uniform(0.4, 1) * x + draw.uniform(-0.3, 0.3) * y, 0, 1) for _ in range(2)])
    return {
        "decision/maps": (2 * maps - 1 if one_hot else maps).astype(np.float32),
        "decision/seeds": np.array([20, 21]),
        "decision/mean": maps.mean(0).astype(np.float32),
        "decision/networks": np.array(7),
        "decision/threshold": np.array(0.0 if one_hot else 0.5),
        "decision/patterns": PATTERNS,
        "decision/labels": np.array([0, 0, 1, 1]),
    }


@pytest.fixture
def mapped(finished, write_measures):
    def make(name, failure=0.0, **options):
        run, final = finished(name, 0, failure), maps_of(**options)
        write_measures(run, "equilibria", None, final)
        return run, final

    return make


def figure_of(*runs):
    found = find(group_runs(runs))
    assert not found.problems
    return {figure.name: figure for figure in found.figures}["decision-maps"]


def test_the_data_are_the_maps(mapped):
    run, final = mapped("a")
    head, *rows = csv.reader(io.StringIO(figure_of(run).csv_text()))
    assert head[:5] == ["group", "picture", "second input", "first input 0.0", "first input 0.1"]
    titles = list(dict.fromkeys(row[1] for row in rows))
    assert titles == ["network of seed 20", "network of seed 21", "mean of 7 networks"]
    for title, expected in zip(titles, [*final["decision/maps"], final["decision/mean"]], strict=True):
        own = np.array([[float(cell) for cell in row[2:]] for row in rows if row[1] == title])
        np.testing.assert_allclose(own[:, 0], np.linspace(0, 1, SIDE))
        np.testing.assert_array_equal(own[:, 1:].astype(np.float32), expected)


def opacity_at(axes, x, y):
    """Of each colour, what all areas together leave uncovered, subtracted from 1."""
    left = {}
    for area in axes.collections:
        fill = area.get_facecolor()
        if len(fill) and any(path.contains_point((x, y)) for path in area.get_paths()):
            colour = to_hex(fill[0])
            left[colour] = left.get(colour, 1) * (1 - area.get_alpha())
    return {colour: 1 - rest for colour, rest in left.items()}


def drawn_of(picture):
    canvas = Figure()
    picture.draw(canvas)
    return canvas.axes[0]


@pytest.mark.parametrize("one_hot", [False, True])
def test_areas_are_as_strong_as_what_is_away_from_the_threshold(mapped, one_hot):
    run, final = mapped("a", one_hot=one_hot)
    ((_, (picture,)), *_) = figure_of(run).pictures
    axes = drawn_of(picture)
    values = final["decision/maps"][0]
    away = values if one_hot else 2 * values - 1
    seen = set()
    for row, column in [(1, 1), (5, 3), (9, 9), (2, 8), (6, 6)]:
        level = int(strengths(away[row, column]))
        found = opacity_at(axes, column / (SIDE - 1), row / (SIDE - 1))
        colour, opacity = paint(level)
        assert found == ({STAND_INS[colour]: pytest.approx(opacity)} if level else {})
        seen.add(np.sign(level))
    assert {-1, 1} <= seen


def test_the_line_is_where_the_prediction_changes(mapped):
    run, final = mapped("a")
    ((_, (picture,)), *_) = figure_of(run).pictures
    lines = [each for each in drawn_of(picture).collections if len(each.get_edgecolor())]
    (line,) = [each for each in lines if to_hex(each.get_edgecolor()[0]) == STAND_INS["ink"]]
    points = np.concatenate([path.vertices for path in line.get_paths()])
    values = final["decision/maps"][0].astype(float)
    a, b = values[0, 1] / 0.1, (values[1, 5] - values[0, 5]) / 0.1  # the map is a plane there
    np.testing.assert_allclose(a * points[:, 0] + b * points[:, 1], 0.5, atol=1e-5)


def test_points_have_the_colour_that_they_should_have(mapped):
    run, _ = mapped("a")
    ((_, (picture,)), *_) = figure_of(run).pictures
    no, yes = drawn_of(picture).lines
    assert [to_hex(dots.get_markerfacecolor()) for dots in (no, yes)] == [STAND_INS["c1"], STAND_INS["c0"]]
    np.testing.assert_array_equal(np.stack(yes.get_data(), 1), PATTERNS[2:])
    np.testing.assert_array_equal(np.stack(no.get_data(), 1), PATTERNS[:2])


def test_a_map_without_a_change_has_no_line_and_can_be_drawn(finished, write_measures, tmp_path):
    run, final = finished("a"), maps_of()
    final["decision/maps"][:] = 0.75
    write_measures(run, "equilibria", None, final)
    ((_, (picture,)), *_) = figure_of(run).pictures
    assert opacity_at(drawn_of(picture), 0.3, 0.7) == {STAND_INS["c0"]: pytest.approx(STRONGEST * 5 / LEVELS)}
    assert "Decision maps" in write_report([run], tmp_path / "r.html").read_text()


def test_groups_stand_side_by_side(mapped):
    runs = [mapped(f"{failure}", failure, seed=round(failure))[0] for failure in (0.0, 0.5)]
    figure = figure_of(*runs)
    assert [[label for label, _ in row] for _, row in figure.drawings("p")] == [["failure=0.0", "failure=0.5"]] * 3


def test_the_scale_says_what_it_is_of(mapped):
    assert "<span>0.5</span>" in figure_of(mapped("a")[0]).legend()
    one_hot = figure_of(mapped("b", one_hot=True)[0])
    assert "<span>-1</span>" in one_hot.legend()
    assert "second output less the first" in one_hot.note
    mixed = figure_of(mapped("c")[0], mapped("d", failure=0.5, one_hot=True)[0])
    assert "<span>0.5</span>" not in mixed.legend()


def test_what_does_not_fit_is_passed_over(finished, write_measures):
    run, final = finished("a"), maps_of()
    final["decision/seeds"] = np.array([20])
    write_measures(run, "equilibria", None, final)
    assert "decision-maps" not in {figure.name for figure in find(group_runs([run])).figures}
