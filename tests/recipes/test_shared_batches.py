"""The methods of the recipe `decoupled` that share backpropagation out among processes."""

import time

import pytest
import safetensors.torch
import torch

from synaptome import cli
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.recipes import running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.running import load_model
from synaptome.recipes.shared_batches import SHARED
from synaptome.training.run import read_run

DIGITS = ["--data", "digits", "--width", "16", "--depth", "4", "--epochs", "2", "--threads", "1", "--quiet"]


def words(out, method, *more):
    return ["run", "decoupled", *DIGITS, "--method", method, *more, "--out", str(out)]


def same_numbers(first, second):
    """The newest checkpoints of two runs hold the same tensors, but for rounding."""
    found = [
        safetensors.torch.load_file(sorted((run / "checkpoints").iterdir())[-1] / "tensors.safetensors")
        for run in (first, second)
    ]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], rtol=1e-2, atol=1e-4), name


# Layers of images, and a block that is the classifier alone, in which some parameters are empty.
IMAGES = ["--convolutional", "True", "--width", "4", "--balance", "4", "0"]
SLOW = (("ddp", []), ("gpipe", []), ("1f1b", IMAGES))
WAYS = [("ddp", IMAGES), *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW)]


@pytest.mark.parametrize(("method", "more"), WAYS)
def test_processes_write_the_run_of_backprop(tmp_path, started, ended, method, more):
    assert cli.main(words(tmp_path / "one", "backprop", *more)) == 0
    codes, said = ended(started(words(tmp_path / "two", method, *more)))
    assert codes == [0, 0], said
    same_numbers(tmp_path / "one", tmp_path / "two")
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    assert two.summary["rule"] == SHARED[method]
    for key in ("train/loss", "test/loss", "test/accuracy"):
        assert two.summary[key] == pytest.approx(one.summary[key], abs=2e-3)
    model = load_model(tmp_path / "two")  # in one process
    assert sum(parameter.numel() for parameter in model.parameters()) == one.summary["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("method", SHARED)
def test_one_process_goes_on_where_several_stopped(tmp_path, started, ended, method):
    long = ["--epochs", "30", "--checkpoint-seconds", "0"]
    assert cli.main(words(tmp_path / "whole", "backprop", *long)) == 0
    out = tmp_path / "two"
    processes = started(words(out, method, *long))
    while len(list(out.glob("checkpoints/*/tensors.safetensors"))) < 2:
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[0].terminate()
    codes, said = ended(processes)
    assert codes == [143, 0], said
    assert not read_run(out).summary
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    whole, resumed = (read_run(path).summary for path in (tmp_path / "whole", out))
    assert resumed["test/accuracy"] == pytest.approx(whole["test/accuracy"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", SHARED)
def test_a_lost_process_ends_the_run_with_an_exit_code_of_its_own(tmp_path, started, method):
    out = tmp_path / "run"
    processes = started(words(out, method, "--epochs", "4000", "--timeout", "5"))
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.05)
        assert processes[0].poll() is None
    processes[1].kill()
    said = processes[0].communicate(timeout=60)[1]
    assert processes[0].returncode == 6, said
    assert "has ended, or did not answer within 5 s" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("method", SHARED)
@pytest.mark.parametrize(
    "verb", [["run", "decoupled"], ["sweep", "decoupled", "--seeds", "2"]], ids=lambda verb: verb[0]
)
def test_one_process_is_told_how_to_start_several(tmp_path, capsys, verb, method):
    assert cli.main([*verb, "--method", method, "--blocks", "4", "--out", str(tmp_path / "run")]) == 2
    assert f"torchrun --nproc-per-node 4 -m synaptome run decoupled --method {method}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_pipeline_has_a_process_for_each_block(tmp_path, started, ended):
    codes, said = ended(started(words(tmp_path / "run", "gpipe", "--blocks", "3")))
    assert codes == [2, 2]
    assert "3 blocks and 2 processes" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": 8}, "microbatches belong to the methods gpipe and 1f1b; given with synthetic"),
        ({"method": "ddp", "microbatches": 8}, "given with ddp"),
        ({"method": "1f1b", "blocks": 3, "microbatches": 2}, "given 2 microbatches and 3 blocks"),
        ({"method": "gpipe", "microbatches": 0}, "whole numbers of at least 1; given 0 and"),
        ({"method": "ddp", "true_share": 0.5}, "belong to the method synthetic; given with ddp"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        Decoupled(**fields)


@pytest.mark.parametrize("method", SHARED)
def test_in_one_process_it_is_backprop(method):
    made = Decoupled(data="digits", method=method, width=8, depth=2).experiment(0, torch.device("cpu"), None)
    assert type(made.rule) is Backprop
    assert made.work is made.close is None


@pytest.mark.parametrize("fields", [{"method": "ddp"}, {"method": "gpipe"}, {"replicas": 2}])
def test_in_one_process_nothing_else_is_run_under_its_name(tmp_path, fields):
    settings = RunSettings(Decoupled(data="digits", epochs=1, **fields), seed=0, device="cpu", threads=1)
    with pytest.raises(ConfigurationError, match="start it with torchrun"):
        running.start(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
