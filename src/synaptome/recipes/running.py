"""Start and resume runs: a recipe in, a run folder out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from synaptome.analysis.activity import undisturbed
from synaptome.analysis.size import count_synapses
from synaptome.errors import ConfigurationError, Interrupted, RunError, SynaptomeError
from synaptome.recipes import RECIPES
from synaptome.recipes.process_group import processes, rank
from synaptome.recipes.recipe import Experiment, RunSettings
from synaptome.recipes.workers import run_each
from synaptome.training.environment import describe_environment
from synaptome.training.measures import CHUNK_BYTES, measured
from synaptome.training.progress import ProgressView, Quiet
from synaptome.training.run import RunFolder, RunRecord, load_state, prepare, read_json, read_run
from synaptome.training.seeding import random_state, restore_random_state, seed_everything
from synaptome.training.sweep_progress import sweep_view
from synaptome.training.trainer import Trainer

# Two checkpoints are kept while a third is written, and each holds the weights with up to two moments of an optimizer.
CHECKPOINTS = 3
CHECKPOINT_COPIES = 3 * CHECKPOINTS


def resolve_device(device: str) -> str:
    """`auto` made one of cuda, mps, cpu; any other name checked.

    Raises:
        ConfigurationError: the device is unknown, or not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(device, False):
        ready = ", ".join(name for name, is_there in there.items() if is_there)
        raise ConfigurationError(f"device {device!r} is not there; allowed: auto, {ready}")
    return device


def start(
    settings: RunSettings, out: Path, *, progress: ProgressView | None = None, checkpoint_seconds: float = 30.0
) -> RunRecord:
    """Run a recipe in a new folder, to its end.

    Raises:
        ConfigurationError, DataError: nothing was started, and no folder was made.
        SynaptomeError: see `synaptome.errors`; `resume` goes on from the last checkpoint.
    """
    settings.recipe.check_start()
    with _built(settings) as experiment:
        prepare(out, settings.document())
        return _run(out, settings, experiment, None, progress, checkpoint_seconds)


def resume(
    path: Path, *, step: int | None = None, progress: ProgressView | None = None, checkpoint_seconds: float = 30.0
) -> RunRecord:
    """Go on with a run to the same bits as if it had never stopped; a finished run is read and returned.

    Args:
        path: the run folder.
        step: go on from the checkpoint of this step; from the newest if None.
        progress, checkpoint_seconds: as for `Trainer`.

    Raises:
        SynaptomeError: see `synaptome.errors`.
    """
    settings = read_settings(path / "recipe.json")
    if step is None and (record := read_run(path)).summary:
        if rank() > 0:
            raise SystemExit(0)  # process 0 shows it
        return record
    with _built(settings) as experiment:
        return _run(path, settings, experiment, step, progress, checkpoint_seconds)


def prepare_seeds(settings: RunSettings, seeds: int, out: Path) -> list[Path]:
    """Prepare the folders OUT/seed-K of runs that differ in their seed, from `settings.seed` on.

    Raises:
        ConfigurationError, DataError: as `start`; no folder was made.
        RunError: OUT is a run.
    """
    if seeds < 1:
        raise ConfigurationError(f"seeds is a whole number of at least 1; given {seeds}")
    build(settings)  # what is wrong for one is wrong for all: say so before anything is written
    if (out / "recipe.json").exists():
        raise RunError(f"{out} is a run itself, and no folder of runs; choose another --out")
    numbers = range(settings.seed, settings.seed + seeds)
    paths = [out / f"seed-{seed}" for seed in numbers]
    for path, seed in zip(paths, numbers, strict=True):
        prepare(path, replace(settings, seed=seed).document())
    return paths


def resume_each(
    paths: list[Path], workers: int, quiet: bool, checkpoint_seconds: float, cluster: str | None = None
) -> list[RunRecord]:
    """Start or resume several prepared runs; one that fails does not keep the rest from theirs.

    Args:
        paths: run folders.
        workers, checkpoint_seconds, cluster: as for `synaptome.recipes.workers.run_each`.
        quiet: no progress.

    Raises:
        SynaptomeError: as `run_each`.
    """
    run_each(paths, workers, sweep_view(quiet), checkpoint_seconds=checkpoint_seconds, cluster=cluster)
    return [read_run(path) for path in paths]


def load_model(run: Path | str, *, step: int | None = None, device: str = "cpu") -> nn.Module:
    """The network of a run, as its newest checkpoint has it: of a finished run the trained one.

    The run folder is not changed, nor are torch's threads and the random generators of this process. The run's data set
    is loaded, because it says how many inputs and outputs the network has.

    Args:
        run: the run folder.
        step: the checkpoint of this step; the newest if None.
        device: where the network is wanted, `auto`, `cpu`, `cuda` or `mps`, wherever it was trained.

    Returns:
        The network in evaluation mode.

    Raises:
        RunError: the folder is not a run, has no such checkpoint, or is damaged; the file or tensor is named.
        ConfigurationError: the run's recipe does not exist in this version, or the device is not there.
        DataError: the run's data set is missing.
    """
    path = Path(run)
    settings = read_settings(path / "recipe.json")
    state = load_state(path, step)
    if state is None:
        raise RunError(f"{path} has no checkpoint yet, and so no network; start it with: synaptome resume {path}")
    before = random_state()
    try:
        here = replace(settings, device=resolve_device(device), threads=torch.get_num_threads())
        rule = build(here).rule
    finally:
        restore_random_state(before)
    rule.load_state_dict(state["rule"])
    return rule.model.eval()


def read_settings(path: Path) -> RunSettings:
    """The settings in a recipe.json.

    Raises:
        RunError: the file is missing or is not JSON.
        ConfigurationError: a key, recipe, field or value in it does not exist or does not fit.
    """
    return RunSettings.from_document(read_json(path), RECIPES, path)


def build(settings: RunSettings) -> Experiment:
    """The experiment of these settings, with every random generator seeded.

    Raises:
        ConfigurationError, DataError: see `Recipe.experiment`; also where it does not fit in memory.
    """
    torch.set_num_threads(settings.threads)
    if settings.device == "cuda":
        torch.backends.cudnn.deterministic = True
    seed_everything(settings.seed)
    data_dir = None if settings.data_dir is None else Path(settings.data_dir)
    device = torch.device(resolve_device(settings.device))
    try:
        return settings.recipe.experiment(settings.seed, device, data_dir)
    except (MemoryError, RuntimeError) as error:
        # torch has an exception of its own for GPUs, and a plain RuntimeError for the CPU.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise ConfigurationError(f"this network and its data do not fit in the memory of {device}: {error}") from None


@contextmanager
def _built(settings: RunSettings) -> Iterator[Experiment]:
    """The experiment, closed in the end; a process that another one only needs does its work, and exits.

    Raises:
        ConfigurationError: there are several processes, and the recipe learns in one.
    """
    experiment = build(settings)
    if processes() > 1 and experiment.work is None and experiment.close is None:
        raise ConfigurationError(
            f"this run of {settings.recipe.name} learns in one process; given {processes()}: start it without torchrun"
        )
    if experiment.work is not None:
        experiment.work()
        raise SystemExit(0)
    try:
        yield experiment
    finally:
        if experiment.close is not None:
            experiment.close()


def _run(
    path: Path,
    settings: RunSettings,
    experiment: Experiment,
    step: int | None,
    progress: ProgressView | None,
    checkpoint_seconds: float,
) -> RunRecord:
    folder, state = RunFolder.open(path, describe_environment(), step)
    with folder:
        model = experiment.rule.model
        size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        streamed = (CHECKPOINTS + 1) * CHUNK_BYTES * len(experiment.recorders)
        folder.require_space(CHECKPOINT_COPIES * size + CHECKPOINTS * experiment.growth + streamed + 2**20)
        trainer = Trainer(
            experiment.rule,
            experiment.data,
            epochs=experiment.epochs,
            batch=experiment.batch,
            seed=settings.seed,
            evaluate=experiment.evaluate,
            callbacks=experiment.callbacks,
            recorders=experiment.recorders,
            store=folder,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress or Quiet(),
            label=path.name,
        )
        if state is not None:
            trainer.load_state_dict(state)
        try:
            row = trainer.fit()
            for name, measure in experiment.finals.items():
                folder.write_final(name, measured(name, measure, model))
            with undisturbed(model):
                products = {
                    name: folder.write_product(name, content(model)) for name, content in experiment.products.items()
                }
        except Interrupted as stopped:
            raise Interrupted(
                stopped.signum, f"{path} {stopped.message}; go on with: {_again()} resume {path}"
            ) from None
        except SynaptomeError as error:
            raise type(error)(f"{path}: {error}") from error
        count = count_synapses(model)
        numbers = {key: value for key, value in row.items() if "/" in key}
        folder.finish(
            {
                "synapse": experiment.synapse,
                "rule": experiment.learning,
                "parameters": count.parameters,
                "active_synapses": count.active,
                "seconds": row["seconds"],
                "citations": list(experiment.citations),
                **({"products": products} if products else {}),
                **numbers,
            }
        )
    return read_run(path)


def _again() -> str:
    """How this command is started, in as many processes."""
    return f"torchrun --nproc-per-node {processes()} -m synaptome" if processes() > 1 else "synaptome"
