"""Populations that learn truth tables: what is chosen by whom, the rates that are known, and a run's measures."""

import dataclasses

import pytest
import torch

from synaptome.analysis.populations import overview
from synaptome.errors import ConfigurationError
from synaptome.learning.sparsification import Sparsification
from synaptome.recipes.equilibrium_logic import EquilibriumLogic
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.running import build, load_model, resume, start
from synaptome.training.measures import read_final, read_series

QUICK = {"free_steps": 100, "nudged_steps": 100, "networks": 3, "epochs": 6}


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed, "cpu", 1)


def learned(seed=0, **options):
    """The overview of a population that went through all its epochs."""
    experiment = build(settings_of(EquilibriumLogic(**options), seed))
    for _ in range(experiment.epochs):
        experiment.rule.step(experiment.data.train[:])
    return overview(experiment.finals["networks"](experiment.rule.model))


def test_defaults_are_those_of_the_rule_and_the_coding():
    expected = {
        ("deep", "plain"): (5, 10.0, 100.0, "deep"),
        ("deep", "one-hot"): (2, 1.0, 200.0, "deep"),
        ("asymmetric", "plain"): (5, 10.0, 1.0, "one"),
    }
    for (rule, coding), numbers in expected.items():
        choices = EquilibriumLogic(rule=rule, coding=coding).choices
        assert (choices.hidden, choices.beta, choices.rate, choices.leak) == numbers
        assert (choices.epochs, choices.std, choices.spread, choices.margin) == (200, 0.05, 0.1, None)


def test_what_is_given_replaces_the_presets():
    reliable = EquilibriumLogic(preset="reliable")
    assert reliable.choices.margin is not None
    changed = EquilibriumLogic(preset="reliable", hidden=7, margin=-1.0, rate=3.0)
    assert changed.choices == dataclasses.replace(reliable.choices, hidden=7, margin=None, rate=3.0)


def test_every_field_arrives():
    recipe = EquilibriumLogic(
        task="and",
        coding="one-hot",
        layered=True,
        networks=4,
        hidden=3,
        leak="certified",
        activity="sigmoid",
        dt=0.02,
        free_steps=11,
        nudged_steps=12,
        tolerance=1e-7,
        spread=0.4,
        beta=0.5,
        nudging="centered",
        rate=7.0,
        decay=0.3,
        beta_1=0.9,
        margin=0.2,
        sign=True,
        regularized=True,
        reg_w=0.01,
        sparse=True,
        regrow=True,
        tol_w=0.02,
        temp=2.0,
        epochs=13,
    )
    experiment = build(settings_of(recipe, seed=2))
    rule, population = experiment.rule, experiment.rule.model
    assert (experiment.epochs, experiment.batch, experiment.data.name) == (13, 4, "logic-and")
    assert population.sizes == (3, 3, 2)
    assert population.seeds.tolist() == [8, 9, 10, 11]
    assert (population.leak_kind, population.activity, population.bias) == ("certified", "sigmoid", None)
    numbers = (population.dt, population.steps, population.tolerance, population.spread)
    assert numbers == (0.02, 11, 1e-7, 0.4)
    assert population.weight[0, 0, -1] == 0  # no connection past the hidden layer
    assert rule.one_hot
    how = rule.plasticity
    assert (how.rule, how.beta, how.nudging, how.steps, how.rate, how.decay) == ("deep", 0.5, "centered", 12, 7.0, 0.3)
    assert (how.beta_0, how.beta_1, how.sign, how.l1, how.margin) == (0.0, 0.9, True, 0.01, 0.2)
    assert how.sparsification == Sparsification(0.02, 2.0, True)
    asymmetric = build(settings_of(EquilibriumLogic(rule="asymmetric", std=0.0, beta_0=0.1))).rule
    assert asymmetric.population.bias is not None
    assert asymmetric.population.sizes.inputs == 2
    assert asymmetric.population.values.count_nonzero() == 0
    assert asymmetric.plasticity.beta_0 == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "nand"}, "unknown task 'nand'"),
        ({"preset": "best"}, "unknown preset"),
        ({"rule": "hebb"}, "unknown rule and coding"),
        ({"networks": 0}, "networks is a whole number of at least 1"),
        ({"epochs": 0}, "epochs is a whole number of at least 1"),
        ({"beta": 0.0}, "beta is how strongly"),
        ({"regrow": True}, "choose sparse too"),
        ({"hidden": -1}, "at least one input"),
        ({"dt": -1.0}, "dt is a finite number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(settings_of(EquilibriumLogic(**options)))


def test_a_run_records_every_network(tmp_path):
    record = start(settings_of(EquilibriumLogic(task="or", **QUICK)), tmp_path / "run")
    assert record.summary["rule"] == "DEEP"
    assert record.summary["synapse"] == "complete directed"
    series, final = read_series(tmp_path / "run", "networks"), read_final(tmp_path / "run", "networks")
    assert series["step"].tolist() == list(range(7))
    assert series["error"].shape == series["right"].shape == series["sparsity"].shape == (7, 3)
    model = load_model(tmp_path / "run")
    assert torch.equal(series["error"][-1], model.success.error)
    assert final["solved"].mean().item() == record.summary["test/solved"]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    recipe = EquilibriumLogic(task="xor", sparse=True, nudging="random-sign", **QUICK)
    start(settings_of(recipe), tmp_path / "whole", checkpoint_seconds=0.0)
    start(settings_of(recipe), tmp_path / "again", checkpoint_seconds=0.0)
    resume(tmp_path / "again", step=5)
    first, second = (load_model(tmp_path / name).state_dict() for name in ("whole", "again"))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    whole, again = (read_series(tmp_path / name, "networks") for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_ten_runs_of_one_network_are_one_run_of_ten():
    together = build(settings_of(EquilibriumLogic(networks=4), seed=0)).rule.model
    for seed in range(4):
        alone = build(settings_of(EquilibriumLogic(networks=1), seed=seed)).rule.model
        assert torch.equal(alone.values, together.values[seed : seed + 1])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["and", "or", "not", "id"])
def test_published_settings_learn_the_easy_tasks(task):
    """All of 20 networks did in the authors' notebooks."""
    told = learned(task=task, networks=50)
    assert told["solved"] == told["held"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        # 99.8 % of all samples of 100 lie between, if networks solve it as often as in the notebooks, give or take the
        # notebooks' own error over 20: 4, 5 and 1 of them did.
        ({}, 0.06, 0.5),
        ({"rule": "asymmetric"}, 0.06, 0.5),
        ({"regularized": True, "sparse": True, "regrow": True}, 0.0, 0.3),
    ],
    ids=["deep", "asymmetric", "sparse"],
)
def test_published_settings_learn_xor_as_seldom_as_published(options, low, high):
    told = learned(networks=100, **options)
    assert low <= told["solved"] <= high
    assert told["ever_solved"] >= told["solved"]
    if options.get("sparse"):
        assert told["sparsity"] == pytest.approx(0.3, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["deep", "asymmetric"])
def test_reliable_settings_learn_xor_and_hold_it(rule):
    told = learned(networks=30, rule=rule, preset="reliable")
    assert told["solved"] >= 0.9
    assert told["held"] >= 0.9
