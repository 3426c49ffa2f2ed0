"""`synaptome compare-parallel`: every way a real run in fresh processes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from synaptome import cli
from synaptome.errors import ConfigurationError, RunError
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.parallel_comparison import WAYS, Comparison, is_done, run_ways, tell_failures
from synaptome.recipes.stable_presets import OptimizationChoice
from synaptome.report.ways import FILE
from synaptome.training.run import read_run, verify_run

TINY = {"data": "digits", "width": 16, "depth": 4, "epochs": 2}
WORDS = ["--data", "digits", "--width", "16", "--depth", "4", "--epochs", "2", "--quiet"]
BY_NAME = {way.name: way for way in WAYS}


def cost(path):
    return json.loads((path / FILE).read_text())


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def family(pid):
    """All that a process has started, and that these have."""
    with suppress(OSError):
        return [each for child in children(pid) for each in (child, *family(child))]
    return []


def wait(condition, process, seconds=100):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_way_that_fails_is_told_and_the_others_are_kept(tmp_path):
    recipe = Decoupled(**TINY, optimization=OptimizationChoice("lbfgs", rate=0.1))  # which no pipeline takes
    how = Comparison(accuracy=0.2, out=tmp_path / "out", quiet=True)
    ways = [BY_NAME["GPipe"], BY_NAME["backprop"]]
    failed, done = run_ways(recipe, how, ways)
    assert (failed.name, done.name) == ("gpipe_seed-0", "backprop_seed-0")
    assert not is_done(failed)
    assert cost(failed)["exit_code"] == 2
    assert "a pipeline takes one step for each batch" in cost(failed)["failure"]
    with pytest.raises(ConfigurationError, match=r"1 of 2 runs failed.*gpipe_seed-0: a pipeline takes"):
        tell_failures([failed, done])

    assert is_done(done)
    record = read_run(done)
    assert record.recipe["options"]["method"] == "backprop"
    assert record.recipe["threads"] == 1
    assert 50 < cost(done)["peak_mb"][0] < 5000
    seconds = [row["training/seconds"] for row in record.metrics]
    assert seconds[0] == 0.0
    assert seconds[0] < seconds[1] < seconds[-1] < record.summary["seconds"]
    steps = record.metrics[-1]["step"]
    assert 0 < record.summary["training/step_ms"] < 1e3 * seconds[-1] / steps * 5
    assert verify_run(done)[-1] == "finished"

    before = (done / "metrics.jsonl").stat().st_mtime_ns
    run_ways(recipe, Comparison(accuracy=0.3, out=tmp_path / "out", quiet=True), ways[1:])
    assert (done / "metrics.jsonl").stat().st_mtime_ns == before
    assert cost(done)["accuracy"] == 0.3
    with pytest.raises(RunError, match="holds another run: its width is 16, not 8"):
        run_ways(Decoupled(**TINY | {"width": 8}), how, ways[1:])


@pytest.mark.slow
def test_every_way_stands_in_the_table(tmp_path, capsys):
    words = ["compare-parallel", *WORDS, "--accuracy", "0.3", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    with (tmp_path / "out" / "report-data" / "ways.csv").open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert list(rows) == [way.name for way in WAYS]
    for name, row in rows.items():
        assert (int(row["processes"]), int(row["threads"])) == (2 if BY_NAME[name].shared else 1, BY_NAME[name].threads)
        assert float(row["step_ms"]) > 0
        assert float(row["examples_per_second"]) == pytest.approx(64e3 / float(row["step_ms"]), rel=1e-4)
        peaks = [float(row[f"peak_mb_{process}"]) for process in range(int(row["processes"]))]
        assert all(50 < peak < 5000 for peak in peaks)
        assert (row["predicted_speed"] != "") == (name == "synthetic gradients")
        assert row["failure"] == ""
    exact = [rows[name] for name in ("backprop", "backprop, 2 threads", "blocks, no overlap", "GPipe", "1F1B", "DDP")]
    for row in exact:  # the same training
        assert float(row["test_accuracy"]) == pytest.approx(float(exact[0]["test_accuracy"]), abs=0.01)
        assert float(row["seconds_to_accuracy"]) > 0
    assert float(rows["backprop"]["speed"]) == 1
    told = capsys.readouterr().out
    assert "synthetic" in told
    assert "1F1B" in told

    data = (tmp_path / "out" / "report-data" / "ways.csv").read_bytes()
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report-data" / "ways.csv").read_bytes() == data
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/metrics.jsonl")}
    assert len(times) == len(WAYS)
    assert cli.main(words) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.fixture
def command():
    """Starts `compare-parallel` as a shell does; what it has started is ended with it."""
    every = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "synaptome", "compare-parallel", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        every.append(process)
        return process

    yield start
    for process in every:
        process.terminate()
        process.communicate()


LONG = ["--data", "digits", "--width", "16", "--depth", "4", "--epochs", "4000", "--timeout", "3", "--quiet"]


def grows(path):
    return lambda: path.exists() and len(path.read_text().splitlines()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(tmp_path, command, signum):
    process = command(*LONG, "--out", tmp_path / "out")
    wait(grows(tmp_path / "out" / "backprop_seed-0" / "metrics.jsonl"), process)
    working = children(process.pid)
    assert working
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum, said
    assert "0 of 9 runs are through, and no process is left; the same command goes on" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in working)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_a_signal_ends_the_measuring_of_costs_with_all_that_it_has_started(command):
    process = command("--data", "digits", "--width", "16", "--depth", "64", "--costs-only")
    wait(lambda: len(family(process.pid)) > 3, process)  # the one that measures, and two that exchange tensors
    working = family(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert "no process is left" in said
    until = time.monotonic() + 5  # the kernel takes a moment
    while any(Path(f"/proc/{pid}").exists() for pid in working) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in working)


@pytest.mark.slow
def test_a_killed_process_is_a_row_that_says_so_and_the_next_way_begins(tmp_path, command):
    process = command(*LONG, "--out", tmp_path / "out")
    paths = {way.name: tmp_path / "out" / name for way, name in zip(WAYS, NAMES, strict=True)}
    for name in ("backprop", "backprop, 2 threads", "first blocks frozen", "synthetic gradients"):
        wait(grows(paths[name] / "metrics.jsonl"), process)
        victim = children(process.pid)[-1]  # of two, the one that has no run
        os.kill(victim, signal.SIGKILL)
        wait((paths[name] / FILE).exists, process)
    failures = [cost(path)["failure"] for path in list(paths.values())[:4]]
    assert failures[0] == "process 0 of 1 was ended by SIGKILL"
    assert "process 1 has ended" in failures[3]
    assert cost(paths["synthetic gradients"])["exit_code"] == 6


NAMES = [
    "backprop_seed-0",
    "backprop-2-threads_seed-0",
    "first-blocks-frozen_seed-0",
    "synthetic-gradients_seed-0",
    "stale-gradients_seed-0",
    "blocks-no-overlap_seed-0",
    "gpipe_seed-0",
    "1f1b_seed-0",
    "ddp_seed-0",
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accuracy", "0"], r"accuracy is a share in \(0, 1\]; given 0"),
        (["--accuracy", "nan"], r"accuracy is a share in \(0, 1\]; given nan"),
        (["--seeds", "0"], "seeds is a whole number of at least 1; given 0"),
        (["--method", "ddp"], "compare-parallel runs every method; leave --method out"),
        (["--data", "digits", "--delay", "0"], "true gradients without delay are not stale"),
        (["--data", "digits", "--blocks", "5"], "1f1b takes at least as many microbatches as there are blocks"),
        (["--levels", "2"], "ways to learn one network are compared.*given 2 levels and 1 replicas"),
        (["--replicas", "2"], "given 1 levels and 2 replicas: leave"),
        (["--width", "x"], "--width takes a whole number"),
        (["--threads", "2"], "unknown option '--threads'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_started(tmp_path, capsys, words, message):
    assert cli.main(["compare-parallel", *words, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_costs_only_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SYNAPTOME_DATA", raising=False)
    words = ["compare-parallel", "--data", "digits", "--width", "16", "--depth", "4", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--costs-only"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"block +layers +forward +backward +update +synthesis +transfer +total", told)
    assert re.search(r"Blocks of 2 \+ 2 layers promise \d\.\d\d times the steps of one process", told)
    assert not (tmp_path / "out").exists()

    assert cli.main([*words, "--costs-only", "--data", "mnist", "--data-dir", str(tmp_path)]) == 3
    assert "mnist" in capsys.readouterr().err
    assert cli.main([*words, "--costs-only", "--levels", "2"]) == 2
    assert "leave levels and replicas out" in capsys.readouterr().err


def test_it_is_for_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["compare-parallel", "--out", str(tmp_path / "out")]) == 2
    assert "starts the processes of each way itself; given the 2 of torchrun" in capsys.readouterr().err


def test_each_way_takes_of_the_fields_what_it_has():
    recipe = Decoupled(**TINY, true_share=0.5, warmup=1, least_cosine=0.1)
    assert recipe.with_method("synthetic") == recipe
    assert recipe.with_method("stale") == Decoupled(**TINY, method="stale")
    replicated = Decoupled(**TINY, replicas=2, free=True)
    assert replicated.with_method("locked") == Decoupled(**TINY, replicas=2, method="locked")
    assert replicated.with_method("ddp") == Decoupled(**TINY, method="ddp")
    pipeline = Decoupled(**TINY, method="gpipe", microbatches=8)
    assert pipeline.with_method("1f1b") == Decoupled(**TINY, method="1f1b", microbatches=8)
    assert pipeline.with_method("backprop") == Decoupled(**TINY, method="backprop")
    assert Decoupled(**TINY, balance=(2, 1, 1)).block_count == 3
