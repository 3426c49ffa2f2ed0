"""How far a run is: a live line on a terminal, plain lines elsewhere, nothing when quiet. All on standard error."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

ROOM_FOR_A_BAR = 90  # columns; a narrower terminal shows the numbers only


class ProgressView(Protocol):
    """What the trainer tells of its progress."""

    def start(self, label: str, done: int, total: int) -> None:
        """A run begins, or goes on, with `done` of `total` steps behind it."""
        ...

    def advance(self, done: int, loss: float) -> None:
        """A step is done; called after every step, so it must cost next to nothing."""
        ...

    def row(self, done: int, row: dict[str, float]) -> None:
        """A row of metrics was written."""
        ...

    def stop(self) -> None:
        """The run ended, one way or another."""
        ...


class Quiet:
    """Says nothing."""

    def start(self, label: str, done: int, total: int) -> None:
        """Nothing."""

    def advance(self, done: int, loss: float) -> None:
        """Nothing."""

    def row(self, done: int, row: dict[str, float]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Plain(Quiet):
    """A line for a row of metrics, at most one every few seconds, with rate and time left.

    Args:
        interval: least seconds between two lines; the last row is always shown.
    """

    def __init__(self, interval: float = 2.0) -> None:
        self._interval = interval

    def start(self, label: str, done: int, total: int) -> None:
        """Remember where the run starts."""
        self._label, self._first, self._total = label, done, total
        self._started, self._shown = time.monotonic(), float("-inf")

    def row(self, done: int, row: dict[str, float]) -> None:
        """Print the row, unless one was printed just now."""
        now = time.monotonic()
        if now - self._shown < self._interval and done < self._total:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = f"{(self._total - done) / rate:.0f} s left" if rate else "starting"
        print(f"{self._label}: {describe(row)}, {rate:.0f} steps/s, {left}", file=sys.stderr, flush=True)


class Live:
    """A bar with epoch, loss, accuracy, rate and time left, for terminals."""

    def __init__(self, console: Console) -> None:
        bar = [BarColumn(bar_width=16)] if console.width >= ROOM_FOR_A_BAR else []
        self._progress = Progress(
            TextColumn("{task.description}"),
            *bar,
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[row]}"),
            TextColumn("loss {task.fields[loss]:.3g}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            auto_refresh=False,
        )
        self._drawn = 0.0
        self._task: TaskID | None = None

    def start(self, label: str, done: int, total: int) -> None:
        """Add a bar."""
        self._progress.start()
        self._first, self._started = done, time.monotonic()
        self._task = self._progress.add_task(label, total=total, completed=done, row="", loss=float("nan"), rate="")

    def advance(self, done: int, loss: float) -> None:
        """Move the bar, at most ten times a second."""
        now = time.monotonic()
        if now - self._drawn < 0.1 or self._task is None:
            return
        self._drawn = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        self._progress.update(self._task, completed=done, loss=loss, rate=f"{rate:.0f} steps/s", refresh=True)

    def row(self, done: int, row: dict[str, float]) -> None:
        """Show the row beside the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, row=brief(row), refresh=True)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


def describe(row: dict[str, float]) -> str:
    """A row in words: epoch, then each metric; accuracies in percent."""
    parts = [f"epoch {row['epoch']:g}"]
    for key, value in row.items():
        if key.endswith("/accuracy"):
            parts.append(f"{key} {100 * value:.2f} %")
        elif "/" in key:
            whole = isinstance(value, int) and not isinstance(value, bool)
            parts.append(f"{key} {value:,}" if whole else f"{key} {value:.4g}")
    return ", ".join(parts)


def brief(row: dict[str, float]) -> str:
    """The epoch and the accuracy on unseen examples, for a live line."""
    accuracy = row.get("validation/accuracy", row.get("test/accuracy"))
    return f"epoch {row['epoch']:g}" + ("" if accuracy is None else f", accuracy {100 * accuracy:.1f} %")


def view(quiet: bool) -> ProgressView:
    """The view that suits where standard error goes."""
    if quiet:
        return Quiet()
    console = Console(stderr=True)
    return Live(console) if console.is_terminal else Plain()
