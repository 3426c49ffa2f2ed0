"""The run folder: everything that is known about a run, in files that any tool can read.

recipe.json        the whole configuration: recipe, options, seed, device, threads
environment.json   versions, machine, kernel backends, git commit
metrics.jsonl      one object a row: step, epoch, seconds, then `train/loss`, `test/accuracy`, ...
checkpoints/       see `synaptome.training.checkpoint`
measures/          summary.json, and what a recipe measures beside the metrics: see `synaptome.training.measures`
report.html        written by `synaptome report`

and the products of the recipe, files that are written when the run ends; summary.json has their sizes and sha256.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from synaptome.errors import ConfigurationError, RunError
from synaptome.training import checkpoint
from synaptome.training.files import storage_errors, write_bytes, write_json
from synaptome.training.lock import RunLock
from synaptome.training.measures import count_chunks, cut_series, verify_measures, write_chunk, write_final
from synaptome.training.metrics import MetricsFile

OWN = ("recipe.json", "environment.json", "metrics.jsonl", "report.html")  # beside `lock` and folders
PRODUCT = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+"


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says, read without touching it.

    Attributes:
        path: the folder.
        recipe: recipe.json: `recipe` (name), `options` (the recipe's fields), `seed`, `device`, `threads`.
        environment: environment.json.
        metrics: the rows of metrics.jsonl, in order.
        summary: measures/summary.json: `synapse`, `rule`, `parameters`, `active_synapses`, `seconds`,
            `citations` (keys of `synaptome.report.citations`) and final metrics such as `test/accuracy`; where the
            run has products, `products`: for the name of each file its `bytes` and `sha256`. Empty while the run is
            unfinished.
    """

    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, float]]
    summary: dict[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run; a RunError that names the file if it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {path.parent} is not a run folder, or not a whole one") from None
    except (OSError, ValueError, RecursionError) as error:  # the last for JSON that is nested without end
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} should hold a JSON object, but holds a {type(content).__name__}")
    return content


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole rows of a metrics file; a last row that a kill cut short is left out, any other bad row refused."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # a whole row ends in a newline
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}, row {number}, is not JSON: {error}") from None
        if not isinstance(row, dict) or "step" not in row:
            raise RunError(f"{path}, row {number}, is not a row of metrics: expected an object with 'step'")
        rows.append(row)
    return rows


def read_run(path: Path | str) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        RunError: the folder, its recipe.json or another file of it is missing or broken; the file is named.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path} is not a folder; give the folder of a run, such as runs/demo/dense")
    summary = path / "measures" / "summary.json"
    environment = path / "environment.json"
    return RunRecord(
        path=path,
        recipe=read_json(path / "recipe.json"),
        environment=read_json(environment) if environment.exists() else {},
        metrics=read_metrics(path / "metrics.jsonl"),
        summary=read_json(summary) if summary.exists() else {},
    )


class RunFolder:
    """A run folder being written, locked against other processes until it is closed.

    `prepare` claims a folder for a new run; `open` starts it or goes on with it. Use it as a context manager.
    """

    def __init__(self, path: Path, lock: RunLock, metrics: MetricsFile) -> None:
        self.path = path
        self._lock = lock
        self._metrics = metrics

    @classmethod
    def open(
        cls, path: Path, environment: dict[str, Any], step: int | None = None
    ) -> tuple[RunFolder, dict[str, Any] | None]:
        """Start a prepared run, or go on with it.

        Args:
            path: the run folder.
            environment: written to environment.json if the run never got that far.
            step: which checkpoint; the newest if None.

        Returns:
            The folder, and the checkpoint's state or None where no checkpoint was reached yet.

        Raises:
            RunError: not a run, in use, or damaged; the file or tensor is named.
        """
        read_json(path / "recipe.json")
        with storage_errors(f"going on with {path}"):
            lock = RunLock(path)
            try:
                (path / "checkpoints").mkdir(exist_ok=True)
                (path / "measures").mkdir(exist_ok=True)
                for left in (path / "measures").glob(".*"):  # half-written when a process was killed
                    left.unlink()
                if not (path / "environment.json").exists():
                    write_json(path / "environment.json", environment)
                state = load_state(path, step)
                return cls(path, lock, MetricsFile(path / "metrics.jsonl", state and state["metrics"])), state
            except BaseException:
                lock.release()
                raise

    def append(self, row: dict[str, Any]) -> None:
        """Write a row of metrics."""
        with storage_errors(f"writing metrics to {self.path}"):
            self._metrics.append(row)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint of the state, with the place in the metrics where it was taken."""
        with storage_errors(f"saving step {step} in {self.path}"):
            self._metrics.sync()
            checkpoint.save(self.path / "checkpoints", step, {**state, "metrics": self._metrics.position()})

    def record(self, name: str, index: int, chunk: dict[str, Tensor]) -> None:
        """Write a chunk of snapshots to measures/<name>/."""
        with storage_errors(f"writing measures to {self.path}"):
            write_chunk(self.path / "measures", name, index, chunk)

    def cut(self, name: str, index: int) -> None:
        """Remove the chunks of measures/<name>/ from `index` on: the run is about to write them again."""
        with storage_errors(f"going on with the measures of {self.path}"):
            cut_series(self.path / "measures", name, index)

    def write_final(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write measures/<name>.safetensors: what was measured of the trained network."""
        with storage_errors(f"writing measures to {self.path}"):
            write_final(self.path / "measures", name, tensors)

    def write_product(self, name: str, content: bytes) -> dict[str, Any]:
        """Write a file of the recipe's own into the folder; its size in `bytes` and its `sha256`, for the summary."""
        check_product_name(name)
        with storage_errors(f"writing {name} to {self.path}"):
            for left in self.path.glob(f".{name}.*"):  # half-written when a process was killed
                left.unlink()
            write_bytes(self.path / name, content)
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def require_space(self, needed: int) -> None:
        """Refuse to start what would not fit: a RunError if fewer than `needed` bytes are free."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"{self.path} has {free / 1e6:.1f} MB free, and this run's checkpoints need {needed / 1e6:.1f} MB; "
                f"free some space or choose another --out"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        """Write measures/summary.json: the run is done."""
        with storage_errors(f"finishing {self.path}"):
            write_json(self.path / "measures" / "summary.json", summary)

    def close(self) -> None:
        """Close the files and give the run free."""
        try:
            self._metrics.close()
        finally:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_product_name(name: str) -> None:
    """Refuse a name of a product that is not the plain name of a file, or that of another file of a run."""
    if not re.fullmatch(PRODUCT, name) or name in OWN:
        raise ConfigurationError(
            f"a product is named by letters, digits, - and _, with a suffix, such as weights.bin, and not "
            f"{', '.join(OWN)}; given {name!r}"
        )


def prepare(path: Path, recipe: dict[str, Any]) -> None:
    """Claim a new or empty folder for a run by writing its recipe.json.

    Raises:
        RunError: the folder holds a run or anything else, or cannot be written.
    """
    if (path / "recipe.json").exists():
        raise RunError(f"{path} already holds a run; go on with it (synaptome resume {path}) or choose another --out")
    # A process killed while it wrote recipe.json leaves the part that it wrote aside: no reason to refuse.
    if path.exists() and (not path.is_dir() or any(not e.name.startswith(".recipe.json.") for e in path.iterdir())):
        raise RunError(f"{path} is not an empty folder; choose another --out")
    with storage_errors(f"starting a run in {path}"):
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "recipe.json", recipe)


def remove_run(path: Path) -> None:
    """Remove a run folder, and nothing that is not one; nobody may be using it.

    Raises:
        RunError: the folder holds no recipe.json, or is in use.
    """
    read_json(path / "recipe.json")
    with storage_errors(f"removing {path}"), RunLock(path):
        shutil.rmtree(path)


def load_state(path: Path, step: int | None = None) -> dict[str, Any] | None:
    """The state in a run's checkpoint of a step, or in its newest; None if there is no checkpoint yet.

    Raises:
        RunError: there is no checkpoint of that step (those that are there are named), or it is damaged.
    """
    folder = path / "checkpoints"
    saved = checkpoint.steps(folder)
    if step is not None and step not in saved:
        raise RunError(f"{path} has no checkpoint of step {step}; it has: {', '.join(map(str, saved)) or 'none'}")
    return checkpoint.load(folder, saved[-1] if step is None else step) if saved else None


def verify_run(path: Path) -> list[str]:
    """Check every file of a run.

    Returns:
        What was found whole, a line each.

    Raises:
        RunError: the first thing that is missing or damaged, by name.
    """
    run = read_run(path)
    saved = checkpoint.steps(path / "checkpoints")
    whole = [f"recipe.json: {run.recipe.get('recipe')}", f"metrics.jsonl: {len(run.metrics)} rows"]
    order = [row["step"] for row in run.metrics]
    if order != sorted(set(order)):
        raise RunError(f"{path / 'metrics.jsonl'}: the steps of its rows do not increase")
    for step in saved:
        state = checkpoint.load(path / "checkpoints", step)
        MetricsFile.check(path / "metrics.jsonl", state["metrics"])
        for name, recording in state.get("recorders", {}).items():
            if count_chunks(path, name) < recording["index"]:
                raise RunError(f"{path / 'measures' / name} has lost files that checkpoint {step} counts on")
        whole.append(f"checkpoint {step}: every file and tensor has its sha256")
    whole += verify_measures(path)
    whole += _verify_products(run)
    if run.summary and not saved:
        raise RunError(f"{path} is finished but has no checkpoint")
    whole.append("finished" if run.summary else f"unfinished: synaptome resume {path}")
    return whole


def _verify_products(run: RunRecord) -> list[str]:
    """Check the products that the summary lists; a line for each, or a RunError that names the file."""
    whole = []
    try:
        listed = {name: (file["bytes"], file["sha256"]) for name, file in run.summary.get("products", {}).items()}
        for name in listed:
            check_product_name(name)  # a name may not lead out of the folder
    except (AttributeError, KeyError, TypeError, ConfigurationError):
        raise RunError(f"{run.path / 'measures' / 'summary.json'}: 'products' is not what a run writes") from None
    for name, (size, sha256) in listed.items():
        file = run.path / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise RunError(f"{file} cannot be read: {error.strerror}") from None
        if (len(content), hashlib.sha256(content).hexdigest()) != (size, sha256):
            raise RunError(f"{file} is not as it was written (its sha256 differs)")
        whole.append(f"{name}: {size} bytes, with its sha256")
    return whole
