"""Sweeps: a grid is the runs it says, and no death, signal or rerun changes a bit of them."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from io import StringIO

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from synaptome.errors import ConfigurationError, NumericError, RunError, SynaptomeError, WorkerLostError
from synaptome.learning.optimization import Optimization
from synaptome.nested import take_apart
from synaptome.recipes import running, sweep
from synaptome.recipes.failures_linear import FailuresLinear
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.snapshots import Snapshots
from synaptome.training.interrupt import StopRequest
from synaptome.training.lock import RunLock
from synaptome.training.run import load_state, prepare, read_metrics, read_run, verify_run
from synaptome.training.sweep_progress import SweepProgress, read_standing, span

SMALL = FailuresLinear(features=10, train=200, test=50, batch=20, epochs=2, failure=0.0, spectra=Snapshots(modes=0))
LONG = replace(SMALL, epochs=150)  # 1500 steps
WORDS = "failures-linear --features 10 --train 200 --test 50 --batch 20 --spectra.modes 0 --failure 0 --threads 1"
FIELDS = ("failure", "depth", "failing", "optimization.rate", "optimization.weight-decay")


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed, "cpu", 1)


def prepared(folder, recipes):
    """Folders of these recipes, one for each."""
    paths = [folder / str(index) for index in range(len(recipes))]
    for path, recipe in zip(paths, recipes, strict=True):
        prepare(path, settings_of(recipe).document())
    return paths


def result(path):
    """All that a run's numbers are, bit by bit."""
    state = {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    tree, tensors = take_apart(state)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path / "metrics.jsonl")]
    return tree, {name: (t.dtype, t.numpy().tobytes()) for name, t in tensors.items()}, rows


def result_on_a_cluster(path):
    """As `result`, but for the state of Python's own generator, from which Dask draws too and no recipe does."""
    tree, tensors, rows = result(path)
    del tree["random"]["python"]
    return tree, tensors, rows


def saved_steps(path):
    """The newest checkpoint's step; 0 while there is none."""
    return max((int(e.name) for e in path.glob("checkpoints/*") if e.name.isdigit()), default=0)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def holder(path):
    """The process that works on a run; None if there is none that has named itself."""
    try:
        return json.loads((path / "lock").read_text())["pid"]
    except (OSError, ValueError):
        return None


# The grid.


def test_a_grid_is_read_in_order_with_quotes_names_and_hyphens():
    named = {"published": {"depth": ("2", "10"), "failure": ("0", "0.5")}}
    words = ["published", 'failing=all, "1,3"', "optimization.weight_decay=-1,1e-3"]
    assert list(sweep.read_grid(words, FIELDS, named).items()) == [
        ("depth", ("2", "10")),
        ("failure", ("0", "0.5")),
        ("failing", ("all", "1,3")),
        ("optimization.weight-decay", ("-1", "1e-3")),
    ]
    assert sweep.read_grid([], FIELDS, named) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dept=2"], r"unknown field 'dept' \(did you mean 'depth'\?\)"),
        (["optimization.rat=2"], r"did you mean 'optimization\.rate'"),
        (["depth="], "--grid depth= has an empty value"),
        (["depth=2,,3"], "empty value"),
        (["=2"], "unknown field ''"),
        (["depth=2", "depth=3"], "gives depth twice"),
        (["published", "depth=3"], "gives depth twice"),
        (["publisehd"], r"unknown grid 'publisehd' \(did you mean 'published'\?\)"),
        (['failing="1,3'], "is not a list of values"),
        (["failing=1\n3"], "is not a list of values"),
    ],
)
def test_bad_grids_are_refused(words, message):
    with pytest.raises(ConfigurationError, match=message):
        sweep.read_grid(words, FIELDS, {"published": {"depth": ("2",)}})


def test_cells_are_the_product_in_its_order_with_each_seed():
    grid = {"failure": ("0", "0.5"), "depth": ("2", "3", "10")}
    cells = sweep.cells(
        grid, 2, lambda v: settings_of(replace(SMALL, failure=float(v["failure"]), depth=int(v["depth"])), seed=7)
    )
    chosen = [(c.settings.recipe.failure, c.settings.recipe.depth, c.settings.seed) for c in cells]
    assert chosen == list(itertools.product((0.0, 0.5), (2, 3, 10), (7, 8)))
    assert cells[0].name == "failure-0_depth-2_seed-7"
    assert cells[-1].name == "failure-0.5_depth-10_seed-8"
    assert [cell.name for cell in sweep.cells({}, 2, lambda v: settings_of(SMALL))] == ["seed-0", "seed-1"]
    tried = sweep.one_for_each_value(cells)
    assert {value for cell in tried for value in cell.values.items()} == {
        (field, value) for field, values in grid.items() for value in values
    }
    assert len(tried) == 4
    with pytest.raises(ConfigurationError, match="seeds is"):
        sweep.cells(grid, 0, lambda v: settings_of(SMALL))


def test_the_same_run_twice_is_refused():
    with pytest.raises(ConfigurationError, match=r"failure-0_seed-0 and failure-0\.0_seed-0 are the same run"):
        sweep.cells({"failure": ("0", "0.0")}, 2, lambda v: settings_of(replace(SMALL, failure=float(v["failure"]))))


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=30, unique=True))
def test_any_values_have_names_of_their_own_that_any_file_system_takes(pairs):
    names = [sweep._name({"scaling": a, "optimization.name": b}, 0) for a, b in pairs]
    assert len({name.lower() for name in names}) >= len({(a.lower(), b.lower()) for a, b in pairs})
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.,+_-]{,250}", name) for name in names)


def test_folders_are_claimed_recognised_or_refused(tmp_path):
    def cells(**changes):
        return sweep.cells({"depth": ("2",)}, 1, lambda v: replace(settings_of(SMALL), **changes))

    (path,) = sweep.prepare_cells(cells(), tmp_path)
    before = (path / "recipe.json").stat().st_mtime_ns
    assert sweep.prepare_cells(cells(), tmp_path) == [path]
    assert (path / "recipe.json").stat().st_mtime_ns == before
    other = replace(SMALL, optimization=Optimization(rate=0.5))
    with pytest.raises(RunError, match=r"depth-2_seed-0 holds another run: its optimization\.rate is 1e-05"):
        sweep.prepare_cells(cells(recipe=other), tmp_path)
    with pytest.raises(RunError, match="its threads is 1, not 2; choose another --out"):
        sweep.prepare_cells(cells(threads=2), tmp_path)
    assert sweep.prepare_cells(cells(threads=2), tmp_path, ["threads"]) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        sweep.prepare_cells(cells(), tmp_path / "file")


# Runs, side by side.


def test_failures_are_told_at_the_end_and_do_not_keep_the_rest_from_running(tmp_path, monkeypatch):
    wild = replace(SMALL, optimization=Optimization(rate=1e6))
    paths = prepared(tmp_path, [wild, SMALL, SMALL, wild])
    with RunLock(paths[1]), pytest.raises(RunError, match=r"3 of 4 runs stopped: .*/0: .*; .*/1 is in use.*; .*/3: "):
        running.resume_each(paths, 1, True, 30.0)
    assert [bool(read_run(path).summary) for path in paths] == [False, False, True, False]
    running.resume_each(paths[1:3], 1, True, 30.0)
    with pytest.raises(NumericError, match="2 of 4 runs stopped"):
        running.resume_each(paths, 1, True, 30.0)
    monkeypatch.setattr(running, "resume", lambda path, **options: 1 / 0)
    with pytest.raises(SynaptomeError, match="ZeroDivisionError") as fault:
        running.resume_each(paths, 1, True, 30.0)
    assert fault.value.exit_code == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_bit(tmp_path):
    """SIGKILL of a process midway; what joblib kills with it goes on from its checkpoints too."""
    recipes = [replace(LONG, depth=2), replace(LONG, depth=3), SMALL]
    whole = running.resume_each(prepared(tmp_path / "whole", recipes), 1, True, 30.0)
    paths = prepared(tmp_path / "killed", recipes)
    killed = []

    def kill():
        wait_until(lambda: saved_steps(paths[1]) > 100)
        killed.append((holder(paths[1]), saved_steps(paths[1])))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    runs = running.resume_each(paths, 2, True, 0.01)
    killer.join()
    assert killed[0][0] != os.getpid()
    assert 100 < killed[0][1] < 1500  # midway
    assert [result(run.path) for run in runs] == [result(run.path) for run in whole]
    for path in paths:
        assert verify_run(path)[-1] == "finished"
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("Loky")]


def test_requests_to_stop_are_one_where_they_are_nested():
    with StopRequest() as outer, StopRequest() as inner:
        assert outer is inner
        os.kill(os.getpid(), signal.SIGTERM)
        assert inner.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with StopRequest() as later:
        assert later.signum is None


# Signals.


def start_sweep(out, *words):
    """`synaptome sweep` in a process group of its own."""
    command = [sys.executable, "-m", "synaptome", "sweep", *WORDS.split(), *words, "--out", out]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def is_alive(pid):
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "to"),
    [
        (signal.SIGINT, "group"),  # Ctrl-C in a terminal
        (signal.SIGINT, "parent"),
        (signal.SIGTERM, "group"),
        (signal.SIGTERM, "parent"),
        (signal.SIGTERM, "worker"),
    ],
)
def test_a_sweep_that_is_asked_to_stop_saves_and_loses_nothing(tmp_path, signum, to):
    out = tmp_path / "sweep"
    child = start_sweep(out, "--grid", "depth=2,3,4", "--epochs", "600", "--workers", "2", "--checkpoint-seconds", "99")
    paths = [out / f"depth-{depth}_seed-0" for depth in (2, 3, 4)]
    wait_until(lambda: child.poll() is not None or all(len(read_metrics(p / "metrics.jsonl")) > 20 for p in paths[:2]))
    pids = [holder(path) for path in paths[:2]]
    if to == "group":
        os.killpg(child.pid, signum)
    else:
        os.kill({"parent": child.pid, "worker": pids[0]}[to], signum)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signum
    assert f"0 of 3 runs are finished, and the others saved; go on with: synaptome resume {out}" in err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert not any(is_alive(pid) for pid in pids)
    for path in paths[:2]:
        assert saved_steps(path) > 20  # of a checkpoint taken because of the signal: 99 s have not passed
        assert verify_run(path)[-1].startswith("unfinished")
    assert [entry.name for entry in paths[2].iterdir()] == ["recipe.json"]  # no new run was begun
    runs = running.resume_each(paths, 1, True, 30.0)
    whole = [running.start(running.read_settings(path / "recipe.json"), tmp_path / path.name) for path in paths]
    assert [result(run.path) for run in runs] == [result(run.path) for run in whole]


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_while_its_workers_start_is_not_in_disorder(tmp_path):
    out = tmp_path / "sweep"
    child = start_sweep(out, "--seeds", "3", "--workers", "2", "--quiet")
    wait_until(lambda: child.poll() is not None or len(psutil.Process(child.pid).children()) >= 3)
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    told = f"0 of 3 runs are finished, and the others saved; go on with: synaptome resume {out}"
    assert err == f"synaptome: {told} (SIGINT)\n"
    assert [path.name for path in sorted(out.glob("*/*"))] == ["recipe.json"] * 3
    assert all(run.summary for run in running.resume_each(sorted(out.iterdir()), 1, True, 30.0))


@pytest.mark.slow
def test_a_second_interrupt_stops_a_sweep_at_once(tmp_path):
    out = tmp_path / "sweep"
    heavy = ["--train", "20000", "--batch", "20000", "--features", "500", "--depth", "10"]  # a step takes seconds
    child = start_sweep(out, "--seeds", "2", "--workers", "2", "--epochs", "50", *heavy)
    paths = [out / f"seed-{seed}" for seed in (0, 1)]
    wait_until(lambda: child.poll() is not None or all((p / "checkpoints" / "0000000000").exists() for p in paths))
    pids = [holder(path) for path in paths]
    os.killpg(child.pid, signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "at once on a second Ctrl-C" in err
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 5)
    assert [verify_run(path)[-1][:10] for path in paths] == ["unfinished"] * 2


# On a cluster.


@pytest.fixture
def cluster(tmp_path):
    """A function that starts a Dask scheduler and workers that take themselves for other hosts.

    It gives the scheduler's address and process.
    """
    processes = []

    def start(*hosts, threads=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        host, port = address.split(":")

        def dask(what, *words, **environment):
            command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, "--no-dashboard"]
            with (tmp_path / f"{what}-{len(processes)}.log").open("w") as log:
                process = subprocess.Popen(command, stderr=log, cwd=tmp_path, env={**os.environ, **environment})
            processes.append(process)

        preload = "import os, socket\nname = os.environ['HOST']\nsocket.gethostname = lambda: name"
        dask("scheduler", "--host", host, "--port", port)
        for name in hosts:
            dask(
                "worker", f"tcp://{address}", "--nthreads", str(threads), "--no-nanny", "--preload", preload, HOST=name
            )
        return address, processes[0]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_cluster_runs_a_sweep_in_its_workers(tmp_path, cluster):
    paths = prepared(tmp_path / "runs", [SMALL, replace(SMALL, optimization=Optimization(rate=1e6)), SMALL])
    with pytest.raises(NumericError, match=r"1 of 3 runs stopped: .*/1: "):
        running.resume_each(paths, 1, True, 30.0, cluster("east")[0])
    for path in (paths[0], paths[2]):
        run = read_run(path)
        assert run.summary
        assert run.environment["command"] != sys.argv[1:]
    whole = running.start(settings_of(SMALL), tmp_path / "whole")
    assert result_on_a_cluster(paths[0]) == result_on_a_cluster(whole.path)


@pytest.mark.slow
def test_threads_of_a_worker_of_a_cluster_take_turns(tmp_path, cluster):
    """Torch's random numbers are the process's: two runs at once would draw each other's."""
    recipes = [replace(LONG, failure=failure) for failure in (0.1, 0.2, 0.3, 0.4)]
    address, _ = cluster("east", threads=4)
    runs = running.resume_each(prepared(tmp_path / "cluster", recipes), 1, True, 30.0, address)
    whole = running.resume_each(prepared(tmp_path / "whole", recipes), 1, True, 30.0)
    assert [result_on_a_cluster(run.path) for run in runs] == [result_on_a_cluster(run.path) for run in whole]


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_killed_costs_no_bit(tmp_path, cluster):
    """The scheduler gives its run to the other worker, which believes itself on another host."""
    recipes = [replace(LONG, depth=depth) for depth in (2, 3, 4, 5)]
    paths = prepared(tmp_path / "killed", recipes)
    address, _ = cluster("east", "west")
    killed = []

    def kill():
        wait_until(lambda: any(saved_steps(path) > 100 and holder(path) for path in paths))
        (path,) = [path for path in paths if saved_steps(path) > 100 and holder(path)][:1]
        killed.append(path)
        os.kill(holder(path), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    runs = running.resume_each(paths, 1, True, 0.01, address)
    killer.join()
    assert killed
    whole = running.resume_each(prepared(tmp_path / "whole", recipes), 1, True, 30.0)
    assert [result_on_a_cluster(run.path) for run in runs] == [result_on_a_cluster(run.path) for run in whole]


@pytest.mark.slow
def test_a_cluster_is_asked_to_stop(tmp_path, cluster):
    out = tmp_path / "sweep"
    address, _ = cluster("east", "west")
    child = start_sweep(
        out, "--grid", "depth=2,3,4", "--epochs", "600", "--cluster", address, "--checkpoint-seconds", "99"
    )
    paths = [out / f"depth-{depth}_seed-0" for depth in (2, 3, 4)]
    wait_until(lambda: child.poll() is not None or all(len(read_metrics(p / "metrics.jsonl")) > 20 for p in paths[:2]))
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "0 of 3 runs are finished, and the others saved" in err
    assert "Traceback" not in err
    assert not [path for path in paths if (path / "lock").exists()]
    assert all(saved_steps(path) > 20 for path in paths[:2])
    assert [entry.name for entry in paths[2].iterdir()] == ["recipe.json"]
    assert all(run.summary for run in running.resume_each(paths, 1, True, 30.0, address))  # the cluster still works


@pytest.mark.slow
def test_a_cluster_that_goes_away_is_told(tmp_path, cluster):
    (path,) = prepared(tmp_path / "runs", [replace(LONG, epochs=100_000)])
    address, scheduler = cluster("east")

    def kill():
        wait_until(lambda: saved_steps(path) > 100)
        scheduler.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkerLostError, match=f"the cluster at {address} is gone.*go on with: synaptome resume"):
        running.resume_each([path], 1, True, 0.5, address)
    killer.join()


@pytest.mark.slow
def test_a_run_that_the_cluster_gives_up_is_told_after_the_rest_has_run(tmp_path, cluster, monkeypatch):
    """Dask gives a task up whose worker died; joblib would wait for it without end."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    poison, _ = paths = prepared(tmp_path / "runs", [replace(LONG, epochs=100_000), LONG])
    address, _ = cluster("east", "west")

    def kill():
        wait_until(lambda: saved_steps(poison) > 100)
        os.kill(holder(poison), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkerLostError, match="gave up runs whose workers died"):
        running.resume_each(paths, 1, True, 0.1, address)
    killer.join()
    assert [bool(read_run(path).summary) for path in paths] == [False, True]


def test_clusters_that_are_not_there_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("synaptome.recipes.pools.CONNECT_SECONDS", 0.2)
    for address in ("127.0.0.1:9", "nonsense", "x://y"):
        with pytest.raises(ConfigurationError, match=f"no Dask scheduler answers at '{address}'"):
            running.resume_each(prepared(tmp_path / address[:3], [SMALL]), 1, True, 30.0, address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'synaptome\[cluster\]'"):
        running.resume_each([], 1, True, 30.0, "127.0.0.1:9")


# What is shown.


def test_progress_is_read_from_the_folders(tmp_path):
    done, begun, waiting = prepared(tmp_path, [SMALL, SMALL, SMALL])
    running.resume(done)
    (begun / "metrics.jsonl").write_text(
        '{"step": 0, "epoch": 0}\n{"step": 5, "epoch": 0.5, "train/loss": 0.25}\n{"step": 9, "ep'
    )
    (begun / "lock").touch()
    standing = read_standing(begun)
    assert (standing.state, standing.step, standing.total, standing.share) == ("running", 5, 20, 0.25)
    assert str(standing) == "running, step 5 of 20, train/loss 0.25"
    (begun / "checkpoints" / "0000000010").mkdir(parents=True)
    assert read_standing(begun).step == 10
    assert (read_standing(done).state, read_standing(done).steps) == ("done", "20 of 20")
    assert str(read_standing(waiting)) == "waiting"
    assert read_standing(waiting, "failed").share == 1
    assert [span(seconds) for seconds in (5.4, 600, 12000)] == ["5 s", "10 min", "3 h 20 min"]

    told = StringIO()
    lines = SweepProgress(Console(file=told, width=40))
    with lines.watching([begun, waiting]):
        lines.ended(waiting, 4)
        lines.say("a worker died")
    (first, second) = told.getvalue().splitlines()
    assert first.startswith("2: failed; 0 of 2 runs done, 1 running, 1 failed")
    assert second == "a worker died"

    told = StringIO()
    table = SweepProgress(Console(file=told, width=80, height=8, force_terminal=True))
    with table.watching([done, begun, waiting, *[waiting] * 20]):
        table.ended(waiting, 143)
    last = told.getvalue().split("run ")[-1]
    assert re.search(r"running.*10 of 20.*train/loss 0\.25", last)
    assert "stopped" in last
    assert "1 of 3 runs done" in last
