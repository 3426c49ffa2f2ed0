"""What can be chosen on the command line beside a recipe's fields: a frozen dataclass for each verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from synaptome.errors import ConfigurationError


@dataclass(frozen=True)
class RunOptions:
    """How to run, beside what to run.

    Args:
        seed: of weights, failures, order and data.
        seeds: how many runs, with seeds from --seed on, in OUT/seed-K, and their comparison.
        workers: how many of these runs at a time, each in a process of its own.
        out: the run's folder, new or empty; runs/RECIPE-DATE-TIME if not given.
        data_dir: where data sets are looked for first.
        device: auto takes a GPU if there is one.
        threads: threads within an operation; as many as torch chooses, shared out among the workers, if not given.
        config: a recipe.json of an earlier run, whose choices replace the defaults.
        checkpoint_seconds: least time between two checkpoints.
        quiet: no progress.
    """

    seed: int = 0
    seeds: int = 1
    workers: int = 1
    out: Path | None = None
    data_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    config: Path | None = None
    checkpoint_seconds: float = 30.0
    quiet: bool = False

    def __post_init__(self) -> None:
        check(self.workers, self.checkpoint_seconds)
        if self.seeds < 1:
            raise ConfigurationError(f"seeds is a whole number of at least 1; given {self.seeds}")


@dataclass(frozen=True)
class SweepOptions(RunOptions):
    """Run every combination of values of a recipe's fields, with each of several seeds, and compare.

    Args:
        grid: FIELD=VALUE,VALUE,... (a value with a comma in double quotes), or the name of a grid of the recipe. Give
            it again for each further field.
        seeds: how many runs of each combination, with seeds from --seed on.
        out: the folder of the runs, each in one of its own; what an earlier sweep left there is gone on with.
            runs/RECIPE-sweep if not given.
        cluster: address of a Dask scheduler, host:port, whose workers are used instead of --workers.
        task: run only the one with this number, as --list counts them; for the array jobs of a batch system.
        list: print the number and the name of each, and run nothing.
    """

    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    cluster: str | None = None
    task: int | None = None
    list: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster is not None and self.workers != 1:
            raise ConfigurationError("--cluster brings its own workers; leave --workers out")
        if self.task is not None and (self.cluster is not None or self.workers != 1):
            raise ConfigurationError("--task is one run in this process; leave --workers and --cluster out")


@dataclass(frozen=True)
class DemoOptions:
    """Train digits with each kind of synapse, and compare.

    Args:
        out: folder of the runs and the report; runs that an earlier demo left there are replaced.
        threads: threads within an operation; networks this small do not gain from a second.
        quiet: no progress.
    """

    out: Path = Path("runs/demo")
    threads: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a stopped or killed run, or with all the runs of a folder of seeds.

    Args:
        run: the run's folder.
        checkpoint: go on from the checkpoint of this step instead of the newest.
        workers: how many runs at a time, each in a process of its own.
        checkpoint_seconds: least time between two checkpoints.
        quiet: no progress.
    """

    run: tyro.conf.Positional[Path]
    checkpoint: int | None = None
    workers: int = 1
    checkpoint_seconds: float = 30.0
    quiet: bool = False

    def __post_init__(self) -> None:
        check(self.workers, self.checkpoint_seconds)


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a run, or the comparison of several, and print its table.

    Args:
        runs: run folders, or folders of seeds.
        out: the file; report.html in the run's folder, or comparison.html in the working folder, if not given.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None


@dataclass(frozen=True)
class VerifyOptions:
    """Check every file of a run.

    Args:
        run: the run's folder.
    """

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class DoctorOptions:
    """Say what is installed, what is in use and why, and where data is found.

    Args:
        data_dir: where data sets are looked for first.
    """

    data_dir: Path | None = None


@dataclass(frozen=True)
class ListOptions:
    """List the recipes."""


@dataclass(frozen=True)
class DataOptions:
    """List the data sets and where they are found, or fetch one.

    Args:
        action: list, or fetch.
        name: the data set to fetch.
        data_dir: where to look first, or where to put what is fetched.
    """

    action: tyro.conf.Positional[Literal["list", "fetch"]] = "list"
    name: tyro.conf.Positional[str | None] = None
    data_dir: Path | None = None


@dataclass(frozen=True)
class BenchOptions:
    """Run a benchmark of the source checkout, or list them.

    Args:
        name: which; all are listed if not given.
    """

    name: tyro.conf.Positional[str | None] = None


def check(workers: int, checkpoint_seconds: float) -> None:
    """Refuse numbers with which no run could go on: a ConfigurationError."""
    if workers < 1:
        raise ConfigurationError(f"workers is a whole number of at least 1; given {workers}")
    if not checkpoint_seconds >= 0:  # also refuses NaN
        raise ConfigurationError(f"checkpoint-seconds is a time of at least 0; given {checkpoint_seconds}")
