"""Recipes: every field arrives, recipe.json is strict, and what is wrong is refused before anything is written."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import synaptome as syn
from synaptome import data
from synaptome.analysis.size import count_synapses
from synaptome.errors import ConfigurationError, NumericError, RunError, SynaptomeError, WorkerLostError
from synaptome.learning.optimization import Optimization
from synaptome.recipes import RECIPES, running
from synaptome.recipes.demo import DEMO
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.failures_linear import FailuresLinear, FailuresSemantic
from synaptome.recipes.recipe import RunSettings
from synaptome.report.citations import BIBTEX
from synaptome.training.measures import read_final, read_series
from synaptome.training.run import read_run, verify_run

CPU = torch.device("cpu")


def settings_of(recipe, **options):
    return RunSettings(recipe, **{"seed": 0, "device": "cpu", "threads": 1, **options})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_json_round_trip(recipe, tmp_path):
    settings = settings_of(recipe(), seed=3)
    document = json.loads(json.dumps(settings.document()))
    assert RunSettings.from_document(document, RECIPES, tmp_path) == settings


OPTIMIZATIONS = st.builds(
    Optimization,
    name=st.sampled_from(["sgd", "rmsprop"]),
    rate=st.floats(1e-300, 1e300),
    momentum=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
RECIPE = st.builds(
    FailuresClassifier,
    data=st.sampled_from(["digits", "cifar10"]),
    depth=st.integers(1, 2**40),
    bias=st.booleans(),
    failure=st.floats(0, 1, exclude_max=True),
    failing=st.text(),
    inference=st.sampled_from(["expected", "mc(5)"]),
    validation=st.floats(0, 1, exclude_max=True),
    optimization=OPTIMIZATIONS,
) | st.builds(FailuresLinear, d=st.sampled_from([1, 2]), correlation=st.floats(-0.99, 0.99), optimization=OPTIMIZATIONS)


@given(RECIPE, st.integers(0, 2**63 - 1), st.none() | st.text())
def test_every_value_survives_recipe_json(recipe, seed, data_dir):
    settings = settings_of(recipe, seed=seed, data_dir=data_dir)
    document = json.loads(json.dumps(settings.document()))
    assert RunSettings.from_document(document, RECIPES, Path("recipe.json")) == settings


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["recipe"], "failures-classifer", "did you mean 'failures-classifier'"),
        (["sed"], 1, "unknown key 'sed'.*did you mean 'seed'"),
        (["options", "epoch"], 3, "unknown field 'epoch'.*did you mean 'epochs'"),
        (["options", "optimization", "rat"], 3, "unknown field 'rat'.*did you mean 'rate'"),
        (["options", "epochs"], "many", r"Expected `int`, got `str` - at `\$.epochs`"),
        (["options", "data"], "mnits", r"Invalid enum value 'mnits' - at `\$.data`"),
        (["options", "optimization", "rate"], -1.0, "positive"),
        (["options"], [1], "expected an object"),
        (["seed"], -1, "a seed is"),
        (["threads"], 0, "threads is"),
        (["format"], 99, "format 99"),
    ],
)
def test_bad_recipe_json_is_refused_by_name(tmp_path, path, value, message):
    document = settings_of(FailuresClassifier()).document()
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ConfigurationError, match=message):
        RunSettings.from_document(document, RECIPES, tmp_path / "recipe.json")
    del document["seed"]
    with pytest.raises(ConfigurationError):
        RunSettings.from_document(document, RECIPES, tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (FailuresClassifier, {"failure": 1.0}, r"in \[0, 1\)"),
        (FailuresClassifier, {"inference": "mean"}, "expected, noisy"),
        (FailuresClassifier, {"depth": 0}, "depth is a whole number"),
        (FailuresClassifier, {"validation": 1.0}, "validation is a share"),
        (FailuresClassifier, {"output": "softmax"}, "twice is wrong"),
        (FailuresLinear, {"correlation": 1.0}, "correlation"),
        (FailuresLinear, {"features": 0}, "features is a whole number"),
        (FailuresLinear, {"correlation": 0.5, "covariance": "sigma.npy"}, "give one of them"),
        (FailuresLinear, {"noise": "uniform"}, "bernoulli"),
        (FailuresLinear, {"failure": float("nan")}, r"in \[0, 1\)"),
        (FailuresSemantic, {"epochs": 0}, "epochs is a whole number"),
        (FailuresClassifier, {"robustness": (0.1, 1.0)}, r"in \[0, 1\); given 1.0"),
    ],
)
def test_recipes_refuse(recipe, options, message):
    with pytest.raises(ConfigurationError, match=message):
        recipe(**options)


def test_classifier_is_built_as_told():
    recipe = FailuresClassifier(depth=3, width=20, failing="2", failure=0.2, bias=False, activation="sigmoid")
    experiment = recipe.experiment(0, CPU, None)
    network = experiment.rule.model
    assert [tuple(layer.weight.shape) for layer in network.layers] == [(20, 64), (20, 20), (10, 20)]
    assert [type(layer) is syn.FailingLinear for layer in network.layers] == [False, True, False]
    assert network.layers[0].bias is None
    assert network.activation == "sigmoid"
    assert experiment.synapse == "failing 0.2 in 2"
    assert len(experiment.data.validation) == round(
        0.1 * (len(experiment.data.validation) + len(experiment.data.train))
    )


def test_linear_network_learns_the_teacher():
    recipe = FailuresLinear(
        features=10,
        d=2,
        train=2000,
        batch=100,
        epochs=20,
        failure=0.0,
        correlation=0.5,
        optimization=Optimization(rate=1e-3),
    )
    experiment = recipe.experiment(1, CPU, None)
    rule, examples = experiment.rule, experiment.data
    for _ in range(20):
        for batch in examples.train.batches(100):
            rule.step(batch)
    first, second = (layer.weight for layer in rule.model.layers)
    torch.testing.assert_close((second @ first).detach(), examples.teacher, atol=0.02, rtol=0)


@pytest.mark.parametrize("failing", ["none", "2", "1,3"])
def test_the_exact_rule_knows_which_layers_fail(failing):
    recipe = FailuresLinear(features=6, depth=3, failing=failing, failure=0.4, exact=True, train=10, batch=5)
    experiment = recipe.experiment(0, CPU, None)
    expected = {"none": [0.0, 0.0, 0.0], "2": [0.0, 0.4, 0.0], "1,3": [0.4, 0.0, 0.4]}
    assert experiment.rule.failures == expected[failing]
    assert experiment.rule.batch_size == 5
    assert experiment.rule.model.layers[0].weight.dtype == torch.float64
    with pytest.raises(ConfigurationError, match="layer 4 does not exist"):
        FailuresLinear(features=6, depth=3, failing="4").experiment(0, CPU, None)


@pytest.mark.parametrize("task", ["linear", "semantic"])
def test_a_covariance_from_a_file_reaches_data_and_theory(tmp_path, monkeypatch, task):
    size = 4
    sigma = 0.3 * np.eye(size) + 0.7
    np.savetxt(tmp_path / "sigma.txt", sigma)
    monkeypatch.chdir(tmp_path)
    if task == "linear":
        recipe = FailuresLinear(features=size, covariance="sigma.txt", exact=True, train=10)
    else:
        recipe = FailuresSemantic(covariance="sigma.txt", exact=True)
    assert recipe.covariance == str(tmp_path / "sigma.txt")  # found again from another working folder
    experiment = recipe.experiment(0, CPU, None)
    torch.testing.assert_close(experiment.rule.covariance, torch.from_numpy(sigma))
    whole = experiment.data.train[:size]
    torch.testing.assert_close(whole.inputs.mT @ whole.inputs / size, torch.from_numpy(sigma))
    np.savetxt(tmp_path / "sigma.txt", np.eye(size + 1))
    with pytest.raises(ConfigurationError, match="must be 4x4, one row for each input, got 5x5"):
        recipe.experiment(0, CPU, None)


def test_exact_and_sampled_runs_take_the_same_steps_and_are_measured_alike(tmp_path):
    paths = []
    for exact in (False, True):
        recipe = FailuresLinear(features=8, d=2, depth=3, train=200, test=50, batch=20, epochs=3, exact=exact)
        paths.append(tmp_path / f"exact-{exact}")
        running.start(settings_of(recipe), paths[-1])
    sampled, exact = (read_run(path).metrics for path in paths)
    assert [(row["step"], row["epoch"]) for row in sampled] == [(row["step"], row["epoch"]) for row in exact]
    series = [read_series(path, "spectra") for path in paths]
    assert {key: t.shape for key, t in series[0].items()} == {key: t.shape for key, t in series[1].items()}
    assert exact[-1]["step"] == 30
    final = read_final(paths[1], "spectra")
    torch.testing.assert_close(final["input/covariance"].float(), torch.eye(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(final["teacher/singular_values"], torch.tensor([1.0, 0.2]).double())


def test_a_run_is_no_folder_of_runs(tmp_path):
    settings = settings_of(FailuresClassifier(epochs=1))
    running.start(settings, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(RunError, match="is a run itself, and no folder of runs; choose another --out"):
        running.prepare_seeds(settings, 2, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_classifier_is_tested_with_failures_at_inference(tmp_path):
    recipe = FailuresClassifier(epochs=3, failure=0.0, robustness=(0.0, 0.5, 0.9))
    record = running.start(settings_of(recipe), tmp_path / "run")
    tested = read_final(tmp_path / "run", "robustness")
    assert tested["rate"].tolist() == [0.0, 0.5, 0.9]
    accuracy = tested["accuracy"].mean(1).tolist()
    assert accuracy[0] == pytest.approx(record.summary["test/accuracy"])
    assert accuracy[0] > accuracy[1] > accuracy[2] > 0.1


def test_citations_are_those_of_what_runs():
    assert FailuresClassifier(failure=0.0).experiment(0, CPU, None).citations == ()
    assert FailuresClassifier(failing="none").experiment(0, CPU, None).citations == ()
    for recipe in (FailuresClassifier(), FailuresLinear(train=10, test=5)):
        cited = recipe.experiment(0, CPU, None).citations
        assert cited
        assert set(cited) <= set(BIBTEX)


@pytest.mark.parametrize("loss", ["cross-entropy", "mean-squared-error", "summed-squared-error"])
def test_start_runs_to_the_end(tmp_path, loss):
    rate = 1e-4 if loss == "summed-squared-error" else 0.1
    recipe = FailuresClassifier(epochs=2, failure=0.1, loss=loss, optimization=Optimization(rate=rate, momentum=0.9))
    record = running.start(settings_of(recipe), tmp_path / "run")
    assert record.summary["test/accuracy"] > 0.5
    assert record.summary["synapse"] == "failing 0.1"
    assert record.summary["parameters"] == 65 * 100 + 101 * 10
    assert record.summary["active_synapses"] == round(0.9 * 7400)
    assert record.recipe["options"] == msgspec.json.decode(msgspec.json.encode(recipe))
    assert record.environment["threads"] == 1
    assert verify_run(tmp_path / "run")[-1] == "finished"
    assert running.resume(tmp_path / "run").summary == record.summary  # nothing is done twice


def test_same_seed_same_bits_and_other_seed_other_bits(tmp_path):
    recipe = FailuresClassifier(epochs=1, failure=0.3)
    runs = [running.start(settings_of(recipe, seed=s), tmp_path / str(i)) for i, s in enumerate((7, 7, 8))]
    losses = [[row["test/loss"] for row in run.metrics] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_nothing_is_written_for_a_recipe_that_cannot_run(tmp_path):
    with pytest.raises(ConfigurationError, match="layer 5 does not exist"):
        running.start(settings_of(FailuresClassifier(failing="5")), tmp_path / "run")
    with pytest.raises(SynaptomeError):
        running.start(settings_of(FailuresClassifier(data="fashion"), data_dir=str(tmp_path)), tmp_path / "run")
    with pytest.raises(ConfigurationError, match="seeds is"):
        running.prepare_seeds(settings_of(FailuresClassifier()), 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_told_with_step_and_module_and_keeps_a_checkpoint(tmp_path):
    recipe = FailuresLinear(features=10, train=200, batch=20, failure=0.0, optimization=Optimization(rate=1e6))
    with pytest.raises(
        NumericError, match=r"step \d+: .* (nan|inf).* in the .* of layers\.\d.*checkpoint of step 0 is kept"
    ):
        running.start(settings_of(recipe), tmp_path / "run")
    assert "unfinished" in verify_run(tmp_path / "run")[-1]


def test_seeds_in_this_process_and_in_workers_give_the_same(tmp_path):
    settings = settings_of(FailuresClassifier(epochs=1, failure=0.2), seed=4)
    here = running.resume_each(running.prepare_seeds(settings, 2, tmp_path / "here"), 1, True, 30.0)
    there = running.resume_each(running.prepare_seeds(settings, 2, tmp_path / "there"), 2, True, 30.0)
    assert [run.path.name for run in here] == ["seed-4", "seed-5"]
    assert [run.recipe["seed"] for run in here] == [4, 5]
    assert [run.summary["test/loss"] for run in here] == [run.summary["test/loss"] for run in there]


def test_a_seed_that_diverges_does_not_keep_the_rest_from_theirs(tmp_path):
    good = settings_of(FailuresClassifier(epochs=1, failure=0.0))
    bad = settings_of(FailuresLinear(features=10, train=200, batch=20, optimization=Optimization(rate=1e6)))
    paths = []
    for name, settings in (("bad", bad), ("good", good)):
        paths += running.prepare_seeds(settings, 1, tmp_path / name)
    with pytest.raises(NumericError, match="1 of 2 runs stopped"):
        running.resume_each(paths, 1, True, 30.0)
    assert read_run(paths[1]).summary


def test_workers_that_are_killed_again_and_again_are_told_and_the_runs_can_be_resumed(tmp_path):
    settings = settings_of(FailuresClassifier(epochs=2, failure=0.2))
    paths = running.prepare_seeds(settings, 3, tmp_path / "runs")
    over = threading.Event()

    def kill_each():
        while not over.wait(0.05):
            for child in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_each)
    killer.start()
    try:
        told = r"a worker process died \(SIGKILL\), as did 3 before it; go on with: synaptome resume"
        with pytest.raises(WorkerLostError, match=told):
            running.resume_each(paths, 2, True, 30.0)
    finally:
        over.set()
        killer.join()
    assert all(run.summary for run in running.resume_each(paths, 1, True, 30.0))


def test_what_does_not_fit_in_memory_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="do not fit in the memory of cpu"):
        running.start(settings_of(FailuresClassifier(width=2**45)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there_are_refused():
    assert running.resolve_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigurationError, match="device 'tpu' is not there"):
        running.resolve_device("tpu")


def test_demo_compares_kinds_of_synapse_on_real_digits():
    def alike(names, rows):
        return len({tuple(getattr(DEMO[row], name) for name in names) for row in rows}) == 1

    others = {"stable", "decoupled", "equilibrium"}
    weights = DEMO.keys() - others - {"learned"}  # the rows that train weights: one network, as many synapses
    assert alike(("data", "epochs"), DEMO)
    assert alike(("batch",), DEMO.keys() - {"equilibrium"})
    assert alike(("activation",), DEMO.keys() - others)
    assert alike(("validation", "optimization"), weights)
    made = {row: recipe.experiment(0, torch.device("cpu"), None) for row, recipe in DEMO.items()}
    assert {len(experiment.data.validation) for experiment in made.values()} == {144}
    synapses = {row: count_synapses(experiment.rule.model).synapses for row, experiment in made.items()}
    assert {row: synapses[row] for row in weights} == dict.fromkeys(weights, 7400)
    assert synapses["learned"] == 50_200
    assert synapses["stable"] == synapses["decoupled"]  # one network, in two ways
    assert made["stable"].rule.model.depth == 16
    assert len({(experiment.synapse, experiment.learning) for experiment in made.values()}) == len(DEMO) == 8


@pytest.mark.slow
def test_mnist_reaches_the_accuracy_of_a_plain_loop(tmp_path):
    """The recipe's dense network against a plain torch loop with the same seed, on whole MNIST."""
    try:
        data.load("mnist")
    except SynaptomeError as error:
        pytest.skip(f"needs MNIST: {error}")
    optimization = Optimization(rate=0.02, momentum=0.9)
    recipe = FailuresClassifier(data="mnist", epochs=3, failure=0.0, optimization=optimization)
    reached = running.start(settings_of(recipe), tmp_path / "run").summary["test/accuracy"]
    torch.manual_seed(0)
    images = data.load("mnist", validation=0.1, seed=0)
    layers = []
    for fan_in, fan_out in ((784, 100), (100, 10)):
        layers.append(torch.nn.Linear(fan_in, fan_out))
        torch.nn.init.normal_(layers[-1].weight, std=fan_in**-0.5)
        torch.nn.init.zeros_(layers[-1].bias)
    network = torch.nn.Sequential(torch.nn.Flatten(), layers[0], torch.nn.ReLU(), layers[1])
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    for epoch in range(3):
        order = data.epoch_order(len(images.train), 0, epoch)
        for index in order.split(100):
            optimizer.zero_grad()
            x, y = images.train[index]
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        plain = (network(images.test.inputs).argmax(1) == images.test.targets).double().mean().item()
    assert abs(reached - plain) <= 0.002
    assert reached > 0.97
