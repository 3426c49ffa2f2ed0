"""Paths of the features and their film, decision regions: their numbers as CSV and their pictures."""

from __future__ import annotations

import base64
import csv
import io
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from synaptome.report import group_runs, plane, write_report
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find
from synaptome.report.plane import class_colours, rgb, square
from synaptome.report.stability import _unit_circle

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def paths_of(frames=5, examples=80, width=4, seed=0):
    draw = np.random.default_rng(seed)
    return {
        "trajectory/time": np.linspace(0, 2, frames),
        "trajectory/points": np.cumsum(draw.normal(size=(frames, examples, 2)), 0).astype(np.float32),
        "trajectory/labels": np.sort(np.arange(examples) % 2),
        "trajectory/variance": np.array([0.6, 0.25]),
        "trajectory/width": np.array(width),
    }


def regions_of(rows=3, columns=6):
    """Two classes, of which the second has a corner of the plane."""
    classes = np.zeros((rows, columns), np.uint8)
    classes[0, 4:] = 1
    return {
        "regions/classes": classes,
        "regions/extent": np.array([[-3.0, 3.0], [-1.5, 1.5]]),
        "regions/examples": np.array([[0.0, 0.0], [2.0, -1.0], [-1.0, 1.0]], np.float32),
        "regions/labels": np.array([0, 1, 0]),
    }


@pytest.fixture
def flowing(finished, write_measures):
    """A finished run with what it kept of the plane."""

    def make(name, failure=0.0, **measures):
        run = finished(name, failure=failure)
        write_measures(run, "stability", None, measures)
        return run

    return make


def figures_of(*runs):
    return {figure.name: figure for figure in find(group_runs(runs)).figures}


def rows_of(name, *runs):
    return list(csv.reader(figures_of(*runs)[name].csv_text().splitlines()))


def drawn_of(panel):
    canvas = Figure()
    plane._draw(canvas, panel)
    return canvas.axes[0]


def test_paths_are_those_of_some_examples_and_the_film_has_all(flowing):
    kept = paths_of()
    run = flowing("a", **kept)
    for name, examples in (("trajectories", 40), ("trajectories-film", 80)):
        head, *rows = rows_of(name, run)
        assert head == ["group", "example", "class", "time", "first", "second"]
        assert len(rows) == examples * 5
        for _, example, label, time, *point in rows:
            index, frame = int(example) - 1, round(float(time) / 0.5)
            assert int(label) == kept["trajectory/labels"][index]
            np.testing.assert_array_equal(np.float32(point), kept["trajectory/points"][frame, index])
    chosen = {int(row[1]) for row in rows_of("trajectories", run)[1:]}
    assert sum(example <= 40 for example in chosen) == 20  # as many of each class


def test_a_class_is_one_line_with_gaps_in_its_colour(flowing):
    kept = paths_of(examples=6)
    (panel,) = figures_of(flowing("a", **kept))["trajectories"].panels
    first, second, *ends = drawn_of(panel).lines
    for label, line in enumerate((first, second)):
        assert to_hex(line.get_color()) == STAND_INS[f"c{label}"]
        x, y = line.get_data()
        own = kept["trajectory/points"][:, kept["trajectory/labels"] == label]
        assert np.isnan(x).sum() == 3
        np.testing.assert_array_equal(x[~np.isnan(x)], own[..., 0].T.ravel())
        np.testing.assert_array_equal(y[~np.isnan(y)], own[..., 1].T.ravel())
        np.testing.assert_array_equal(np.stack(ends[label].get_data(), 1), own[-1])


def test_axes_are_features_of_which_there_are_two_or_components(flowing):
    (panel,) = figures_of(flowing("a", **paths_of(width=2)))["trajectories"].panels
    assert panel.axes == ("first feature", "second feature")
    (panel,) = figures_of(flowing("b", **paths_of(width=3)))["trajectories"].panels
    assert panel.axes == ("first component (60 % of the variance)", "second component (25 % of the variance)")


def test_a_point_of_the_film_is_a_disc_where_its_example_is(flowing):
    kept = paths_of(frames=2, examples=2)
    kept["trajectory/points"] = np.array([[[-1, -1], [1, 1]], [[1, -1], [-1, 1]]], np.float32)
    figure = figures_of(flowing("a", **kept))["trajectories-film"]
    ((_, [(_, page)]),) = figure.drawings("")
    assert re.findall(r"<span>([^<]*)</span>", page) == ["t = 0", "t = 2"]
    assert "--frames: 2; --width: 280px; --height: 280px;" in page
    strip = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)", page)[1])))
    pixels = np.asarray(strip.convert("RGBA"))
    assert pixels.shape == (560, 280, 4)
    for frame, corners in enumerate((((0, 1), (1, 0)), ((1, 1), (0, 0)))):  # (right, down) of each example
        picture = pixels[280 * frame : 280 * (frame + 1)]
        for colour, (right, down) in zip((BLUE, ORANGE), corners, strict=True):
            places = np.argwhere((picture[..., :3] == colour).all(-1) & (picture[..., 3] == 255))
            assert len(places) == 37  # a disc with a diameter of 7
            # 4 % of the square away from its edges, with the first feature to the right and the second one up.
            np.testing.assert_allclose(places.mean(0), [265 if down else 14, 265 if right else 14], atol=2)
    assert (pixels[..., 3] == 0).sum() == 280 * 560 - 4 * 37  # the rest is the page


def test_a_film_is_small_and_has_a_gif(flowing, tmp_path):
    draw = np.random.default_rng(0)
    runs = []
    for index in range(3):
        kept = paths_of(41, 200)
        kept["trajectory/points"] = draw.normal(size=(41, 200, 2)).astype(np.float32)  # the worst case: no two alike
        runs.append(flowing(f"r{index}", index / 10, **kept))
    pages = [page for _, drawn in figures_of(*runs)["trajectories-film"].drawings("") for _, page in drawn]
    assert sum(map(len, pages)) < 600_000
    write_report(runs, tmp_path / "r.html")
    with Image.open(tmp_path / "r-data" / "trajectories-film.gif") as gif:
        assert gif.n_frames == 41
        assert gif.size == (3 * 280 + 4 * 16, 280 + 24 + 16)


def test_films_of_few_and_of_many_layers_end_together(flowing):
    runs = [flowing("a", **paths_of(5)), flowing("b", 0.5, **paths_of(3))]
    films = figures_of(*runs)["trajectories-film"].films
    assert [len(film.frames) for film in films] == [5, 5]
    assert films[1].names == ("t = 0", "t = 0", "t = 1", "t = 2", "t = 2")
    assert "trajectories-film" not in figures_of(flowing("c", **paths_of(1)))


def test_regions_are_told_square_by_square(flowing):
    head, *rows = rows_of("regions", flowing("a", **regions_of()))
    assert head == ["group", "what", "class", "first feature from", "to", "second feature"]
    numbers = [(row[1], int(row[2]), *map(float, row[3:])) for row in rows]
    assert numbers == [
        ("region", 0, -3, 1, -1),
        ("region", 1, 1, 3, -1),
        ("region", 0, -3, 3, 0),
        ("region", 0, -3, 3, 1),
        ("example", 0, 0, 0, 0),
        ("example", 1, 2, 2, -1),
        ("example", 0, -1, -1, 1),
    ]


def test_regions_cover_the_plane_and_part_in_the_middle_between_squares(flowing):
    (panel,) = figures_of(flowing("a", **regions_of()))["regions"].panels
    axes = drawn_of(panel)
    assert (axes.get_xlim(), axes.get_ylim()) == ((-3, 3), (-1.5, 1.5))
    first, second = axes.collections
    assert [to_hex(each.get_facecolor()[0][:3]) for each in (first, second)] == [STAND_INS["c0"], STAND_INS["c1"]]
    corner = second.get_paths()[0].vertices
    np.testing.assert_allclose(
        [corner.min(0), corner.max(0)], [[1, -1.5], [3, -0.5]], atol=0.01
    )  # x from 1, y up to -1/2
    rest = first.get_paths()[0].vertices
    np.testing.assert_allclose([rest.min(0), rest.max(0)], [[-3, -1.5], [3, 1.5]], atol=0.01)
    own, other = axes.lines
    np.testing.assert_array_equal(np.stack(own.get_data(), 1), [[0, 0], [-1, 1]])
    np.testing.assert_array_equal(np.stack(other.get_data(), 1), [[2, -1]])


def area_of(collection):
    """Of the polygons of a contour, holes taken off, by the shoelace formula."""
    total = 0.0
    for path in collection.get_paths():
        for x, y in (polygon.T for polygon in path.to_polygons()):
            total += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
    return abs(total)


@pytest.mark.parametrize("count", [2, 3])
def test_regions_leave_no_hole(flowing, count):
    kept = regions_of()
    kept["regions/classes"] = (np.add.outer(np.arange(12), np.arange(24)) % 2).astype(np.uint8)  # corners everywhere
    if count == 3:
        kept["regions/classes"][:4] = 2
    (panel,) = figures_of(flowing("a", **kept))["regions"].panels
    areas = [area_of(each) for each in drawn_of(panel).collections]
    assert len(areas) == count
    assert sum(areas) == pytest.approx(18, rel=0.03)  # where three classes meet a little is left out


def test_drawings_have_the_shape_of_their_plane(flowing):
    ((_, [(_, svg)]),) = figures_of(flowing("a", **regions_of()))["regions"].drawings("")
    assert 'viewBox="0 0 360 200"' in svg  # half as high as wide, besides the labels
    assert "Decision regions" in svg


@pytest.mark.parametrize("kept", [paths_of(), regions_of()])
def test_what_is_missing_or_does_not_fit_is_passed_over(flowing, kept):
    everything = set(figures_of(flowing("whole", **kept)))
    for index, key in enumerate(kept):
        some = {name: values for name, values in kept.items() if name != key}
        assert not everything & set(figures_of(flowing(f"without-{index}", **some)))
    for index, key in enumerate(name for name in kept if name.endswith(("time", "labels", "examples", "extent"))):
        shorter = kept | {key: kept[key][:-1]}
        assert not everything & set(figures_of(flowing(f"shorter-{index}", **shorter)))


@pytest.mark.parametrize("labels", [[0, 11], [0.5, 1.0], [0, 10**9]])
def test_labels_that_are_no_classes_are_passed_over(flowing, labels):
    assert not figures_of(flowing("a", **paths_of(examples=2) | {"trajectory/labels": np.array(labels)}))


def test_classes_beyond_the_colours_are_passed_over(flowing):
    kept = regions_of()
    kept["regions/classes"][0, 0] = 11
    assert not figures_of(flowing("a", **kept))


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e30])
def test_unlikely_numbers_can_be_drawn(flowing, tmp_path, value):
    kept = paths_of() | {"trajectory/points": np.full((5, 80, 2), value)}
    page = write_report([flowing("a", **kept)], tmp_path / "r.html").read_text()
    assert "Paths of the features through time, as a film" in page


def test_a_square_holds_the_points_and_has_a_side_even_around_one():
    x, y = np.array([0.0, 4.0]), np.array([1.0, 2.0])
    assert square(x, y) == ((2 - 2.16, 2 + 2.16), (1.5 - 2.16, 1.5 + 2.16))
    assert square(np.zeros(3), np.zeros(3)) == ((-0.5, 0.5), (-0.5, 0.5))
    (left, right), _ = square(np.full(3, 100.0), np.full(3, 1.0))
    assert (left, right) == (95, 105)


def test_the_unit_circle_is_whole_where_it_is_inside_and_an_arc_where_it_is_near():
    x, y = _unit_circle(((-2.0, 2.0), (-2.0, 2.0)))
    np.testing.assert_allclose(np.hypot(x, y), 1)
    assert np.ptp(np.unwrap(np.arctan2(y, x))) == pytest.approx(2 * np.pi)
    x, y = _unit_circle(((0.9, 1.1), (-0.1, 0.1)))
    seen = np.isfinite(x)
    assert seen.sum() > 500
    assert np.abs(y[seen]).max() == pytest.approx(0.16, rel=0.01)
    assert np.isnan(_unit_circle(((10.0, 11.0), (0.0, 1.0)))[0]).all()


def test_classes_have_colours_of_their_own():
    for count in range(1, 12):
        assert len(set(class_colours(count))) == count
    assert rgb("c0") == bytes(BLUE)
    assert rgb("s10") == bytes.fromhex("f9983e")
