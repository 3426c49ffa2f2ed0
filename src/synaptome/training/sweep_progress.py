"""How far several runs are, read from their folders, wherever they run: a table on a terminal, else a line a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synaptome.training import checkpoint

State = Literal["running", "failed", "stopped", "waiting", "done"]
STYLES: dict[State, str] = {  # in the order in which a small terminal has room for them
    "running": "bold",
    "failed": "red",
    "stopped": "yellow",
    "waiting": "dim",
    "done": "green",
}
TAIL = 2**16  # bytes at the end of metrics.jsonl in which the last row is looked for
AROUND = 5  # lines of a terminal that the table's head and foot and the prompt take


class SweepView(Protocol):
    """What is shown of several runs."""

    @contextmanager
    def watching(self, paths: Sequence[Path]) -> Iterator[None]:
        """While entered, these run folders are shown."""
        ...

    def ended(self, path: Path, exit_code: int) -> None:
        """A run came to its end, or stopped; see `synaptome.errors` for the code."""
        ...

    def say(self, text: str) -> None:
        """Show a sentence."""
        ...


class QuietSweep:
    """Says nothing."""

    @contextmanager
    def watching(self, paths: Sequence[Path]) -> Iterator[None]:
        """Nothing."""
        yield

    def ended(self, path: Path, exit_code: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class SweepProgress:
    """A table that is redrawn each second on a terminal; elsewhere a line for each run that ends.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def watching(self, paths: Sequence[Path]) -> Iterator[None]:
        """See `SweepView`."""
        self._ended: dict[Path, State] = {}
        self._latest = {path: read_standing(path) for path in paths}
        self._begun, self._before = time.monotonic(), self._share()
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=1):
            yield

    def ended(self, path: Path, exit_code: int) -> None:
        """See `SweepView`."""
        self._ended[path] = "done" if exit_code == 0 else "failed" if exit_code < 128 else "stopped"
        if not self._console.is_terminal and self._ended[path] != "stopped":
            self._read()
            self._console.print(f"{path.name}: {self._latest[path]}; {self._whole()}", soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """See `SweepView`."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def _read(self) -> None:
        for path, standing in self._latest.items():
            if standing.state != "done":
                self._latest[path] = read_standing(path, self._ended.get(path))

    def _share(self) -> float:
        """How much of the whole is behind, in runs; of a run that failed nothing is left to do."""
        return sum(standing.share for standing in self._latest.values())

    def _whole(self) -> str:
        counts = dict.fromkeys(STYLES, 0)
        for standing in self._latest.values():
            counts[standing.state] += 1
        told = [f"{counts['done']} of {len(self._latest)} runs done"]
        told += [f"{counts[state]} {state}" for state in STYLES if state != "done" and counts[state]]
        share = self._share()
        speed = (share - self._before) / max(time.monotonic() - self._begun, 1e-9)
        if speed > 0 and share < len(self._latest):
            told.append(f"{span((len(self._latest) - share) / speed)} left")
        return ", ".join(told)

    def _table(self) -> Group:
        self._read()
        order = list(STYLES)
        rows = sorted(self._latest.items(), key=lambda item: order.index(item[1].state))
        room = max(1, self._console.height - AROUND)
        names = {path for path, _ in rows[:room]}
        table = Table("run", "state", "step", "latest", box=None, pad_edge=False)
        for path, standing in self._latest.items():  # those that have room, in their own order
            if path in names:
                style = STYLES[standing.state]
                table.add_row(Text(path.name), Text(standing.state, style), standing.steps, standing.numbers)
        return Group(table, Text(self._whole()))


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        state: what it does.
        step: training steps done, as far as its folder tells.
        total: steps in all; None where it is not known yet.
        row: its last row of metrics.
    """

    state: State
    step: int = 0
    total: int | None = None
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of it is behind, in [0, 1]."""
        if self.state in ("done", "failed"):
            return 1.0
        return min(1.0, self.step / self.total) if self.total else 0.0

    @property
    def steps(self) -> str:
        """Step x of y."""
        return "" if self.total is None else f"{self.step} of {self.total}"

    @property
    def numbers(self) -> str:
        """The losses, and the accuracies in percent, of the last row."""
        told = []
        for key, value in self.row.items():
            if key.endswith("/loss"):
                told.append(f"{key} {value:.4g}")
            elif key.endswith("/accuracy"):
                told.append(f"{key} {100 * value:.1f} %")
        return ", ".join(told)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.state, self.steps and f"step {self.steps}", self.numbers) if part)


def read_standing(path: Path, ended: State | None = None) -> Standing:
    """Where the run in a folder stands; what cannot be read at this moment is left out.

    Args:
        path: the run folder; on any machine that shares it, it may be written while it is read.
        ended: what became of it, where that is known; otherwise a run that holds its lock is taken to be running.
    """
    row: dict[str, Any] = {}
    step, total = 0, None
    with suppress(OSError, ValueError):
        row = _last_row(path / "metrics.jsonl")
        step = max([row["step"], *checkpoint.steps(path / "checkpoints")])
        epochs = json.loads((path / "recipe.json").read_text(encoding="utf-8"))["options"].get("epochs")
        if epochs is not None and row["epoch"]:
            total = round(row["step"] / row["epoch"] * epochs)
    if (path / "measures" / "summary.json").exists():
        return Standing("done", step, total, row)
    return Standing(ended or ("running" if (path / "lock").exists() else "waiting"), step, total, row)


def span(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def sweep_view(quiet: bool) -> SweepView:
    """The view that suits where standard error goes."""
    return QuietSweep() if quiet else SweepProgress(Console(stderr=True))


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file; a ValueError if there is none in its tail."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().split(b"\n")
    if len(lines) < 2:
        raise ValueError("no whole row")
    row: dict[str, Any] = json.loads(lines[-2])
    return row
