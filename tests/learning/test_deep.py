"""Populations that learn: against the algorithm as a loop in numpy, and what must hold of each network by itself."""

import warnings

import numpy as np
import pytest
import torch

from synaptome.conformance import check_rule
from synaptome.data.dataset import Batch
from synaptome.data.logic import logic
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.deep import PopulationLearning
from synaptome.learning.plasticity import Plasticity
from synaptome.networks.complete import Sizes
from synaptome.networks.population import STARTS, Population

SIZES = Sizes(3, 5, 1)
BATCH = logic("xor").train[:]
SHORT = {"steps": 30}


def made(seeds=range(3), plasticity=None, **options):
    options = {"steps": 30, "std": 0.3} | options
    return PopulationLearning(Population(seeds, SIZES, **options), plasticity or Plasticity(**SHORT))


def epoch_in_numpy(W, b, start, targets, how, leak, dt=0.05, steps=30, nudges=(1.0,)):
    """One epoch of one network: W `[N, N]`, b and the start `[M, N]`, as the equations stand."""
    X, T = SIZES.inputs, how.steps
    leaks = W.sum(1) if leak == "deep" else np.ones(len(W))

    def move(s, beta):
        ds = s @ W + b - s * leaks
        ds[:, -1:] += beta * (targets - s[:, -1:])
        new = s.copy()
        new[:, X:] = np.clip(s[:, X:] + dt * ds[:, X:], 0, 1)
        return new

    free = start
    for _ in range(steps):
        free = move(free, 0.0)
    dW, db = np.zeros_like(W), np.zeros(len(W))
    for sign in nudges:
        s = free
        for _ in range(T):
            before, s = s, move(s, sign * how.beta)
            if how.rule == "deep":
                for m in range(len(s)):
                    change = how.beta_0 * s[m] + how.beta_1 * (s[m] - before[m])
                    dW += sign * np.outer(s[m], change) / (T * len(s) * len(nudges))
        if how.rule == "asymmetric":
            for m in range(len(s)):
                dW += sign * np.outer(free[m], s[m] - free[m]) / (how.beta * len(s) * len(nudges))
                db += sign * (s[m] - free[m]) / (how.beta * len(s) * len(nudges))
    dW = np.sign(dW) if how.sign else dW
    return W + how.rate * dW - how.l1 * np.sign(W), b + how.rate * db


@pytest.mark.parametrize(
    ("how", "leak"),
    [
        (Plasticity(rate=50.0, **SHORT), "deep"),
        (Plasticity(rate=5.0, beta_0=0.2, beta_1=0.8, **SHORT), "deep"),
        (Plasticity(rate=50.0, nudging="centered", beta=0.4, **SHORT), "deep"),
        (Plasticity(rate=0.01, sign=True, l1=1e-3, **SHORT), "deep"),
        (Plasticity(rule="asymmetric", rate=1.0, l1=1e-3, **SHORT), "one"),
        (Plasticity(rule="asymmetric", rate=1.0, nudging="centered", beta=0.4, **SHORT), "one"),
    ],
)
def test_a_few_epochs_are_those_of_the_equations(how, leak):
    bias = how.rule == "asymmetric"
    rule = made(plasticity=how, leak=leak, bias=bias)
    population = rule.population
    allowed = population.weight[0] != 0
    W = population.weight.numpy()
    b = np.zeros((3, SIZES.neurons))
    for epoch in range(1, 4):
        starts = population.initial(BATCH.inputs, STARTS, epoch).numpy()
        rule.step(BATCH)
        for p in range(3):
            nudges = (1.0, -1.0) if how.nudging == "centered" else (1.0,)
            W[p], b[p] = epoch_in_numpy(W[p], b[p], starts[p], BATCH.targets.numpy(), how, leak, nudges=nudges)
            W[p] *= allowed.numpy()
            b[p, : SIZES.inputs] = 0
    np.testing.assert_allclose(population.weight, W, rtol=0, atol=1e-11)
    if bias:
        np.testing.assert_allclose(population.bias.detach(), b[:, SIZES.inputs :], rtol=0, atol=1e-11)


def test_random_signs_are_each_networks_own_and_change_the_direction_of_the_nudge():
    """For a beta so small that both signs teach the same, to first order."""
    how = {"rule": "asymmetric", "beta": 1e-6, "rate": 1.0, **SHORT}
    one, random = (
        made(range(40), Plasticity(nudging=nudging, **how), leak="one", steps=2000, std=0.1)
        for nudging in ("one-sided", "random-sign")
    )
    before = one.population.values.detach().clone()
    one.step(BATCH)
    random.step(BATCH)
    first, second = one.population.values.detach() - before, random.population.values.detach() - before
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-6)
    differ = (first != second).any(1)
    assert 5 < differ.sum() < 35


def test_patterns_that_are_right_by_the_margin_teach_nothing():
    rule = made([0], Plasticity(margin=0.1, rate=10.0, **SHORT), std=0.05)
    outputs = rule.population.outputs(rule.population.relax(rule.population.initial(BATCH.inputs, STARTS, 1)).state)
    taught = ~((outputs[0] < 0.4) & (BATCH.targets == 0))[:, 0]
    assert taught.tolist() == [False, True, True, False]
    before = rule.population.values.detach().clone()
    state = rule.population.initial(BATCH.inputs, STARTS, 1)[:, taught]
    rule.step(BATCH)
    # The other patterns by themselves, from the same states, at half the rate as they are half of all.
    halved = made([0], Plasticity(rate=5.0, **SHORT), std=0.05)
    halved.population.initial = lambda *_: state
    halved.step(Batch(BATCH.inputs[taught], BATCH.targets[taught]))
    torch.testing.assert_close(rule.population.values, halved.population.values, rtol=0, atol=1e-15)
    assert not torch.equal(rule.population.values, before)


@pytest.mark.parametrize("rule", ["deep", "asymmetric"])
def test_a_network_learns_the_same_bits_alone_and_in_company(rule):
    how = Plasticity(rule=rule, nudging="random-sign", margin=0.3, l1=1e-4, **SHORT)
    together, alone = made(range(10), how, bias=True), made([4], how, bias=True)
    for _ in range(5):
        together.step(BATCH)
        alone.step(BATCH)
    assert torch.equal(together.population.values[4:5], alone.population.values)
    assert torch.equal(together.population.bias[4:5], alone.population.bias)


def test_one_thread_or_two_same_bits(monkeypatch):
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rule = made(range(7))
        reports = [rule.step(BATCH) for _ in range(5)]
        results.append((reports, rule.population.values))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_a_network_that_diverges_is_told_and_spoils_no_other():
    one, other = made(range(4), activity="tanh"), made(range(4), activity="tanh")
    for rule in (one, other):
        rule.step(BATCH)
    with torch.no_grad():
        one.population.values[2] = -1e300  # leaks become negative and huge
    stuck = one.population.values[2].clone()
    report = [one.step(BATCH) for _ in range(2)][-1]
    [other.step(BATCH) for _ in range(2)]
    assert report["finite"] == 0.75
    assert one.population.success.diverged.tolist() == [0, 0, 2, 0]
    assert one.population.success.right[2] == 0
    assert torch.equal(one.population.values[2], stuck)
    rest = [0, 1, 3]
    assert torch.equal(one.population.values[rest], other.population.values[rest])
    assert np.isfinite(list(report.values())).all()
    assert np.isfinite(list(one.evaluate(BATCH).values())).all()


def test_where_all_networks_diverge_there_is_nothing_to_go_on_with():
    rule = made(activity="tanh")
    with torch.no_grad():
        rule.population.values[:] = -1e300
    before = rule.population.values.clone()
    with pytest.raises(NumericError, match="none of the 3 networks"):
        rule.step(BATCH)
    assert torch.equal(rule.population.values, before)


def test_weights_that_would_not_be_finite_are_not_taken():
    rule = made(plasticity=Plasticity(rate=1e308, beta_1=1e308, **SHORT))
    before = rule.population.values.clone()
    report = rule.step(BATCH)
    assert report["finite"] == 0
    assert torch.equal(rule.population.values, before)


def test_reports_are_over_networks():
    rule = made(range(30), Plasticity(), steps=1000, std=0.05)
    for epoch in range(1, 71):
        report = rule.step(logic("or").train[:])
        success = rule.population.success
        assert report["solved"] == (success.right == 1).double().mean()
        assert report["loss"] == success.error.median()
        assert epoch >= 10 or report["held"] == 0
    assert report["solved"] == report["ever-solved"] == report["held"] == report["accuracy"] == 1
    evaluated = rule.evaluate(logic("or").train[:])
    assert evaluated["solved"] == 1
    assert evaluated["loss"] < 0.1


@pytest.mark.parametrize(
    ("how", "options", "one_hot"),
    [
        (Plasticity(rate=100.0, steps=300), {}, False),
        (Plasticity(rate=100.0, steps=300, beta=1.0), {}, True),
        (Plasticity(rule="asymmetric", rate=5.0, nudging="random-sign", beta=0.5, steps=300), {"leak": "one"}, False),
        (Plasticity(rule="asymmetric", rate=5.0, nudging="centered", beta=0.5, steps=300), {"leak": "one"}, False),
        (Plasticity(rule="asymmetric", rate=5.0, margin=0.3, steps=300), {"leak": "one", "activity": "sigmoid"}, False),
    ],
)
def test_conformance(how, options, one_hot):
    table = logic("or", one_hot=one_hot)
    sizes = SIZES._replace(outputs=table.outputs)

    def make():
        population = Population(range(5), sizes, bias=how.rule == "asymmetric", steps=300, **options)
        return PopulationLearning(population, how, one_hot)

    check_rule(make, lambda _: table.train[:])


def test_a_step_that_overshoots_is_warned_of_with_the_bound():
    with pytest.warns(UserWarning, match=r"dt 0.5 is above 0.182.*smaller dt or a smaller beta"):
        made(leak="one", dt=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(leak="one", dt=0.18)


def test_targets_that_do_not_fit_are_refused():
    rule = made()
    with pytest.raises(ConfigurationError, match=r"\[patterns, 1\]; given torch.int64 \[4\]"):
        rule.step(Batch(BATCH.inputs, torch.tensor([0, 1, 1, 0])))
    for rule, low, told in ((made(), -1.0, r"\[0, 1\]"), (made(activity="tanh"), -1.5, r"\[-1, 1\]")):
        with pytest.raises(ConfigurationError, match=rf"{told}; given numbers from {low:g} to 1"):
            rule.evaluate(Batch(BATCH.inputs, torch.tensor([[low], [1.0], [1.0], [0.0]])))
