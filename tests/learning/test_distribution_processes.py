"""Workers in processes of their own give the bits of one process; one that dies or hangs ends the run in time."""

import json
import math
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from synaptome.errors import ConfigurationError
from synaptome.learning.distribution_processes import Processes

TRAINING = """
import json, os, signal, sys, time
import safetensors.torch, torch
from torch import distributed
from synaptome import data
from synaptome.learning import distribution
from synaptome.learning.distribution import ParallelVariableDistribution
from synaptome.learning.distribution_blocks import by_layers
from synaptome.learning.distribution_processes import Processes
from synaptome.learning.distribution_worker import InnerSolver
from synaptome.networks.stable import StableNetwork

torch.set_num_threads(1)


def rule(forget_me_not, synchronisation, processes, blocks=3, seed=0):
    torch.manual_seed(seed)
    network = StableNetwork(2, 2, width=6, depth=8, time=6.0, opening="learned")
    given = {"forget_me_not": forget_me_not, "synchronisation": synchronisation, "solver": InnerSolver(steps=5)}
    return ParallelVariableDistribution(network, by_layers(network, blocks), processes=processes, **given)


batch = data.load("swiss-roll", seed=0).train[slice(None)]
"""
ALL = """
folder = sys.argv[1]
processes, rank = None, "alone"
if "RANK" in os.environ:
    distributed.init_process_group("gloo")
    processes, rank = Processes(timeout=60), os.environ["RANK"]
for case in ((True, "hull"), (False, "hull"), (True, "best")):
    each = rule(*case, processes)
    reports = [each.step(batch) for _ in range(4)]
    name = f"{folder}/{case[0]}-{case[1]}-{rank}"
    safetensors.torch.save_file(each.model.state_dict(), name)
    open(f"{name}.json", "w").write(json.dumps(reports))
if processes is not None:
    distributed.destroy_process_group()
"""
FAILING = """
rank, what, folder, timeout = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
each = rule(True, "hull", Processes(timeout), blocks=2, seed=rank if what == "differ" else 0)
each.step(batch)
if rank == 1:
    solve = distribution.work

    def stop(*given):
        print(time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        return solve(*given)

    distribution.work = stop
each.step(batch)
"""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_give_the_bits_of_one(count, tmp_path):
    """Three workers: in two processes the first one does the work of two."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING + ALL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=200)
    done = subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for case in ("True-hull", "False-hull", "True-best"):
        alone, *ranks = (tmp_path / f"{case}-{rank}" for rank in ("alone", *range(count)))
        values = safetensors.torch.load_file(alone)
        for path in ranks:
            there = safetensors.torch.load_file(path)
            assert values.keys() == there.keys()
            assert all(torch.equal(value, there[name]) for name, value in values.items())
            reports = [json.loads(each.with_suffix(".json").read_text()) for each in (alone, path)]
            assert reports[0] == reports[1]
    assert reports[0][-1]["loss"] < reports[0][0]["loss"]


def pair(what, folder, timeout):
    words = [[sys.executable, "-c", TRAINING + FAILING, str(rank), what, str(folder), str(timeout)] for rank in (0, 1)]
    return [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in words]


@pytest.mark.parametrize(
    ("what", "timeout", "limit"), [("killed", 100, 30), pytest.param("hung", 5, 35, marks=pytest.mark.slow)]
)
def test_a_process_that_is_lost_ends_the_run(what, timeout, limit, tmp_path):
    """At once when it is killed, although the timeout is long; after the timeout when it hangs."""
    first, second = pair(what, tmp_path, timeout)
    try:
        lost_at = float(second.stdout.readline())
        _, said = first.communicate(timeout=200)
        assert time.time() - lost_at < limit
        assert first.returncode == 1
        assert "WorkerLostError: process 0 of 2 waited for the others, and one of them has ended or did not" in said
        assert f"within {timeout} s" in said
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_processes_that_start_from_other_parameters_are_told(tmp_path):
    started = pair("differ", tmp_path, 60)
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1]
    assert all(
        "ConfigurationError: process" in each and "the same parameters and the same batch" in each for each in said
    )


def test_without_a_process_group():
    with pytest.raises(ConfigurationError, match="there is no process group: start this program with torchrun"):
        Processes()
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match=f"seconds above 0; given {timeout}"):
            Processes(timeout)
