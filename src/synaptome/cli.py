"""The command line: `synaptome VERB`. Each verb is a function; its options are a frozen dataclass of `options`."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, make_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import torch
import tyro
from rich.console import Console

from synaptome import __version__, arguments, data
from synaptome.errors import (
    ConfigurationError,
    DataError,
    Interrupted,
    RunError,
    SynaptomeError,
    WorkerLostError,
    unknown,
)
from synaptome.kernels import backends
from synaptome.learning.optimization import Optimization
from synaptome.options import (
    BenchOptions,
    DataOptions,
    DemoOptions,
    DoctorOptions,
    ListOptions,
    ReportOptions,
    ResumeOptions,
    RunOptions,
    SweepOptions,
    VerifyOptions,
)
from synaptome.recipes import RECIPES, running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.demo import DEMO, SEEDS
from synaptome.recipes.parallel_comparison import Comparison, predict_costs, run_ways, tell_failures
from synaptome.recipes.pools import Cluster
from synaptome.recipes.process_group import processes, rank
from synaptome.recipes.recipe import Recipe, RunSettings
from synaptome.recipes.sweep import Cell, Grid, cells, one_for_each_value, prepare_cells, read_grid
from synaptome.report import summary_table
from synaptome.report.terminal import show, show_costs
from synaptome.training import progress
from synaptome.training.environment import describe_environment
from synaptome.training.run import read_run, remove_run, verify_run

_Options = TypeVar("_Options", bound=RunOptions)
_Anything = TypeVar("_Anything")
COMPARE_PARALLEL = "Train one network in every parallel way, and compare speed and cost."


def demo(options: DemoOptions) -> None:
    """Train every row of the demo and write the comparison."""
    _require_one_process()
    records = []
    for label, recipe in DEMO.items():
        for seed in SEEDS:
            path = options.out / f"{label}-seed-{seed}"
            if path.exists():
                remove_run(path)
            view = progress.view(options.quiet)
            records.append(running.start(RunSettings(recipe, seed, "cpu", options.threads), path, progress=view))
    show(records, options.out / "report.html")


def run(words: Sequence[str]) -> None:
    """`run RECIPE [--field value ...]`: start one run, or one for each of several seeds."""
    if words and words[0] in ("-h", "--help"):
        print("usage: synaptome run RECIPE [--field value ...]\n\nsynaptome run RECIPE --help shows all fields.\n")
        return show_list(ListOptions())
    name, words, earlier = _recipe_named("run", words)
    recipe, options = _recipe_and_options(RunOptions, f"synaptome run {name}", words, earlier or RECIPES[name]())
    settings = _settings(recipe, options)
    folder = options.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if options.seeds > 1:
        _require_one_process()
        return _run_each(running.prepare_seeds(settings, options.seeds, folder), options, folder / "report.html")
    view = progress.view(options.quiet)
    record = running.start(settings, folder, progress=view, checkpoint_seconds=options.checkpoint_seconds)
    return show([record], folder / "report.html")


def sweep(words: Sequence[str]) -> None:
    """`sweep RECIPE --grid FIELD=VALUE,... [--field value ...]`: a run for each combination and seed."""
    if words and words[0] in ("-h", "--help"):
        arguments.parse(SweepOptions, ["--help"], "synaptome sweep RECIPE")
    _require_one_process()
    name, words, earlier = _recipe_named("sweep", words)
    default, prog = earlier or RECIPES[name](), f"synaptome sweep {name}"
    grid = _grid(RECIPES[name], words)

    def chosen(values: Mapping[str, str]) -> tuple[Recipe, SweepOptions]:
        assigned = [arguments.assignment(RECIPES[name], field, value) for field, value in values.items()]
        return _recipe_and_options(SweepOptions, prog, [*words, *itertools.chain(*assigned)], default)

    options = chosen({field: values[0] for field, values in grid.items()})[1]
    if not grid and options.seeds == 1:
        known = f"; {name} has the grids: {', '.join(RECIPES[name].grids)}" if RECIPES[name].grids else ""
        raise ConfigurationError(f"a sweep takes --grid FIELD=VALUE,VALUE,... or --seeds with more than one{known}")
    every = cells(grid, options.seeds, lambda values: _settings(*chosen(values)))
    if options.list:
        for index, cell in enumerate(every):
            print(index, cell.name)
        return
    folder = options.out or Path("runs") / f"{name}-sweep"  # without a date, so that the same command goes on with it
    if options.task is None:
        if options.cluster is not None:
            Cluster(options.cluster).close()  # say that it is not there before anything is written
        _run_each(_prepared(every, options, folder), options, folder / "report.html", options.cluster)
    elif 0 <= options.task < len(every):
        (path,) = _prepared([every[options.task]], options, folder)
        view = progress.view(options.quiet)
        record = running.resume(path, progress=view, checkpoint_seconds=options.checkpoint_seconds)
        Console().print(summary_table([record]))
    else:
        raise ConfigurationError(
            f"task {options.task} does not exist: this sweep has {len(every)} runs, numbered from 0"
        )


def compare_parallel(words: Sequence[str]) -> None:
    """`compare-parallel [--field value ...]`: every way to train the network of `decoupled` in parallel, in turn."""
    if processes() > 1:
        raise ConfigurationError(
            f"compare-parallel starts the processes of each way itself; given the {processes()} of torchrun: start it "
            f"without"
        )
    if arguments.given(words, "--method"):
        raise ConfigurationError("compare-parallel runs every method; leave --method out")
    default = _for_optimizer(words, Decoupled())
    recipe, options = _parsed(default, Comparison(), "synaptome compare-parallel", words, COMPARE_PARALLEL)
    _warn_of_other_work()
    if options.costs_only:
        return show_costs(predict_costs(cast(Decoupled, recipe), options))
    paths = run_ways(cast(Decoupled, recipe), options)
    show([read_run(path) for path in paths], options.out / "report.html", timed=True)
    return tell_failures(paths)


def resume(options: ResumeOptions) -> None:
    """Go on with a run, or with each unfinished run of a folder of seeds or of a sweep."""
    paths = _run_folders([options.run])
    if paths != [options.run]:
        if options.checkpoint is not None:
            raise ConfigurationError(
                f"--checkpoint is of one run, and {options.run} holds {len(paths)}: name one of them"
            )
        _require_one_process()
        return _run_each(paths, options, options.run / "report.html")
    view = progress.view(options.quiet)
    seconds = options.checkpoint_seconds
    record = running.resume(paths[0], step=options.checkpoint, progress=view, checkpoint_seconds=seconds)
    return show([record], options.run / "report.html")


def report(options: ReportOptions) -> None:
    """Write a report and print its table."""
    if not options.runs:
        raise ConfigurationError("report takes at least one run folder, such as runs/demo/dense")
    records = [read_run(path) for path in _run_folders(options.runs)]
    beside = Path("comparison.html") if len(options.runs) > 1 else options.runs[0] / "report.html"
    show(records, options.out or beside)


def verify(options: VerifyOptions) -> None:
    """Check every file of a run, or of each run in a folder of seeds."""
    damaged = []
    for path in _run_folders([options.run]):
        try:
            for line in verify_run(path):
                print(f"{path}: {line}")
        except RunError as error:
            damaged.append(str(error))
    if damaged:
        raise RunError("; ".join(damaged))


def doctor(options: DoctorOptions) -> None:
    """Print what a report of a problem should contain."""
    environment = describe_environment()
    facts = {
        key: environment[key]
        for key in ("synaptome", "commit", "python", "platform", "processor", "cores", "threads", "blas")
    }
    facts["accelerators"] = ", ".join(environment["accelerators"]) or "none"
    facts |= environment["packages"]
    devices = ("cpu", "cuda") if environment["accelerators"] else ("cpu",)
    for operation in backends.operations():
        for device in devices:
            choice = backends.choose(operation, device)
            facts[f"kernel {operation}"] = f"{choice.backend} on {device}: {choice.reason}"
            for backend, reason in backends.passed_over(operation, device).items():
                facts[f"kernel {operation}"] += f"; not {backend}: {reason}"
    for found in data.available(options.data_dir):
        facts[f"data {found.name}"] = f"{'found' if found.available else 'missing'}: {found.where}"
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")


def show_list(options: ListOptions) -> None:
    """Print a line for each recipe."""
    for name, recipe in RECIPES.items():
        print(f"{name:22} {recipe.summary} ({recipe.paper})")


def show_data(options: DataOptions) -> None:
    """List the data sets, or fetch one."""
    if options.action == "list":
        for found in data.available(options.data_dir):
            print(found)
    elif options.name is None:
        raise ConfigurationError("data fetch takes a name: mnist, fashion or cifar10")
    else:
        print(data.fetch(options.name, options.data_dir, announce=print))


def bench(options: BenchOptions) -> None:
    """Run a script of `benchmarks/` in a fresh process, or list them."""
    folder = Path(__file__).parents[2] / "benchmarks"
    scripts = {p.stem.replace("_", "-"): p for p in sorted(folder.glob("*.py")) if p.stem != "harness"}
    if not scripts:
        raise ConfigurationError("the benchmarks stand in the source checkout; clone it and install it with pip -e")
    if options.name is None:
        for name in scripts:
            print(name)
        return
    if options.name not in scripts:
        raise unknown("benchmark", options.name, scripts)
    code = subprocess.run([sys.executable, scripts[options.name]], check=False).returncode
    if code:
        raise SynaptomeError(f"the benchmark {options.name} ended with exit code {code}")


class Verb(NamedTuple):
    """A verb: what it does, in a line, and how, from the words behind it."""

    summary: str
    act: Callable[[Sequence[str]], None]


def _verb(name: str, options: type[Any], act: Callable[[Any], None]) -> Verb:
    """A verb all of whose words are options."""
    summary = (options.__doc__ or "").splitlines()[0]
    return Verb(summary, lambda words: act(arguments.parse(options, words, f"synaptome {name}")))


VERBS: dict[str, Verb] = {
    "run": Verb("Start a run of a recipe.", run),
    "sweep": Verb((SweepOptions.__doc__ or "").splitlines()[0], sweep),
    "compare-parallel": Verb(COMPARE_PARALLEL, compare_parallel),
    "demo": _verb("demo", DemoOptions, demo),
    "resume": _verb("resume", ResumeOptions, resume),
    "report": _verb("report", ReportOptions, report),
    "verify": _verb("verify", VerifyOptions, verify),
    "list": _verb("list", ListOptions, show_list),
    "data": _verb("data", DataOptions, show_data),
    "doctor": _verb("doctor", DoctorOptions, doctor),
    "bench": _verb("bench", BenchOptions, bench),
}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say; returns the exit code (see `synaptome.errors`)."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        _dispatch(words)
    except SynaptomeError as error:
        # What is asked for is wrong for every process of a run alike: the first one says so.
        if rank() == 0 or not isinstance(error, (ConfigurationError, DataError)):
            print(f"synaptome: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("synaptome: stopped before anything was started, or at once on a second Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `synaptome list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _dispatch(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print("usage: synaptome VERB [options]; synaptome VERB --help shows them\n")
        for name, verb in VERBS.items():
            print(f"  {name:16} {verb.summary}")
    elif words[0] == "--version":
        print(__version__)
    elif words[0] in VERBS:
        VERBS[words[0]].act(words[1:])
    else:
        raise unknown("verb", words[0], VERBS)


def _recipe_named(verb: str, words: Sequence[str]) -> tuple[str, Sequence[str], RunSettings | None]:
    """The recipe that is meant, the words behind it, and the settings in the file behind --config."""
    earlier = None
    if configs := arguments.given(words, "--config"):
        earlier = running.read_settings(Path(configs[-1]))
    elif words and words[-1] == "--config":
        raise ConfigurationError("--config takes a file: the recipe.json of an earlier run")
    if words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
    elif earlier is not None:
        name = earlier.recipe.name
    else:
        raise ConfigurationError(f"{verb} takes a recipe: {', '.join(RECIPES)}; see: synaptome list")
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    if earlier is not None and earlier.recipe.name != name:
        raise ConfigurationError(f"--config holds a {earlier.recipe.name}, not a {name}")
    return name, words, earlier


def _recipe_and_options(
    kind: type[_Options], prog: str, words: Sequence[str], default: Recipe | RunSettings
) -> tuple[Recipe, _Options]:
    """Parse a recipe's fields and the options of a verb together; what is not given is taken from the default."""
    recipe = _for_optimizer(words, default.recipe if isinstance(default, RunSettings) else default)
    options = kind()
    if isinstance(default, RunSettings):
        folder = None if default.data_dir is None else Path(default.data_dir)
        device: Any = default.device
        options = replace(options, seed=default.seed, device=device, threads=default.threads, data_dir=folder)
    return _parsed(recipe, options, prog, words, f"{recipe.summary} ({recipe.paper}).")


def _parsed(
    recipe: Recipe, options: _Anything, prog: str, words: Sequence[str], about: str
) -> tuple[Recipe, _Anything]:
    """A recipe and options, with what the words give in place of theirs; `about` stands above their help."""
    here = tyro.conf.arg(name="")
    both = make_dataclass(
        "Run",
        [
            ("recipe", Annotated[type(recipe), here], field(default_factory=lambda: recipe)),
            ("options", Annotated[type(options), here], field(default_factory=lambda: options)),
        ],
        frozen=True,
    )
    both.__doc__ = about
    parsed: Any = arguments.parse(both, words, prog)
    return parsed.recipe, parsed.options


def _for_optimizer(words: Sequence[str], default: Any) -> Recipe:
    """The recipe without those defaults that the optimizer asked for does not have, such as momentum for Adam."""
    optimization = getattr(default, "optimization", None)
    names = arguments.given(words, "--optimization.name")
    if names and isinstance(optimization, Optimization):
        default = replace(default, optimization=optimization.renamed(names[-1]))
    return cast(Recipe, default)


def _settings(recipe: Recipe, options: RunOptions) -> RunSettings:
    """The settings of a new run, with all that was left open resolved."""
    recipe.check_start()
    elsewhere = isinstance(options, SweepOptions) and options.cluster is not None
    check = options.device == "auto" or not elsewhere  # a cluster may have devices that are not here
    device = running.resolve_device(options.device) if check else options.device
    threads = options.threads
    if threads is None:
        threads = 1 if elsewhere else max(1, torch.get_num_threads() // options.workers)
    data_dir = None if options.data_dir is None else str(options.data_dir.resolve())
    return RunSettings(recipe, options.seed, device, threads, data_dir)


def _grid(recipe: type[Recipe], words: Sequence[str]) -> Grid:
    """What --grid asks for; a ConfigurationError if a field of it is chosen otherwise too."""
    fields = [option.removeprefix("--") for option in arguments.options(recipe)]
    grid = read_grid(arguments.given(words, "--grid"), fields, recipe.grids)
    names = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    chosen = {re.sub(r"(^--|\.)no-", r"\1", name) for name in names}  # --no-bias and --optimization.no-nesterov
    for name in grid:
        if f"--{name}" in chosen:
            raise ConfigurationError(f"{name} is given by --grid and by --{name}; choose one of them")
    return grid


def _prepared(chosen: Sequence[Cell], options: SweepOptions, out: Path) -> list[Path]:
    """The folders of cells, once every value has been tried out without writing anything."""
    for cell in one_for_each_value(chosen):
        running.build(replace(cell.settings, device="cpu") if options.cluster is not None else cell.settings)
    left_open = {"threads": options.threads is None, "device": options.device == "auto"}
    return prepare_cells(chosen, out, [name for name, is_open in left_open.items() if is_open])


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs meant: each folder itself, or the runs right in it."""
    found: list[Path] = []
    for path in paths:
        inner = [] if (path / "recipe.json").exists() else sorted(p.parent for p in path.glob("*/recipe.json"))
        if not inner and not (path / "recipe.json").exists():
            raise RunError(f"{path} is not a run folder, and holds none: no recipe.json in it")
        found += inner or [path]
    return found


def _require_one_process() -> None:
    if processes() > 1:
        raise ConfigurationError(
            f"the {processes()} processes that torchrun has started work at one run; give it one run and one seed, or "
            f"start several runs without torchrun"
        )


def _warn_of_other_work() -> None:
    """Tell that times will be worth little, if more than half a core had other work in the last minute."""
    with suppress(OSError):  # where the system does not say
        if (load := os.getloadavg()[0]) > 0.5:
            print(
                f"synaptome: this machine had other work in the last minute (load {load:.1f}); beside it, times say "
                f"little: stop it, or wait a minute after an earlier run",
                file=sys.stderr,
            )


def _run_each(
    paths: list[Path], options: RunOptions | ResumeOptions, destination: Path, cluster: str | None = None
) -> None:
    """Run or resume several prepared runs and compare them; failures are told after the comparison of the rest."""
    failure: SynaptomeError | None = None
    try:
        running.resume_each(paths, options.workers, options.quiet, options.checkpoint_seconds, cluster)
    except (Interrupted, WorkerLostError):
        raise
    except SynaptomeError as error:
        failure = error
    finished = [record for record in map(read_run, paths) if record.summary]
    if finished:
        show(finished, destination)
    if failure is not None:
        raise failure
