"""The recipe of layered equilibrium propagation: real digits, published settings, resuming, contradictions."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch

from synaptome import cli
from synaptome.data.indexed import IndexedSplit
from synaptome.errors import ConfigurationError, Interrupted
from synaptome.learning.nudging import COSTS, NUDGINGS
from synaptome.nested import take_apart
from synaptome.networks.states import STATES
from synaptome.recipes import RECIPES, running
from synaptome.recipes.equilibrium_choice import COMPLETE, PUBLISHED
from synaptome.recipes.equilibrium_classifier import EquilibriumClassifier
from synaptome.recipes.recipe import RunSettings
from synaptome.training.run import load_state, read_run, verify_run
from synaptome.training.trainer import Trainer

HELD_OUT = 1238  # of 1438 digits, so that an epoch has 10 steps


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed=seed, device="cpu", threads=1)


def quick(**options):
    return EquilibriumClassifier(**{"hidden": (40,), "validation": HELD_OUT, "epochs": 2, **options})


def outcome(path):
    state = {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    tree, tensors = take_apart(state)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(path).metrics]
    return tree, {name: t.numpy().tobytes() for name, t in tensors.items()}, rows


def test_choices_are_those_that_there_are():
    hints = get_type_hints(EquilibriumClassifier)
    assert get_args(hints["state"]) == tuple(STATES)
    assert get_args(hints["cost"]) == COSTS
    nudging, nothing = get_args(hints["nudging"])  # which the network decides if it is not given
    assert (get_args(nudging), nothing) == (NUDGINGS, type(None))
    assert RECIPES["equilibrium-classifier"] is EquilibriumClassifier


def test_digits_are_learned(tmp_path):
    recipe = EquilibriumClassifier(hidden=(100,), epochs=6, nudging="centered", rates=(0.2, 0.1))
    record = running.start(settings_of(recipe), tmp_path / "run")
    assert record.summary["test/accuracy"] > 0.92
    assert record.metrics[-1]["train/residual"] < 0.02
    assert record.summary["synapse"] == "symmetric"
    assert record.summary["rule"] == "equilibrium propagation, centered"


@pytest.mark.parametrize(
    ("options", "synapse", "citations"),
    [
        ({}, "symmetric", ["scellier2017"]),
        ({"weights": "asymmetric"}, "asymmetric", ["scellier2017", "scellier2018"]),
        (
            {"weights": "asymmetric", "corrected": True, "nudging": "centered"},
            "asymmetric, corrected",
            ["scellier2017", "scellier2018", "scurria2026", "laborieux2021"],
        ),
        ({"cost": "cross-entropy", "nudging": "centered"}, "symmetric", ["scellier2017", "laborieux2021"]),
        ({"state": "tanh", "persistent": False}, "symmetric", ["scellier2017"]),
        (
            {"network": "complete", "density": 0.15, "hidden": (90,)},
            "complete, 15 % of connections, asymmetric, corrected",
            ["scellier2017", "scellier2018", "farinha2020", "scurria2026", "laborieux2021"],
        ),
        (
            {"network": "complete", "density": 0.15, "hidden": (90,), "corrected": False, "nudging": "random-sign"},
            "complete, 15 % of connections, asymmetric",
            ["scellier2017", "scellier2018", "farinha2020"],
        ),
    ],
)
def test_each_variant_lowers_the_loss(options, synapse, citations, tmp_path):
    record = running.start(settings_of(quick(**options, epochs=4)), tmp_path / "run")
    losses = [row["validation/loss"] for row in record.metrics]
    assert losses[-1] < 0.8 * losses[0]
    assert record.summary["synapse"] == synapse
    assert record.summary["citations"] == citations


def test_the_published_settings_are_those_of_as_many_hidden_layers():
    for depth, published in PUBLISHED.items():
        rule = running.build(settings_of(quick(hidden=(8,) * depth))).rule
        assert (rule.network.relaxation.steps, rule.nudged.steps) == (published.free_steps, published.nudged_steps)
        assert (rule.nudging, rule.beta) == ("random-sign", published.beta)
        assert [group["lr"] for group in rule.optimizer.param_groups] == list(published.rates)
        assert rule.network.widths == [8] * depth + [10]
    own = quick(beta=0.2, free_steps=7, nudged_steps=3, rates=(0.3, 0.2), dt=0.4, schedule="linear")
    rule = running.build(settings_of(own)).rule
    assert (rule.network.relaxation.steps, rule.network.relaxation.dt, rule.nudged.steps) == (7, 0.4, 3)
    assert rule.beta == 0.2
    assert rule.scheduler is not None


def test_a_complete_network_takes_settings_of_its_own():
    recipe = quick(network="complete", density=0.1, hidden=(190,))
    rule = running.build(settings_of(recipe)).rule
    assert rule.network.recurrent.nnz == round(0.1 * 200 * 199)
    assert rule.network.afferent.nnz == round(0.1 * 64 * 200)
    assert (rule.network.relaxation.steps, rule.network.relaxation.dt) == (COMPLETE.free_steps, COMPLETE.dt)
    assert (rule.nudged.steps, rule.nudging, rule.corrected) == (COMPLETE.nudged_steps, "centered", True)
    assert [(group["lr"], group["momentum"]) for group in rule.optimizer.param_groups] == [(0.1, 0.9), (0.1, 0.9)]
    assert rule.state_dict()["kept"] is None
    own = running.build(settings_of(replace(recipe, persistent=True, corrected=False, rates=(0.3, 0.2), dt=0.5))).rule
    assert [list(state.shape) for state in own.state_dict()["kept"]] == [[200, 200]]
    assert (own.corrected, own.network.relaxation.dt, own.optimizer.param_groups[1]["lr"]) == (False, 0.5, 0.2)


def test_what_the_network_decides_stands_in_the_recipe_of_a_run():
    layered = settings_of(quick(rates=(0.2, 0.1))).recipe
    assert (layered.weights, layered.corrected, layered.nudging, layered.dt) == ("symmetric", False, "random-sign", 0.5)
    assert (layered.beta, layered.free_steps, layered.rates, layered.persistent) == (0.5, 20, (0.2, 0.1), True)
    complete = settings_of(quick(network="complete", density=0.2)).recipe
    assert (complete.weights, complete.corrected, complete.rates) == ("asymmetric", True, COMPLETE.rates)
    assert complete.resolved() == complete


def test_images_are_in_0_to_1_and_their_states_are_kept_unless_not_wanted():
    kept, fresh = (running.build(settings_of(quick(persistent=given))) for given in (True, False))
    assert isinstance(kept.data.train, IndexedSplit)
    assert (kept.data.train.inputs.min(), kept.data.train.inputs.max()) == (0, 1)
    assert [list(state.shape) for state in kept.rule.state_dict()["kept"]] == [[200, 40], [200, 10]]
    assert fresh.rule.state_dict()["kept"] is None


@pytest.mark.parametrize(
    "options", [{"persistent": True}, {"persistent": False}, {"network": "complete", "density": 0.2}], ids=str
)
def test_a_resumed_run_ends_with_the_same_bits(options, tmp_path, monkeypatch):
    recipe = quick(**options, check_gradient=True, schedule="linear")
    running.start(settings_of(recipe, seed=3), tmp_path / "whole")
    save = Trainer._save

    def stop(trainer):
        save(trainer)
        if trainer.step == 13:
            raise Interrupted(2, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        with pytest.raises(Interrupted):
            running.start(settings_of(recipe, seed=3), tmp_path / "stopped", checkpoint_seconds=0.0)
    assert load_state(tmp_path / "stopped")["step"] == 13
    running.resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert "finished" in verify_run(tmp_path / "whole")


def test_checking_the_gradient_says_how_it_is_aligned_and_changes_nothing_else(tmp_path):
    # A converged free phase and a small centered nudge that converges too: the theory says 1.
    exact = quick(
        state="sigmoid", nudging="centered", beta=0.02, free_steps=200, nudged_steps=100, weights="asymmetric"
    )
    for recipe, least in ((replace(exact, corrected=True), 0.999), (replace(exact, weights="symmetric"), 0.999)):
        name = recipe.weights
        checked = running.start(settings_of(replace(recipe, check_gradient=True)), tmp_path / f"{name}-checked").metrics
        plain = running.start(settings_of(recipe), tmp_path / name).metrics
        layers = ["layers.0", "layers.1"] + (["feedback.0"] if name == "asymmetric" else [])
        for row, other in zip(checked, plain, strict=True):
            aligned = {key: row.pop(key) for key in list(row) if key.startswith("alignment/")}
            assert set(aligned) == {f"alignment/{layer}" for layer in layers}
            assert min(aligned.values()) > least
            assert {k: v for k, v in row.items() if k != "seconds"} == {
                k: v for k, v in other.items() if k != "seconds"
            }


def test_on_the_command_line(tmp_path, capsys):
    words = ["run", "equilibrium-classifier", "--hidden", "20", "--epochs", "1", "--check-gradient", "--quiet"]
    out = tmp_path / "run"
    assert cli.main([*words, "--rates", "0.2", "0.1", "--beta", "0.4", "--threads", "1", "--out", str(out)]) == 0
    assert "equilibrium propagation" in capsys.readouterr().out
    recipe = running.read_settings(out / "recipe.json").recipe
    given = EquilibriumClassifier(hidden=(20,), epochs=1, check_gradient=True, rates=(0.2, 0.1), beta=0.4)
    assert recipe == given.resolved()
    x = torch.rand(3, 1, 8, 8)
    assert running.load_model(out)(x).shape == (3, 10)


def test_a_complete_network_on_the_command_line(tmp_path):
    words = ["run", "equilibrium-classifier", "--network", "complete", "--hidden", "90", "--density", "0.15", "--quiet"]
    out = tmp_path / "run"
    assert cli.main([*words, "--epochs", "1", "--persistent", "True", "--threads", "1", "--out", str(out)]) == 0
    recipe = running.read_settings(out / "recipe.json").recipe
    assert (recipe.network, recipe.hidden, recipe.density, recipe.persistent) == ("complete", (90,), 0.15, True)
    assert "complete, 15 % of connections" in (out / "report.html").read_text()
    assert running.load_model(out)(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (0,)}, "hidden layer 1 is a whole number of at least 1; given 0"),
        (
            {"hidden": (9,) * 4},
            "published for 1 to 3 hidden layers; for 4 also give free_steps, nudged_steps, beta, rate",
        ),
        ({"rates": (0.1,)}, "one for each of the 2 layers of weights; given 0.1"),
        ({"rates": (0.1, -0.1)}, "positive numbers"),
        ({"beta": 0.0}, "without a nudge the two phases are one"),
        ({"dt": 2.0}, "above 0 and at most 1"),
        ({"free_steps": 0}, "at least 1 step; given 0"),
        ({"nudging": "both"}, "unknown nudging 'both'"),
        ({"corrected": True}, "symmetric weights need no correction"),
        ({"weight_decay": -1.0}, "weight_decay is a number of at least 0; given -1.0"),
        ({"epochs": 0}, "epochs is a whole number of at least 1"),
        ({"momentum": 1.0}, "momentum is a number of at least 0 and below 1; given 1.0"),
        ({"density": 0.1}, "layers are dense; given 0.1: leave it out, or choose the network complete"),
        ({"network": "complete"}, "and a density; given hidden 500 and density None"),
        ({"network": "complete", "density": 0.1, "hidden": (9, 9)}, "given hidden 9, 9 and density 0.1"),
        ({"network": "complete", "density": 1.5}, r"a share of all places in \(0, 1\]; given 1.5"),
        ({"network": "complete", "density": 0.1, "weights": "symmetric"}, "weights are asymmetric; given symmetric"),
        ({"network": "complete", "density": 0.1, "cost": "cross-entropy"}, "outputs of a complete network are neurons"),
        ({"network": "complete", "density": 0.1, "rates": (0.1,)}, "each of the 2 kinds of connection; given 0.1"),
    ],
)
def test_what_contradicts_itself(options, message):
    with pytest.raises(ConfigurationError, match=message):
        EquilibriumClassifier(**options)
