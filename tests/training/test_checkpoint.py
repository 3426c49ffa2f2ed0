"""Checkpoints: nested states to the bit, atomic, and every kind of damage refused by name."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.errors import NumericError, RunError
from synaptome.nested import put_together, take_apart
from synaptome.training import checkpoint
from synaptome.training.files import write_bytes

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTED)
@settings(deadline=None)
def test_plain_values_survive_json(value):
    tree, tensors = take_apart(value)
    back = put_together(json.loads(json.dumps(tree, allow_nan=False)), tensors)
    assert repr(back) == repr(value)  # repr tells 1 from 1.0 and True, nan from nan, and tuples from lists


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def state_of(step=0):
    torch.manual_seed(step)
    return {
        "model": {"weight": torch.randn(4, 3), "empty": torch.empty(0, 5), "scalar": torch.tensor(7)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 3)}}, "betas": (0.9, 0.999)},
        "types": [torch.ones(2, 2).to(dtype) for dtype in DTYPES],
        "strided": torch.randn(6, 6)[::2, ::3].T,
        "number": 0.1 + step,
        "lost": math.inf,
    }


def assert_same(first, second):
    first, second = take_apart(first), take_apart(second)
    assert first[0] == second[0]
    for name, tensor in first[1].items():
        assert tensor.dtype == second[1][name].dtype
        assert torch.equal(tensor, second[1][name]), name


def test_round_trip_keeps_the_newest_two(tmp_path):
    for step in (0, 5, 10):
        checkpoint.save(tmp_path, step, state_of(step))
    assert checkpoint.steps(tmp_path) == [5, 10]
    for step in (5, 10):
        assert_same(checkpoint.load(tmp_path, step), state_of(step))
    checkpoint.save(tmp_path, 10, state_of(10))  # the same step again
    assert_same(checkpoint.load(tmp_path, 10), state_of(10))


def test_no_pickle_in_the_files(tmp_path):
    folder = checkpoint.save(tmp_path, 3, state_of())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]
    assert not any(path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK") for path in folder.iterdir())


def test_a_tensor_that_is_not_finite_is_not_saved(tmp_path):
    checkpoint.save(tmp_path, 1, state_of())
    with pytest.raises(NumericError, match="model/weight is not finite"):
        checkpoint.save(tmp_path, 2, {"model": {"weight": torch.tensor([1.0, math.nan])}})
    assert checkpoint.steps(tmp_path) == [1]


def test_a_value_that_cannot_be_held_is_named(tmp_path):
    with pytest.raises(RunError, match="rule/strange is a object"):
        checkpoint.save(tmp_path, 1, {"rule": {"strange": object()}})


FILES = ["tensors.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_refused_by_name(tmp_path, name):
    checkpoint.save(tmp_path, 1, state_of(1))
    path = checkpoint.save(tmp_path, 2, state_of(2)) / name
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=name) as told:
            checkpoint.load(tmp_path, 2)
        assert "--checkpoint 1" in str(told.value)
    path.write_bytes(whole)
    assert_same(checkpoint.load(tmp_path, 2), state_of(2))


def test_a_flipped_byte_in_a_tensor_names_the_tensor(tmp_path):
    path = checkpoint.save(tmp_path, 2, state_of(2)) / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    weight = state_of(2)["model"]["weight"].numpy().tobytes()
    content[bytes(content).index(weight) + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(RunError, match="the tensor 'model/weight' is not the one that was saved"):
        checkpoint.load(tmp_path, 2)


@pytest.mark.parametrize("name", FILES)
def test_truncated_missing_and_swapped_files_are_refused(tmp_path, name):
    other = checkpoint.save(tmp_path, 1, state_of(1)) / name
    path = checkpoint.save(tmp_path, 2, state_of(2)) / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", other.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RunError, match=name):
            checkpoint.load(tmp_path, 2)
    path.unlink()
    with pytest.raises(RunError, match=name):
        checkpoint.load(tmp_path, 2)


def test_a_checkpoint_of_another_step_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(1)).rename(tmp_path / "0000000009")
    with pytest.raises(RunError, match="belongs to another checkpoint"):
        checkpoint.load(tmp_path, 9)


def test_what_a_kill_left_behind_is_ignored_and_cleaned(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(1))
    for left in (".writing-0000000002", ".removing-0000000000"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.save(tmp_path, 2, state_of(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000001", "0000000002"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """A real failed write: the system refuses files of more than 64 kB."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from synaptome.training import checkpoint
from synaptome.training.files import storage_errors
from synaptome.errors import RunError
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"small": torch.ones(3)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    with storage_errors("saving step 2"):
        checkpoint.save(folder, 2, {"large": torch.ones(100_000)})
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("saving step 2 failed: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["0000000001"]
    assert torch.equal(checkpoint.load(tmp_path, 1)["small"], torch.ones(3))


def test_writing_a_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
