"""Every way to train one network in parallel, side by side: each a run of the recipe `decoupled` in fresh processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from synaptome.errors import (
    ConfigurationError,
    DataError,
    Interrupted,
    NumericError,
    RunError,
    SynaptomeError,
    WorkerLostError,
)
from synaptome.recipes import running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.decoupled_methods import Method
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.sweep import Cell, prepare_cells
from synaptome.recipes.timed_processes import together
from synaptome.recipes.timed_run import PREDICT
from synaptome.report.ways import BASELINE, FILE
from synaptome.training.files import storage_errors, write_json
from synaptome.training.interrupt import StopRequest
from synaptome.training.run import prepare, read_json, read_run, remove_run

_CLASSES = {cls.exit_code: cls for cls in (ConfigurationError, DataError, NumericError, RunError, WorkerLostError)}


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        name: in the table.
        method: of the recipe.
        threads: of each process.
        shared: whether each block has a process, or its replicas have; data parallel takes as many as the blocks.
    """

    name: str
    method: Method
    threads: int = 1
    shared: bool = False


WAYS = (
    Way(BASELINE, "backprop"),
    Way("backprop, 2 threads", "backprop", threads=2),
    Way("first blocks frozen", "frozen"),
    Way("synthetic gradients", "synthetic", shared=True),
    Way("stale gradients", "stale", shared=True),
    Way("blocks, no overlap", "locked", shared=True),
    Way("GPipe", "gpipe", shared=True),
    Way("1F1B", "1f1b", shared=True),
    Way("DDP", "ddp", shared=True),
)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Args:
        accuracy: on the test examples, in (0, 1]; how long each way takes to reach it is asked.
        seeds: how many runs of each way, with seeds from `seed` on.
        seed: the first one.
        out: the folder of the runs, each in one of its own, and of their report.
        data_dir: where data sets are looked for first.
        quiet: no progress.
        costs_only: train nothing; measure what the blocks cost, and propose a balance.

    Raises:
        ConfigurationError: a number is out of range.
    """

    accuracy: float = 0.97
    seeds: int = 1
    seed: int = 0
    out: Path = Path("runs/compare-parallel")
    data_dir: Path | None = None
    quiet: bool = False
    costs_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 1:  # also refuses NaN
            raise ConfigurationError(f"accuracy is a share in (0, 1]; given {self.accuracy}")
        if self.seeds < 1:
            raise ConfigurationError(f"seeds is a whole number of at least 1; given {self.seeds}")


def predict_costs(recipe: Decoupled, how: Comparison) -> dict[str, Any]:
    """What synthetic gradients promise of the recipe's network here: see `synaptome.recipes.block_prediction`.

    Raises:
        ConfigurationError, DataError, WorkerLostError: it cannot be measured.
        Interrupted: this process was asked to stop.
    """
    _check_one_of_each(recipe)
    settings = _cell(recipe, next(way for way in WAYS if way.method == "synthetic"), how, how.seed).settings
    with StopRequest() as stop:
        ended = together(PREDICT, settings, 1, recipe.timeout, stop, quiet=True)
        if ended is None:
            raise Interrupted(stop.signum or 0, "costs were not measured to their end, and no process is left")
    if ended.failure:
        raise _CLASSES.get(ended.exit_code, SynaptomeError)(ended.failure)
    prediction: dict[str, Any] = ended.told[0]["prediction"]
    return prediction


def run_ways(recipe: Decoupled, how: Comparison, ways: Sequence[Way] = WAYS) -> list[Path]:
    """Run each way with each seed, one after the other; what an earlier call has finished stays as it is.

    A run is timed whole: one that was stopped, or that failed, starts again.

    Args:
        recipe: network, data and numbers; its method does not count.
        how: seeds, folder and accuracy.
        ways: of `WAYS`.

    Returns:
        The folders of the runs; `tell_failures` says which of them failed.

    Raises:
        ConfigurationError, DataError: nothing was started, and nothing written.
        RunError: a folder holds another run, or cannot be written.
        Interrupted: this process was asked to stop; the processes that it had started are ended.
    """
    _check_one_of_each(recipe)
    seeds = range(how.seed, how.seed + how.seeds)
    for way in ways:  # what is wrong with one is told before any is started
        running.build(_cell(recipe, way, how, how.seed).settings)
    cells = [_cell(recipe, way, how, seed) for seed in seeds for way in ways]
    paths = prepare_cells(cells, how.out)
    prediction: dict[str, Any] = {}  # the same for all seeds
    with StopRequest() as stop:
        for number, (cell, path) in enumerate(zip(cells, paths, strict=True)):
            way = ways[number % len(ways)]
            told: dict[str, Any] = {}
            if is_done(path):
                cost: dict[str, Any] | None = read_json(path / FILE)
            else:
                if way.method == "synthetic":
                    told = prediction = prediction or _predicted(cell.settings, recipe.timeout, stop)
                cost = _timed(way, cell.settings, path, how, stop)
            if cost is None:
                raise Interrupted(
                    stop.signum or 0,
                    f"{number} of {len(paths)} runs are through, and no process is left; the same command goes on",
                )
            with storage_errors(f"writing {path / FILE}"):
                write_json(path / FILE, cost | told | {"accuracy": how.accuracy, "place": WAYS.index(way)})
    return paths


def tell_failures(paths: Sequence[Path]) -> None:
    """Raise what kept runs from their end, if anything did: an error of the class of the worst of them."""
    costs = {path: read_json(path / FILE) for path in paths}
    failed = {path: cost for path, cost in costs.items() if cost["failure"]}
    if failed:
        codes = {cost["exit_code"] for cost in failed.values()}
        worst = _CLASSES[max(codes)] if codes <= set(_CLASSES) else SynaptomeError
        told = "; ".join(f"{path.name}: {cost['failure']}" for path, cost in failed.items())
        raise worst(f"{len(failed)} of {len(paths)} runs failed, and the same command tries them again: {told}")


def is_done(path: Path) -> bool:
    """Whether a run was timed to its end."""
    return (path / FILE).exists() and not read_json(path / FILE)["failure"] and bool(read_run(path).summary)


def _check_one_of_each(recipe: Decoupled) -> None:
    if recipe.levels > 1 or recipe.replicas > 1:
        raise ConfigurationError(
            f"ways to learn one network are compared, in a process for each block; given {recipe.levels} levels and "
            f"{recipe.replicas} replicas: leave levels and replicas out"
        )


def _cell(recipe: Decoupled, way: Way, how: Comparison, seed: int) -> Cell:
    """The run of a way with a seed."""
    data_dir = None if how.data_dir is None else str(how.data_dir.resolve())
    settings = RunSettings(recipe.with_method(way.method), seed, "cpu", way.threads, data_dir)
    return Cell(f"{re.sub('[^a-z0-9]+', '-', way.name.lower())}_seed-{seed}", {}, settings)


def _predicted(settings: RunSettings, timeout: float, stop: StopRequest) -> dict[str, Any]:
    """What is to be written of the prediction: itself, or why there is none."""
    ended = together(PREDICT, settings, 1, timeout, stop, quiet=True)
    if ended is None:
        return {}  # it was stopped, as the run will be
    return {"prediction": ended.told[0].get("prediction"), "prediction_failure": ended.failure}


def _timed(way: Way, settings: RunSettings, path: Path, how: Comparison, stop: StopRequest) -> dict[str, Any] | None:
    """Run a way in a folder that holds nothing else; what it cost, or None if it was stopped."""
    made = cast(Decoupled, settings.recipe)
    processes = made.block_count * made.replicas if way.shared else 1
    remove_run(path)
    ended = together(str(path), settings, processes, made.timeout, stop, quiet=how.quiet)
    if ended is None:
        return None
    if not (path / "recipe.json").exists():  # it failed before it came so far
        prepare(path, settings.document())
    return {
        "way": way.name,
        "processes": processes,
        "threads": way.threads,
        "batch": made.batch,
        "peak_mb": [told.get("peak_mb") for told in ended.told],
        "exit_code": ended.exit_code,
        "failure": ended.failure,
    }
