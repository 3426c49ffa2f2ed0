"""One process of a timed run: what it writes of itself, and what the cost model says before it."""

import json

from synaptome.learning.block_costs import measured_costs
from synaptome.recipes import timed_run
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings
from synaptome.training.run import read_run

TINY = {"data": "digits", "width": 16, "depth": 4, "epochs": 2}


def settings(method="synthetic", **fields):
    return RunSettings(Decoupled(**TINY | fields, method=method), 0, "cpu", 1)


def test_a_run_has_the_time_of_its_steps_and_is_otherwise_that_of_the_recipe(tmp_path, capsys):
    document = settings("backprop").document()
    assert timed_run.main([str(tmp_path / "run"), json.dumps(document), "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"peak_mb"}
    record = read_run(tmp_path / "run")
    assert record.recipe == document
    seconds = [row["training/seconds"] for row in record.metrics]
    assert seconds[0] == 0 < seconds[1] < seconds[2] < record.summary["seconds"]
    assert record.summary["training/step_ms"] > 0


def test_why_it_stopped_is_told(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    document = settings("backprop").document()
    assert timed_run.main([str(tmp_path / "run"), json.dumps(document), "--quiet"]) == 5
    assert "is not an empty folder" in json.loads(capsys.readouterr().out)["error"]


def test_the_prediction_is_that_of_the_cost_model(monkeypatch):
    seen = []

    def measured(rule, batch):
        seen.append((rule, batch))
        return measured_costs(rule, batch)

    monkeypatch.setattr(timed_run, "measured_costs", measured)
    assert 0 < timed_run.predicted(settings()) <= 2
    ((rule, batch),) = seen
    assert len(rule.learners) == 2
    assert len(batch.inputs) == 64
    assert timed_run.predicted(settings("backprop")) is None
