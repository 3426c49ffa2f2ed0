"""Measures of a run beside its metrics: tensors in `measures/`, as safetensors.

measures/NAME/00000.safetensors, 00001, ...   a series: snapshots along the first axis of every tensor, with `step`
measures/NAME.safetensors                     measured once, of the trained network

Memory and checkpoints hold no more than the snapshots of one chunk. Each file is written aside and renamed into place,
and holds a sha256 for each of its tensors, and its own place, so that damage and swapped files are told by name.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.analysis.activity import undisturbed
from synaptome.errors import ConfigurationError, NumericError, RunError
from synaptome.training.callbacks import When
from synaptome.training.files import sync_folder
from synaptome.training.seeding import random_state, restore_random_state
from synaptome.training.tensor_file import SUFFIX, read_tensors, tensor_file, write_tensors

NAME = r"[A-Za-z0-9_-]+"
CHUNK_BYTES = 4 * 2**20  # a chunk has as many snapshots as it takes to reach this

Tensors = dict[str, Tensor]
Measure = Callable[[nn.Module], Tensors]


@dataclass(frozen=True)
class Recorder:
    """Something to measure of the model over training, streamed to `measures/<name>/`.

    Args:
        name: letters, digits, `-` and `_`.
        when: as for `Callback`; always before the first and after the last step.
        measure: is given the model in inference, and returns named tensors, finite, of the same names, dtypes and
            shapes each time; `step` is taken. It must be a function of the model alone and leave parameters alone;
            training mode, buffers (counters of failures) and random numbers are put back.

    Raises:
        ConfigurationError: the name holds anything else.
    """

    name: str
    when: When
    measure: Measure

    def __post_init__(self) -> None:
        check_name(self.name)


class Recording:
    """The snapshots of a recorder that are not on the disk yet, and the chunk that they will be.

    Attributes:
        recorder: what is measured, and when.
        index: of the coming chunk.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.index = 0
        self._rows: Tensors = {}  # room for the snapshots of a whole chunk, of which the first `_count` are taken
        self._count = 0

    def take(self, step: int, model: nn.Module, last: bool) -> tuple[int, Tensors] | None:
        """Measure the model after a step.

        Returns:
            A chunk that is to be written now, with its index, if it is full or this is the last snapshot.

        Raises:
            NumericError: a number is not finite.
            ConfigurationError: the snapshot holds other tensors than the ones before.
        """
        snapshot = {"step": torch.tensor(step), **measured(self.recorder.name, self.recorder.measure, model)}
        if not self._rows:
            self._make_room(snapshot)
        if _shapes(snapshot) != _shapes(self._rows, 1):
            raise ConfigurationError(
                f"the recorder {self.recorder.name!r} measures other tensors at step {step} than before; "
                f"names, dtypes and shapes stay the same over a run"
            )
        for name, tensor in snapshot.items():
            self._rows[name][self._count] = tensor
        self._count += 1
        if not last and self._count < len(self._rows["step"]):
            return None
        full = self.index, self._taken()
        self.index += 1
        self._count = 0
        return full

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to write the same chunks."""
        return {"index": self.index, "pending": self._taken() if self._count else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.index, pending = state["index"], state["pending"]
        self._rows, self._count = {}, 0
        if pending:
            self._make_room({name: tensor[0] for name, tensor in pending.items()})
            self._count = len(pending["step"])
            for name, tensor in pending.items():
                self._rows[name][: self._count] = tensor

    def _make_room(self, snapshot: Tensors) -> None:
        snapshots = math.ceil(CHUNK_BYTES / sum(tensor.nbytes for tensor in snapshot.values()))
        self._rows = {name: tensor.new_empty(snapshots, *tensor.shape) for name, tensor in snapshot.items()}

    def _taken(self) -> Tensors:
        return {name: rows[: self._count].clone() for name, rows in self._rows.items()}


def measured(name: str, measure: Measure, model: nn.Module) -> Tensors:
    """What a measure gives for a model, as copies on the CPU; model and random numbers are left as they were.

    Raises:
        NumericError: a number is not finite.
        ConfigurationError: a name is `step`, which is the recorder's own.
    """
    random = random_state()
    try:
        with undisturbed(model):
            given = measure(model)
    finally:
        restore_random_state(random)
    if "step" in given:
        raise ConfigurationError("a measure cannot be called 'step': that is the number of the training step")
    # Never a view of the model: what is kept must not learn on.
    tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in given.items()}
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise NumericError(f"{', '.join(bad)} is not finite in the measures {name!r}")
    return tensors


def write_chunk(folder: Path, name: str, index: int, chunk: Tensors) -> None:
    """Write a chunk of a series into `measures/`; an OSError leaves what was there."""
    series = folder / name
    if not series.exists():
        series.mkdir()
        sync_folder(folder)
    write_tensors(folder, _place(name, index), chunk)


def write_final(folder: Path, name: str, tensors: Tensors) -> None:
    """Write what was measured once into `measures/`; an OSError leaves what was there."""
    check_name(name)
    write_tensors(folder, name, tensors)


def cut_series(folder: Path, name: str, index: int) -> None:
    """Remove the chunks from `index` on, which tell of steps that will be done again, and half-written ones.

    Raises:
        RunError: a chunk before `index` is missing.
    """
    series = folder / name
    numbers = _chunks(series)
    if not set(range(index)) <= set(numbers):
        raise RunError(
            f"{folder / name} has lost files that the checkpoint counts on; go on from an earlier one (--checkpoint), "
            f"or start the run again"
        )
    for number in reversed(numbers):  # from the end, so that a kill leaves no hole
        if number >= index:
            tensor_file(folder, _place(name, number)).unlink()
    for left in series.glob(".*"):
        left.unlink()


def read_series(path: Path | str, name: str) -> Tensors:
    """The snapshots of a series in a run folder, whether or not the run is finished.

    Args:
        path: the run folder.
        name: of the series.

    Returns:
        Tensors `[snapshots, ...]`, among them `step` int64 `[snapshots]`, increasing; none where nothing was measured.

    Raises:
        RunError: a file is missing, damaged or not what its place says; it is named.
        ConfigurationError: there can be no series of that name.
    """
    check_name(name)
    folder = Path(path) / "measures"
    chunks: list[Tensors] = []
    last = -1
    for index in range(count_chunks(path, name)):
        file = tensor_file(folder, _place(name, index))
        chunk = read_tensors(folder, _place(name, index))
        step = chunk.get("step")
        if step is None or step.dtype != torch.int64 or step.dim() != 1 or len(step) == 0:
            raise RunError(f"{file} is not a chunk of a series: it has no 'step'")
        if any(tensor.dim() == 0 or len(tensor) != len(step) for tensor in chunk.values()):
            raise RunError(f"{file} is not a chunk of a series: a tensor has not one entry for each step")
        if any(later <= earlier for earlier, later in itertools.pairwise([last, *step.tolist()])):
            raise RunError(f"{file} does not follow the chunk before: its steps do not increase")
        if chunks and _shapes(chunk, 1) != _shapes(chunks[0], 1):
            raise RunError(f"{file} holds other tensors than the chunk before")
        last = int(step[-1])
        chunks.append(chunk)
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]} if chunks else {}


def count_chunks(path: Path | str, name: str) -> int:
    """How many chunks a series has; a RunError if one before the last is missing, or the folder is not there."""
    _check_folder(path)
    series = Path(path) / "measures" / name
    numbers = _chunks(series)
    for index, number in enumerate(numbers):
        if index != number:
            raise RunError(f"{tensor_file(series.parent, _place(name, index))} is missing, and later ones are there")
    return len(numbers)


def read_final(path: Path | str, name: str) -> Tensors:
    """What was measured once, of the trained network; none where nothing was, or the run is unfinished.

    Raises:
        RunError: the file is damaged or not what its place says; it is named.
        ConfigurationError: there can be no measures of that name.
    """
    check_name(name)
    _check_folder(path)
    folder = Path(path) / "measures"
    return read_tensors(folder, name) if tensor_file(folder, name).exists() else {}


def verify_measures(path: Path) -> list[str]:
    """Check every file of measures in a run folder; what was found whole, a line each.

    Raises:
        RunError: the first file that is missing or damaged, by name.
    """
    whole = []
    for entry in sorted((path / "measures").glob("*")):
        if not re.fullmatch(NAME, entry.stem):  # half-written, or no measure
            continue
        if entry.is_dir():
            snapshots = len(read_series(path, entry.name).get("step", ()))
            chunks = count_chunks(path, entry.name)
            whole.append(f"measures/{entry.name}: {snapshots} snapshots in {chunks} files; every tensor has its sha256")
        elif entry.suffix == SUFFIX:
            read_final(path, entry.stem)
            whole.append(f"measures/{entry.name}: every tensor has its sha256")
    return whole


def _check_folder(path: Path | str) -> None:
    if not Path(path).is_dir():
        raise RunError(f"{path} is not a run folder: there is no such folder")


def check_name(name: str) -> None:
    """Refuse a name of measures that is not a plain name of a file."""
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(f"a name of measures holds letters, digits, - and _ only; given {name!r}")


def _place(name: str, index: int) -> str:
    return f"{name}/{index:05d}"


def _chunks(series: Path) -> list[int]:
    """The numbers of the chunks that are there, in order."""
    stems = [entry.stem for entry in series.glob(f"*{SUFFIX}")]
    return sorted(int(stem) for stem in stems if re.fullmatch(r"\d{5}|[1-9]\d{5,}", stem, re.ASCII))


def _shapes(tensors: Tensors, start: int = 0) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Names, dtypes and shapes, the latter from axis `start` on."""
    return {name: (tensor.dtype, tensor.shape[start:]) for name, tensor in tensors.items()}
