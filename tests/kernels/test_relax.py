"""Relaxation of populations against the equations, written as a plain loop over time in numpy."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels.relax import CONVERGED, NOT_FINITE, OUT_OF_STEPS, relax, relax_networks

NETWORKS, PATTERNS, INPUTS, NEURONS, OUTPUTS = 3, 4, 3, 9, 2
RHO = {"hard-sigmoid": lambda s: s, "sigmoid": lambda s: 1 / (1 + np.exp(-s)), "tanh": np.tanh}


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)


def made(seed=0, scale=0.5, networks=NETWORKS):
    """Operands with leaks large enough to rest."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    weight = scale * draw(networks, NEURONS, NEURONS)
    weight[:, :, :INPUTS] = 0
    weight.diagonal(dim1=1, dim2=2).zero_()
    free = NEURONS - INPUTS
    return {
        "state": draw(networks, PATTERNS, NEURONS).sigmoid(),
        "weight": weight,
        "bias": 0.3 * draw(networks, free),
        "leak": 1 + draw(networks, free).sigmoid(),
        "targets": draw(PATTERNS, OUTPUTS).sigmoid(),
        "nudge": 2 * draw(networks, PATTERNS),
    }


def oracle(operands, steps, dt, activity="hard-sigmoid", beta_0=0.0, beta_1=1.0):
    """States `[time, P, M, N]` and traces, one pattern of one network after the other, as the equations stand."""
    state, weight, bias, leak, targets, nudge = (operands[name].numpy() for name in operands)
    trajectory = np.empty((steps + 1, *state.shape))
    trace = np.zeros((*state.shape, NEURONS))
    for p in range(len(state)):
        for m in range(PATTERNS):
            s = state[p, m].copy()
            trajectory[0, p, m] = s
            a = s.copy()
            a[INPUTS:] = RHO[activity](s[INPUTS:])
            for t in range(steps):
                ds = (a @ weight[p])[INPUTS:] + bias[p] - leak[p] * s[INPUTS:]
                ds[-OUTPUTS:] += nudge[p, m] * (targets[m] - a[-OUTPUTS:])
                s[INPUTS:] += dt * ds
                if activity == "hard-sigmoid":
                    s = np.clip(s, 0, 1)
                before, a = a, s.copy()
                a[INPUTS:] = RHO[activity](s[INPUTS:])
                change = beta_0 * a + beta_1 * (a - before)
                trace[p, m, :, INPUTS:] += np.outer(a, change[INPUTS:])
                trajectory[t + 1, p, m] = s
    return trajectory, trace


@pytest.mark.parametrize("activity", RHO)
def test_it_follows_the_equations(backend, activity):
    operands = made()
    steps, dt = 40, 0.05
    trajectory, trace = oracle(operands, steps, dt, activity, beta_0=0.3, beta_1=0.7)
    found = relax(
        *operands.values(), inputs=INPUTS, dt=dt, steps=steps, activity=activity, beta_0=0.3, beta_1=0.7, traced=True
    )
    np.testing.assert_allclose(found.state, trajectory[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.trace, trace, rtol=0, atol=1e-12)
    last = np.abs(trajectory[-1] - trajectory[-2]).max(-1)
    np.testing.assert_allclose(found.residual, last, rtol=0, atol=1e-12)
    assert (found.steps == steps).all()


def test_a_pattern_stops_where_its_projected_residual_says_so(backend):
    operands, tolerance = made(), 1e-6
    trajectory, _ = oracle(operands, 600, 0.05)
    residuals = np.abs(np.diff(trajectory, axis=0)).max(-1)
    found = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=600, tolerance=tolerance)
    expected = (residuals <= tolerance).argmax(0) + 1
    assert found.steps.tolist() == expected.tolist()
    assert len(np.unique(expected)) > 3
    assert (found.outcome == CONVERGED).all()
    at_stop = np.take_along_axis(trajectory, expected[None, ..., None], 0)[0]
    np.testing.assert_allclose(found.state, at_stop, rtol=0, atol=1e-12)


def test_stopping_at_a_state_that_repeats_itself_changes_no_bit(backend):
    operands = made()
    stopped, all_steps = (
        relax(*operands.values(), inputs=INPUTS, dt=0.1, steps=1500, stop=stop, traced=True) for stop in (True, False)
    )
    assert (stopped.steps < 1500).any()
    assert torch.equal(stopped.state, all_steps.state)
    assert torch.equal(stopped.trace, all_steps.trace)
    assert torch.equal(stopped.outcome, all_steps.outcome)
    assert (all_steps.steps == 1500).all()


def test_a_state_at_rest_fires_on_in_the_traces(backend):
    operands = made()
    stopped, all_steps = (
        relax(*operands.values(), inputs=INPUTS, dt=0.1, steps=1500, stop=stop, beta_0=0.5, traced=True)
        for stop in (True, False)
    )
    assert (stopped.steps < 1500).any()
    torch.testing.assert_close(stopped.trace, all_steps.trace, rtol=1e-10, atol=1e-9)


def test_changes_of_states_telescope(backend):
    """With the input 1 held by a neuron, its traces are `Σ_t (s(t) - s(t-1)) = s(T) - s(0)`."""
    operands = made()
    operands["state"][..., 0] = 1
    found = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=70, traced=True)
    moved = (found.state - operands["state"])[..., INPUTS:]
    assert moved.abs().amin() > 0
    torch.testing.assert_close(found.trace[:, :, 0, INPUTS:], moved, rtol=0, atol=1e-13)


def test_a_state_restarted_at_a_fixed_point_stays(backend):
    operands = made()
    rest = relax(*operands.values(), inputs=INPUTS, dt=0.1, steps=5000)
    assert (rest.outcome == CONVERGED).all()
    again = relax(*(operands | {"state": rest.state}).values(), inputs=INPUTS, dt=0.1, steps=50, traced=True)
    assert torch.equal(again.state, rest.state)
    assert (again.steps == 1).all()
    assert again.trace.count_nonzero() == 0


def test_the_projected_residual_vanishes_where_the_raw_one_does_not(backend):
    operands = made()
    operands["bias"] += 4.0  # neurons are driven far above 1
    rest = relax(*operands.values(), inputs=INPUTS, dt=0.1, steps=5000)
    raw = torch.bmm(rest.state, operands["weight"])[..., INPUTS:] + operands["bias"].unsqueeze(1)
    raw = raw - operands["leak"].unsqueeze(1) * rest.state[..., INPUTS:]
    assert (raw[..., :-OUTPUTS].abs().amax(2) > 0.5).all()
    assert (rest.residual == 0).all()
    assert (rest.outcome == CONVERGED).all()


def test_outcomes(backend):
    operands = made()
    none = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=0)
    assert torch.equal(none.state, operands["state"])
    assert (none.outcome == OUT_OF_STEPS).all()
    assert none.residual.isinf().all()
    early = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=5)
    assert (early.outcome == OUT_OF_STEPS).all()
    operands["leak"][1], operands["nudge"] = -1e308, operands["nudge"].abs()
    found = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=500, tolerance=1e-5, activity="tanh")
    assert (found.outcome[1] == NOT_FINITE).all()
    assert found.residual[1].isinf().all()
    assert (found.steps[1] < 500).all()
    assert (found.outcome[[0, 2]] == CONVERGED).all()


def test_a_network_that_diverges_leaves_the_bits_of_the_others(backend):
    operands = made()
    options = {"inputs": INPUTS, "dt": 0.05, "steps": 200, "activity": "sigmoid", "traced": True}
    before = relax(*operands.values(), **options)
    operands["leak"][1] = -1e308
    after = relax(*operands.values(), **options)
    assert (after.outcome[1] == NOT_FINITE).all()
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first[[0, 2]], second[[0, 2]])


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_and_company_change_no_bit(monkeypatch, threads):
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    operands = made(networks=10)
    options = {"inputs": INPUTS, "dt": 0.05, "steps": 300, "traced": True}
    alone = relax(*operands.values(), **options)
    torch.set_num_threads(threads)
    together = relax(*operands.values(), **options)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    fourth = {name: tensor if name == "targets" else tensor[4:5] for name, tensor in operands.items()}
    one = relax(*fourth.values(), **options)
    assert all(torch.equal(a, b[4:5]) for a, b in zip(one, together, strict=True))


def test_layouts_do_not_matter(backend):
    operands = made()
    expected = relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=20, traced=True)
    turned = {name: tensor.mT.contiguous().mT for name, tensor in operands.items()}
    found = relax(*turned.values(), inputs=INPUTS, dt=0.05, steps=20, traced=True)
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.trace, expected.trace, rtol=0, atol=1e-14)


def test_operands_are_left_as_they_are(backend):
    operands = made()
    before = {name: tensor.clone() for name, tensor in operands.items()}
    relax(*operands.values(), inputs=INPUTS, dt=0.05, steps=20, traced=True)
    assert all(torch.equal(operands[name], before[name]) for name in operands)


@pytest.mark.parametrize("traced", [False, True])
def test_opcheck(traced):
    options = (INPUTS, 0.05, 7, 1e-3, True, "hard-sigmoid", 0.1, 1.0, traced)
    opcheck(relax_networks, (*made().values(), *options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.zeros(NETWORKS, NEURONS, dtype=torch.float64)}, r"bias of a relaxation is float64 .*\[3, 6\]"),
        ({"state": torch.zeros(NETWORKS, PATTERNS, NEURONS)}, "state of a relaxation is float64"),
        ({"state": torch.zeros(NEURONS, dtype=torch.float64)}, "state of a relaxation"),
        ({"targets": torch.zeros(PATTERNS, 0, dtype=torch.float64)}, "at least one output"),
        ({"activity": "relu"}, "unknown activity 'relu'"),
        ({"dt": 0.0}, "dt is a finite number above 0"),
        ({"steps": -1}, "steps and tolerance are at least 0"),
        ({"tolerance": float("nan")}, "steps and tolerance are at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    operands = made() | {name: value for name, value in changes.items() if isinstance(value, torch.Tensor)}
    options = {"inputs": INPUTS, "dt": 0.05, "steps": 5}
    options |= {name: value for name, value in changes.items() if not isinstance(value, torch.Tensor)}
    with pytest.raises(ConfigurationError, match=message):
        relax(*operands.values(), **options)
