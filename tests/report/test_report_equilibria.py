"""The figures of relaxation and of spectra at equilibria, against what was measured."""

import csv
import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from synaptome.report import group_runs, plane, write_report
from synaptome.report.drawing import STAND_INS
from synaptome.report.measures import find


def final_of(seed=0, energy=True, dt=0.5):
    """Measures such as those of a layered network whose modes all decay but one."""
    draw = np.random.default_rng(seed)
    steps = np.arange(1, 11)
    values = np.stack((draw.uniform(-2, -0.2, 12), draw.uniform(-0.3, 0.3, 12)), 1)
    values[3] = [0.25, 0.0]
    found = {
        "residual/steps": steps,
        "residual/values": (np.exp(-steps)[:, None] * draw.uniform(0.5, 1, 6)).astype(np.float32),
        "jacobian/lambda": values.astype(np.float32),
        "jacobian/example": np.repeat([1, 5, 9], 4),
        "jacobian/dt": np.array(dt),
    }
    if energy:
        energies = np.exp(-np.arange(11.0))[:, None] * draw.uniform(1, 2, 6) - draw.uniform(3, 4, 6)
        found |= {
            "energy/steps": np.arange(11),
            "energy/values": energies,
            "energy/rise": np.diff(energies, axis=0).max(0),
            "energy/lowest": energies[-1] - 1e-3,
        }
    return found


@pytest.fixture
def rested(finished, write_measures):
    def make(name="a", failure=0.0, changed=None, **options):
        run, final = finished(name, 0, failure), final_of(**options) | (changed or {})
        final = {key: values for key, values in final.items() if values is not None}
        write_measures(run, "equilibria", None, final)
        return run, final

    return make


def figures_of(*runs):
    found = find(group_runs(runs))
    assert not found.problems
    return {figure.name: figure for figure in found.figures}


def rows_of(figure):
    head, *rows = csv.reader(io.StringIO(figure.csv_text()))
    return head, rows


def test_residuals_are_those_that_were_measured(rested):
    run, final = rested()
    figure = figures_of(run)["residual-curves"]
    head, rows = rows_of(figure)
    assert head[:4] == ["group", "step", "inputs", "mean"]
    assert [int(row[1]) for row in rows] == final["residual/steps"].tolist()
    medians = [float(row[6]) for row in rows]
    np.testing.assert_allclose(medians, np.median(final["residual/values"].astype(float), 1), rtol=1e-6)
    assert figure.y == "log"


def test_energies_are_told_above_the_lowest(rested):
    run, final = rested()
    figure = figures_of(run)["energy-curves"]
    _, rows = rows_of(figure)
    above = final["energy/values"] - final["energy/lowest"]
    np.testing.assert_allclose([float(row[4]) for row in rows], above.min(1), rtol=1e-9)
    np.testing.assert_allclose([float(row[8]) for row in rows], above.max(1), rtol=1e-9)
    assert "In no step does the energy rise." in figure.note


def test_seeds_are_taken_together(rested):
    runs, finals = zip(*(rested(name, seed=seed) for seed, name in enumerate("ab")), strict=True)
    figures = figures_of(*runs)
    for name, values in (
        ("residual-curves", [final["residual/values"] for final in finals]),
        ("energy-curves", [final["energy/values"] - final["energy/lowest"] for final in finals]),
    ):
        _, rows = rows_of(figures[name])
        assert {row[2] for row in rows} == {"12"}
        np.testing.assert_allclose([float(row[6]) for row in rows], np.median(np.hstack(values), 1), rtol=1e-6)


def test_a_rise_of_the_energy_is_told(rested):
    run, _ = rested(changed={"energy/rise": np.array([-1.0, 0.25, 0, 0, 0, 0])})
    assert "The largest rise in a step is 0.25:" in figures_of(run)["energy-curves"].note
    runs = [run, rested("b", 0.5)[0]]
    note = figures_of(*runs)["energy-curves"].note
    assert "rise in a step is 0.25 (failure=0.0)" in note
    assert "no step does the energy rise (failure=0.5)" in note


def test_where_there_is_no_energy_none_is_drawn_and_it_is_said_why(rested):
    figures = figures_of(rested(energy=False)[0])
    assert "energy-curves" not in figures
    assert "no Lyapunov function is known" in figures["residual-curves"].note
    assert "Lyapunov" not in figures_of(rested("b")[0])["residual-curves"].note


def test_the_data_say_where_each_eigenvalue_belongs(rested):
    run, final = rested()
    head, rows = rows_of(figures_of(run)["equilibrium-spectrum"])
    assert head == ["group", "seed", "pattern", "example", "real", "imaginary"]
    assert [row[3] for row in rows] == [str(example) for example in final["jacobian/example"]]
    assert {row[1] for row in rows} == {row[2] for row in rows} == {""}
    np.testing.assert_array_equal(np.array([row[4:] for row in rows]).astype(np.float32), final["jacobian/lambda"])


def drawn_of(panel):
    canvas = Figure()
    plane._draw(canvas, panel)
    return canvas.axes[0]


@pytest.mark.parametrize("dt", [0.5, 0.02, 1.9])
def test_the_limit_of_the_step_is_a_circle_and_what_is_outside_has_another_colour(rested, dt):
    run, final = rested(dt=dt)
    figure = figures_of(run)["equilibrium-spectrum"]
    axes = drawn_of(figure.panels[0])
    circle, axis, inside, outside = axes.lines
    x, y = circle.get_data()
    seen = np.isfinite(x)
    assert seen.sum() > 50
    np.testing.assert_allclose(np.abs(1 + dt * (x + 1j * y))[seen], 1)
    assert list(axis.get_xdata()) == [0, 0]
    values = final["jacobian/lambda"].astype(float)
    grows = np.abs(1 + dt * (values[:, 0] + 1j * values[:, 1])) >= 1
    assert grows[3]
    for line, chosen, colour in ((inside, ~grows, "c0"), (outside, grows, "c1")):
        np.testing.assert_array_equal(np.stack(line.get_data(), 1), values[chosen])
        assert to_hex(line.get_color()) == STAND_INS[colour]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left < min(values[:, 0].min(), 0) < max(values[:, 0].max(), 0) < right
    assert right - left == pytest.approx(top - bottom)
    assert "does not" in figure.legend()


def test_many_eigenvalues_are_thinned_but_not_those_that_grow(rested):
    many = np.concatenate((np.full((9000, 2), [-1.0, 0.0]), np.full((3, 2), [0.5, 0.0])))
    run, _ = rested(changed={"jacobian/lambda": many, "jacobian/example": None})
    *_, inside, outside = drawn_of(figures_of(run)["equilibrium-spectrum"].panels[0]).lines
    assert len(inside.get_xdata()) == 2000
    assert len(outside.get_xdata()) == 3
    assert len(rows_of(figures_of(run)["equilibrium-spectrum"])[1]) == 9003


def test_a_population_tells_seed_and_pattern(rested):
    changed = {"jacobian/example": None, "jacobian/seed": np.repeat([4, 7], 6), "jacobian/pattern": np.arange(1, 13)}
    _, rows = rows_of(figures_of(rested(changed=changed)[0])["equilibrium-spectrum"])
    assert rows[11][1:4] == ["7", "12", ""]


@pytest.mark.parametrize(
    ("changed", "lacking"),
    [
        ({"jacobian/dt": None}, "equilibrium-spectrum"),
        ({"jacobian/example": np.arange(3)}, "equilibrium-spectrum"),
        ({"energy/lowest": np.zeros(5)}, "energy-curves"),
        ({"residual/steps": np.arange(3)}, "residual-curves"),
    ],
)
def test_what_does_not_fit_is_passed_over(rested, changed, lacking):
    assert lacking not in figures_of(rested(changed=changed)[0])


def test_the_page_shows_them(rested, tmp_path):
    runs = [rested("a")[0], rested("b", 0.5, energy=False)[0]]
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert page.count('aria-label="Residual along the free phase') == 2
    assert page.count('aria-label="Energy above the lowest reached') == 1
    assert page.count('aria-label="Spectrum of the Jacobian at free equilibria') == 2
