"""One process of a timed run: what it writes of itself, and what the cost model says before it."""

import json

from synaptome.recipes import timed_run
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings
from synaptome.report.prediction import Prediction
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


def test_what_the_cost_model_says_is_told(capsys):
    document = settings().document()
    assert timed_run.main([timed_run.PREDICT, json.dumps(document)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["peak_mb"] > 0
    prediction = told["prediction"]
    assert prediction["balance"] == [2, 2]
    assert sum(prediction["proposed"]) == 4
    assert prediction["speed"] > 0
    assert Prediction.of(prediction) is not None
