"""The recipe `decoupled`, in one process and with a process for each block."""

import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from synaptome import cli
from synaptome.errors import ConfigurationError
from synaptome.learning.decoupling import Decoupling
from synaptome.recipes import running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.decoupled_methods import METHODS
from synaptome.training.run import read_run

DIGITS = ["--data", "digits", "--width", "16", "--depth", "4", "--epochs", "2", "--threads", "1", "--quiet"]


def run(out, *words):
    return cli.main(["run", "decoupled", *DIGITS, *words, "--out", str(out)])


def tensors(run):
    newest = sorted((run / "checkpoints").iterdir())[-1]
    found = safetensors.torch.load_file(newest / "tensors.safetensors")
    return {name: tensor for name, tensor in found.items() if "/means/" not in name}


def same_tensors(first, second):
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_in_one_process(tmp_path, method):
    assert run(tmp_path / "run", "--method", method) == 0
    record = read_run(tmp_path / "run")
    summary = record.summary
    assert summary["test/loss"] < record.metrics[0]["test/loss"]
    assert summary["rule"] == METHODS[method]
    assert ("train/cosine/1" in summary) == (method == "synthetic")


CONVOLUTIONAL = ["--convolutional", "True", "--width", "4", "--epochs", "1"]


@pytest.mark.parametrize("more", [[], pytest.param(CONVOLUTIONAL, marks=pytest.mark.slow)], ids=str)
def test_processes_write_the_run_of_one_process(tmp_path, started, ended, more):
    assert run(tmp_path / "one", *more) == 0
    words = ["run", "decoupled", *DIGITS, *more, "--out", tmp_path / "two"]
    codes, said = ended(started(words))
    assert codes == [0, 0], said
    same_tensors(tmp_path / "one", tmp_path / "two")
    one, two = (read_run(tmp_path / name).summary for name in ("one", "two"))
    assert one["test/accuracy"] == two["test/accuracy"]
    assert one["test/loss"] == two["test/loss"]


def test_levels_double_the_depth(tmp_path):
    assert run(tmp_path / "run", "--depth", "2", "--levels", "3", "--epochs", "1") == 0
    record = read_run(tmp_path / "run")
    summary = record.summary
    assert (summary["synapse"], record.metrics[-1]["epoch"]) == ("verlet, 1+1 to 4+4 layers", 3)
    assert summary["rule"] == "synthetic gradients, multilevel"
    assert [len(block.weight) for block in running.load_model(tmp_path / "run")] == [4, 4]


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--standalone"]
    words += ["-m", "synaptome", "run", "decoupled", *DIGITS, "--blocks", "3", "--out", str(tmp_path / "three")]
    subprocess.run(words, check=True, timeout=200)
    assert run(tmp_path / "one", "--blocks", "3") == 0
    same_tensors(tmp_path / "one", tmp_path / "three")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--epochs", "40"],
        ["--epochs", "20", "--depth", "2", "--levels", "2"],
        ["--epochs", "10", "--convolutional", "True", "--width", "4", "--balance", "4", "0"],
    ],
    ids=str,
)
def test_a_run_of_replicas_goes_on_in_one_process_and_the_other_way_round(tmp_path, started, ended, more):
    words = [*more, "--optimization.rate", "1e-3"]
    often = ["--checkpoint-seconds", "0.2", "--quiet"]
    assert run(tmp_path / "one", *words) == 0
    out = tmp_path / "four"
    stages = [
        (4, ["run", "decoupled", *DIGITS, *words, "--replicas", "2", *often, "--out", out]),
        (1, ["resume", out, *often]),
        (4, ["resume", out, *often]),
    ]

    def steps():
        return max((int(path.parent.name) for path in out.glob("checkpoints/[0-9]*/tensors.safetensors")), default=0)

    for number, (processes, command) in enumerate(stages):
        before, working = steps(), started(command, processes)
        while number < 2 and steps() == before:
            time.sleep(0.01)
            assert all(process.poll() is None for process in working)
        if number < 2:
            working[0].send_signal(signal.SIGTERM)
        codes, said = ended(working)
        assert codes == [143 if number < 2 else 0, *[0] * (processes - 1)], said
    expected, summary = (read_run(tmp_path / name).summary for name in ("one", "four"))
    assert summary["test/loss"] == pytest.approx(expected["test/loss"], rel=0.05)  # float32, and 900 steps
    assert summary["test/accuracy"] == pytest.approx(expected["test/accuracy"], abs=0.01)


@pytest.mark.slow
def test_free_blocks_learn_the_swiss_roll_in_processes(tmp_path, started, ended):
    words = ["--balance", "16", "0", "--delay", "4", "--free", "--warmup", "20", "--threads", "1", "--quiet"]
    codes, said = ended(started(["run", "decoupled", *words, "--out", tmp_path / "run"]), 280)
    assert codes == [0, 0], said
    record = read_run(tmp_path / "run")
    summary = record.summary
    assert next(row["test/accuracy"] for row in record.metrics if row["epoch"] == 20) < 0.8  # it is not the warm-up's
    assert summary["test/accuracy"] > 0.97  # a frozen first block: .55
    assert summary["rule"] == "synthetic gradients, free"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, started, ended, signum):
    long = ["--epochs", "40"]
    assert run(tmp_path / "one", *long) == 0
    two = tmp_path / "two"
    processes = started(
        ["run", "decoupled", *DIGITS, *long, "--checkpoint-seconds", 0.2, "--timeout", 20, "--out", two]
    )
    while len(list(two.glob("checkpoints/*/tensors.safetensors"))) < 2:
        time.sleep(0.05)
        assert all(process.poll() is None for process in processes)
    processes[0].send_signal(signum)
    codes, said = ended(processes)
    # Told to stop, the first process saves and lets the others end; killed, the others say that it is lost.
    assert codes == ([143, 0] if signum == signal.SIGTERM else [-9, 6]), said
    assert not read_run(two).summary
    codes, said = ended(started(["resume", two, "--quiet"]))
    assert codes == [0, 0], said
    same_tensors(tmp_path / "one", two)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["synthetic", "stale", "inputs", "levels"])
def test_one_process_goes_on_where_several_stopped_and_the_other_way_round(tmp_path, started, ended, method):
    chosen = {
        "inputs": ["--synthetic-inputs", "mlp", "--delay", "2"],
        "levels": ["--depth", "2", "--levels", "3", "--epochs", "14"],
    }.get(method, ["--method", method])
    words = ["--epochs", "40", *chosen, "--checkpoint-seconds", "0"]
    assert run(tmp_path / "whole", *words) == 0
    starts = {
        "one": ["run", "decoupled", *DIGITS, *words, "--out", tmp_path / "one"],
        "two": ["run", "decoupled", *DIGITS, *words, "--out", tmp_path / "two"],
    }
    for name, processes in (("one", 1), ("two", 2)):
        working = started(starts[name], processes)
        while len(list((tmp_path / name).glob("checkpoints/*/tensors.safetensors"))) < 2:
            time.sleep(0.01)
            assert all(process.poll() is None for process in working)
        working[0].send_signal(signal.SIGTERM)
        codes, said = ended(working)
        assert codes[0] == 143, said
        codes, said = ended(started(["resume", tmp_path / name, "--quiet"], 3 - processes))
        assert set(codes) == {0}, said
        same_tensors(tmp_path / "whole", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("pace", [[], ["--free", "--delay", "3"]], ids=str)
@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_process_ends_the_run_with_an_exit_code_of_its_own(tmp_path, started, signum, pace):
    out = tmp_path / "run"
    processes = started(["run", "decoupled", *DIGITS, *pace, "--epochs", 4000, "--timeout", 5, "--out", out])
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.05)
        assert processes[0].poll() is None
    processes[1].send_signal(signum)
    begun = time.monotonic()
    said = processes[0].communicate(timeout=60)[1]
    assert time.monotonic() - begun < 30
    processes[1].kill()
    assert processes[0].returncode == 6, said
    assert "process 1 has ended, or did not answer within 5 s" in said
    assert "Traceback" not in said
    assert not read_run(out).summary


def test_what_is_wrong_is_said_once(tmp_path, started, ended):
    codes, said = ended(started(["run", "decoupled", *DIGITS, "--blocks", 3, "--out", tmp_path / "run"]))
    assert codes == [2, 2]
    assert "3 blocks and 2 processes" in said[0]
    assert "--nproc-per-node 3" in said[0]
    assert len(said[0].strip().splitlines()) == 1, said[0]
    assert said[1].strip() == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", [["run", "decoupled", *DIGITS, "--seeds", "2"], ["sweep", "decoupled", "--grid", "blocks"]], ids=str
)
def test_several_runs_are_for_one_process_each(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([*words, "--out", str(tmp_path / "runs")]) == 2
    assert "the 2 processes that torchrun has started work at one run" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["run", "decoupled", *DIGITS, "--method", "backprop"], ["run", "stable", "--data", "digits"]], ids=str
)
def test_what_learns_in_one_process_refuses_several(tmp_path, started, ended, words):
    codes, said = ended(started([*words, "--out", tmp_path / "run"]))
    assert codes == [2, 2]
    assert "learns in one process; given 2" in said[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balance": (3, 4)}, "sum to the depth, 16; given"),
        ({"balance": (4, 4, 8), "blocks": 4}, "balance names 3 blocks and blocks is 4"),
        ({"blocks": 17}, "from 1 to 16 blocks; given 17"),
        ({"method": "stale", "delay": 0}, "choose the method locked"),
        ({"method": "stale", "warmup": 3}, "belong to the method synthetic"),
        ({"true_share": 1.0}, "choose the method stale, or locked"),
        ({"delay": -1}, "at least 0; given delay -1"),
        ({"synthesis_rate": 0.0}, "positive number; given 0.0"),
        ({"network": "feed-forward", "time": 3.0}, "has no time"),
        ({"network": "feed-forward", "convolutional": True}, "has no convolutions"),
        ({"convolutional": True}, "convolutions are of images, and swiss-roll is points"),
        (
            {"data": "digits", "synthesiser": "convolutional"},
            "choose synthesiser linear or mlp, or .* convolutional True",
        ),
        ({"timeout": -1.0}, "above 0; given -1.0"),
        ({"free": True, "delay": 0}, "delay of at least 1"),
        (
            {"free": True, "method": "stale"},
            "free and synthetic_inputs belong to the method synthetic; given with stale",
        ),
        ({"synthetic_inputs": "mlp", "method": "locked"}, "belong to the method synthetic; given with locked"),
        ({"replicas": 0}, "replicas .*given 0"),
        ({"replicas": 2, "method": "frozen"}, "replicas belong to .*given with frozen"),
        ({"replicas": 2, "blocks": 1}, "of one block choose the method ddp"),
        ({"replicas": 9, "batch": 8}, "given batch 8 and 9 replicas"),
        ({"epochs": 5, "warmup": 5}, "warmup is less than the 5 epochs.*given 5"),
        ({"true_share": 2.0}, r"true_share is a share in \[0, 1\); given 2.0"),
        ({"levels": 0}, "levels .*given 0"),
        ({"levels": 2, "method": "stale"}, "levels belong to .* synthetic and locked; given 2 levels .*stale"),
        ({"levels": 2, "network": "feed-forward"}, "levels belong to stable networks"),
        ({"width": 0}, "width .*given 0"),
        ({"depth": 0}, "depth .*given 0"),
        ({"batch": 0}, "batch .*given 0"),
        ({"epochs": 0}, "epochs .*given 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        Decoupled(**fields)


def test_replicas_start_in_processes(tmp_path, capsys):
    assert run(tmp_path / "run", "--blocks", "3", "--replicas", "2") == 2
    said = capsys.readouterr().err
    assert "3 blocks x 2 replicas need 6 processes; given 1: start it with torchrun --nproc-per-node 6" in said
    assert not (tmp_path / "run").exists()


def test_inputs_are_guessed_if_asked_for():
    recipe = Decoupled(data="digits", blocks=3, depth=6, width=8, synthetic_inputs="mlp", hidden=5, free=True, delay=3)
    experiment = recipe.experiment(0, torch.device("cpu"), None)
    inputs = [learner.inputs for learner in experiment.rule.learners]
    assert inputs[0] is None
    assert [each.synthesis.module.layers[0].out_features for each in inputs[1:]] == [5, 5]
    assert experiment.rule.how == Decoupling(delay=3, free=True)
    assert experiment.learning == "synthetic gradients, synthetic inputs, free"


def test_images_stay_images_between_convolutional_blocks():
    recipe = Decoupled(data="digits", convolutional=True, blocks=3, width=4, depth=6)
    assert recipe.resolved().convolutional
    assert recipe.resolved().synthesiser == "convolutional"
    assert Decoupled(data="digits").resolved().synthesiser == "linear"
    rule = recipe.experiment(0, torch.device("cpu"), None).rule
    assert [learner.synthesis.module.shape for learner in rule.learners[:-1]] == [
        (8, 8, 8)
    ] * 2  # two fields of Verlet's
    assert [learner.synthesis.module.layers[0].in_channels for learner in rule.learners[:-1]] == [18, 18]  # and labels
    assert not Decoupled(data="digits").resolved().convolutional
    assert Decoupled(data="cifar10").resolved().convolutional
    assert Decoupled(data="cifar10", network="feed-forward").resolved().convolutional is None
    assert Decoupled(data="cifar10").resolved().synthesiser == "convolutional"


@pytest.mark.parametrize(
    "more", [[], ["--synthetic-inputs", "linear"], ["--method", "stale"], ["--levels", "2"]], ids=str
)
def test_blocks_of_images_learn(tmp_path, more):
    words = ["--convolutional", "True", "--width", "4", "--depth", "2", "--epochs", "2", *more]
    assert run(tmp_path / "run", *words) == 0
    record = read_run(tmp_path / "run")
    assert record.summary["test/loss"] < record.metrics[0]["test/loss"]


def test_warmup_is_told_in_epochs():
    recipe = Decoupled(data="digits", warmup=2, batch=100)
    rule = recipe.experiment(0, torch.device("cpu"), None).rule
    steps = -(-len(recipe.experiment(0, torch.device("cpu"), None).data.train) // 100)
    assert rule.how == Decoupling(delay=1, warmup=2 * steps)


def test_what_the_data_set_decides_is_written_down():
    for network in ("stable", "feed-forward"):
        recipe = Decoupled(data="digits", network=network, width=16)
        filled = recipe.resolved()
        assert filled.resolved() == filled
        assert None not in (filled.depth, filled.batch, filled.epochs, filled.optimization.rate)
        assert filled.width == 16
        assert (filled.time is None) == (network == "feed-forward")
        torch.manual_seed(0)
        first = recipe.experiment(0, torch.device("cpu"), None).rule.model.state_dict()
        torch.manual_seed(0)
        second = filled.experiment(0, torch.device("cpu"), None).rule.model.state_dict()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
