from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from synaptome.errors import ConfigurationError, RunError
from synaptome.report import write_report


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_page_and_its_data_are_written_side_by_side(tmp_path, finished):
    out = tmp_path / "new" / "folder"
    assert write_report([finished("a")], out / "demo.html") == out / "demo.html"
    assert files(out) == ["demo-data", "demo-data/accuracy.csv", "demo-data/loss.csv", "demo.html"]


def test_the_same_runs_give_the_same_bytes(tmp_path, finished):
    runs = [finished(f"r{seed}", seed) for seed in range(2)]
    first = write_report(runs, tmp_path / "x" / "report.html").read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):  # a user's own settings
        second = write_report(runs, tmp_path / "y" / "report.html").read_bytes()
        assert mpl.rcParams["font.size"] == 30
    assert first == second


def test_the_same_measures_give_the_same_bytes(tmp_path, learned):
    runs = [learned(f"r{failure}", failure=failure, steps=3)[0] for failure in (0.0, 0.5)]
    for name in ("x", "y"):
        write_report(runs, tmp_path / name / "report.html")
    assert files(tmp_path / "x") == files(tmp_path / "y")
    assert "report-data/overlap.csv" in files(tmp_path / "x")
    for name in files(tmp_path / "x"):
        if (tmp_path / "x" / name).is_file():
            assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_a_metric_called_like_a_figure_of_measures_keeps_its_own_file(tmp_path, make_run, write_measures):
    run = make_run("a", [{"step": 1, "train/norms": 7.0}])
    write_measures(run, "spectra", {"step": [0, 1], "layer1/norm": [1.0, 2.0]})
    write_report([run], tmp_path / "out" / "r.html")
    data = tmp_path / "out" / "r-data"
    assert (data / "norms.csv").read_text().splitlines()[1].split(",")[3] == "7.0"
    assert (data / "norms-2.csv").read_text().splitlines()[1:] == [
        "failing,,layer 1,0,1.0",
        "failing,,layer 1,1,2.0",
    ]
    assert "r-data/norms-2.csv" in (tmp_path / "out" / "r.html").read_text()


def test_writing_again_removes_data_that_are_no_longer_drawn(tmp_path, finished, make_run):
    out = tmp_path / "out"
    write_report([finished("a")], out / "report.html")
    (out / "report-data" / "notes.txt").write_text("mine")
    write_report([make_run("b", [{"step": 1, "train/loss": 1.0}])], out / "report.html")
    assert files(out) == ["report-data", "report-data/loss.csv", "report-data/notes.txt", "report.html"]


def test_metric_names_cannot_leave_the_folder(tmp_path, make_run):
    keys = ["train/../../evil", "train/Evil", "train/..", "train/a b", "train/a_b", "train/a?b"]
    write_report([make_run("a", [{"step": 1, **dict.fromkeys(keys, 1.0)}])], tmp_path / "out" / "r.html")
    assert files(tmp_path / "out") == [
        "r-data",
        "r-data/Evil-2.csv",
        "r-data/a-b-2.csv",
        "r-data/a-b.csv",
        "r-data/a_b.csv",
        "r-data/evil.csv",
        "r-data/metric.csv",
        "r.html",
    ]


def test_a_failed_write_leaves_the_earlier_report_and_no_partial_file(tmp_path, finished, monkeypatch):
    out = tmp_path / "out"
    runs = [finished("a")]
    write_report(runs[:1], out / "report.html")
    before = {name: (out / name).read_bytes() for name in files(out) if (out / name).is_file()}
    written = Path.write_bytes

    def full_disk(self, content):
        if self.name == "accuracy.csv":
            written(self, b"half")
            raise OSError(28, "No space left on device")
        return written(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(RunError, match=r"report\.html cannot be written: .*No space left"):
        write_report([*runs, finished("b", failure=0.5)], out / "report.html")
    assert {name: (out / name).read_bytes() for name in files(out) if (out / name).is_file()} == before


def test_a_destination_that_is_a_folder_is_a_run_error(tmp_path, finished):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(RunError, match="is a folder"):
        write_report([finished("a")], tmp_path / "out" / "report.html")
    assert files(tmp_path / "out") == ["report.html"]


def test_a_parent_that_is_a_file_is_a_run_error(tmp_path, finished):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report([finished("a")], tmp_path / "file" / "report.html")


def test_what_cannot_be_a_report_is_refused(tmp_path, finished):
    with pytest.raises(ConfigurationError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ConfigurationError, match=r"ending in \.html"):
        write_report([finished("a")], tmp_path / "report.pdf")


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, synaptome.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
