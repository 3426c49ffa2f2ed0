"""The table of a population."""

import io

import pytest
import torch
from rich.console import Console

from synaptome.recipes.equilibrium_logic import EquilibriumLogic
from synaptome.recipes.failures import FailuresClassifier
from synaptome.recipes.recipe import RunSettings
from synaptome.recipes.running import start
from synaptome.report import group_runs
from synaptome.report.populations import population_columns, population_section, population_table
from synaptome.training.measures import read_final

QUICK = {"free_steps": 200, "nudged_steps": 200, "networks": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    cells = [("or", 0, 25), ("or", 1, 25), ("xor", 0, 2)]
    settings = [RunSettings(EquilibriumLogic(task=t, epochs=e, **QUICK), seed, "cpu", 1) for t, seed, e in cells]
    return [start(each, folder / str(number)) for number, each in enumerate(settings)]


def test_it_counts_the_networks_of_all_runs_of_a_group(runs):
    columns, _ = population_columns(group_runs(runs))
    assert list(columns) == ["", "task=or, epochs=25", "task=xor, epochs=2"]
    table = dict(zip(columns[""], columns["task=or, epochs=25"], strict=True))
    found = [read_final(run.path, "networks") for run in runs[:2]]
    solved = torch.cat([each["solved"] for each in found])
    assert table["networks"] == "6"
    assert table["solved at the end"] == f"{100 * solved.mean().item():.3g} %"
    assert solved.sum() > 0
    epochs = torch.cat([each["solved_epoch"] for each in found])
    assert table["median epochs to solve"] == f"{epochs[epochs > 0].double().quantile(0.5).item():g}"
    unsolved = dict(zip(columns[""], columns["task=xor, epochs=2"], strict=True))
    assert (unsolved["solved at some epoch"], unsolved["median epochs to solve"]) == ("0 %", "–")


def test_the_terminal_and_the_page_show_it(runs):
    groups = group_runs(runs)
    told = io.StringIO()
    Console(file=told, width=80).print(population_table(groups))
    page = str(population_section(groups))
    for cells in population_columns(groups)[0].values():
        for cell in cells:
            assert cell in told.getvalue()
            assert cell in page
    assert max(map(len, told.getvalue().splitlines())) <= 80


def test_other_runs_have_no_such_table(tmp_path):
    other = start(RunSettings(FailuresClassifier(depth=1, epochs=1), 0, "cpu", 1), tmp_path / "run")
    groups = group_runs([other])
    assert population_columns(groups) == ({}, [])
    assert population_table(groups) is None
    assert population_section(groups) is None


def test_damage_is_told_by_name(runs, tmp_path):
    record = start(RunSettings(EquilibriumLogic(epochs=1, **QUICK), 5, "cpu", 1), tmp_path / "run")
    file = tmp_path / "run" / "measures" / "networks.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    groups = group_runs([*runs, record])
    columns, (problem,) = population_columns(groups)
    assert "networks.safetensors" in problem
    assert columns == population_columns(group_runs(runs))[0]
    assert "networks.safetensors" in population_section(groups)
    assert population_columns(group_runs([record]))[0] == {}
