"""The figures of connections: their numbers as CSV, the film's pictures, against what was measured."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import defaultdict
from importlib import resources

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn

import synaptome as syn
from synaptome.analysis.wiring import Connections
from synaptome.report import group_runs, write_report
from synaptome.report.film import MOST_FRAMES, Film, FilmFigure
from synaptome.report.measures import find

SHAPE = (2, 6, 8)


def evolved(seed=0, snapshots=9, evolve=True, **options):
    """Series and final measures of a network whose connections change, and its layers at the end."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), syn.SparseLinear(96, 40, nnz=600), nn.ReLU(), syn.SparseLinear(40, 10, nnz=90))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = syn.Evolution(model, optimizer, track_visited=True, seed=seed, **options)
    connections = Connections(model, SHAPE, evolution)
    rows = []
    for step in range(snapshots):
        rows.append({"step": torch.tensor(10 * step), **connections.snapshot(model)})
        optimizer.zero_grad()
        model(torch.randn(16, *SHAPE)).square().mean().backward()
        optimizer.step()
        if evolve:
            evolution.step()
    series = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
    return series, {key: np.asarray(tensor) for key, tensor in connections.final(model).items()}


@pytest.fixture
def grown(finished, write_measures):
    """A finished run whose connections changed, with its series and final measures."""

    def make(name, seed=0, failure=0.0, **options):
        run = finished(name, seed, failure)
        series, final = evolved(seed, **options)
        write_measures(run, "connections", series, final)
        return run, series, final

    return make


def figure_of(name, *runs):
    return next(figure for figure in find(group_runs(runs)).figures if figure.name == name)


def names_of(*runs):
    return [figure.name for figure in find(group_runs(runs)).figures]


def rows_of(name, *runs):
    return list(csv.reader(figure_of(name, *runs).csv_text().splitlines()))[1:]


def lines_of(name, *runs):
    lines = defaultdict(list)
    for group, panel, line, x, value in rows_of(name, *runs):
        lines[group, panel, line].append((float(x), float(value)))
    return {key: np.array(points).T for key, points in lines.items()}


def maps_of(name, *runs):
    maps = defaultdict(list)
    for group, panel, _, *values in rows_of(name, *runs):
        maps[group, panel].append(values)
    return {key: np.array(rows, dtype=float) for key, rows in maps.items()}


def test_maps_are_the_connections_of_each_pixel_in_the_first_the_last_and_some_snapshots(grown):
    run, series, _ = grown("a")
    drawn = maps_of("connections", run)
    assert [step for _, step in drawn] == [f"step {10 * index}" for index in (0, 2, 3, 5, 6, 8)]
    for (_, step), values in drawn.items():
        np.testing.assert_array_equal(values, series["input/connections"][int(step.split()[1]) // 10].mean(0))
    figure = figure_of("connections", run)
    pixels = series["input/connections"].mean(1)
    assert (figure.low, figure.high) == (pixels.min(), pixels.max())
    assert "channels" in figure.note


def test_the_pictures_of_the_film_are_the_maps_in_their_colours(grown):
    run, series, _ = grown("a")
    figure = figure_of("connections-film", run)
    assert [step for _, step in maps_of("connections-film", run)] == [f"step {10 * index}" for index in range(9)]
    ((_, [(_, page)]),) = figure.drawings("")
    assert re.findall(r"<span>([^<]*)</span>", page) == [f"step {10 * index}" for index in range(9)]
    strip = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)", page)[1]))).convert("RGB")
    assert strip.size == (8, 6 * 9)
    assert "--frames: 9; --width: 280px; --height: 210px;" in page
    pixels = series["input/connections"].mean(1).reshape(-1, 8)
    share = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    expected = colormaps["viridis"](share)[..., :3] * 255
    assert np.abs(np.asarray(strip) - expected).max() < 255 / 64 * 2  # colours of 64 levels


def test_the_gif_beside_the_page_has_the_same_frames_and_names_the_step(tmp_path, grown):
    runs = [grown("a")[0], grown("b", failure=0.5, snapshots=4)[0]]
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert "r-data/connections-film.gif</a>" in page
    labels, colours, times = set(), [], []
    with Image.open(tmp_path / "r-data" / "connections-film.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (9, 0)
        for index in range(9):
            gif.seek(index)
            frame = np.asarray(gif.convert("RGB"))
            labels.add(frame[:24, :120].tobytes())
            colours.append(frame[24 + 8, 16 + 8].tolist())  # inside the first pixel, which is 17 wide
            times.append(gif.info["duration"])
    assert len(labels) == 9
    assert times[:8] == [160] * 8
    assert times[8] > 400
    first = figure_of("connections-film", *runs)
    values = np.array([each.values[0, 0] for each in first.table.panels[0].maps])
    expected = colormaps["viridis"]((values - first.table.low) / (first.table.high - first.table.low))[:, :3] * 255
    assert np.abs(np.array(colours) - expected).max() < 8


def test_a_film_with_fewer_snapshots_shows_them_longer(grown):
    runs = [grown("a")[0], grown("b", failure=0.5, snapshots=4)[0]]
    films = figure_of("connections-film", *runs).films
    assert [len(film.frames) for film in films] == [9, 9]
    assert films[1].names == tuple(f"step {step}" for step in (0, 0, 10, 10, 20, 20, 20, 30, 30))


def test_films_stay_small_whatever_they_show():
    noise = np.random.default_rng(0)

    def film(frames, side):
        names = tuple(map(str, range(frames)))
        return Film("", names, noise.random((frames, side, side)))

    (figure,) = FilmFigure.of("film", "", [film(500, 28) for _ in range(6)], 0.0, 1.0)
    pages = [page for _, drawn in figure.drawings("") for _, page in drawn]
    assert len(pages) == 6
    assert 150_000 < sum(map(len, pages)) < 200_000
    assert (figure.films[0].names[0], figure.films[0].names[-1]) == ("0", "499")
    (figure,) = FilmFigure.of("film", "", [film(500, 8)], 0.0, 1.0)
    assert len(figure.films[0].frames) == MOST_FRAMES
    assert FilmFigure.of("film", "", [film(3, 300)], 0.0, 1.0) == []
    assert FilmFigure.of("film", "", [film(3, 128) for _ in range(6)], 0.0, 1.0) == []


def test_who_wants_no_motion_sees_the_last_frame():
    style = resources.files("synaptome.report").joinpath("measures.css").read_text()
    still, _, moving = style.partition("@media screen and (prefers-reduced-motion: no-preference)")
    assert ".reel { transform: translateY(calc(-100% + 100% / var(--frames))); }" in still
    assert "animation" not in still
    assert "animation: film" in moving


def test_connections_that_never_change_are_drawn_once(grown):
    run, series, _ = grown("a", evolve=False)
    ((key, values),) = maps_of("connections", run).items()
    assert key[1] == "at every snapshot"
    np.testing.assert_array_equal(values, series["input/connections"][0].mean(0))
    assert not {"connections-film", "connections-initial", "connections-number"} & set(names_of(run))


def test_means_over_centred_squares_are_over_seeds(grown):
    runs = [grown(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in (0, 1)]
    rows = rows_of("connections-centred", *(run for run, _, _ in runs))
    assert len(rows) == 2 * 2 * 3
    for group, when, side, mean, std, n in rows:
        key = "input/connections" if when == "after training" else "start/input/connections"
        cut = slice((6 - int(float(side))) // 2, (6 + int(float(side))) // 2)
        wide = slice((8 - int(float(side))) // 2, (8 + int(float(side))) // 2)
        chosen = [final[key][:, cut, wide].mean() for run, _, final in runs if f"failure={run.path.name[:3]}" == group]
        assert (float(mean), float(std)) == pytest.approx((np.mean(chosen), np.std(chosen, ddof=1)))
        assert n == "2"


@pytest.mark.parametrize(("measure", "name"), [("in_degree", "in-degree"), ("out_degree", "out-degree")])
def test_degrees_are_shares_of_the_neurons(grown, measure, name):
    run, series, _ = grown("a")
    drawn = lines_of(name, run)
    assert len(drawn) == 4
    for (_, panel, when), (degree, share) in drawn.items():
        counts = series[f"{panel.replace(' ', '')}/{measure}"][0 if when == "before training" else -1]
        single = degree < 32
        np.testing.assert_allclose(share[single], counts[degree[single].astype(int)] / counts.sum())
        widths = np.where(single, 1, 2)  # degrees from 32 to 63 are counted in pairs
        assert (share * widths).sum() == pytest.approx(1)
        assert (degree[~single] % 2 == 0.5).all()  # the middle of 32 and 33


def test_rows_of_degrees_have_axes_of_their_own(grown):
    run, _, _ = grown("a")
    figure = figure_of("in-degree", run)
    tops = [max(line.x.max() for line in row.lines) for row in figure.rows]
    assert tops[0] > 1.3 * tops[1] or tops[1] > 1.3 * tops[0]
    ticks = [re.findall(r">([\d,.]+)</text>", svg) for _, drawn in figure.drawings("") for _, svg in drawn]
    assert ticks[0] != ticks[1]


def test_what_changes_over_training_is_drawn_as_it_was_measured(grown):
    run, series, _ = grown("a")
    drawn = lines_of("connections-initial", run)
    np.testing.assert_array_equal(drawn["failing", "", "layer 2"][1], series["layer2/initial_present"])
    (rate,) = lines_of("itop-rate", run).values()
    np.testing.assert_array_equal(rate, [series["step"], series["itop_rate"]])
    signs = series["layer1/signs"]
    _, share = lines_of("positive", run)["failing", "", "layer 1"]
    np.testing.assert_allclose(share, signs[:, 2] / (signs[:, 0] + signs[:, 2]))
    assert signs[3, 1] > 0  # new connections, which count on neither side
    assert "connections-number" not in names_of(run)


def test_the_numbers_of_connections_are_drawn_where_layers_share_them(finished, write_measures):
    run = finished("a")
    signs = [[[3, 1, 4], [3, 0, 3]], [[0, 0, 0], [2, 0, 0]]]
    write_measures(run, "connections", {"step": [0, 5], "layer1/signs": signs[0], "layer2/signs": signs[1]})
    assert lines_of("connections-number", run)["failing", "", "layer 1"][1].tolist() == [8, 6]
    np.testing.assert_array_equal(lines_of("positive", run)["failing", "", "layer 2"][1], [np.nan, 0])


def test_pruning_is_drawn_over_seeds(finished, write_measures):
    runs = [finished(f"a{seed}", seed) for seed in (0, 1)]
    for run, accuracy in zip(runs, (0.9, 0.8), strict=True):
        write_measures(run, "pruning", None, {"rate": [0.0, 0.5], "accuracy": [[0.95], [accuracy]]})
    figure = figure_of("pruning", *runs)
    assert figure.heading == "Test accuracy when the weakest connections are removed"
    head, *rows = csv.reader(figure.csv_text().splitlines())
    assert head[2] == "share removed"
    assert [float(value) for value in rows[1][2:5]] == pytest.approx([0.5, 0.85, np.std([0.9, 0.8], ddof=1)])
    assert "over seeds" in figure.legend()


def test_any_measure_may_be_missing(tmp_path, grown, finished, write_measures):
    _, series, final = grown("whole")
    everything = set(names_of(grown("again")[0]))
    assert len(everything) == 8
    for index, key in enumerate([*series, *final]):
        if key == "step":
            continue
        run = finished(f"without-{index}")
        some = {name: values for name, values in series.items() if name != key}
        write_measures(run, "connections", some, {name: values for name, values in final.items() if name != key})
        figures = find(group_runs([run])).figures
        assert everything.issuperset(figure.name for figure in figures)
        assert all(figure.csv_text().count("\n") > 1 for figure in figures)


def test_each_half_of_the_measures_stands_alone(tmp_path, grown, finished, write_measures):
    _, series, final = grown("whole")
    first, second, unfinished = finished("series"), finished("final"), finished("early")
    write_measures(first, "connections", series)
    write_measures(second, "connections", None, final)
    write_measures(unfinished, "connections", {key: values[:1] for key, values in series.items()})
    assert set(names_of(first)) == set(names_of(grown("again")[0])) - {"connections-centred"}
    assert [step for _, step in maps_of("connections", second)] == ["before training", "after training"]
    assert {line for _, _, line in lines_of("in-degree", second)} == {"before training", "after training"}
    for run in (first, second, unfinished):
        assert "Connections of each input pixel" in write_report([run], tmp_path / f"{run.path.name}.html").read_text()


def test_what_has_another_size_is_told_and_not_drawn(tmp_path, finished, write_measures):
    run = finished("a")
    odd = {
        "step": [0, 5],
        "layer1/signs": np.ones((2, 4)),
        "layer1/in_degree": np.ones((2, 2000)),
        "input/connections": np.ones((2, 3, 3)),
        "itop_rate": [0.5, np.nan],
    }
    write_measures(run, "connections", odd, {"input/connections": np.ones((0, 3, 3))})
    told = []
    write_report([run], tmp_path / "r.html", told.append)
    assert sorted(problem.partition("measures: ")[2] for problem in told) == [
        "input/connections has 3 axes where 4 are expected, and is not drawn",
        "itop_rate holds numbers that are not finite, or beyond 1e+100, and is not drawn",
        "layer1/in_degree has 2000 entries, not 1 to 945, and is not drawn",
        "layer1/signs has 4 entries, not 3, and is not drawn",
    ]


def test_a_damaged_file_is_told_and_the_rest_is_drawn(tmp_path, grown):
    run, _, _ = grown("a")
    file = run.path / "measures" / "connections.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    told = []
    page = write_report([run], tmp_path / "r.html", told.append).read_text()
    assert len(told) == 1
    assert "connections.safetensors" in told[0]
    assert "In-time over-parameterisation" in page
    assert "mean over centred squares" not in page


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e99])
def test_unlikely_numbers_can_be_drawn(tmp_path, finished, write_measures, value):
    series, final = evolved(snapshots=3)
    run = finished("odd")
    filled = {key: values if key == "step" else np.full(values.shape, value) for key, values in series.items()}
    filled["input/connections"][-1] = 1  # or there is no film
    write_measures(run, "connections", filled, {key: np.full(values.shape, value) for key, values in final.items()})
    assert "Connections of each input pixel" in write_report([run], tmp_path / "r.html").read_text()


def test_of_many_layers_those_of_a_snapshot_share_a_panel(finished, write_measures):
    run = finished("a")
    counts = np.array([[1, 2, 1], [0, 4, 0]])
    write_measures(run, "connections", {"step": [0, 5]} | {f"layer{layer}/in_degree": counts for layer in range(1, 7)})
    drawn = lines_of("in-degree", run)
    assert {panel for _, panel, _ in drawn} == {"before training", "after training"}
    assert drawn["failing", "after training", "layer 6"].tolist() == [[0, 1, 2], [0, 1, 0]]


def test_groups_beyond_those_drawn_are_named(grown, finished, write_measures):
    runs = [grown(f"r{index}", failure=index / 10, snapshots=2)[0] for index in range(8)]
    found = find(group_runs(runs))
    assert found.left_out == ("failure=0.6", "failure=0.7")
    assert [run for _, run in found.drawn] == [f"r{index}" for index in range(6)]
    assert len(figure_of("connections", *runs).panels) == 6
