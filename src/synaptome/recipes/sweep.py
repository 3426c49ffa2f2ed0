"""A grid of a recipe's fields, and the runs that it stands for."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synaptome.errors import ConfigurationError, RunError, unknown
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.running import read_settings
from synaptome.training.run import prepare

LONGEST_VALUE = 40  # characters of a value in a folder's name
RUN_OPTIONS = {  # what is taken for a field, and what to give instead
    "seed": "give --seed and --seeds",
    "seeds": "give --seeds",
    "threads": "it holds for all runs alike: --threads",
    "device": "it holds for all runs alike: --device",
}
LONGEST_NAME = 200

Grid = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        values: of the grid's fields, as on the command line.
        settings: what is run.
    """

    name: str
    values: Mapping[str, str]
    settings: RunSettings


def read_grid(words: Sequence[str], fields: Collection[str], named: Mapping[str, Mapping[str, Sequence[str]]]) -> Grid:
    """What stands behind each `--grid`, put together in that order.

    Args:
        words: `field=value,value,...`, where a value with a comma stands in double quotes; or the name of a grid.
        fields: that the recipe has, nested ones with dots.
        named: the recipe's own grids.

    Returns:
        For each field its values, as on the command line.

    Raises:
        ConfigurationError: a field or grid that does not exist, a field that is given twice, or one without values.
    """
    grid: Grid = {}
    for word in words:
        field, equals, values = word.partition("=")
        if not equals and field not in named:
            raise unknown("grid", field, [*named, *(f"{name}=..." for name in fields)])
        for name, given in {field: _values(field, values)}.items() if equals else named[field].items():
            name = name.replace("_", "-")
            if name in RUN_OPTIONS:
                raise ConfigurationError(f"{name} is no field of the recipe, but an option: {RUN_OPTIONS[name]}")
            if name not in fields:
                raise unknown("field", name, fields)
            if name in grid:
                raise ConfigurationError(f"the grid gives {name} twice; give it once, with all its values")
            grid[name] = tuple(given)
    return grid


def cells(grid: Grid, seeds: int, settings: Callable[[Mapping[str, str]], RunSettings]) -> list[Cell]:
    """Every combination of the grid's values, the last field changing fastest, with each seed.

    Args:
        grid: of `read_grid`; empty for the recipe as it is.
        seeds: how many, from the settings' own seed on.
        settings: for values of the grid's fields.

    Raises:
        ConfigurationError: a value does not fit its field, or two cells are the same run; or from `settings`.
    """
    if seeds < 1:
        raise ConfigurationError(f"seeds is a whole number of at least 1; given {seeds}")
    found: list[Cell] = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        first = settings(values)
        for seed in range(first.seed, first.seed + seeds):
            found.append(Cell(_name(values, seed), values, replace(first, seed=seed)))
    runs: dict[str, str] = {}
    for cell in found:
        run = repr(cell.settings)
        if run in runs:
            raise ConfigurationError(f"{runs[run]} and {cell.name} are the same run; give each value once")
        runs[run] = cell.name
    return found


def one_for_each_value(cells: Sequence[Cell]) -> list[Cell]:
    """Few cells in which every value of every field is met: what is wrong with a value shows in one of them."""
    seen: set[tuple[str, str]] = set()
    found: list[Cell] = []
    for cell in cells:
        if not found or not seen.issuperset(cell.values.items()):
            seen.update(cell.values.items())
            found.append(cell)
    return found


def prepare_cells(cells: Sequence[Cell], out: Path, left_open: Collection[str] = ()) -> list[Path]:
    """Claim a folder for each cell, or find the one that an earlier sweep has claimed.

    Args:
        cells: of `cells`.
        out: the folder of their folders.
        left_open: names of settings that nobody chose, such as `threads`: a folder that is there keeps its own.

    Raises:
        RunError: a folder holds another run or something else, or cannot be written; in the first case, nothing was.
    """
    if (out / "recipe.json").exists():
        raise RunError(f"{out} is a run itself, and no folder of runs; choose another --out")
    for cell in cells:
        _is_there(out / cell.name, cell, left_open)
    for cell in cells:
        path = out / cell.name
        if not _is_there(path, cell, left_open):
            try:
                prepare(path, cell.settings.document())
            except RunError:  # unless another process has prepared the very same at this moment
                if not _is_there(path, cell, left_open):
                    raise
    return [out / cell.name for cell in cells]


def _is_there(path: Path, cell: Cell, left_open: Collection[str]) -> bool:
    """Whether a folder holds this cell; a RunError if it holds another run."""
    if not (path / "recipe.json").exists():
        return False
    found = read_settings(path / "recipe.json")
    wanted = replace(cell.settings, **{name: getattr(found, name) for name in left_open})
    if found != wanted:
        there, here = _flat(found.document()), _flat(wanted.document())
        what = next(key for key in [*here, *there] if here.get(key) != there.get(key))
        raise RunError(
            f"{path} holds another run: its {what} is {there.get(what)}, not {here.get(what)}; choose another --out"
        )
    return True


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, "" if key == "options" else f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _values(field: str, text: str) -> list[str]:
    """The values behind `field=`."""
    try:
        (values,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:  # a quote that is not closed, or two lines
        raise ConfigurationError(f"--grid {field}={text} is not a list of values: {error}") from None
    if not values or not all(values):
        raise ConfigurationError(f"--grid {field}={text} has an empty value; write --grid {field}=VALUE,VALUE,...")
    return values


def _name(values: Mapping[str, str], seed: int) -> str:
    """A file name for any values, and another one for others."""
    parts = [f"{field}-{_safe(value)}" for field, value in values.items()]
    name = "_".join(parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{_digest(name)}"
    return "_".join([name, f"seed-{seed}"] if name else [f"seed-{seed}"])


def _safe(value: str) -> str:
    """The value, if any file system takes it; else what is left of it, with a digest that keeps it apart."""
    plain = re.sub(r"[^A-Za-z0-9.,+-]", "-", value)[:LONGEST_VALUE]
    return value if plain == value else f"{plain}-{_digest(value)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
