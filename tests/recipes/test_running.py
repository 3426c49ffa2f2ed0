"""The trained network of a run folder, in Python."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from synaptome.errors import ConfigurationError, DataError, RunError
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.evolution_choice import EvolutionChoice
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.failures_linear import FailuresLinear
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.running import build, load_model, prepare_seeds, read_settings, start
from synaptome.training.checkpoint import steps

OFTEN = EvolutionChoice(every_steps=4)


def settings_of(recipe, **options):
    return RunSettings(recipe, **{"seed": 3, "device": "cpu", "threads": 1, **options})


def sparse(path):
    recipe = EvolvingSparsity(hidden=(40,), epsilon=4.0, epochs=3, evolution=OFTEN, validation=0.2)
    return start(settings_of(recipe), path)


def test_the_network_of_a_run_is_the_one_that_was_trained(tmp_path):
    record = sparse(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    model = load_model(tmp_path / "run")
    assert not model.training
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    # What the run itself measured of its last step, through the library's own data and in plain torch.
    test = build(read_settings(tmp_path / "run" / "recipe.json")).data.test
    with torch.no_grad():
        right = model(test.inputs).argmax(1) == test.targets
    assert right.double().mean().item() == pytest.approx(record.summary["test/accuracy"], abs=1e-12)
    assert record.summary["test/accuracy"] > 0.5
    assert sum(p.numel() for p in model.parameters()) == record.summary["parameters"]


def test_an_earlier_checkpoint_is_another_network(tmp_path):
    sparse(tmp_path / "run")
    first, last = steps(tmp_path / "run" / "checkpoints")
    untrained, trained = load_model(str(tmp_path / "run"), step=first), load_model(tmp_path / "run", step=last)
    torch.testing.assert_close(load_model(tmp_path / "run").state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert not torch.equal(untrained.layers[0].col, trained.layers[0].col)
    with pytest.raises(RunError, match=f"no checkpoint of step 7; it has: {first}, {last}"):
        load_model(tmp_path / "run", step=7)


@pytest.mark.parametrize(
    "recipe",
    [
        FailuresClassifier(depth=2, width=20, epochs=1),
        FailuresLinear(features=10, train=200, batch=20, epochs=1),
        FailuresLinear(features=10, train=200, batch=20, epochs=1, exact=True),
    ],
    ids=["failures-classifier", "failures-linear", "exact"],
)
def test_networks_of_every_rule_are_loaded(recipe, tmp_path):
    start(settings_of(recipe), tmp_path / "run")
    model = load_model(tmp_path / "run")
    fresh = build(settings_of(recipe)).rule.model
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_random_numbers_and_threads_of_the_process_stay(tmp_path):
    sparse(tmp_path / "run")

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = draw()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_model(tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert draw() == expected


def test_what_is_no_network_is_told(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="is not a run folder"):
        load_model(tmp_path / "nowhere")
    recipe = FailuresClassifier(depth=2, width=20, epochs=1)
    (waiting,) = prepare_seeds(settings_of(recipe), 1, tmp_path / "seeds")
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_model(waiting)
    start(settings_of(recipe), tmp_path / "run")
    with pytest.raises(ConfigurationError, match="device 'tpu' is not there"):
        load_model(tmp_path / "run", device="tpu")
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "run", damaged)
    (weights,) = (damaged / "checkpoints").glob(f"*{steps(damaged / 'checkpoints')[-1]}/tensors.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match=r"tensors\.safetensors"):
        load_model(damaged)
    elsewhere = settings_of(dataclasses.replace(recipe, data="mnist"))
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(elsewhere.document()))
    monkeypatch.setenv("SYNAPTOME_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="mnist"):
        load_model(tmp_path / "run")


def test_the_package_itself_does_not_import_it():
    code = "import sys, synaptome; print('synaptome.recipes' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
