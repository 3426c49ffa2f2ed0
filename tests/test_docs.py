"""The documentation is true: its Python runs, its links lead somewhere, its commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from synaptome import cli
from synaptome.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page):
    namespace = {"__name__": page.stem}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    assert len(namespace) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def commands():
    lines = [
        line.partition("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").split("\n")
    ]
    return sorted({line for line in lines if line.startswith("synaptome ")})


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command, capsys):
    """Each documented command is parsed as far as its help, which needs all its options to exist."""
    verb, *words = shlex.split(command)[1:]
    assert verb in ("run", "sweep", *cli.VERBS)
    recipe = []
    if verb in ("run", "sweep"):
        recipe = ["failures-classifier"] if words[0].startswith("-") else words[:1]
        assert recipe[0] in RECIPES
    options = {word for word in words if word.startswith("--")}
    with pytest.raises(SystemExit):
        cli.main([verb, *recipe, "--help"])
    told = capsys.readouterr().out
    assert all(option in told for option in options)
