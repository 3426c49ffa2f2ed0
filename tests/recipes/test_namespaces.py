"""Two processes of a run on what are two machines to them: network namespaces that are joined by one link."""

import os
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import safetensors.torch
import torch

from synaptome import cli
from synaptome.training.run import read_run

DIGITS = ["--data", "digits", "--width", "16", "--depth", "4", "--threads", "1", "--quiet"]
ADDRESSES, LINKS, PORT = ("10.77.0.1", "10.77.0.2"), ("left", "right"), 29500
TIMEOUT = 5

pytestmark = pytest.mark.slow


class Machine(NamedTuple):
    """A namespace: the process that keeps it, and the name of its end of the link."""

    keeper: subprocess.Popen
    link: str

    def command(self, *words):
        into = ["nsenter", "--target", str(self.keeper.pid), "--user", "--net", "--preserve-credentials"]
        return [*into, *map(str, words)]

    def does(self, *words):
        subprocess.run(self.command(*words), check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def machines():
    """Two namespaces with a veth pair; skips where they are not allowed. They vanish with the processes in them."""
    tools = ("ip", "unshare", "nsenter")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"network namespaces take the commands {', '.join(missing)}, which are not here")
    keepers = []

    def kept(*words):
        keepers.append(subprocess.Popen([*words, "sleep", "1000"], stderr=subprocess.DEVNULL))
        time.sleep(0.5)  # until it has its namespace
        if keepers[-1].poll() is not None:
            pytest.skip("this machine does not let a test make network namespaces (unshare --user --net)")
        return keepers[-1]

    try:
        first = Machine(kept("unshare", "--user", "--map-root-user", "--net"), LINKS[0])
        into = ("nsenter", "--target", str(first.keeper.pid), "--user", "--preserve-credentials")
        second = Machine(kept(*into, "unshare", "--net"), LINKS[1])
        try:
            first.does("ip", "link", "add", LINKS[0], "type", "veth", "peer", LINKS[1], "netns", second.keeper.pid)
            for machine, address in zip((first, second), ADDRESSES, strict=True):
                machine.does("ip", "address", "add", f"{address}/24", "dev", machine.link)
                machine.does("ip", "link", "set", "lo", "up")
                machine.does("ip", "link", "set", machine.link, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine does not let a test join network namespaces: {error.stderr.strip()}")
        yield first, second
    finally:
        for keeper in keepers:
            keeper.kill()
            keeper.wait()


@pytest.fixture
def started(machines):
    """Starts a run with a process on each machine."""
    every = []

    def start(*words):
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT)}
        for rank, machine in enumerate(machines):
            own = {"RANK": str(rank), "GLOO_SOCKET_IFNAME": machine.link}
            command = machine.command(sys.executable, "-m", "synaptome", "run", "decoupled", *DIGITS, *words)
            every.append(
                subprocess.Popen(
                    command,
                    env=os.environ | meeting | own,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return every

    yield start
    for process in every:
        process.kill()
        process.communicate()


def tensors(run):
    newest = sorted((run / "checkpoints").iterdir())[-1]
    found = safetensors.torch.load_file(newest / "tensors.safetensors")
    return {name: tensor for name, tensor in found.items() if not name.startswith("rule/means")}


def test_two_machines_write_the_run_of_one(tmp_path, started):
    words = ["--epochs", "2"]
    processes = started(*words, "--out", tmp_path / "two")
    assert cli.main(["run", "decoupled", *DIGITS, *words, "--out", str(tmp_path / "one")]) == 0
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_a_link_that_is_cut_ends_the_run_in_time(tmp_path, machines, started):
    out = tmp_path / "run"
    processes = started("--epochs", 4000, "--timeout", TIMEOUT, "--out", out)
    begun = time.monotonic()
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.05)
        assert time.monotonic() - begun < 120
        assert [process.poll() for process in processes] == [None, None]
    machines[0].does("ip", "link", "set", LINKS[0], "down")
    begun = time.monotonic()
    for rank, process in enumerate(processes):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 6, said
        assert f"process {1 - rank} has ended, or did not answer within {TIMEOUT} s" in said
    assert time.monotonic() - begun < TIMEOUT + 20
    assert not read_run(out).summary
