"""The recipe of evolving sparsity: each preset on real digits, what it records, contradictions, and resuming."""

import dataclasses
import json

import pytest
import torch

from synaptome import cli
from synaptome.errors import ConfigurationError, Interrupted
from synaptome.learning.backprop import Backprop
from synaptome.learning.evolving import Evolving
from synaptome.learning.optimization import Optimization
from synaptome.recipes import RECIPES, running
from synaptome.recipes.evolution import PRESETS, EvolvingSparsity
from synaptome.recipes.evolution_choice import EvolutionChoice
from synaptome.recipes.recipe import RunSettings
from synaptome.topology.layers import sparse_layers
from synaptome.training.checkpoint import steps
from synaptome.training.measures import read_final, read_series
from synaptome.training.run import load_state, read_run, verify_run
from synaptome.training.state import take_apart

CPU = torch.device("cpu")
OFTEN = EvolutionChoice(every_steps=4)  # an epoch of digits has 15 steps


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed=seed, device="cpu", threads=1)


def evolving(preset, **options):
    choice = {} if PRESETS[preset].evolution is None else {"evolution": OFTEN}
    sparsity = {"hidden": (60, 40)} if preset == "dense" else {"hidden": (60, 40), "epsilon": 4.0}
    return EvolvingSparsity(**{"preset": preset, "epochs": 6, **sparsity, **choice, **options})


def outcome(path):
    state = {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    tree, tensors = take_apart(state)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(path).metrics]
    series = {} if "dense" in path.name else read_series(path, "connections")
    return tree, {name: t.numpy().tobytes() for name, t in (tensors | series).items()}, rows


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_and_resumes_to_the_same_bits(preset, tmp_path, monkeypatch):
    settings = settings_of(evolving(preset), seed=2)
    record = running.start(settings, tmp_path / preset)
    assert record.summary["test/accuracy"] > 0.8
    assert verify_run(tmp_path / preset)[-1] == "finished"
    stopped = tmp_path / f"stopped-{preset}"
    original, done = Backprop.step, 0

    def step(self, batch):
        nonlocal done
        done += 1
        if done == 38:  # between two changes, and between two epochs
            raise Interrupted(2, "enough")
        return original(self, batch)

    monkeypatch.setattr(Backprop, "step", step)
    with pytest.raises(Interrupted):
        running.start(settings, stopped, checkpoint_seconds=0.0)
    assert steps(stopped / "checkpoints")[-1] == 37
    running.resume(stopped)
    assert outcome(stopped) == outcome(tmp_path / preset)
    assert json.loads((stopped / "recipe.json").read_text())["options"]["preset"] == preset


def test_other_seeds_have_other_graphs(tmp_path):
    columns = [evolving("set").experiment(seed, CPU, None).rule.model.layers[0].col for seed in range(2)]
    assert not torch.equal(*columns)


@pytest.mark.parametrize("preset", ["set", "rigl", "snfs", "itop"])
def test_the_connections_change_and_their_number_does_not(preset):
    torch.manual_seed(0)
    experiment = evolving(preset).experiment(0, CPU, None)
    layers = sparse_layers(experiment.rule.model)
    before = {name: (layer.row_of.clone(), layer.col.clone()) for name, layer in layers.items()}
    assert [len(col) for _, col in before.values()] == [4 * (64 + 60), 4 * (60 + 40), 4 * (40 + 10)]
    batch = experiment.data.train[:100]
    for _ in range(12):
        experiment.rule.step(batch)
    changed = [not torch.equal(layer.col, before[name][1]) for name, layer in layers.items() if layer.nnz < 400]
    assert any(changed)
    assert sum(layer.nnz for layer in layers.values()) == sum(len(col) for _, col in before.values())
    moved = [layer.nnz != len(before[name][1]) for name, layer in layers.items()]
    assert any(moved) == (preset == "snfs")  # the only one that shares connections among layers
    assert experiment.rule.replaced > 0
    assert experiment.rule.evolution.itop_rate() > sum(layer.nnz for layer in layers.values()) / 6640


def test_static_and_dense_networks_change_nothing():
    for preset in ("static", "dense"):
        experiment = evolving(preset).experiment(0, CPU, None)
        assert type(experiment.rule) is Backprop
        assert experiment.callbacks == ()
    assert not sparse_layers(experiment.rule.model)
    assert experiment.recorders == ()


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("set", {"every": 15, "until": 450, "fraction": 0.3, "schedule_half_way": 1.0, "grow": "random"}),
        ("rigl", {"every": 100, "until": 338, "fraction": 0.3, "schedule_half_way": 0.5, "grow": "gradient"}),
        ("snfs", {"every": 15, "until": 450, "fraction": 0.5, "schedule_half_way": 0.5, "grow": "momentum"}),
        ("itop", {"every": 60, "until": 450, "fraction": 0.5, "schedule_half_way": 0.5, "grow": "random"}),
    ],
)
def test_presets_have_the_settings_of_their_papers(preset, expected):
    """30 epochs of 15 steps."""
    made = EvolvingSparsity(preset=preset, hidden=(50,), epsilon=2.0).experiment(3, CPU, None).rule.evolution
    assert {
        "every": made._every,
        "until": made._until,
        "fraction": made._fraction,
        "schedule_half_way": pytest.approx(made._schedule(0.5)),
        "grow": made._grow,
    } == expected
    assert made._drop.__name__ == ("nearest_of_each_sign" if preset == "set" else "magnitude")
    assert made._redistribute == ("momentum" if preset == "snfs" else None)
    assert made._initial == 0.0


def test_what_is_given_replaces_the_presets_setting():
    choice = EvolutionChoice(
        drop="magnitude",
        grow="random",
        fraction=0.1,
        every_epochs=2,
        until=0.5,
        redistribute="off",
        initial="distribution",
    )
    recipe = EvolvingSparsity(preset="snfs", hidden=(50,), epsilon=2.0, evolution=choice)
    experiment = recipe.experiment(0, CPU, None)
    made = experiment.rule.evolution
    assert (made._grow, made._fraction, made._every, made._until) == ("random", 0.1, 30, 225)
    assert (made._redistribute, made._initial) == (None, "distribution")
    assert made._schedule(0.5) == pytest.approx(0.5)  # the preset's cosine
    assert experiment.synapse.startswith("SNFS 9.4 %, drop magnitude, grow random, fraction 0.1, every epochs 2")
    often = dataclasses.replace(recipe, evolution=EvolutionChoice(every_steps=7))
    assert often.experiment(0, CPU, None).rule.evolution._every == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preset": "static", "evolution": EvolutionChoice(fraction=0.2)},
            "'static' never changes.*evolution.fraction 0.2",
        ),
        ({"preset": "dense", "evolution": EvolutionChoice(drop="set")}, "'dense' never changes.*evolution.drop set"),
        ({"preset": "dense", "density": 0.1}, "'dense' has every connection, but density 0.1 is given"),
        ({"preset": "dense", "epsilon": 20.0}, "'dense' has every connection, but epsilon 20.0 is given"),
        ({"preset": "dense", "topology": "small-world"}, "'dense' has every connection"),
        ({"epsilon": 20.0, "density": 0.1}, "exactly one of"),
        ({"density": 1.5}, r"in \(0, 1\]; given 1.5"),
        ({"epsilon": -1.0}, "epsilon is a positive number; given -1"),
        ({"hidden": (10, 0)}, "hidden layer 2 is a whole number of at least 1; given 0"),
        ({"preset": "riglet"}, "unknown preset 'riglet' .did you mean 'rigl'"),
        ({"zero_connections": (0.5, 1.0)}, r"in \[0, 1\); given 1.0"),
        ({"batch": 0}, "batch is a whole number"),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ConfigurationError, match=message):
        EvolvingSparsity(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_epochs": 1, "every_steps": 15}, "every_epochs and every_steps both"),
        ({"every_steps": 0}, "every_steps is a whole number of at least 1; given 0"),
        ({"until": 0.0}, r"until is a share of the training in \(0, 1\]; given 0.0"),
        ({"until": 1.5}, "given 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        EvolutionChoice(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preset": "rigl", "epochs": 5},
            "no connection would ever change: the first change is due after step 100, and",
        ),
        ({"epochs": 1}, "from step 15 of 15 on nothing changes"),
        (
            {"evolution": EvolutionChoice(fraction=0.0)},
            r"fraction is a share of the connections in \(0, 1\]; given 0.0",
        ),
        ({"preset": "snfs", "optimization": Optimization()}, "SGD keeps no momentum"),
        ({"optimization": Optimization("lbfgs")}, "LBFGS"),
        ({"validation": 1.0}, "a fraction between 0 and 1, got 1.0"),
    ],
)
def test_what_cannot_evolve_is_refused_before_a_folder_is_made(options, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        running.start(settings_of(EvolvingSparsity(**{"hidden": (50,), **options})), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_json_keeps_every_choice(tmp_path):
    for initial in (0.0, 1e-3, "distribution", None):
        choice = EvolutionChoice("taylor", "random-unfired", 0.25, None, 7, 0.9, "linear", 2, "momentum", initial)
        recipe = EvolvingSparsity(
            preset="rigl",
            hidden=(3, 4),
            density=0.3,
            distribution="erk",
            topology="small-world(0.2)",
            evolution=choice,
            zero_connections=(0.0, 0.5),
        )
        document = json.loads(json.dumps(settings_of(recipe).document()))
        assert RunSettings.from_document(document, RECIPES, tmp_path) == settings_of(recipe)


def test_measures_of_a_run(tmp_path):
    recipe = evolving("set", zero_connections=(0.0, 0.5, 0.95))
    record = running.start(settings_of(recipe), tmp_path / "run")
    tested = read_final(tmp_path / "run", "pruning")
    assert tested["rate"].tolist() == [0.0, 0.5, 0.95]
    assert tested["accuracy"].shape == (3, 1)
    assert tested["accuracy"][0].item() == pytest.approx(record.summary["test/accuracy"])
    assert tested["accuracy"][0] > tested["accuracy"][2]
    series = read_series(tmp_path / "run", "connections")
    assert series["step"].tolist() == [15 * epoch for epoch in range(7)]
    maps = series["input/connections"]
    assert maps.shape[-2:] == (8, 8)
    assert maps.flatten(1).sum(1).tolist() == [4 * (64 + 60)] * 7
    assert (series["itop_rate"].diff() >= 0).all()
    assert series["itop_rate"][-1] > series["itop_rate"][0]
    replaced = [row["connections/replaced"] for row in record.metrics]
    assert replaced[0] == 0
    assert replaced == sorted(replaced)
    assert record.summary["active_synapses"] == 4 * (124 + 100 + 50)
    long = evolving("set", epochs=600).experiment(0, CPU, None).recorders[0]
    assert sum(long.when(15 * epoch, 15) for epoch in range(1, 601)) == 60  # of a long run not every epoch


def test_tables_and_reports_name_what_ran():
    told = {
        preset: (made.synapse, made.citations)
        for preset in PRESETS
        if (made := evolving(preset).experiment(0, CPU, None))
    }
    assert told["dense"] == ("dense", ())
    assert told["static"] == ("static 17 %", ("mocanu2018",))
    assert told["rigl"] == ("RigL 17 %, every steps 4", ("evci2020", "mocanu2018"))
    assert told["set"][1] == ("mocanu2018",)
    assert told["snfs"][1] == ("dettmers2019", "mocanu2018")
    uniform = EvolvingSparsity(preset="itop", density=0.05).experiment(0, CPU, None)
    assert (uniform.synapse, uniform.citations) == ("ITOP 5 %", ("liu2021",))
    erk = EvolvingSparsity(preset="static", density=0.05, distribution="erk").experiment(0, CPU, None)
    assert erk.citations == ("evci2020",)


def test_the_command_line(tmp_path, capsys):
    words = (
        "--hidden 30 --epsilon 3 --epochs 3 --preset rigl --evolution.every-steps 5 --evolution.initial distribution"
    )
    code = cli.main(["run", "evolution", *words.split(), "--quiet", "--threads", "1", "--out", str(tmp_path / "run")])
    assert code == 0
    assert "RigL" in capsys.readouterr().out
    options = json.loads((tmp_path / "run" / "recipe.json").read_text())["options"]
    assert options["hidden"] == [30]
    assert options["evolution"]["every_steps"] == 5
    assert options["evolution"]["initial"] == "distribution"


@pytest.mark.parametrize("grid", EvolvingSparsity.grids)
def test_grids_are_of_runs_that_exist(grid, capsys):
    assert cli.main(["sweep", "evolution", "--grid", grid, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == {"published": len(PRESETS), "regularisation": 2}[grid]


def test_evolving_digits_are_learned_as_well_as_dense_ones():
    """The defaults: a twentieth of the connections, and no worse than two test images in a hundred."""
    torch.manual_seed(0)
    recipe = EvolvingSparsity(epochs=10)
    experiment = recipe.experiment(0, CPU, None)
    assert isinstance(experiment.rule, Evolving)
    assert experiment.synapse == "SET 5.4 %"
    train, test = experiment.data.train, experiment.data.test
    for epoch in range(10):
        for index in train.order(0, epoch).split(100):
            experiment.rule.step(train[index])
    assert experiment.rule.evaluate(test[:])["accuracy"] > 0.96
