"""The package as a whole: a lean import, and a wheel that works where nothing else is."""

import ast
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import synaptome

ROOT = Path(__file__).parent.parent
# Floors from the bottom up; a room may use those before it, and its own.
FLOORS = [
    "errors",
    "kernels",
    "data",
    "topology",
    "synapses",
    "networks",
    "analysis",
    "learning",
    "training",
    "report",
    "recipes",
]


def test_import_brings_torch_and_numpy_only():
    script = "import sys, synaptome; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    for heavy in ("matplotlib", "numba", "triton", "sklearn", "scipy", "pooch", "rich", "tyro", "msgspec", "pandas"):
        assert heavy not in loaded
    assert not any(name.startswith(("synaptome.recipes", "synaptome.report", "synaptome.training")) for name in loaded)


def test_everything_public_is_there():
    for name in synaptome.__all__:
        assert getattr(synaptome, name).__doc__ or name == "__version__"


def test_no_room_uses_one_above_it():
    source = ROOT / "src" / "synaptome"
    for path in source.rglob("*.py"):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        if room not in FLOORS:
            continue  # the top of the house: cli, arguments, conformance
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = (name or "").split(".")
                if parts[0] == "synaptome" and len(parts) > 1 and parts[1] in FLOORS:
                    assert FLOORS.index(parts[1]) <= FLOORS.index(room), f"{path} uses {name}"


def test_no_pickle_and_nothing_executed():
    forbidden = {
        "eval",
        "exec",
        "torch.load",
        "torch.save",
        "pickle.load",
        "pickle.loads",
        "pickle.dump",
        "pickle.dumps",
    }
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, path
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "pickle" not in ast.unparse(node), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_installed_in_a_clean_environment_runs(wheel, tmp_path):
    """The wheel itself in a new environment; what it depends on is taken from this one."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, capture_output=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    here = Path(sys.executable).parent.parent / "lib" / packages.parent.name / "site-packages"
    # A .pth file would also bring the editable install of this checkout: name the folder, which does not run them.
    (packages / "dependencies.pth").write_text(f"{here}\n")
    script = "import synaptome; print(synaptome.__file__)"
    where = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert where.startswith(str(packages))
    words = ["run", "failures-classifier", "--epochs", "1", "--failure", "0", "--quiet", "--out", "r"]
    command = tmp_path / "env" / "bin" / "synaptome"
    done = subprocess.run([command, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "report: r/report.html" in done.stdout
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
    bench = subprocess.run([command, "bench"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (bench.returncode, "source checkout" in bench.stderr) == (2, True)
