"""The figure of alignment, against the metrics."""

import csv
import io

import numpy as np
import pytest

from synaptome.report import group_runs, write_report
from synaptome.report.curves import charts
from synaptome.report.measures import find


def cosines(seed, epochs=4):
    draw = np.random.default_rng(seed)
    return {layer: draw.uniform(0.5, 1, epochs).tolist() for layer in ("layers.0", "layers.1", "readout")}


@pytest.fixture
def aligned(make_run):
    def make(name, seed=0, beta=0.5, epochs=4):
        found = cosines(seed, epochs)
        rows = [
            {"step": 7 * epoch, "epoch": epoch, "test/loss": 1 / (1 + epoch)}
            | {f"alignment/{layer}": values[epoch] for layer, values in found.items()}
            for epoch in range(epochs)
        ]
        return make_run(name, rows, {"test/loss": 0.1}, {"beta": beta}, seed=seed), found

    return make


def figure_of(*runs):
    return {figure.name: figure for figure in find(group_runs(runs)).figures}["alignment"]


def rows_of(figure):
    head, *rows = csv.reader(io.StringIO(figure.csv_text()))
    return head, rows


def test_a_line_for_each_layer_in_one_panel(aligned):
    run, found = aligned("a")
    head, rows = rows_of(figure_of(run))
    assert head == ["group", "panel", "line", "epoch", "value"]
    assert list(dict.fromkeys(row[2] for row in rows)) == list(found)
    for layer, values in found.items():
        assert [float(row[4]) for row in rows if row[2] == layer] == values
    assert len(figure_of(run).rows[0].panels) == 1


def test_seeds_give_a_mean_and_a_range_at_the_epochs_that_all_have(aligned):
    (one, first), (other, second) = aligned("a", 0), aligned("b", 1, epochs=3)
    _, rows = rows_of(figure_of(one, other))
    own = np.array([[float(cell) for cell in row[3:]] for row in rows if row[2] == "readout"])
    both = np.array([first["readout"][:3], second["readout"]])
    np.testing.assert_allclose(own.T, [range(3), both.mean(0), both.min(0), both.max(0)])


def test_groups_have_panels_of_their_own(aligned):
    figure = figure_of(aligned("a")[0], aligned("b", beta=1.0)[0])
    assert [panel.group for panel in figure.rows[0].panels] == ["beta=0.5", "beta=1.0"]


def test_the_learning_curves_leave_it_to_this_figure(aligned, tmp_path):
    run, _ = aligned("a")
    assert [chart.name for chart in charts(group_runs([run]))] == ["loss"]
    page = write_report([run], tmp_path / "r.html").read_text()
    assert page.count("Alignment with backpropagation through time</h4>") == 1
    assert {file.name for file in (tmp_path / "r-data").iterdir()} == {"alignment.csv", "loss.csv"}


def test_other_runs_have_no_such_figure(finished):
    assert "alignment" not in {figure.name for figure in find(group_runs([finished("a")])).figures}
