"""The run folder: its lock, its metrics, and what is refused."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from synaptome.errors import ConfigurationError, RunError
from synaptome.training.lock import RunLock
from synaptome.training.metrics import MetricsFile
from synaptome.training.run import (
    RunFolder,
    check_product_name,
    prepare,
    read_metrics,
    read_run,
    remove_run,
    verify_run,
)

RECIPE = {"recipe": "a", "options": {}}


def test_metrics_are_cut_where_the_checkpoint_was_taken(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"step": 0, "a": 1.0})
    position = metrics.position()
    metrics.append({"step": 1, "a": 2.0})
    assert len(read_metrics(path)) == 2  # visible at once
    metrics.close()
    with path.open("ab") as file:
        file.write(b'{"step": 2, "a"')  # a kill cut this row short
    assert [row["step"] for row in read_metrics(path)] == [0, 1]
    again = MetricsFile(path, position)
    again.append({"step": 1, "a": 3.0})
    again.close()
    assert read_metrics(path) == [{"step": 0, "a": 1.0}, {"step": 1, "a": 3.0}]


def test_changed_metrics_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"step": 0, "a": 1.0})
    position = metrics.position()
    metrics.close()
    whole = path.read_bytes()
    for changed in (whole.replace(b"1.0", b"1.1"), whole[:-3], b""):
        path.write_bytes(changed)
        with pytest.raises(RunError, match="changed or cut"):
            MetricsFile(path, position)
    path.unlink()
    with pytest.raises(RunError, match="changed or cut"):
        MetricsFile(path, position)


def test_bad_rows_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match="row 2, is not JSON"):
        read_metrics(path)
    path.write_text('{"step": 0}\n[1]\n')
    with pytest.raises(RunError, match="row 2, is not a row"):
        read_metrics(path)


def test_two_processes_cannot_hold_one_run(tmp_path):
    with RunLock(tmp_path):
        script = "import pathlib, sys; from synaptome.training.lock import RunLock; RunLock(pathlib.Path(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in done.stderr
    assert not (tmp_path / "lock").exists()


def hold(path, ready):
    RunLock(path)
    ready.set()
    signal.pause()


def test_the_lock_of_a_killed_process_is_recovered(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunError, match=f"in use by process {process.pid}"):
        RunLock(tmp_path)
    process.kill()
    process.join()
    assert (tmp_path / "lock").exists()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_believed(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 12, "host": "elsewhere"}))
    with pytest.raises(RunError, match="process 12 on elsewhere; if that process is dead, remove"):
        RunLock(tmp_path)
    (tmp_path / "lock").write_text("{")  # cut short by a crash of this host
    RunLock(tmp_path).release()


def test_a_run_needs_an_empty_folder_that_can_be_written(tmp_path):
    prepare(tmp_path / "new" / "deep", RECIPE)
    with pytest.raises(RunError, match=r"already holds a run.*synaptome resume"):
        prepare(tmp_path / "new" / "deep", RECIPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        prepare(tmp_path / "full", RECIPE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        prepare(tmp_path / "file", RECIPE)
    with pytest.raises(RunError, match="Not a directory"):
        prepare(tmp_path / "file" / "inside", RECIPE)


def test_too_little_space_is_told_before_training(tmp_path, monkeypatch):
    prepare(tmp_path / "run", RECIPE)
    folder, state = RunFolder.open(tmp_path / "run", {})
    assert state is None
    with folder:
        folder.require_space(1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5_000_000))
        with pytest.raises(RunError, match=r"5\.0 MB free, and this run's checkpoints need 7\.0 MB"):
            folder.require_space(7_000_000)


def test_a_disk_that_fills_up_while_training_costs_no_row_and_no_lock(tmp_path):
    """Real failed writes: the system refuses files of more than 1000 bytes."""
    prepare(tmp_path / "run", RECIPE)
    script = """
import resource, signal, sys
from pathlib import Path
from synaptome.errors import RunError
from synaptome.training.run import RunFolder
folder, _ = RunFolder.open(Path(sys.argv[1]), {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with folder:
        for step in range(10_000):
            folder.append({"step": step, "test/loss": 0.1234567})
except RunError as error:
    print(step, error)
"""
    command = [sys.executable, "-c", script, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, message = done.stdout.split(" ", 1)
    assert re.match(r"writing metrics to .* failed: File too large; what was saved before is intact", message)
    content = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert content.endswith("\n")
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(int(refused)))
    assert not (tmp_path / "run" / "lock").exists()


def test_verify_names_what_is_wrong(tmp_path):
    path = tmp_path / "run"
    prepare(path, RECIPE)
    folder, _ = RunFolder.open(path, {"python": "3"})
    with folder:
        folder.append({"step": 0, "epoch": 0, "seconds": 0.0})
        folder.save(0, {"weight": torch.ones(2)})
        folder.append({"step": 1, "epoch": 1, "seconds": 0.1})
        folder.save(1, {"weight": torch.zeros(2)})
    assert "unfinished" in verify_run(path)[-1]
    assert read_run(path).environment == {"python": "3"}
    rows = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(rows + '{"step": 1}\n')
    with pytest.raises(RunError, match="do not increase"):
        verify_run(path)
    (path / "metrics.jsonl").write_text(rows.replace("0.1", "0.2"))
    with pytest.raises(RunError, match="changed or cut"):
        verify_run(path)
    (path / "recipe.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="recursion"):
        verify_run(path)
    (path / "recipe.json").write_text("[]")
    with pytest.raises(RunError, match="should hold a JSON object"):
        verify_run(path)


def test_products_are_written_whole_and_checked(tmp_path):
    path = tmp_path / "run"
    prepare(path, RECIPE)
    (path / ".weights.bin.12345").write_bytes(b"half of")  # left by a process that was killed
    folder, _ = RunFolder.open(path, {})
    with folder:
        folder.save(0, {"weight": torch.ones(2)})
        folder.write_product("weights.bin", b"an earlier one")
        told = folder.write_product("weights.bin", b"hello")
        # sha256sum of the five letters
        expected = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        assert told == {"bytes": 5, "sha256": expected}
        folder.finish({"products": {"weights.bin": told}})
    assert (path / "weights.bin").read_bytes() == b"hello"
    assert not list(path.glob(".*"))
    assert "weights.bin: 5 bytes, with its sha256" in verify_run(path)
    (path / "weights.bin").write_bytes(b"hallo")
    with pytest.raises(RunError, match=r"run/weights\.bin is not as it was written"):
        verify_run(path)
    (path / "weights.bin").unlink()
    with pytest.raises(RunError, match=r"run/weights\.bin cannot be read: No such file"):
        verify_run(path)
    for wrong in (["weights.bin"], {"weights.bin": 5}, {"weights.bin": {"bytes": 5}}, {"../../secret.txt": told}):
        (path / "measures" / "summary.json").write_text(json.dumps({"products": wrong}))
        with pytest.raises(RunError, match=r"summary\.json: 'products' is not what a run writes"):
            verify_run(path)


@pytest.mark.parametrize(
    "name", ["recipe.json", "report.html", "lock", "measures", "../a.bin", ".a.bin", "a/b.c", "a."]
)
def test_a_product_has_a_name_of_its_own(name):
    with pytest.raises(ConfigurationError, match=f"given '{re.escape(name)}'"):
        check_product_name(name)


def test_only_run_folders_are_removed(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        remove_run(tmp_path)
    prepare(tmp_path / "run", RECIPE)
    with RunLock(tmp_path / "run"), pytest.raises(RunError, match="in use"):
        remove_run(tmp_path / "run")
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
