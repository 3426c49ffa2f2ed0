"""The command line: every verb, real processes, one sentence and an honest exit code for every mistake."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synaptome import cli
from synaptome.recipes import RECIPES
from synaptome.training.run import read_run

QUICK = ["--epochs", "1", "--failure", "0.2", "--quiet"]


def run(*words, capsys):
    """The exit code, standard output and standard error of `synaptome WORDS`."""
    code = cli.main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def process(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "synaptome", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("verb", [[], *([verb] for verb in ("run", *cli.VERBS)), *(["run", name] for name in RECIPES)])
def test_help_is_there_for_every_verb(verb, capsys):
    try:
        code = cli.main([*verb, "--help"])
    except SystemExit as exit_:
        code = exit_.code
    told = capsys.readouterr()
    assert code == 0
    assert "usage" in told.out
    assert told.err == ""


def test_help_of_a_recipe_shows_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "failures-classifier", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option in (
        "--failing",
        "--optimization.weight-decay",
        "--seeds",
        "--data-dir",
        "--device",
        "--threads",
        "--config",
    ):
        assert option in told
    assert "probability that a synapse fails" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rnu", r"unknown verb 'rnu' \(did you mean 'run'\?\); allowed: run, "),
        ("run", "run takes a recipe: failures-classifier"),
        ("run failures-clasifier", "did you mean 'failures-classifier'"),
        (
            "run failures-classifier --epoch 3",
            r"unknown option '--epoch' \(did you mean '--epochs'\?\); allowed: --epochs, ",
        ),
        ("run failures-classifier --optimization.rat 3", r"did you mean '--optimization\.rate'"),
        ("run failures-classifier --epochs x", "--epochs takes a whole number; given 'x'"),
        ("run failures-classifier --failure x", "--failure takes a number; given 'x'"),
        ("run failures-classifier --failure 1.5", r"in \[0, 1\); given 1\.5"),
        ("run failures-classifier --data mnits", r"did you mean 'mnist'\?\); allowed: mnist, "),
        ("run failures-classifier --device tpu", "unknown value for --device 'tpu'"),
        ("run failures-classifier --failing 7", "layer 7 does not exist; this network has layers 1 to 2"),
        ("run failures-classifier --threads 0", "threads is a whole number of at least 1"),
        ("run failures-classifier --seeds 0", "seeds is a whole number of at least 1"),
        ("run failures-classifier --seed -1", "a seed is"),
        ("run failures-classifier --epochs", "Missing value for argument '--epochs'"),
        ("run failures-classifier --config", "--config takes a file"),
        ("run failures-classifier stray", "unknown word 'stray'"),
        ("report", "at least one run folder"),
        ("data ftech", "did you mean 'fetch'"),
        ("data fetch", "data fetch takes a name"),
        ("data fetch minst", "did you mean 'mnist'"),
        ("bench no-such-thing", "unknown benchmark 'no-such-thing'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(words, message, capsys):
    code, out, err = run(*words.split(), capsys=capsys)
    assert code == 2
    assert out == ""
    assert re.search(message, err), err
    assert err.startswith("synaptome: ")
    assert err.count("\n") == 1


def test_missing_data_and_missing_runs_have_codes_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SYNAPTOME_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = run("run", "failures-classifier", "--data", "mnist", "--out", tmp_path / "r", capsys=capsys)
    assert (code, "synaptome data fetch mnist" in err) == (3, True)
    assert not (tmp_path / "r").exists()
    for verb in ("resume", "verify", "report"):
        code, _, err = run(verb, tmp_path / "nowhere", capsys=capsys)
        assert (code, "not a run folder" in err) == (5, True)


def test_run_report_verify_and_resume(tmp_path, capsys):
    path = tmp_path / "run"
    code, out, err = run(
        "run", "failures-classifier", *QUICK, "--seed", 3, "--threads", 1, "--out", path, capsys=capsys
    )
    assert (code, err) == (0, "")
    assert "failing 0.2" in out
    assert str(path / "report.html") in out
    recipe = json.loads((path / "recipe.json").read_text())
    assert (recipe["seed"], recipe["threads"], recipe["options"]["failure"]) == (3, 1, 0.2)
    assert run("verify", path, capsys=capsys)[:2][0] == 0
    assert run("resume", path, "--quiet", capsys=capsys)[0] == 0
    code, _, err = run("run", "failures-classifier", *QUICK, "--out", path, capsys=capsys)
    assert (code, "already holds a run" in err) == (5, True)
    (path / "report.html").unlink()
    assert run("report", path, capsys=capsys)[0] == 0
    assert (path / "report.html").exists()
    other = tmp_path / "other"
    config = path / "recipe.json"
    assert run("run", "--config", config, "--failure", 0, "--quiet", "--out", other, capsys=capsys)[0] == 0
    again = json.loads((other / "recipe.json").read_text())
    assert again["options"] == {**recipe["options"], "failure": 0.0}
    assert again["seed"] == 3
    code, out, _ = run("report", path, other, "--out", tmp_path / "both.html", capsys=capsys)
    assert code == 0
    assert (tmp_path / "both.html").exists()


def test_damage_is_told_with_the_tensors_name(tmp_path, capsys):
    path = tmp_path / "run"
    assert run("run", "failures-classifier", *QUICK, "--out", path, capsys=capsys)[0] == 0
    newest = sorted((path / "checkpoints").iterdir())[-1] / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    code, _, err = run("verify", path, capsys=capsys)
    assert code == 5
    assert "is not the one that was saved" in err
    (newest.parent / "manifest.json").unlink()
    code, _, err = run("verify", path, capsys=capsys)
    assert code == 5
    assert "manifest.json cannot be read: No such file or directory; to go on from an earlier one: synaptome res" in err


def test_all_damage_is_told_and_what_is_left_is_reported(tmp_path, capsys):
    out = tmp_path / "runs"
    assert run("run", "failures-classifier", *QUICK, "--seeds", 3, "--out", out, capsys=capsys)[0] == 0
    for seed in (0, 2):
        file = out / f"seed-{seed}" / "measures" / "spectra.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    code, told, err = run("verify", out, capsys=capsys)
    assert code == 5
    assert f"{out / 'seed-0' / 'measures'}" in err
    assert f"{out / 'seed-2' / 'measures'}" in err
    assert f"{out / 'seed-1'}: finished" in told
    code, told, err = run("report", out, capsys=capsys)
    assert code == 0
    assert "synaptome: left out of the report: " in err
    assert "seed-0/measures/spectra.safetensors" in err


def test_seeds_make_a_comparison(tmp_path, capsys):
    path = tmp_path / "runs"
    code, out, _ = run("run", "failures-classifier", *QUICK, "--seeds", 2, "--seed", 5, "--out", path, capsys=capsys)
    assert code == 0
    assert "±" in out
    assert [run.name for run in sorted(path.glob("seed-*"))] == ["seed-5", "seed-6"]
    assert (path / "report.html").exists()
    assert run("resume", path, "--quiet", capsys=capsys)[0] == 0


SMALL = ("--features", 10, "--train", 200, "--test", 50, "--batch", 20, "--epochs", 2, "--spectra.modes", 0)
SWEEP = ("sweep", "failures-linear", *SMALL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--grid depht=2", r"unknown field 'depht' \(did you mean 'depth'\?\); allowed: depth, "),
        ("--grid optimization.rat=2", r"did you mean 'optimization\.rate'"),
        ("--grid publishd", r"unknown grid 'publishd' \(did you mean 'published'\?\)"),
        ("--grid depth=", "--grid depth= has an empty value"),
        ("--grid depth=2,x", "--depth takes a whole number; given 'x'"),
        ("--grid failure=0,1.5", r"in \[0, 1\); given 1\.5"),
        ("--grid d=1,3", "unknown value for --d '3'"),
        ("--grid exact=perhaps", "--exact is true or false; given 'perhaps'"),
        ("--grid failing=all,7", "layer 7 does not exist"),
        ("--grid depth=2 --grid depth=3", "gives depth twice"),
        ("--grid depth=2,3,2", "depth-2_seed-0 and depth-2_seed-0 are the same run"),
        ("--grid depth=2 --depth 3", "depth is given by --grid and by --depth"),
        ("--grid exact=true --no-exact", "exact is given by --grid and by --exact"),
        ("--grid", "Missing value for argument '--grid'"),
        ("", r"takes --grid FIELD=VALUE,VALUE,\.\.\. or --seeds .*has the grids: published"),
        ("--seeds 0", "seeds is a whole number of at least 1; given 0"),
        ("--seeds 2 --workers 0", "workers is a whole number of at least 1; given 0"),
        ("--seeds 2 --seed -1", "a seed is"),
        ("--seeds 2 --checkpoint-seconds nan", "checkpoint-seconds is a time"),
        ("--seeds 2 --task 2", "task 2 does not exist: this sweep has 2 runs, numbered from 0"),
        ("--seeds 2 --task -1", "task -1 does not exist"),
        ("--seeds 2 --task 0 --workers 2", "--task is one run in this process"),
        ("--seeds 2 --cluster 127.0.0.1:9 --workers 2", "--cluster brings its own workers"),
        ("--seeds 2 --cluster nonsense", "no Dask scheduler answers at 'nonsense'"),
        ("--seeds 2 --sedes 2", "did you mean '--seeds'"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_and_starts_nothing(words, message, tmp_path, capsys):
    code, out, err = run(*SWEEP, *words.split(), "--out", tmp_path / "sweep", capsys=capsys)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_has_a_folder_by_default(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(*SWEEP, "--seeds", 2, "--quiet", capsys=capsys)[0] == 0
        assert sorted(Path("runs").glob("*/seed-*")) == [Path(f"runs/failures-linear-sweep/seed-{k}") for k in (0, 1)]


def test_a_sweep_whose_data_are_missing_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SYNAPTOME_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["sweep", "failures-classifier", "--grid", "data=digits,mnist", "--out", tmp_path / "sweep"]
    code, _, err = run(*words, capsys=capsys)
    assert (code, "synaptome data fetch mnist" in err) == (3, True)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_skips_what_is_done_resumes_what_is_broken_and_grows(tmp_path, capsys):
    out = tmp_path / "sweep"
    words = [*SWEEP, "--out", out, "--seeds", 2, "--seed", 3]
    code, told, err = run(*words, "--grid", 'failing=all,"1,2"', capsys=capsys)
    assert code == 0
    names = [f"failing-{value}_seed-{seed}" for value in ("1,2", "all") for seed in (3, 4)]
    assert sorted(path.parent.name for path in out.glob("*/recipe.json")) == names
    assert re.findall(r"^(\S+): done", err, re.MULTILINE) == [*names[2:], *names[:2]]  # in the order of the grid
    assert "±" in told
    assert (out / "report.html").exists()
    assert [read_run(out / name).recipe["options"]["failing"] for name in names] == ["1,2", "1,2", "all", "all"]
    saved = {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*/*")}
    assert saved
    broken = out / names[0]
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(broken).metrics]
    (broken / "measures" / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "0000000020")
    code, _, _ = run(*words, "--grid", 'failing=all,"1,2",none', "--threads", "1", capsys=capsys)
    assert code == 0
    assert len(list(out.glob("*/recipe.json"))) == 6
    for path, when in saved.items():
        assert (path.stat().st_mtime_ns == when) == ("0000000020" not in str(path) or broken not in path.parents), path
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(broken).metrics] == rows
    code, told, err = run(*words, "--grid", "failing=all", "--train", 100, "--quiet", capsys=capsys)
    assert (code, told) == (5, "")
    assert f"{out / names[2]} holds another run: its train is 200, not 100" in err
    for verb in ("resume", "report"):
        assert run(verb, out, capsys=capsys)[0] == 0


def test_values_reach_nested_fields_switches_and_lists(tmp_path, capsys):
    grids = [("optimization.momentum", "0,0.9"), ("bias", "false"), ("robustness", "0 0.5,0.25")]
    words = [word for field, values in grids for word in ("--grid", f"{field}={values}")]
    out = tmp_path / "sweep"
    assert run("sweep", "failures-classifier", *QUICK, *words, "--out", out, capsys=capsys)[0] == 0
    recipes = [json.loads(path.read_text())["options"] for path in out.glob("*/recipe.json")]
    found = {(r["optimization"]["momentum"], r["bias"], tuple(r["robustness"])) for r in recipes}
    assert found == {(m, False, rates) for m in (0.0, 0.9) for rates in ((0.0, 0.5), (0.25,))}


def test_a_named_grid_can_be_joined_by_fields_and_listed(capsys):
    code, out, _ = run(
        "sweep", "failures-linear", "--grid", "published", "--grid", "exact=true,false", "--list", capsys=capsys
    )
    published = RECIPES["failures-linear"].grids["published"]
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 2 * math.prod(map(len, published.values()))
    first = "_".join(f"{field}-{values[0]}" for field, values in published.items())
    assert lines[:2] == [f"0 {first}_exact-true_seed-0", f"1 {first}_exact-false_seed-0"]


def test_a_task_of_a_sweep_is_one_run_of_it(tmp_path, capsys):
    out = tmp_path / "sweep"
    words = [*SWEEP, "--grid", "depth=2,3", "--seeds", 2, "--out", out, "--quiet"]
    assert run(*words, "--task", 2, capsys=capsys)[::2] == (0, "")
    assert [path.name for path in out.iterdir()] == ["depth-3_seed-0"]
    assert read_run(out / "depth-3_seed-0").summary
    assert run(*words, "--task", 2, capsys=capsys)[0] == 0
    assert run(*words, capsys=capsys)[0] == 0  # the whole goes on from there
    assert all(read_run(path.parent).summary for path in out.glob("*/recipe.json"))
    assert len(list(out.glob("*/recipe.json"))) == 4


@pytest.mark.slow
def test_tasks_of_an_array_may_start_at_the_same_moment(tmp_path):
    out = tmp_path / "shared" / "sweep"
    children = [process(*SWEEP, "--seeds", 3, "--out", out, "--task", task) for task in (0, 1, 2, 2)]
    codes = [child.wait(120) for child in children]
    for child in children:
        child.communicate()
    assert codes[:2] == [0, 0]
    assert sorted(codes[2:]) in ([0, 0], [0, 5])  # the fourth is told that the third is at work, or finds it finished
    assert all(read_run(out / f"seed-{seed}").summary for seed in range(3))


def test_config_of_another_recipe_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{}")
    code, _, err = run("run", "--config", tmp_path / "recipe.json", capsys=capsys)
    assert (code, "'format' is missing" in err) == (2, True)
    assert run("run", "--config", tmp_path / "nothing.json", capsys=capsys)[0] == 5


def test_list_data_doctor_and_bench_say_what_is_there(capsys):
    _, out, _ = run("list", capsys=capsys)
    assert all(name in out and recipe.paper in out for name, recipe in RECIPES.items())
    _, out, _ = run("data", capsys=capsys)
    assert all(name in out for name in ("digits", "mnist", "fashion", "cifar10"))
    _, out, _ = run("doctor", capsys=capsys)
    for part in ("threads", "blas", "torch", "kernel failing_linear", "reference", "data mnist"):
        assert part in out
    assert run("--version", capsys=capsys)[1].strip() == "0.1.0"
    _, out, _ = run("bench", capsys=capsys)
    assert "trainer-epochs" in out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_finish_save_and_say_how_to_go_on(tmp_path, signum, code, capsys):
    path = tmp_path / "run"
    words = ["failures-classifier", "--epochs", 400, "--failure", 0.2, "--out", path]
    child = process("run", *words)
    deadline = time.monotonic() + 60
    while not (path / "metrics.jsonl").exists() or len((path / "metrics.jsonl").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signum)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert f"go on with: synaptome resume {path}" in err
    assert "Traceback" not in err
    assert not read_run(path).summary
    assert run("verify", path, capsys=capsys)[0] == 0


def test_workers_pass_an_interrupt_on(tmp_path, capsys):
    path = tmp_path / "runs"
    child = process(
        *("run", "failures-classifier", "--epochs", 400, "--failure", 0.2, "--seeds", 2, "--workers", 2, "--out", path),
        "--quiet",
    )
    deadline = time.monotonic() + 90
    while not all((path / f"seed-{seed}" / "metrics.jsonl").exists() for seed in (0, 1)):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 143
    for seed in (0, 1):
        assert not (path / f"seed-{seed}" / "lock").exists()
        assert run("verify", path / f"seed-{seed}", capsys=capsys)[0] == 0


def test_a_closed_pipe_is_no_traceback():
    with process("list") as child:
        child.stdout.close()
        told = child.stderr.read()
    assert "Traceback" not in told


def test_an_unwritable_folder_is_told(tmp_path, capsys):
    if os.geteuid() == 0:
        target = "/proc/nothing/run"  # root may write everywhere else
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "run"
    code, _, err = run("run", "failures-classifier", *QUICK, "--out", target, capsys=capsys)
    assert (code, err.count("\n")) == (5, 1)
