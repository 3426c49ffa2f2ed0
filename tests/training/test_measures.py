"""Measures on disk: chunks of bounded size, the same after any resume, and every damage refused by name."""

import copy
import json
import math
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import synaptome as syn
from synaptome.analysis.spectra import Spectra
from synaptome.data import Dataset, Split
from synaptome.errors import ConfigurationError, NumericError, RunError
from synaptome.learning.backprop import Backprop
from synaptome.networks.feedforward import FeedForward
from synaptome.training import measures
from synaptome.training.callbacks import each_epoch, each_steps
from synaptome.training.measures import Recorder, read_final, read_series, verify_measures, write_final
from synaptome.training.run import RunFolder, prepare, verify_run
from synaptome.training.seeding import seed_everything
from synaptome.training.tensor_file import read_tensors, write_tensors
from synaptome.training.trainer import Trainer


def split(n, seed):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return Split(x, x[:, :3].argmax(1))


DATA = Dataset("made", split(50, 1), None, split(17, 3), classes=("a", "b", "c"))
EVERY = each_steps(1)


def weights(model):
    return {"first/weight": model.layers[0].weight, "bits/mode": torch.tensor(model.training)}


def trainer(store=None, recorders=(), **options):
    seed_everything(5)
    network = FeedForward([6, 8, 3], wiring=syn.Failing(0.3))
    rule = Backprop(network, torch.optim.Adam(network.parameters(), 0.1))
    options = {"epochs": 3, "batch": 8, "seed": 5, "checkpoint_seconds": 0.0, **options}
    return Trainer(rule, DATA, store=store, recorders=recorders, **options)


class OnDisk:
    """Measures on disk, checkpoints in memory; remembers the model after each step."""

    def __init__(self, path):
        prepare(path, {"recipe": "a"})
        self.path, self.states = path, {}
        self.folder, _ = RunFolder.open(path, {})
        self.record, self.cut = self.folder.record, self.folder.cut

    def append(self, row):
        pass

    def save(self, step, state):
        self.states[step] = copy.deepcopy(state)


@pytest.fixture
def store(tmp_path):
    made = OnDisk(tmp_path / "run")
    with made.folder:
        yield made


def files(path):
    folder = path / "measures"
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three snapshots: 8 bytes of step, 192 of weights and 1 of a bit each."""
    monkeypatch.setattr(measures, "CHUNK_BYTES", 3 * 201)


def test_snapshots_are_what_the_model_was(store, small_chunks):
    t = trainer(store, [Recorder("weights", each_steps(2), weights)])
    t.fit()
    series = read_series(store.path, "weights")
    assert series["step"].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21]
    assert series["step"].dtype == torch.int64
    assert series["bits/mode"].tolist() == [False] * 12  # measured in inference
    for step, weight in zip(series["step"].tolist(), series["first/weight"], strict=True):
        assert torch.equal(weight, store.states[step]["rule"]["model"]["layers.0.weight"])
    assert sorted(files(store.path)) == [f"weights/{index:05d}.safetensors" for index in range(4)]
    assert read_series(str(store.path), "weights")["step"].tolist() == series["step"].tolist()


def test_chunks_are_as_large_as_they_are_said_to_be(store):
    def large(model):
        return {"numbers": torch.zeros(2**18 - 1)}  # a little less than 1 MiB with the step

    def huge(model):
        return {"numbers": torch.zeros(2**21)}

    recorders = [Recorder("large", EVERY, large), Recorder("huge", each_epoch(), huge)]
    t = trainer(store, recorders)
    t.fit()
    sizes = {name: len(content) for name, content in files(store.path).items()}
    assert [name for name in sizes if name.startswith("huge")] == [f"huge/{i:05d}.safetensors" for i in range(4)]
    counts = [
        len(read_tensors(store.path / "measures", name.removesuffix(".safetensors"))["step"])
        for name in sizes
        if name.startswith("large")
    ]
    assert counts == [4, 4, 4, 4, 4, 2]  # 22 snapshots; the fourth reaches 4 MiB
    held = [state["recorders"]["large"]["pending"] for state in store.states.values()]
    assert max(len(pending["step"]) if pending else 0 for pending in held) == 3
    assert len(read_series(store.path, "large")["numbers"]) == 22


def test_measuring_changes_no_bit_of_the_training(store):
    def meddling(model):
        torch.randn(3)
        np.random.rand()
        random.random()
        model.train()
        model(torch.ones(2, 6))  # advances the counters of failures
        return {"norm": model.layers[0].weight.norm()}

    def numbers(t):
        last = {key: value for key, value in t.fit().items() if key != "seconds"}
        drawn = torch.rand(2).tolist(), np.random.rand(), random.random()
        return last, drawn, [tensor.tolist() for tensor in t.rule.model.state_dict().values()]

    spectra = Spectra(DATA.test.inputs, modes=2)
    recorders = [Recorder("meddling", EVERY, meddling), Recorder("spectra", each_epoch(), spectra.snapshot)]
    assert numbers(trainer(store, recorders)) == numbers(trainer())
    expected = spectra.snapshot(trainer().rule.model)
    found = read_series(store.path, "spectra")
    assert set(found) == {"step", *expected}
    for name, tensor in expected.items():
        assert torch.equal(found[name][0], tensor)


def test_going_on_from_any_step_gives_the_same_files(store, small_chunks):
    recorders = [Recorder("weights", EVERY, weights), Recorder("seldom", each_epoch(), weights)]
    trainer(store, recorders).fit()
    whole = files(store.path)
    assert len(whole) == 8 + 2
    states = dict(store.states)
    for step in (0, 1, 2, 3, 7, 19, 20, 21):
        # As a kill leaves it: later chunks of a lost future, one of them different, and half of one.
        changed = read_tensors(store.path / "measures", "weights/00007")
        write_tensors(store.path / "measures", "weights/00007", {k: t + 1 for k, t in changed.items()})
        write_tensors(store.path / "measures", "weights/00008", changed)
        (store.path / "measures" / "weights" / ".00001.safetensors.123").write_bytes(b"half")
        again = trainer(store, recorders)
        again.load_state_dict(states[step])
        again.fit()
        if step == 21:  # the last chunk is of its past, and stays as it is
            write_tensors(store.path / "measures", "weights/00007", changed)
        assert files(store.path) == whole, step


def test_a_new_run_removes_what_one_killed_before_its_first_checkpoint_left(store, small_chunks):
    (store.path / "measures" / "weights").mkdir()
    for index in (0, 8, 9):  # with a hole, as a kill while they were removed would leave it
        write_tensors(store.path / "measures", f"weights/{index:05d}", {"step": torch.tensor([index])})
    trainer(store, [Recorder("weights", EVERY, weights)]).fit()
    assert read_series(store.path, "weights")["step"].tolist() == list(range(22))
    assert len(files(store.path)) == 8


def test_a_lost_chunk_is_told_when_a_run_goes_on(store, small_chunks):
    recorders = [Recorder("weights", EVERY, weights)]
    trainer(store, recorders).fit()
    (store.path / "measures" / "weights" / "00007.safetensors").unlink()
    again = trainer(store, recorders)
    again.load_state_dict(store.states[21])
    with pytest.raises(RunError, match="measures/weights has lost files that the checkpoint counts on"):
        again.fit()


def test_a_checkpoint_with_other_recorders_is_refused(store):
    trainer(store, [Recorder("weights", each_epoch(), weights)]).fit()
    with pytest.raises(RunError, match=r"recorders of the checkpoint \(weights\) are not those of this run \(none\)"):
        trainer().load_state_dict(store.states[0])
    older = {key: value for key, value in store.states[0].items() if key != "recorders"}
    trainer().load_state_dict(older)
    with pytest.raises(RunError, match=r"\(none\) are not those of this run \(weights\)"):
        trainer(store, [Recorder("weights", each_epoch(), weights)]).load_state_dict(older)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_snapshot_that_is_not_finite_stops_the_run(store, number):
    steps = iter(range(100))

    def measure(model):
        return {"good": torch.ones(2), "bad": torch.tensor([1.0, number if next(steps) == 3 else 1.0])}

    t = trainer(store, [Recorder("mine", EVERY, measure)])
    with pytest.raises(NumericError, match=r"after step 3: bad is not finite in .*'mine'; .* step 2 is kept"):
        t.fit()
    assert max(store.states) == 2


def test_snapshots_keep_their_shapes(store):
    steps = iter(range(100))

    def measure(model):
        return {"grows": torch.ones(2 + (next(steps) > 5))}

    with pytest.raises(ConfigurationError, match="'mine' measures other tensors at step 6"):
        trainer(store, [Recorder("mine", EVERY, measure)]).fit()


def test_recorders_that_cannot_be_are_refused(store):
    for name in ("", "a/b", "..", "a.b", "a b"):
        with pytest.raises(ConfigurationError, match="letters, digits"):
            Recorder(name, EVERY, weights)
        for read in (read_series, read_final):
            with pytest.raises(ConfigurationError, match="letters, digits"):
                read(store.path, name)
    with pytest.raises(ConfigurationError, match="given a and no store"):
        trainer(None, [Recorder("a", EVERY, weights)])
    with pytest.raises(ConfigurationError, match=r"a name each; given a, a$"):
        trainer(store, [Recorder("a", EVERY, weights)] * 2)
    with pytest.raises(ConfigurationError, match="cannot be called 'step'"):
        trainer(store, [Recorder("a", EVERY, lambda model: {"step": torch.ones(())})]).fit()


def test_nothing_measured_is_no_error(store):
    assert read_series(store.path, "spectra") == {}
    assert read_final(store.path, "spectra") == {}
    assert verify_measures(store.path) == []


TENSORS = {
    "real": torch.randn(2, 3),
    "double": torch.randn(2, dtype=torch.float64),
    "counts": torch.arange(4).view(2, 2),
    "half": torch.randn(2, 2).bfloat16(),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(2, 0),
    "step": torch.tensor([3, 4]),
}


def written(tmp_path):
    """A run with one file of a series and one final one."""
    (tmp_path / "measures").mkdir(exist_ok=True)
    measures.write_chunk(tmp_path / "measures", "mine", 0, TENSORS)
    write_final(tmp_path / "measures", "mine", TENSORS)
    return tmp_path / "measures" / "mine" / "00000.safetensors", tmp_path / "measures" / "mine.safetensors"


def test_what_is_written_is_read_and_the_same_bytes_each_time(tmp_path):
    paths = written(tmp_path)
    for read in (read_series, read_final):
        back = read(tmp_path, "mine")
        assert set(back) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert back[name].dtype == tensor.dtype
            assert torch.equal(back[name], tensor)
    script = (
        "import sys, pathlib, safetensors.torch as s; from synaptome.training.measures import write_final;"
        "p = pathlib.Path(sys.argv[1]); t = s.load_file(p);"
        "write_final(p.parent, 'mine', dict(reversed(t.items())))"
    )
    before = paths[1].read_bytes()
    subprocess.run([sys.executable, "-c", script, paths[1]], check=True)  # another process, another order
    assert paths[1].read_bytes() == before


@pytest.mark.parametrize("which", [0, 1])
def test_every_flipped_bit_is_refused_by_name(tmp_path, which):
    path, read = written(tmp_path)[which], (read_series, read_final)[which]
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position * 5 % 8)
        path.write_bytes(damaged)
        with pytest.raises(RunError) as told:
            read(tmp_path, "mine")
        assert str(path) in str(told.value)
    path.write_bytes(whole)
    assert set(read(tmp_path, "mine")) == set(TENSORS)


def test_a_flipped_bit_in_a_tensor_names_the_tensor(tmp_path):
    path = written(tmp_path)[1]
    content = bytearray(path.read_bytes())
    content[bytes(content).index(TENSORS["real"].numpy().tobytes()) + 3] ^= 2
    path.write_bytes(content)
    with pytest.raises(RunError, match="the tensor 'real' is not the one that was saved"):
        read_final(tmp_path, "mine")


@pytest.mark.parametrize("which", [0, 1])
def test_truncated_and_hostile_files_are_refused_by_name(tmp_path, which):
    path, read = written(tmp_path)[which], (read_series, read_final)[which]
    whole = path.read_bytes()

    def headed(header, body=b""):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    plain = safetensors.torch.save(TENSORS)
    contents = [whole[:n] for n in (0, 7, 8, 20, len(whole) // 2, len(whole) - 1)]
    contents += [whole + b"\0", b"\xff" * 64, (2**63).to_bytes(8, "little") + b"{}", plain, headed([]), headed({})]
    for metadata in (None, [], {}, {"synaptome": 3}, {"synaptome": "x"}, {"synaptome": "[" * 100_000}):
        contents.append(headed({"__metadata__": metadata}))
    for document in ([], {}, "text", None, {"format": 1, "place": "mine", "sha256": 5}, {"format": 2, "sha256": {}}):
        contents.append(safetensors.torch.save(TENSORS, {"synaptome": json.dumps(document)}))
    for dtype in ("F4", "F8_E8M0", "C64", "Q7", "BOOL"):
        entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, {"C64": 16, "F4": 1}.get(dtype, 2)]}
        document = json.dumps({"format": 1, "place": "mine", "sha256": {"a": "0"}})
        contents.append(headed({"__metadata__": {"synaptome": document}, "a": entry}, bytes(entry["data_offsets"][1])))
    entry = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}
    contents.append(headed({"a": entry}, bytes(4)))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(RunError) as told:
            read(tmp_path, "mine")
        assert str(path) in str(told.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match=r"cannot be read: Is a directory"):
        read(tmp_path, "mine")


def test_a_file_of_another_place_or_format_is_refused(tmp_path, monkeypatch):
    chunk, final = written(tmp_path)
    shutil.copy(final, chunk)
    with pytest.raises(RunError, match=r"mine/00000.safetensors is not in its place: it was written as mine$"):
        read_series(tmp_path, "mine")
    shutil.copy(final, final.with_name("other.safetensors"))
    with pytest.raises(RunError, match=r"other.safetensors is not in its place"):
        read_final(tmp_path, "other")
    monkeypatch.setattr("synaptome.training.tensor_file.FORMAT", 2)
    with pytest.raises(RunError, match="has format 1; this version of synaptome reads format 2"):
        read_final(tmp_path, "mine")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"a": torch.ones(2, 3)}, "has no 'step'"),
        ({"a": torch.ones(2, 3), "step": torch.tensor([4.0, 5.0])}, "has no 'step'"),
        ({"a": torch.ones(0, 3), "step": torch.empty(0, dtype=torch.int64)}, "has no 'step'"),
        ({"a": torch.ones(3, 3), "step": torch.tensor([4, 5])}, "not one entry for each step"),
        ({"a": torch.ones(()), "step": torch.tensor([4, 5])}, "not one entry for each step"),
        ({"a": torch.ones(2, 3), "step": torch.tensor([3, 5])}, "its steps do not increase"),
        ({"a": torch.ones(2, 3), "step": torch.tensor([5, 4])}, "its steps do not increase"),
        ({"a": torch.ones(2, 4), "step": torch.tensor([4, 5])}, "other tensors than the chunk before"),
        ({"b": torch.ones(2, 3), "step": torch.tensor([4, 5])}, "other tensors than the chunk before"),
        ({"a": torch.ones(2, 3).double(), "step": torch.tensor([4, 5])}, "other tensors than the chunk before"),
    ],
)
def test_chunks_that_do_not_follow_one_another_are_refused(tmp_path, second, told):
    (tmp_path / "measures").mkdir()
    first = {"a": torch.ones(2, 3), "step": torch.tensor([0, 3])}
    measures.write_chunk(tmp_path / "measures", "mine", 0, first)
    measures.write_chunk(tmp_path / "measures", "mine", 1, second)
    with pytest.raises(RunError, match=rf"mine/00001.safetensors .*{told}"):
        read_series(tmp_path, "mine")
    (tmp_path / "measures" / "mine" / "00000.safetensors").unlink()
    with pytest.raises(RunError, match=r"mine/00000.safetensors is missing"):
        read_series(tmp_path, "mine")


def test_verify_lists_measures_and_names_what_is_wrong(tmp_path, small_chunks):
    path = tmp_path / "run"
    prepare(path, {"recipe": "a"})
    folder, _ = RunFolder.open(path, {})
    with folder:
        t = trainer(folder, [Recorder("weights", EVERY, weights)], checkpoint_seconds=1e9)
        t.fit()
        folder.write_final("robustness", {"rate": torch.ones(2)})
    told = verify_run(path)
    assert "measures/weights: 22 snapshots in 8 files; every tensor has its sha256" in told
    assert "measures/robustness.safetensors: every tensor has its sha256" in told
    for name, content in files(path).items():
        damaged = bytearray(content)
        damaged[-1] ^= 1
        (path / "measures" / name).write_bytes(damaged)
        with pytest.raises(RunError, match=name):
            verify_run(path)
        (path / "measures" / name).write_bytes(content)
    (path / "measures" / "not mine").mkdir()  # what is no measure is no concern
    assert verify_run(path) == told
    (path / "measures" / "weights" / "00007.safetensors").unlink()
    with pytest.raises(RunError, match="measures/weights has lost files that checkpoint 21 counts on"):
        verify_run(path)


def test_a_full_disk_while_measures_are_written_is_told(tmp_path):
    """A real failed write: the system refuses files of more than 64 kB."""
    prepare(tmp_path / "run", {"recipe": "a"})
    script = """
import resource, signal, sys, torch
from pathlib import Path
from synaptome.errors import RunError
from synaptome.training.run import RunFolder
folder, _ = RunFolder.open(Path(sys.argv[1]), {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
with folder:
    folder.record("mine", 0, {"step": torch.tensor([0])})
    for write in (lambda t: folder.record("mine", 1, t), lambda t: folder.write_final("mine", t)):
        try:
            write({"step": torch.arange(100_000)})
        except RunError as error:
            print(error)
"""
    command = [sys.executable, "-c", script, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"writing measures to {tmp_path / 'run'} failed: File too large")
    assert list(files(tmp_path / "run")) == ["mine/00000.safetensors"]
    assert read_series(tmp_path / "run", "mine")["step"].tolist() == [0]
    assert not (tmp_path / "run" / "lock").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    prepare(tmp_path / "run", {"recipe": "a"})
    (tmp_path / "run" / "measures").mkdir()
    (tmp_path / "run" / "measures" / ".mine.safetensors.17").write_bytes(b"half")
    folder, _ = RunFolder.open(tmp_path / "run", {})
    folder.close()
    assert files(tmp_path / "run") == {}


def test_a_folder_that_is_not_there_is_not_a_run_without_measures(tmp_path):
    for read in (read_series, read_final):
        with pytest.raises(RunError, match="nowhere is not a run folder"):
            read(tmp_path / "nowhere", "spectra")
        assert read(tmp_path, "spectra") == {}
