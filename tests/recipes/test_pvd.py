"""The recipe of parallel variable distribution: its data and networks, what it says of itself, resuming, choices."""

from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch

from synaptome import cli
from synaptome.errors import ConfigurationError, Interrupted
from synaptome.learning.distribution_synchronise import SYNCHRONISATIONS
from synaptome.learning.distribution_worker import SOLVERS
from synaptome.nested import take_apart
from synaptome.networks.dynamics import DYNAMICS
from synaptome.networks.feedforward import ACTIVATIONS, FeedForward
from synaptome.networks.stable import StableNetwork
from synaptome.recipes import RECIPES, pvd, running
from synaptome.recipes.pvd import VariableDistribution
from synaptome.recipes.recipe import RunSettings
from synaptome.report.citations import BIBTEX
from synaptome.training.run import load_state, read_run, verify_run
from synaptome.training.trainer import Trainer


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed=seed, device="cpu", threads=1)


def small(**options):
    return VariableDistribution(**{"width": 6, "depth": 6, "steps": 4, "epochs": 4, **options})


def outcome(path):
    state = {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    tree, tensors = take_apart(state)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(path).metrics]
    return tree, {name: t.numpy().tobytes() for name, t in tensors.items()}, rows


def test_the_choices_are_those_that_there_are():
    hints = get_type_hints(VariableDistribution)
    assert set(get_args(hints["dynamics"])) == set(DYNAMICS)
    assert set(get_args(hints["activation"])) == set(ACTIVATIONS)
    assert set(get_args(hints["synchronisation"])) == set(SYNCHRONISATIONS)
    assert set(get_args(hints["solver"])) == set(SOLVERS) == set(pvd.RATES)
    assert RECIPES["pvd"] is VariableDistribution


@pytest.mark.parametrize(
    ("options", "synapse", "learning", "citations"),
    [
        (
            {},
            "verlet, 6 layers",
            "PVD, 2 blocks, hull, lbfgs",
            ["haber2017", "chang2018", "ferris1994", "solodov1997"],
        ),
        (
            {"network": "feed-forward", "blocks": 3, "synchronisation": "best", "forget_me_not": False},
            "dense",
            "PVD, 3 blocks, best, lbfgs, no forget-me-not terms",
            ["ferris1994", "solodov1997"],
        ),
        ({"network": "feed-forward", "blocks": 1, "solver": "adam"}, "dense", "adam", []),
        (
            {"data": "ellipses", "dynamics": "antisymmetric", "solver": "adam"},
            "antisymmetric, 6 layers",
            "PVD, 2 blocks, hull, adam",
            ["haber2017", "ferris1994", "solodov1997"],
        ),
    ],
)
def test_each_outer_iteration_lowers_the_loss_of_all_examples(options, synapse, learning, citations, tmp_path):
    record = running.start(settings_of(small(**options)), tmp_path / "run")
    rows = record.metrics[1:]
    assert len(rows) == 4  # each on all examples
    for row, later in pairwise(rows):
        assert row["train/after"] < row["train/loss"]
        assert later["train/loss"] == pytest.approx(row["train/after"], rel=1e-5)
    assert record.summary["synapse"] == synapse
    assert record.summary["rule"] == learning
    assert record.summary["citations"] == citations
    assert set(citations) <= set(BIBTEX)


def test_the_defaults_learn_the_swiss_roll(tmp_path):
    """As the earlier implementation came from .725 to .098 with two blocks and the hull, to .033 with one."""
    two = running.start(settings_of(VariableDistribution()), tmp_path / "two")
    one = running.start(settings_of(VariableDistribution(blocks=1)), tmp_path / "one")
    assert two.metrics[1]["train/loss"] == one.metrics[1]["train/loss"] > 0.6
    assert two.metrics[-1]["train/after"] < 0.15
    assert one.metrics[-1]["train/after"] < 0.1
    assert any(row["train/taken/hull"] for row in two.metrics[1:])
    assert "train/taken/worker-2" not in one.metrics[-1]


def test_digits_are_learned_in_batches(tmp_path):
    recipe = VariableDistribution("digits", "feed-forward", width=32, depth=3, batch=360, epochs=4, steps=5)
    record = running.start(settings_of(recipe), tmp_path / "run")
    assert record.metrics[-1]["step"] == 16
    assert record.summary["test/accuracy"] > 0.9


def test_what_is_not_given_is_resolved():
    assert small().resolved() == small(blocks=2, rate=1.0)
    assert small(solver="adam").resolved() == small(blocks=2, solver="adam", rate=0.01)
    assert small(data="mnist", rate=0.5).resolved() == small(data="mnist", blocks=2, rate=0.5, batch=pvd.MNIST_BATCH)
    experiment = running.build(settings_of(small(data="digits")))
    assert experiment.batch == len(experiment.data.train) > 1000
    assert running.build(settings_of(small(data="digits", batch=50))).batch == 50


def test_the_network_is_the_one_asked_for():
    network = running.build(settings_of(small(data="digits", dynamics="hamiltonian", width=8, time=3.0))).rule.model
    assert isinstance(network, StableNetwork)
    assert (network.dynamics, network.width, network.depth, network.time) == ("hamiltonian", 8, 6, 3.0)
    network = running.build(settings_of(small(network="feed-forward", activation="relu"))).rule.model
    assert isinstance(network, FeedForward)
    assert [list(layer.weight.shape) for layer in network.layers] == [[6, 2], *[[6, 6]] * 4, [2, 6]]
    assert network.activation == "relu"


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    recipe = small(batch=128)
    running.start(settings_of(recipe, seed=3), tmp_path / "whole")
    save = Trainer._save

    def stop(trainer):
        save(trainer)
        if trainer.step == 6:
            raise Interrupted(2, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        with pytest.raises(Interrupted):
            running.start(settings_of(recipe, seed=3), tmp_path / "stopped", checkpoint_seconds=0.0)
    assert load_state(tmp_path / "stopped")["step"] == 6
    running.resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert "finished" in verify_run(tmp_path / "whole")


def test_on_the_command_line(tmp_path):
    words = "run pvd --data swiss-roll --blocks 2 --synchronisation best --no-forget-me-not --epochs 1 --steps 2"
    out = tmp_path / "run"
    assert cli.main([*words.split(), "--quiet", "--threads", "1", "--out", str(out)]) == 0
    assert read_run(out).summary["rule"] == "PVD, 2 blocks, best, lbfgs, no forget-me-not terms"
    recipe = running.read_settings(out / "recipe.json").recipe
    assert recipe == VariableDistribution(
        blocks=2, synchronisation="best", forget_me_not=False, epochs=1, steps=2, rate=1.0
    )
    assert running.load_model(out)(torch.rand(3, 2)).shape == (3, 2)


def test_the_grid_runs(tmp_path):
    words = ["sweep", "pvd", "--grid", "blocks", "--epochs", "1", "--steps", "1", "--width", "4", "--depth", "4"]
    assert cli.main([*words, "--quiet", "--out", str(tmp_path / "sweep")]) == 0
    made = [read_run(path.parent).recipe["options"] for path in (tmp_path / "sweep").rglob("recipe.json")]
    assert len(made) == 12
    assert {(each["blocks"], each["synchronisation"], each["forget_me_not"]) for each in made} == {
        (blocks, how, terms) for blocks in (1, 2, 4) for how in SYNCHRONISATIONS for terms in (True, False)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks is a whole number of at least 1; given 0"),
        ({"batch": 0}, "batch is a whole number of at least 1; given 0"),
        ({"steps": 0}, "at least 1 step"),
        ({"rate": -1.0}, "at the rate -1.0"),
        ({"solver": "newton"}, "unknown inner solver 'newton'"),
        ({"time": 0.0}, "finite and above 0; given 0.0"),
        ({"validation": 1.0}, r"in \[0, 1\); given 1.0"),
    ],
)
def test_what_contradicts_itself(options, message):
    with pytest.raises(ConfigurationError, match=message):
        VariableDistribution(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"blocks": 9},
            "StableNetwork has 8 layers that are trained, so there can be 1 to 8 blocks of layers; given 9",
        ),
        ({"synchronisation": "sum"}, "unknown synchronisation 'sum'"),
        ({"dynamics": "hamiltonian", "width": 5}, "take an even one"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_a_folder_is_made(options, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        running.start(settings_of(small(**options)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_write_the_run_of_one_process(tmp_path, started, ended):
    words = [
        "run",
        "pvd",
        "--width",
        "6",
        "--depth",
        "6",
        "--epochs",
        "4",
        "--blocks",
        "3",
        "--threads",
        "1",
        "--quiet",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0
    codes, said = ended(started([*words, "--out", tmp_path / "two"]))
    assert codes == [0, 0], said
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


@pytest.mark.parametrize(("processes", "blocks"), [("1", 2), ("2", 2), ("4", 4)])
def test_there_are_as_many_blocks_as_processes_unless_said(monkeypatch, processes, blocks):
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert VariableDistribution().resolved().blocks == blocks
    assert VariableDistribution(blocks=3).resolved().blocks == 3


@pytest.mark.slow
def test_more_processes_than_blocks_are_refused_once(tmp_path, started, ended):
    codes, said = ended(started(["run", "pvd", "--blocks", "1", "--quiet", "--out", tmp_path / "run"]))
    assert codes == [2, 2]
    assert "given 2 processes and 1 blocks" in said[0]
    assert said[1].strip() == ""
