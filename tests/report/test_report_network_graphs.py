"""Networks drawn as graphs and heat maps, against their weights."""

import csv
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch

from synaptome.networks.complete import Sizes, complete_connections
from synaptome.report import group_runs, write_report
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find
from synaptome.report.network_graphs import RADIUS, layout
from synaptome.report.pictures import LEVELS, STRONGEST

SIZES = Sizes(2, 4, 1)
ALLOWED = complete_connections(SIZES).numpy()


def nets_of(seed=0, bias=True):
    draw = np.random.default_rng(seed)
    found = {
        "network/matrix": draw.normal(size=(2, 7, 7)) * ALLOWED,
        "network/allowed": ALLOWED.astype(np.uint8),
        "network/sizes": np.array(SIZES),
        "network/seeds": np.array([4, 5]),
    }
    return found | ({"network/bias": 3 * draw.normal(size=(2, 5))} if bias else {})


@pytest.fixture
def networks(finished, write_measures):
    def make(name="a", failure=0.0, **changed):
        run, final = finished(name, 0, failure), nets_of() | changed
        final = {key: values for key, values in final.items() if values is not None}
        write_measures(run, "equilibria", None, final)
        return run, final

    return make


def figure_of(*runs):
    found = find(group_runs(runs))
    assert not found.problems
    return {figure.name: figure for figure in found.figures}["networks"]


def picture_of(figure, title):
    return dict(figure.pictures)[title][0]


def drawn_of(picture):
    canvas = Figure()
    picture.draw(canvas)
    return canvas.axes[0]


def paths_of(axes):
    """The compound paths with their colour and opacity, those of lines and those of areas."""
    patches = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    lines = [(to_hex(p.get_edgecolor()), p.get_alpha(), p.get_path()) for p in patches if not p.get_fill()]
    return lines, [(to_hex(p.get_facecolor()), p.get_alpha(), p.get_path()) for p in patches if p.get_fill()]


def split(path):
    """The parts of a compound path, by the moves in it."""
    starts = np.flatnonzero(path.codes == path.MOVETO)
    return np.split(path.vertices, starts[1:])


def test_the_data_are_all_connections_and_biases(networks):
    run, final = networks()
    head, *rows = csv.reader(io.StringIO(figure_of(run).csv_text()))
    assert head == ["group", "picture", "from", "to", "weight"]
    assert len(rows) == 2 * (ALLOWED.sum() + 5)
    for _, title, source, target, weight in rows:
        index = {"network of seed 4": 0, "network of seed 5": 1}[title]
        if source == "bias":
            assert float(weight) == final["network/bias"][index, int(target) - 3]
        else:
            assert ALLOWED[int(source) - 1, int(target) - 1]
            assert float(weight) == final["network/matrix"][index, int(source) - 1, int(target) - 1]


def expected_level(value, largest):
    return round(LEVELS * abs(value) / largest)


def test_each_connection_is_an_arrow_of_its_sign_and_strength(networks):
    run, final = networks()
    figure = figure_of(run)
    weight = final["network/matrix"][0]
    largest = max(np.abs(final["network/matrix"]).max(), np.abs(final["network/bias"]).max())
    lines, heads = paths_of(drawn_of(picture_of(figure, "network of seed 4")))
    places = layout(SIZES)
    found = {}
    for colour, opacity, path in lines:
        for start, _, end in split(path):
            source, target = (int(np.hypot(*(places - point).T).argmin()) for point in (start, end))
            assert np.hypot(*(places[source] - start)) == pytest.approx(RADIUS)
            found[source, target] = (colour, opacity)
    expected = {}
    for source, target in np.argwhere(ALLOWED):
        if level := expected_level(weight[source, target], largest):
            colour = STAND_INS["c0" if weight[source, target] > 0 else "c1"]
            expected[int(source), int(target)] = (colour, pytest.approx(STRONGEST * level / LEVELS))
    assert found == expected
    assert len(expected) > 20
    tips = {
        int(np.hypot(*(places - points[1]).T).argmin()): np.hypot(*(places - points[1]).T).min()
        for _, _, path in heads
        for points in split(path)
    }
    assert tips == {target: pytest.approx(RADIUS) for target in {target for _, target in expected}}


def test_both_directions_are_seen_apart(networks):
    weight = np.zeros((2, 7, 7))
    weight[:, 2, 3] = weight[:, 3, 2] = 1
    run, _ = networks(**{"network/matrix": weight, "network/bias": None})
    ((_, _, path),), _ = paths_of(drawn_of(picture_of(figure_of(run), "network of seed 4")))
    (_, one, _), (_, other, _) = split(path)
    assert np.hypot(*(one - other)) > 0.05


def test_inputs_are_left_outputs_right_and_hidden_neurons_between(networks):
    places = layout(SIZES)
    assert (places[:2, 0] < places[2:6, 0].min()).all()
    assert places[6, 0] > places[2:6, 0].max()
    assert places[0, 1] > places[1, 1]
    apart = np.hypot(*np.moveaxis(places[:, None] - places, 2, 0)) + np.eye(7)
    assert apart.min() > 2 * RADIUS
    axes = drawn_of(picture_of(figure_of(networks()[0]), "network of seed 4"))
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    np.testing.assert_allclose([circle.center for circle in circles], places)
    assert [text.get_text() for text in axes.texts] == list("1234567")


@pytest.mark.parametrize("sizes", [(2, 20, 1), (3, 0, 2), (1, 1, 1), (3, 30, 2)])
def test_neurons_do_not_cover_one_another(sizes):
    places = layout(sizes)
    assert len(places) == sum(sizes)
    apart = np.hypot(*np.moveaxis(places[:, None] - places, 2, 0)) + np.eye(len(places))
    assert apart.min() > 2 * RADIUS


def test_cells_of_the_heat_map_have_the_colours_of_their_weights(networks):
    run, final = networks()
    largest = max(np.abs(final["network/matrix"]).max(), np.abs(final["network/bias"]).max())
    axes = drawn_of(picture_of(figure_of(run), "weights, seed 5"))
    values = np.concatenate((final["network/matrix"][1][:, 2:], final["network/bias"][1][None]))
    found = {}
    for colour, opacity, path in paths_of(axes)[1]:
        for corners in split(path):
            column, row = corners.min(0).astype(int)
            found[int(row), int(column)] = (colour, opacity)
    expected = {}
    for (row, column), value in np.ndenumerate(values):
        if level := expected_level(value, largest):
            colour = STAND_INS["c0" if value > 0 else "c1"]
            expected[row, column] = (colour, pytest.approx(STRONGEST * level / LEVELS))
    assert found == expected
    ends = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    struck = {(int(y[1]), int(x[0])) for x, y in ends if x[0] != x[1] and y[0] != y[1]}
    assert struck == {(place + 2, place) for place in range(5)}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "3", "7", "bias"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "7"]


def test_networks_of_zeros_can_be_drawn(networks, tmp_path):
    run, _ = networks(**{"network/matrix": np.zeros((2, 7, 7)), "network/bias": None})
    assert "Trained networks" in write_report([run], tmp_path / "r.html").read_text()


def test_groups_share_a_scale_and_stand_side_by_side(networks):
    strong = {"network/matrix": 9 * ALLOWED * np.ones((2, 1, 1)), "network/bias": None}
    figure = figure_of(networks("a")[0], networks("b", 0.5, **strong)[0])
    assert "<span>9</span>" in figure.legend()
    assert [[label for label, _ in row] for _, row in figure.drawings("p")] == [["failure=0.0", "failure=0.5"]] * 4


@pytest.mark.parametrize(
    "changed",
    [
        {"network/sizes": np.array([2, 4, 2])},
        {"network/seeds": np.array([4])},
        {"network/bias": np.zeros((2, 4))},
        {"network/allowed": None},
    ],
)
def test_what_does_not_fit_is_passed_over(networks, changed):
    run, _ = networks(**changed)
    assert "networks" not in {figure.name for figure in find(group_runs([run])).figures}
