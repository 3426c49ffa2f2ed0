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
from synaptome.nested import take_apart
from synaptome.recipes import RECIPES, running
from synaptome.recipes.evolution import PRESETS, EvolvingSparsity
from synaptome.recipes.evolution_choice import EvolutionChoice
from synaptome.recipes.recipe import RunSettings
from synaptome.topology.layers import sparse_layers
from synaptome.training.checkpoint import steps
from synaptome.training.measures import read_final, read_series
from synaptome.training.run import load_state, read_run, verify_run

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


def test_the_dense_network_is_the_same_whatever_connections_are_given_to_others():
    outputs = []
    for options in ({}, {"density": 0.1, "distribution": "erk"}, {"epsilon": 3.0, "topology": "small-world"}):
        torch.manual_seed(0)
        experiment = EvolvingSparsity(preset="dense", hidden=(30,), **options).experiment(0, CPU, None)
        assert experiment.synapse == "dense"
        outputs.append(experiment.rule.model(experiment.data.test.inputs[:10]))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_run_records_what_its_preset_came_to(tmp_path):
    running.start(settings_of(evolving("rigl", evolution=EvolutionChoice(every_steps=5))), tmp_path / "run")
    settings = load_state(tmp_path / "run")["rule"]["evolution"]["settings"]
    told = {"drop": "magnitude", "grow": "gradient", "fraction": 0.3, "every": 5, "until": 68, "schedule": "cosine"}
    assert told.items() <= settings.items()  # 68: three quarters of 6 epochs of 15 steps


@pytest.mark.parametrize("preset", ["set", "rigl", "snfs", "itop"])
def test_a_resolved_recipe_says_every_setting_and_does_the_same(preset):
    recipe = EvolvingSparsity(preset=preset, hidden=(50,), epsilon=2.0, evolution=EvolutionChoice(fraction=0.2))
    resolved = recipe.resolved()
    assert resolved.evolution.given == PRESETS[preset].evolution.given | {"fraction": 0.2}
    assert resolved.resolved() == resolved
    one, other = (each.experiment(0, CPU, None) for each in (recipe, resolved))
    assert one.synapse == other.synapse
    assert one.rule.evolution.state_dict()["settings"] == other.rule.evolution.state_dict()["settings"]


@pytest.mark.parametrize("preset", ["static", "dense"])
def test_what_never_evolves_has_nothing_to_resolve(preset):
    recipe = EvolvingSparsity(preset=preset)
    assert recipe.resolved() == recipe


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
    # SNFS drops by magnitude anyway.
    assert experiment.synapse.startswith("SNFS 9.4 %, grow random, fraction 0.1, every epochs 2")
    often = dataclasses.replace(recipe, evolution=EvolutionChoice(every_steps=7))
    assert often.experiment(0, CPU, None).rule.evolution._every == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preset": "static", "evolution": EvolutionChoice(fraction=0.2)},
            "'static' never changes.*evolution.fraction 0.2.*preset=set,rigl,snfs,itop with it, preset=static without",
        ),
        ({"preset": "dense", "evolution": EvolutionChoice(drop="set")}, "'dense' never changes.*evolution.drop set"),
        ({"preset": "dense", "density": 1.5}, r"in \(0, 1\]; given 1.5"),
        ({"preset": "dense", "epsilon": 20.0, "density": 0.1}, "exactly one of"),
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
    full = EvolvingSparsity(preset="static", hidden=(100,), density=1.0).experiment(0, CPU, None)
    assert full.synapse == "static 100 %"
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


SMALL = "--hidden 20 --epsilon 3 --epochs 2 --evolution.every-steps 5"


def test_another_optimizer_is_not_asked_for_the_momentum_of_the_default(tmp_path, capsys):
    def ran(*words):
        code = cli.main(["run", "evolution", *SMALL.split(), *words, "--quiet", "--threads", "1"])
        return code, capsys.readouterr().err

    assert ran("--optimization.name", "adam", "--optimization.rate=1e-3", "--out", str(tmp_path / "adam"))[0] == 0
    chosen = read_run(tmp_path / "adam").recipe["options"]["optimization"]
    assert (chosen["name"], chosen["momentum"], chosen["weight_decay"]) == ("adam", 0.0, 5e-4)
    assert ran("--optimization.name=rprop", "--optimization.rate=1e-3", "--out", str(tmp_path / "rprop"))[0] == 0
    assert read_run(tmp_path / "rprop").recipe["options"]["optimization"]["weight_decay"] == 0.0  # it has none
    assert ran("--optimization.name=rmsprop", "--optimization.rate=1e-3", "--out", str(tmp_path / "rmsprop"))[0] == 0
    assert read_run(tmp_path / "rmsprop").recipe["options"]["optimization"]["momentum"] == 0.9
    again = str(tmp_path / "rmsprop" / "recipe.json")  # so does a configuration that is gone on from
    assert ran("--config", again, "--optimization.name", "adam", "--out", str(tmp_path / "again"))[0] == 0
    code, told = ran("--optimization.name", "adam", "--optimization.momentum", "0.9")
    assert code == 2
    assert "adam has no momentum" in told
    code, told = ran("--optimization.name", "lbfgs")
    assert code == 2
    assert "connections cannot change under LBFGS" in told


def test_a_sweep_over_optimizers_takes_what_each_has(tmp_path, capsys):
    words = [*SMALL.split(), "--grid", "optimization.name=sgd,adam", "--quiet", "--threads", "1"]
    assert cli.main(["sweep", "evolution", *words, "--optimization.rate", "0.01", "--out", str(tmp_path)]) == 0
    runs = {name: read_run(tmp_path / f"optimization.name-{name}_seed-0").recipe for name in ("sgd", "adam")}
    assert {name: run["options"]["optimization"]["momentum"] for name, run in runs.items()} == {"sgd": 0.9, "adam": 0.0}


def test_the_accuracy_without_the_weakest_connections_is_printed(tmp_path, capsys):
    words = [*SMALL.split(), "--zero-connections", "0", "0.35", "--quiet", "--threads", "1"]
    assert cli.main(["run", "evolution", *words, "--out", str(tmp_path / "run")]) == 0
    whole, rest = (100 * read_final(tmp_path / "run", "pruning")["accuracy"]).flatten().tolist()
    line = f"test accuracy without the weakest 0 %: {whole:.2f} %; 35 %: {rest:.2f} %"
    assert line in capsys.readouterr().out.splitlines()
    dense = [word for word in words if word not in ("--evolution.every-steps", "5")]
    assert cli.main(["run", "evolution", *dense, "--preset", "dense", "--out", str(tmp_path / "dense")]) == 0
    capsys.readouterr()
    both = [str(tmp_path / name) for name in ("run", "dense")]
    assert cli.main(["report", *both, "--out", str(tmp_path / "both.html")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "without the weakest" in line]
    assert [line.partition(",")[0] for line in lines] == ["preset=set", "preset=dense"]


def test_help_says_what_each_preset_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "evolution", "--help"])
    told = capsys.readouterr().out
    assert all(f"- {preset}: " in told for preset in PRESETS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--zero-connections 0.3,0.6", "--zero-connections takes numbers with spaces between them; given '0.3,0.6'"),
        ("--hidden 10 x", "--hidden takes whole numbers with spaces between them; given '10 x'"),
        ("--evolution.initial foo", "--evolution.initial takes a number, distribution or None; given 'foo'"),
        ("--evolution.every-steps 1.5", "--evolution.every-steps takes a whole number or None; given '1.5'"),
        ("--epsilon x", "--epsilon takes a number or None; given 'x'"),
        ("--evolution.redistribute on", "unknown value for --evolution.redistribute 'on'"),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_is_taken(words, message, capsys):
    assert cli.main(["run", "evolution", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_one_sweep_compares_all_presets_at_a_density(capsys):
    assert cli.main(["sweep", "evolution", "--grid", "published", "--density", "0.1", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PRESETS)


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
