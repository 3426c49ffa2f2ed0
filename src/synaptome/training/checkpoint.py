"""Checkpoints: `checkpoints/<step>/` with `tensors.safetensors`, `state.json` and, written last, `manifest.json`.

A checkpoint is written in a hidden folder, flushed, and renamed into place; it is there whole or not at all. The
manifest holds a sha256 for each file, for each tensor (so that damage can be named) and for itself. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synaptome.errors import NumericError, RunError
from synaptome.nested import put_together, take_apart
from synaptome.training.files import sync_folder

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Save a state as the checkpoint of a step, then remove all but the newest `keep`.

    Args:
        folder: the run's `checkpoints/`.
        step: training steps done.
        state: nested tensors and plain values; see `synaptome.nested`.
        keep: how many checkpoints stay, at least 1.

    Raises:
        NumericError: a tensor of the state is not finite: a checkpoint is always one to go on from.
        OSError: the disk is full or not writable; earlier checkpoints are intact.
    """
    tree, tensors = take_apart(state)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericError(f"{name} is not finite and was not saved")
    target = folder / f"{step:010d}"
    aside = folder / f".writing-{step:010d}"
    _clean(folder)
    try:
        aside.mkdir()
        files = {
            TENSORS: safetensors.torch.save(tensors),
            STATE: json.dumps({"format": FORMAT, "step": step, "state": tree}, allow_nan=False).encode(),
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "tensors": {name: tensor_digest(tensor) for name, tensor in tensors.items()},
        }
        for name, content in files.items():
            _write(aside / name, content)
        _write(aside / MANIFEST, json.dumps(manifest | {"sha256": _self_digest(manifest)}, indent=1).encode())
        sync_folder(aside)
        if target.exists():  # the same step, saved again: the same bits
            _remove(target)
        aside.rename(target)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in steps(folder)[:-keep]:
        _remove(folder / f"{old:010d}")
    return target


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit())


def load(folder: Path, step: int) -> dict[str, Any]:
    """The state of a checkpoint, after every byte of it was checked.

    Raises:
        RunError: a file is missing, truncated, changed or swapped; the file, or the tensor in it, is named.
    """
    path = folder / f"{step:010d}"
    manifest = _manifest(path, step)
    contents = {name: _read(path / name, _advice(folder, step)) for name in (TENSORS, STATE)}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest["files"].get(name):
            raise RunError(_damage(path / name, content, manifest) + _advice(folder, step))
    document = json.loads(contents[STATE])
    state: dict[str, Any] = put_together(document["state"], safetensors.torch.load(contents[TENSORS]))
    return state


def _manifest(path: Path, step: int) -> dict[str, Any]:
    advice = _advice(path.parent, step)
    try:
        manifest: dict[str, Any] = json.loads(_read(path / MANIFEST, advice))
        digest = manifest.pop("sha256")
        whole = digest == _self_digest(manifest) and manifest["step"] == step
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{path / MANIFEST} is damaged, or belongs to another checkpoint{advice}")
    if manifest["format"] != FORMAT:
        raise RunError(f"{path} has format {manifest['format']}; this version of synaptome reads format {FORMAT}")
    return manifest


def _damage(path: Path, content: bytes, manifest: dict[str, Any]) -> str:
    """Say what is wrong with a file whose sha256 is not the manifest's, down to the tensor where that can be told."""
    if path.name == TENSORS:
        try:
            tensors = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            return f"{path} is truncated or damaged ({error})"
        expected: dict[str, str] = manifest["tensors"]
        for name in expected:
            if name not in tensors:
                return f"{path} lacks the tensor {name!r}: it belongs to another checkpoint"
            if tensor_digest(tensors[name]) != expected[name]:
                return f"{path}: the tensor {name!r} is not the one that was saved"
    return f"{path} is not the file that was saved (its sha256 differs)"


def _advice(folder: Path, step: int) -> str:
    others = [other for other in steps(folder) if other != step]
    if not others:
        return "; no other checkpoint is left: start the run again from its recipe.json with --config"
    return f"; to go on from an earlier one: synaptome resume {folder.parent} --checkpoint {others[-1]}"


def _read(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}{advice}") from None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def tensor_digest(tensor: Tensor) -> str:
    """The sha256 of a tensor's dtype, shape and bytes."""
    header = f"{tensor.dtype}{list(tensor.shape)}".encode()
    # Through uint8, because numpy has no bfloat16.
    return hashlib.sha256(header + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _self_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove a checkpoint; hidden first, so that a half-removed one is never taken for a checkpoint."""
    hidden = path.with_name(f".removing-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _clean(folder: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for pattern in (".writing-*", ".removing-*"):
        for entry in folder.glob(pattern):
            shutil.rmtree(entry)
