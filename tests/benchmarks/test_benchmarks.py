"""The harness on contestants whose numbers are known, and each benchmark's quick run. No test depends on real time."""

import csv
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.learned_rules import METHODS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def harness():
    return importlib.import_module("harness")


class Clock:
    """Stands still, but for the work that moves it."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def setup(self, name, seconds):
        """A contestant's setup, whose calls take these seconds one after the other."""
        left = iter(seconds)

        def work():
            self.calls.append(name)
            self.now += next(left)

        return lambda: work


def compare(harness, clock, durations, **options):
    contestants = [harness.Contestant(name, clock.setup(name, seconds)) for name, seconds in durations.items()]
    options = {"baseline": next(iter(durations)), "rounds": 3, "warmup": 0} | options
    return harness.compare("known", contestants, clock=clock, **options)


def test_the_order_is_reversed_every_round(harness):
    clock = Clock()
    compare(harness, clock, {"a": [1] * 4, "b": [1] * 4, "c": [1] * 4}, warmup=1)
    assert "".join(clock.calls) == "abc" + "abc" + "cba" + "abc"


def test_ratios_are_paired_round_by_round(harness):
    # The machine slows down threefold in the last round: the paired ratio does not see it, that of the medians would.
    base, other = compare(harness, Clock(), {"base": [1, 4, 12], "other": [2, 2, 24]})
    assert base.ratios == (1, 1, 1)
    assert other.seconds == (2, 2, 24)
    assert other.ratios == (2, 0.5, 2)
    assert other.columns()["ratio"] == 2
    assert other.columns()["median_s"] == 2


def test_warm_up_is_not_measured(harness):
    (only,) = compare(harness, Clock(), {"only": [100, 1, 2, 3]}, warmup=1)
    assert only.seconds == (1, 2, 3)


def test_no_round_begins_after_the_limit_and_none_is_cut_short(harness):
    a, b = compare(harness, Clock(), {"a": [5] * 9, "b": [5] * 9}, rounds=9, limit=20)
    assert a.seconds == b.seconds == (5, 5)


def test_threads_are_pinned_and_put_back(harness):
    before, seen = torch.get_num_threads(), []
    contestants = [harness.Contestant("a", lambda: lambda: seen.append(torch.get_num_threads()))]
    harness.compare("known", contestants, baseline="a", rounds=1, warmup=0, threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_row_of_the_csv_stands_alone(harness, tmp_path, capsys):
    durations = {"base": [1, 2, 4], "other": [3, 4, 4]}
    results = compare(harness, Clock(), durations, amount=0.5, unit="epochs", note="half of it")
    path = harness.save(results, tmp_path / "new")
    assert path == tmp_path / "new" / "known.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == ["base", "other"]
    other = rows[1]
    assert other["measurement"] == "known"
    assert other["baseline"] == "base"
    assert other["note"] == "half of it"
    assert (other["rounds"], other["amount"], other["unit"], other["threads"]) == ("3", "0.5", "epochs", "1")
    numbers = ("median_s", "q1_s", "q3_s", "min_s", "max_s", "per_second", "ratio")
    assert [float(other[key]) for key in numbers] == [4, 3.5, 4, 3, 4, 0.125, 2]
    for row in rows:
        for key in ("python", "torch", "numpy", "synaptome", "processor", "cores", "blas", "date"):
            assert row[key], key
        assert math.isfinite(float(row["load_before"]))
        assert math.isfinite(float(row["load_after"]))
    assert row["torch"] == torch.__version__
    assert "other" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../up", "a/b", "-a", "a--b", "a_b", "a\n"])
def test_a_bad_name_is_refused_before_anything_is_measured(harness, name):
    def never():
        pytest.fail("measured")

    with pytest.raises(ConfigurationError, match="a measurement's name"):
        harness.compare(name, [harness.Contestant("a", never)], baseline="a", rounds=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1; given 0"),
        ({"threads": 0}, "threads must be at least 1; given 0"),
        ({"warmup": -1}, "warmup must be at least 0; given -1"),
        ({"baseline": "c"}, "unknown baseline 'c'"),
        ({"fresh": True}, "the setup of 'a' cannot be sent to a fresh process"),
        ({"memory": True}, "functools.partial"),
    ],
)
def test_what_cannot_be_measured_is_refused(harness, change, message):
    with pytest.raises(ConfigurationError, match=message):
        compare(harness, Clock(), {"a": [1]}, **change)


def test_contestants_need_different_names(harness):
    twice = [harness.Contestant("a", Clock().setup("a", [1]))] * 2
    with pytest.raises(ConfigurationError, match="each another"):
        harness.compare("known", twice, baseline="a", rounds=1)


@pytest.mark.slow
def test_memory_is_that_of_the_contestant_alone(harness):
    contestants = importlib.import_module("contestants")
    measured = [
        harness.Contestant(f.__name__, f) for f in (contestants.allocated, contestants.kept, contestants.nothing)
    ]
    allocated, kept, nothing = harness.compare("memory", measured, baseline="nothing", rounds=1, fresh=True)
    assert allocated.peak_mb >= 60
    assert kept.setup_mb >= 60
    assert kept.peak_mb < 30
    assert max(allocated.setup_mb, nothing.setup_mb, nothing.peak_mb) < 30
    assert len(allocated.seconds) == 1


def test_every_loop_of_trainer_epochs_does_the_same_work(monkeypatch):
    script = importlib.import_module("trainer_epochs")
    monkeypatch.setattr(script, "EVALUATION_BATCH", 50)
    monkeypatch.setenv("SYNAPTOME_DATA", os.devnull)
    forward, seen = FeedForward.forward, []

    def watched(self, x):
        seen.append((self.training, torch.is_grad_enabled(), len(x)))
        return forward(self, x)

    monkeypatch.setattr(FeedForward, "forward", watched)
    works, losses = {}, {}
    for contestant in (script.trainer, script.dataloader, script.indexing):
        seen.clear()
        losses[contestant] = contestant(150, 100)()
        works[contestant] = list(seen)
    evaluation = [(False, False, 50)] * 2
    assert works[script.trainer] == evaluation + [(True, True, n) for n in (64, 64, 22)] + evaluation
    assert works[script.dataloader] == works[script.indexing] == works[script.trainer]
    for train, test in losses.values():  # the orders differ, and so do the last digits
        assert train == pytest.approx(losses[script.trainer][0], rel=0.3)
        assert test == pytest.approx(losses[script.trainer][1], rel=0.3)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(1.0, 1.1, "within"), (1.11, 1.3, "OVER"), (0.3, 1.8, "UNDECIDED"), (1.1, 1.2, "UNDECIDED")],
)
def test_a_noisy_ratio_of_trainer_epochs_decides_nothing(low, high, word):
    script = importlib.import_module("trainer_epochs")
    assert script.verdict({"ratio_q1": low, "ratio_q3": high}).startswith(word)


@pytest.mark.slow
def test_trainer_epochs_quick_says_when_its_examples_are_synthetic(tmp_path):
    script = BENCHMARKS / "trainer_epochs.py"
    places = {
        "SYNAPTOME_DATA": str(tmp_path / "none"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, script, "--quick", "--threads", "1", "--out", tmp_path / "results"]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "MNIST is not there" in done.stderr
    assert "trainer/indexing, threads 1: " in done.stdout
    with (tmp_path / "results" / "trainer-epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == ["trainer", "dataloader", "indexing"]
    for row in rows:
        assert row["note"].startswith("SYNTHETIC")
        assert "QUICK" in row["note"]
        assert float(row["per_second"]) > 0


def alike(contestants, notes):
    """Measurements of the same contestants, by their notes."""
    return [(note, contestants) for note in notes]


# One of them shows, in the fast tier, that scripts run.
@pytest.mark.parametrize(
    ("script", "measured"),
    [
        ("linear_theory", alike(["explicit", "cpu", "exact"], ["N = 100"] * 2)),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("learned_step", alike(["dense", "naive", *METHODS], ["20-30-10"] * 2)),
                ("learned_sparse", alike(["dense", "learned", "sparse"], ["lenet"] * 10 + ["conv2"] * 2)),
                ("failing_linear", alike(["explicit", "reference", "cpu", "dense"], ["forward", "forward + backward"])),
                (
                    "failing_conv2d",
                    alike(
                        ["explicit", "one-by-one", "reference", "cpu", "gaussian", "plain"],
                        ["forward", "forward + backward"],
                    ),
                ),
                (
                    "failing_sparse",
                    alike(["failing-sparse", "failing-dense", "sparse", "explicit"], ["forward", "forward + backward"]),
                ),
                (
                    "stable_depth",
                    [
                        *alike(["naive", "fused"], ["euler", "antisymmetric"]),
                        *alike(["naive", "fused", "reversible"], ["leapfrog", "verlet", "hamiltonian"]),
                    ],
                ),
                (
                    "relaxation",
                    [
                        *alike(["notebook", "one product", "all steps", "fused"], ["one network: XOR"]),
                        *alike(["all steps", "fused"], ["100 networks: XOR"]),
                    ],
                ),
                ("sparse_conv2d", alike(["sparse", "masked", "dense"], ["forward", "forward + backward"] * 5)),
                ("sparse_crossover", alike(["sparse", "dense"], [f"width {width}" for width in (16, 16, 32, 32)])),
                ("sparse_evolution", alike(["cpu", "reference", "training"], ["set/random", "magnitude/gradient"])),
                ("sparse_scale", alike(["step", "change", "build"], ["20-3000-3000-3000-10"])),
                ("sparse_step", alike(["sparse", "dense", "masked", "csr", "gather"], ["20-30-10"] * 8)),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch calls its own sparse tensors a beta
def test_quick_measures_every_contestant(tmp_path, monkeypatch, script, measured):
    monkeypatch.setenv("SYNAPTOME_BACKEND", "cpu")  # scripts change it; it is put back
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--threads", "1", "--out", str(tmp_path)])
    importlib.import_module(script).main()
    with (tmp_path / f"{script.replace('_', '-')}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["note"].partition(",")[0], row["contestant"]) for row in rows]
    assert found == [(note, contestant) for note, contestants in measured for contestant in contestants]
