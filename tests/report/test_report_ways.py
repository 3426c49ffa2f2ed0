"""Ways to train side by side, from run folders made by hand."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from synaptome.errors import RunError
from synaptome.report.prediction import Prediction, costs_table, first_prediction
from synaptome.report.terminal import show
from synaptome.report.ways import FILE, columns, ways, ways_csv, ways_section, ways_table
from synaptome.report.writing import write_report
from synaptome.training.run import read_run

PARTS = {
    "forward": 1e-3,
    "backward": 2e-3,
    "update": 5e-4,
    "synthesis": 2.5e-4,
    "replay": 0.0,
    "transfer": 1.25e-4,
}
PREDICTION = {
    "speed": 1.8,
    "balance": [3, 1],
    "blocks": [PARTS, PARTS | {"synthesis": 0.0}],
    "proposed": [2, 2],
    "proposed_speed": 1.9,
}


@pytest.fixture
def measured(make_run):
    """A run of a way whose steps take `step_ms`, and whose accuracy is that of the row."""

    def make(way, step_ms, accuracies, seed=0, failure="", threads=1, **cost):
        rows = [
            {"step": 10 * k, "epoch": k, "training/seconds": 2.0 * k, "test/accuracy": accuracy}
            for k, accuracy in enumerate(accuracies)
        ]
        summary = {"test/accuracy": accuracies[-1], "training/step_ms": step_ms, "seconds": 99.0, "rule": way}
        run = make_run(f"{way}-{seed}", rows, None if failure else summary, {"method": way}, "decoupled", seed)
        document = json.loads((run.path / "recipe.json").read_text()) | {"threads": threads}
        (run.path / "recipe.json").write_text(json.dumps(document))
        content = {"way": way, "place": 0, "processes": 1, "threads": threads, "batch": 50, "accuracy": 0.9}
        content |= {"peak_mb": [400.0], "prediction": None, "exit_code": 0, "failure": failure} | cost
        (run.path / FILE).write_text(json.dumps(content))
        return read_run(run.path)

    return make


@pytest.fixture
def four(measured):
    blocks = {"place": 2, "processes": 2}
    return [
        measured("synthetic", 5.0, [0.1, 0.95, 0.96], prediction=PREDICTION, peak_mb=[500.0, 300.0], **blocks),
        measured(
            "synthetic",
            8.0,
            [0.1, 0.8, 0.88],
            seed=1,
            prediction=PREDICTION | {"speed": 1.6},
            peak_mb=[450.0, 350.0],
            **blocks,
        ),
        measured("backprop", 10.0, [0.1, 0.5, 0.95]),
        measured("backprop", 8.0, [0.1, 0.9, 0.99], seed=1),
        measured("ddp", 0.0, [0.1], failure="process 1 of 2 was ended by SIGKILL", place=4, exit_code=6, processes=2),
    ]


def test_the_table_is_what_the_runs_say(four):
    backprop, synthetic, ddp = ways(four)
    assert [way.name for way in (backprop, synthetic, ddp)] == ["backprop", "synthetic", "ddp"]
    assert backprop.step_ms.mean == 9.0
    assert backprop.per_second == pytest.approx(50 / 9e-3)
    assert backprop.reached == (4.0, 2.0)
    assert backprop.speed == 1.0
    assert synthetic.reached == (2.0, None)
    assert synthetic.speed == pytest.approx((10 / 5 + 8 / 8) / 2)  # seed by seed
    assert synthetic.predicted == pytest.approx(1.7)
    assert synthetic.peak_mb == (500.0, 350.0)
    assert ddp.failures == ("process 1 of 2 was ended by SIGKILL",)
    assert ddp.step_ms is ddp.speed is ddp.accuracy is None

    shown = columns([backprop, synthetic, ddp])
    assert shown["processes x threads"] == ["1 x 1", "2 x 1", "2 x 1"]
    assert shown["speed (predicted)"] == ["1.00", "1.50 (1.70)", "—"]
    assert shown["s to 90 %"] == ["3 ± 1.4", "2 (1 of 2)", "—"]
    assert shown["test accuracy"] == ["97.00 ± 2.83 %", "92.00 ± 5.66 %", "—"]
    assert shown["peak MB"] == ["400", "500 + 350", "—"]
    assert shown["n"] == ["2", "2", "0"]
    assert shown["failed"] == ["—", "—", "1"]


def test_an_accuracy_that_is_never_reached(measured):
    (way,) = ways([measured("backprop", 1.0, [0.1, 0.2])])
    assert columns([way])["s to 90 %"] == ["not reached"]
    assert "failed" not in columns([way])
    assert "speed" in columns([way])


def test_the_same_as_csv(four):
    rows = list(csv.DictReader(io.StringIO(ways_csv(ways(four)))))
    assert [row["way"] for row in rows] == ["backprop", "synthetic", "ddp"]
    assert rows[1] | {"step_ms_std": ""} == {
        "way": "synthetic", "processes": "2", "threads": "1", "step_ms": "6.5", "step_ms_std": "",
        "examples_per_second": "7692.31", "speed": "1.5", "predicted_speed": "1.7", "target_accuracy": "0.9",
        "seconds_to_accuracy": "2", "reached": "1", "test_accuracy": "0.92", "test_accuracy_std": "0.0565685",
        "runs": "2", "peak_mb_0": "500", "peak_mb_1": "350", "failure": "",
    }  # fmt: skip
    assert rows[0]["peak_mb_1"] == rows[2]["step_ms"] == ""
    assert rows[2]["failure"] == "process 1 of 2 was ended by SIGKILL"


def test_the_report_has_the_table_and_its_data(four, tmp_path, capsys):
    show(four, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Ways side by side</h2>" in page
    assert "ddp failed:</strong> process 1 of 2 was ended by SIGKILL" in page
    assert 'href="report-data/ways.csv"' in page
    assert (tmp_path / "report-data" / "ways.csv").read_text() == ways_csv(ways(four))
    assert "<h2>What the blocks cost</h2>" in page
    # Of seed 0, the first with a prediction.
    assert (
        "promise 1.80 times the steps of one process; 2.00 were measured. The balance 2 + 2 promises most: 1.90" in page
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report-data" / "blocks.csv").read_text())))
    assert rows[1] == {
        "block": "2", "layers": "1", "forward_ms": "1", "backward_ms": "2", "update_ms": "0.5", "synthesis_ms": "0",
        "replay_ms": "0", "transfer_ms": "0.125",
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "1.50 (1.70)" in told
    assert re.search(r"1 +3 +1.00 +2.00 +0.50 +0.25 +0.12 +3.88", told)
    assert "The balance 2 + 2 promises most: 1.90 times." in told


def test_the_best_balance_is_said_to_be_the_best():
    best = Prediction.of(PREDICTION | {"proposed": [3, 1], "proposed_speed": 1.8})
    assert best.said() == (
        "Blocks of 3 + 1 layers promise 1.80 times the steps of one process. No balance with a layer in each block "
        "promises clearly more."
    )


def test_the_tables_fit_a_terminal(four):
    console = Console(width=80)
    replayed = PREDICTION | {"blocks": [PARTS | {"replay": 0.1, "forward": 0.12}] * 2}
    with console.capture() as captured:
        console.print(costs_table(Prediction.of(replayed)))
    assert re.search(r"block +layers +forward +backward +update +synthesis +replay +transfer +total", captured.get())
    assert re.search(r"1 +3 +120.00 +2.00 +0.50 +0.25 +100.00 +0.12 +222.88", captured.get())
    with console.capture() as captured:
        console.print(ways_table(four))
    assert "500 +" in captured.get()
    assert "1.50 (1.70)" in captured.get()


def test_other_runs_have_no_such_table(finished, tmp_path):
    runs = [finished("plain")]
    assert ways(runs) == []
    assert ways_table(runs) is None
    assert first_prediction(runs) is None
    write_report(runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Ways side by side" not in page
    assert "What the blocks cost" not in page
    assert not (tmp_path / "report-data" / "ways.csv").exists()
    assert not (tmp_path / "report-data" / "blocks.csv").exists()


def test_what_is_damaged_is_named(four):
    (four[0].path / FILE).write_text("{")
    with pytest.raises(RunError, match=FILE):
        ways(four)


@pytest.mark.parametrize(
    "content",
    [{}, {"way": 3, "place": "x", "accuracy": "y", "peak_mb": ["a"], "prediction": [], "batch": None}],
    ids=str,
)
def test_what_a_run_should_not_say_is_not_known(four, content):
    (four[0].path / FILE).write_text(json.dumps(content))
    assert ways_csv(ways(four[:1]))
    assert ways_section(ways(four[:1]), "ways.csv")


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"speed": "fast"},
        {"speed": None},
        {"speed": float("nan")},
        {"balance": []},
        {"balance": [3, "1"]},
        {"balance": [3, -1]},
        {"balance": [3, 1, 1]},
        {"balance": [2.5, 1.5]},
        {"balance": [True, 3]},
        {"balance": [10**300, 1], "proposed": [10**300, 1]},
        {"proposed": [3, 2]},
        {"proposed": [2, 1, 1]},
        {"blocks": [PARTS, 7]},
        {"blocks": [PARTS, PARTS | {"update": -1.0}]},
        {"blocks": [PARTS, PARTS | {"update": 1e300}]},
        {"blocks": [PARTS, {name: value for name, value in PARTS.items() if name != "replay"}]},
        {"blocks": 3},
        {"proposed": "2 + 2"},
        {"proposed_speed": -1.0},
    ],
    ids=str,
)
def test_what_is_no_prediction_is_left_out(four, wrong, tmp_path):
    prediction = PREDICTION | wrong if wrong else wrong
    assert Prediction.of(prediction) is None
    for run in four:
        cost = json.loads((run.path / FILE).read_text()) | {"prediction": prediction}
        (run.path / FILE).write_text(json.dumps(cost))
    write_report(four, tmp_path / "report.html")
    assert "What the blocks cost" not in (tmp_path / "report.html").read_text()


def test_why_there_is_no_prediction_is_told(four, tmp_path):
    cost = json.loads((four[0].path / FILE).read_text()) | {"prediction": None, "prediction_failure": "no <room>"}
    (four[0].path / FILE).write_text(json.dumps(cost))
    write_report(four, tmp_path / "report.html")
    assert "<strong>No prediction:</strong> no &lt;room&gt;" in (tmp_path / "report.html").read_text()
