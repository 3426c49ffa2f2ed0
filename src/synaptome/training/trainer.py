"""The loop: batches in a seeded order, a rule that learns, rows of metrics, checkpoints. It knows no rule by name."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from synaptome.data.dataset import Batch, Dataset, Split
from synaptome.errors import ConfigurationError, Interrupted, NumericError, RunError
from synaptome.learning.diagnosis import first_non_finite
from synaptome.learning.rule import LearningRule
from synaptome.training.callbacks import Callback, When, each_epoch
from synaptome.training.interrupt import StopRequest
from synaptome.training.measures import Recorder, Recording
from synaptome.training.progress import ProgressView, Quiet
from synaptome.training.seeding import random_state, restore_random_state

Row = dict[str, Any]


class Store(Protocol):
    """Where a trainer writes: `synaptome.training.run.RunFolder`."""

    def append(self, row: Row) -> None:
        """Write a row of metrics."""
        ...

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint."""
        ...

    def record(self, name: str, index: int, chunk: dict[str, Tensor]) -> None:
        """Write a chunk of snapshots; one of that index that is there already is replaced."""
        ...

    def cut(self, name: str, index: int) -> None:
        """Remove the chunks from `index` on."""
        ...


class Trainer:
    """Trains a rule on a data set.

    A row of metrics holds `step`, `epoch`, `seconds` and, for each split, what the rule measured: `train/loss` is the
    mean over the examples since the last evaluation, `validation/*` and `test/*` over the whole split. The first row,
    of step 0, is measured before any learning.

    Args:
        rule: any learning rule.
        data: on the device of the rule's model.
        epochs: passes over the training examples, at least 1.
        batch: examples a step, at least 1; an epoch's last batch may be smaller.
        seed: of the order of the examples, and of what the data draws for each batch.
        evaluate: when rows are written; always before the first and after the last step.
        callbacks: what else happens; their numbers join the row of their step.
        recorders: what is measured of the model and streamed to the store, each under a name of its own.
        store: where rows and checkpoints go; None keeps the rows only (`rows`).
        checkpoint_seconds: least time between two checkpoints; one is always saved at the start, at the end and when
            stopped. Whatever the times, a resumed run ends with the same bits.
        evaluation_batch: examples evaluated at once.
        progress: who is told how far the run is.
        label: its name there.

    Raises:
        ConfigurationError: a number is out of range, recorders share a name, or there is no store to stream to.
    """

    def __init__(
        self,
        rule: LearningRule,
        data: Dataset,
        *,
        epochs: int,
        batch: int,
        seed: int = 0,
        evaluate: When | None = None,
        callbacks: Sequence[Callback] = (),
        recorders: Sequence[Recorder] = (),
        store: Store | None = None,
        checkpoint_seconds: float = 30.0,
        evaluation_batch: int = 1000,
        progress: ProgressView | None = None,
        label: str = "training",
    ) -> None:
        if epochs < 1 or batch < 1:
            raise ConfigurationError(f"epochs and batch are whole numbers of at least 1; given {epochs} and {batch}")
        if not checkpoint_seconds >= 0:  # also refuses NaN
            raise ConfigurationError(f"checkpoint_seconds is a time of at least 0; given {checkpoint_seconds}")
        if len({recorder.name for recorder in recorders}) < len(recorders) or (recorders and store is None):
            raise ConfigurationError(
                f"recorders need a store, and a name each; given {', '.join(r.name for r in recorders)}"
                + (" and no store" if store is None else "")
            )
        self.rule = rule
        self.data = data
        self.batch = batch
        self.seed = seed
        self.epoch_steps = math.ceil(len(data.train) / batch)
        self.total_steps = epochs * self.epoch_steps
        self.step = 0
        self.rows: list[Row] = []
        self._evaluate = evaluate or each_epoch()
        self._callbacks = callbacks
        self._recordings = [Recording(recorder) for recorder in recorders]
        self._store = store
        self._checkpoint_seconds = checkpoint_seconds
        self._evaluation_batch = evaluation_batch
        self._progress = progress or Quiet()
        self._label = label
        self._sums: dict[str, float] = {}
        self._examples = 0
        self._seconds = 0.0
        self._order: Tensor = torch.empty(0, dtype=torch.int64)
        self._order_epoch = -1
        self._saved_step: int | None = None

    def fit(self) -> Row:
        """Train to the end.

        Returns:
            The last row of metrics.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and, with a store, saved.
            NumericError: a loss or a measure is not finite; step and place are named, and the last checkpoint is kept.
            RunError: the store cannot be written, or has lost measures that the state counts on.
        """
        self._started = time.perf_counter() - self._seconds
        self._saved_at = time.perf_counter()
        self._progress.start(self._label, self.step, self.total_steps)
        try:
            with StopRequest() as stop:
                for recording in self._recordings:
                    if self._store is not None:
                        self._store.cut(recording.recorder.name, recording.index)
                if not self.rows:
                    self._write_row()
                    self._record()
                    self._save()
                while self.step < self.total_steps:
                    loss = self._learn()
                    if self._due(self._evaluate) or any(self._due(c.when) for c in self._callbacks):
                        self._write_row()
                    self._record()
                    self._progress.advance(self.step, loss)
                    if stop.signum is not None:
                        self._save()
                        raise Interrupted(stop.signum, self._stopped())
                    if time.perf_counter() - self._saved_at >= self._checkpoint_seconds:
                        self._save()
                if self._saved_step != self.step:
                    self._save()
        finally:
            self._progress.stop()
        return self.rows[-1]

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on to the same bits: counters, sums of the current row, rule, random numbers."""
        return {
            "step": self.step,
            "seconds": self._seconds,
            "sums": dict(self._sums),
            "examples": self._examples,
            "last_row": self.rows[-1] if self.rows else None,
            "recorders": {recording.recorder.name: recording.state_dict() for recording in self._recordings},
            "rule": self.rule.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            RunError: it is of a run with other recorders.
        """
        recorded = state.get("recorders", {})
        if set(recorded) != {recording.recorder.name for recording in self._recordings}:
            own = ", ".join(recording.recorder.name for recording in self._recordings) or "none"
            raise RunError(
                f"the recorders of the checkpoint ({', '.join(recorded) or 'none'}) are not those of this run ({own}): "
                f"it was written by another version of synaptome"
            )
        for recording in self._recordings:
            recording.load_state_dict(recorded[recording.recorder.name])
        self.step = self._saved_step = state["step"]
        self._seconds = state["seconds"]
        self._sums = dict(state["sums"])
        self._examples = state["examples"]
        self.rows = [state["last_row"]] if state["last_row"] else []
        self.rule.load_state_dict(state["rule"])
        restore_random_state(state["random"])

    def _learn(self) -> float:
        """One step of the rule; returns its loss."""
        epoch, position = divmod(self.step, self.epoch_steps)
        train = self.data.train
        if epoch != self._order_epoch:
            self._order = train.order(self.seed, epoch).to(train.inputs.device)
            self._order_epoch = epoch
        index = self._order[position * self.batch : (position + 1) * self.batch]
        batch = train.training_batch(index, self.seed, self.step)
        try:
            metrics = self.rule.step(batch)
        except NumericError as error:
            where = first_non_finite(self.rule.model, batch.inputs)
            raise NumericError(
                f"step {self.step + 1}: {error}; the first number that is not finite is in {where}; "
                f"{self._kept()}; a smaller learning rate may help"
            ) from error
        self.step += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * len(batch.targets)
        self._examples += len(batch.targets)
        return metrics["loss"]

    def _due(self, when: When) -> bool:
        return self.step in (0, self.total_steps) or when(self.step, self.epoch_steps)

    def _write_row(self) -> None:
        row: Row = {"step": self.step, "epoch": _number(self.step / self.epoch_steps)}
        if self._due(self._evaluate):
            row |= {f"train/{name}": total / self._examples for name, total in self._sums.items()}
            self._sums, self._examples = {}, 0
            if self.data.validation is not None:
                row |= self._measure("validation", self.data.validation)
            row |= self._measure("test", self.data.test)
        for callback in self._callbacks:
            if self._due(callback.when):
                row |= callback.action(self) or {}
        bad = [key for key, value in row.items() if not math.isfinite(value)]
        if bad:
            raise NumericError(
                f"after step {self.step}, {', '.join(bad)} is not finite; a smaller learning rate may help"
            )
        self._seconds = time.perf_counter() - self._started
        row = {"step": row.pop("step"), "epoch": row.pop("epoch"), "seconds": round(self._seconds, 6)} | row
        self.rows.append(row)
        if self._store is not None:
            self._store.append(row)
        self._progress.row(self.step, row)

    def _record(self) -> None:
        for recording in self._recordings:
            if not self._due(recording.recorder.when):
                continue
            try:
                full = recording.take(self.step, self.rule.model, last=self.step == self.total_steps)
            except NumericError as error:
                raise NumericError(
                    f"after step {self.step}: {error}; {self._kept()}; a smaller learning rate may help"
                ) from error
            if full is not None and self._store is not None:
                self._store.record(recording.recorder.name, *full)

    def _measure(self, name: str, split: Split) -> Row:
        sums: dict[str, float] = {}
        for batch in split.batches(self._evaluation_batch):
            for key, value in self.rule.evaluate(batch).items():
                if not math.isfinite(value):
                    raise self._diagnosed(f"after step {self.step}: {name}/{key} is {value}", batch)
                sums[key] = sums.get(key, 0.0) + value * len(batch.targets)
        return {f"{name}/{key}": total / len(split) for key, total in sums.items()}

    def _diagnosed(self, message: str, batch: Batch) -> NumericError:
        """The error for numbers that are not finite: where they begin, and what is saved."""
        where = first_non_finite(self.rule.model, batch.inputs)
        return NumericError(
            f"{message}; the first number that is not finite is in {where}; {self._kept()}; "
            f"a smaller learning rate may help"
        )

    def _kept(self) -> str:
        if self._saved_step is None:
            return "nothing is saved"
        return f"the checkpoint of step {self._saved_step} is kept"

    def _save(self) -> None:
        self._seconds = time.perf_counter() - self._started
        if self._store is not None:
            self._store.save(self.step, self.state_dict())
            self._saved_step = self.step
        self._saved_at = time.perf_counter()

    def _stopped(self) -> str:
        where = "nothing was saved: no run folder" if self._store is None else "saved"
        return f"stopped after step {self.step} of {self.total_steps}, {where}"


def _number(value: float) -> float | int:
    """Whole numbers as int, so that a row reads `"epoch": 3`."""
    return int(value) if value == int(value) else value
