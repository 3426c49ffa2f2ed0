"""kill -9 at any moment, then resume: the same bits as a run that never stopped.

A forked child runs a recipe and kills itself, with SIGKILL, at its n-th event. Events are the places where a crash
could hurt: before and after each training step, each row, each file that a checkpoint writes (also halfway through it),
each file of measures (likewise), each flush, each rename, each removal.
"""

import os
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from synaptome.analysis.robustness import accuracy_under_failures
from synaptome.analysis.spectra import Spectra
from synaptome.errors import RunError
from synaptome.learning.backprop import Backprop
from synaptome.nested import take_apart
from synaptome.recipes import running
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.evolution_choice import EvolutionChoice
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.recipe import RunSettings
from synaptome.training import checkpoint, measures, run, tensor_file
from synaptome.training.callbacks import each_steps
from synaptome.training.measures import Recorder
from synaptome.training.metrics import MetricsFile
from synaptome.training.run import RunFolder, load_state, read_metrics, verify_run

SETTINGS = RunSettings(FailuresClassifier(epochs=2, batch=450, width=8, failure=0.2), seed=1, device="cpu", threads=1)
# Connections that move between layers every other step, by gradients of several steps: much to go back to.
EVOLVING = RunSettings(
    EvolvingSparsity(
        hidden=(12,), epsilon=2.0, batch=450, epochs=2, preset="snfs", evolution=EvolutionChoice(every_steps=2)
    ),
    seed=1,
    device="cpu",
    threads=1,
)


def in_child(work):
    """Run `work` in a forked process; returns the signal that killed it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at(moment):
    """Patch this (child) process to kill itself at its `moment`-th event."""
    count = 0

    def event():
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            event()
            result = original(*args, **kwargs)
            event()
            return result

        setattr(owner, name, wrapped)

    around(Backprop, "step")
    around(MetricsFile, "append")
    around(Path, "rename")
    around(Path, "replace")
    around(os, "fsync")
    around(os, "rmdir")
    around(os, "unlink")
    around(Path, "unlink")
    around(Path, "mkdir")
    write = checkpoint._write

    def halfway(path, content):
        path.write_bytes(content[: len(content) // 2])
        event()
        write(path, content)

    checkpoint._write = halfway
    write_aside = tensor_file.write_bytes

    def halfway_aside(path, content):
        path.with_name(f".{path.name}.{os.getpid()}").write_bytes(content[: len(content) // 2])
        event()
        write_aside(path, content)

    tensor_file.write_bytes = run.write_bytes = halfway_aside


def result(path):
    tree, tensors = take_apart(
        {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    )
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path / "metrics.jsonl")]
    return tree, {name: (t.dtype, t.numpy().tobytes()) for name, t in tensors.items()}, rows


def begin(path, checkpoint_seconds=0.0):
    running.start(SETTINGS, path, checkpoint_seconds=checkpoint_seconds)


def go_on(path, checkpoint_seconds=0.0):
    if (path / "recipe.json").exists():
        running.resume(path, checkpoint_seconds=checkpoint_seconds)
    else:  # killed before the run had a name
        begin(path, checkpoint_seconds)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_resume_after_kill_at_every_event_gives_the_same_bits(tmp_path):
    begin(tmp_path / "whole")  # in this process, so that the children find everything imported
    whole = result(tmp_path / "whole")
    assert len(whole[2]) == 3  # step 0 and two epochs
    moment = killed = 0
    while True:
        moment += 1 if moment < 45 else 6  # every event of the first saves, then a sample
        path = tmp_path / f"killed-{moment}"

        def work(path=path, moment=moment):
            die_at(moment)
            begin(path)

        if in_child(work) == 0:
            break  # the run has fewer events than that
        killed += 1
        assert in_child(lambda path=path: go_on(path)) == 0
        assert result(path) == whole, f"killed at event {moment}"
        assert verify_run(path)[-1] == "finished"
    assert killed > 50


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_killed_again_and_again_gets_there(tmp_path):
    begin(tmp_path / "whole")  # in this process, so that the children find everything imported
    path = tmp_path / "killed"
    kills = 0
    while True:

        def work():
            die_at(40)
            go_on(path)

        if in_child(work) == 0:
            break
        kills += 1
    assert kills >= 3
    assert result(path) == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_evolving_connections_after_kill_at_any_event_are_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SETTINGS", EVOLVING)
    begin(tmp_path / "whole")
    whole = result(tmp_path / "whole"), measured_files(tmp_path / "whole")
    assert whole[0][2][-1]["connections/replaced"] > 0
    moment = killed = 0
    while True:
        moment += 7
        path = tmp_path / f"killed-{moment}"

        def work(path=path, moment=moment):
            die_at(moment)
            begin(path)

        if in_child(work) == 0:
            break
        killed += 1
        assert in_child(lambda path=path: go_on(path)) == 0
        assert (result(path), measured_files(path)) == whole, f"killed at event {moment}"
        assert verify_run(path)[-1] == "finished"
    assert killed > 20


def measure_too(monkeypatch):
    """Every run of this process records at each step, in chunks of two or three snapshots, and once more at its end."""
    build = running.build

    def measuring(settings):
        experiment = build(settings)
        test = experiment.data.test
        spectra = Spectra(test.inputs[:20], modes=3)
        return replace(
            experiment,
            recorders=(
                Recorder("spectra", each_steps(1), spectra.snapshot),
                Recorder("bias", each_steps(2), lambda model: {"bias": model.layers[0].bias}),
            ),
            finals={
                "spectra": spectra.final,
                "robustness": lambda model: accuracy_under_failures(model, test, (0.0, 0.4), 2),
            },
        )

    monkeypatch.setattr(running, "build", measuring)
    monkeypatch.setattr(measures, "CHUNK_BYTES", 1500)


def measured_files(path):
    """Every file in measures/ but the summary, which holds seconds."""
    folder = path / "measures"
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    found.pop("summary.json")
    return found


CHUNKS = ["bias/00000", *(f"spectra/{index:05d}" for index in range(4))]
MEASURED = sorted(f"{place}.safetensors" for place in (*CHUNKS, "robustness", "spectra"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_measures_after_kill_at_every_event_are_the_same_bytes(tmp_path, monkeypatch, checkpoint_seconds):
    """With a checkpoint at each step; and with two in all, so that most chunks are of a future that was lost."""
    measure_too(monkeypatch)
    begin(tmp_path / "whole", checkpoint_seconds)
    whole = result(tmp_path / "whole"), measured_files(tmp_path / "whole")
    assert sorted(whole[1]) == MEASURED
    moment = killed = 0
    while True:
        moment += 1 if checkpoint_seconds or moment < 30 else 7  # every event, or a sample of the many
        path = tmp_path / f"killed-{moment}"

        def work(path=path, moment=moment):
            die_at(moment)
            begin(path, checkpoint_seconds)

        if in_child(work) == 0:
            break
        killed += 1
        assert in_child(lambda path=path: go_on(path, checkpoint_seconds)) == 0
        assert (result(path), measured_files(path)) == whole, f"killed at event {moment}"
        assert verify_run(path)[-1] == "finished"
    assert killed > 50


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_measures_after_many_kills_are_the_same_bytes(tmp_path, monkeypatch):
    measure_too(monkeypatch)
    begin(tmp_path / "whole")
    path = tmp_path / "killed"
    kills = 0
    while True:

        def work():
            die_at(61)
            go_on(path)

        if in_child(work) == 0:
            break
        kills += 1
    assert kills >= 3
    assert measured_files(path) == measured_files(tmp_path / "whole")
    earlier = checkpoint.steps(path / "checkpoints")[0]
    running.resume(path, step=earlier)  # finished, and gone back to an earlier checkpoint
    assert measured_files(path) == measured_files(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_products_after_kill_at_every_event_from_the_first_on_are_the_same_bytes(tmp_path, monkeypatch):
    build, write_product = running.build, RunFolder.write_product
    products = {
        "bias.bin": lambda model: model.layers[0].bias.detach().numpy().tobytes(),
        "mode.txt": lambda model: str(model.training).encode(),
    }
    monkeypatch.setattr(running, "build", lambda settings: replace(build(settings), products=products))

    def files(path):
        return {name: (path / name).read_bytes() for name in products}

    begin(tmp_path / "whole", 1e9)
    whole = files(tmp_path / "whole")
    assert whole["mode.txt"] == b"False"
    assert whole["bias.bin"] == load_state(tmp_path / "whole")["rule"]["model"]["layers.0.bias"].numpy().tobytes()
    moment = 0
    while True:
        moment += 1
        path = tmp_path / f"killed-{moment}"

        def work(path=path, moment=moment):
            def first(self, name, content):
                RunFolder.write_product = write_product
                die_at(moment)
                return write_product(self, name, content)

            RunFolder.write_product = first
            begin(path, 1e9)

        if in_child(work) == 0:
            break
        assert in_child(lambda path=path: go_on(path, 1e9)) == 0
        assert files(path) == whole, f"killed at event {moment}"
        assert verify_run(path)[-1] == "finished"
        assert not list(path.glob(".*.*"))
    assert moment > 15


def test_a_flipped_byte_in_any_file_of_measures_is_told_by_name(tmp_path, monkeypatch):
    measure_too(monkeypatch)
    begin(tmp_path / "run")
    for name, content in measured_files(tmp_path / "run").items():
        file = tmp_path / "run" / "measures" / name
        for position in range(0, len(content), max(1, len(content) // 25)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << (position % 8)
            file.write_bytes(damaged)
            with pytest.raises(RunError, match=str(file)):
                verify_run(tmp_path / "run")
        file.write_bytes(content)
    assert verify_run(tmp_path / "run")[-1] == "finished"
