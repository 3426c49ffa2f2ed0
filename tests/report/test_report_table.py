from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from synaptome.report import Statistic, group_runs, summary_rows, summary_table
from synaptome.report.table import columns
from synaptome.training.run import read_run


def done(accuracy: float | None = None, loss: float | None = None, **more: object) -> dict[str, object]:
    measured = {"test/accuracy": accuracy, "test/loss": loss}
    named = {"synapse": "dense", "rule": "backprop", "parameters": 10, "active_synapses": 8, "seconds": 2.0}
    return named | {key: value for key, value in measured.items() if value is not None} | more


def labels(*runs):
    return [group.label for group in group_runs(runs)]


def test_runs_that_differ_only_in_seed_are_one_group(make_run):
    runs = [make_run(f"r{seed}", seed=seed, options={"depth": 3}) for seed in range(3)]
    (group,) = group_runs(runs)
    assert group.runs == tuple(runs)
    assert group.label == "failing"


def test_a_label_holds_what_differs_and_nothing_else(make_run):
    assert labels(
        make_run("a", options={"depth": 2, "failure": 0.0, "data": "mnist"}),
        make_run("b", options={"depth": 3, "failure": 0.0, "data": "mnist"}),
        make_run("c", options={"depth": 3, "failure": 0.5, "data": "mnist"}),
    ) == ["depth=2, failure=0.0", "depth=3, failure=0.0", "depth=3, failure=0.5"]


def test_nested_options_have_dotted_names(make_run):
    runs = [make_run(name, options={"optimizer": {"name": "sgd", "lr": lr}}) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert labels(*runs) == ["optimizer.lr=0.1", "optimizer.lr=0.2"]


def test_recipes_and_devices_are_named_when_there_are_several(make_run):
    assert labels(
        make_run("a", recipe="failing", options={"failure": 0.1}),
        make_run("b", recipe="failing", options={"failure": 0.2}),
        make_run("c", recipe="semantic", options={"lr": 0.2}),
    ) == ["failing failure=0.1", "failing failure=0.2", "semantic"]
    assert labels(make_run("d"), make_run("e", device="cuda")) == ["device=cpu", "device=cuda"]


def test_labels_are_distinct_even_where_values_read_the_same(make_run):
    assert labels(make_run("a", options={"depth": 1}), make_run("b", options={"depth": "1"})) == [
        "failing",
        "failing (2)",
    ]
    assert labels(make_run("c", options={}), make_run("d", options={"depth": 2})) == ["failing", "depth=2"]


def test_a_folder_given_twice_counts_once(make_run):
    run = make_run("a", summary=done(0.9))
    (row,) = summary_rows([run, run])
    assert row.n == 1


def test_mean_and_sample_standard_deviation(make_run):
    # Deviations from the mean 0.93 are -0.03, 0, 0.03: variance (0.0009 + 0 + 0.0009) / 2.
    runs = [make_run(f"r{seed}", summary=done(value), seed=seed) for seed, value in enumerate([0.90, 0.93, 0.96])]
    (row,) = summary_rows(runs)
    assert row.metric == "test/accuracy"
    assert (row.score.mean, row.score.std, row.score.n) == (pytest.approx(0.93), pytest.approx(0.03), 3)
    assert row.parameters == Statistic(10.0, 0.0, 3, 10, 10)
    assert columns([row])["test accuracy"] == ["93.00 ± 3.00 %"]
    assert columns([row])["n"] == ["3"]
    assert columns([row])["parameters"] == ["10"]


def test_a_single_run_has_no_spread(make_run):
    shown = columns(summary_rows([make_run("a", summary=done(0.975, parameters=1234567))]))
    assert shown["test accuracy"] == ["97.50 %"]
    assert shown["parameters"] == ["1,234,567"]
    assert "n" not in shown
    assert "runs" not in shown


def test_the_loss_stands_in_where_there_is_no_accuracy(make_run):
    regression = make_run("a", summary=done(loss=0.012345), options={"x": 1})
    assert columns(summary_rows([regression]))["test loss"] == ["0.01235"]
    classifier = make_run("b", summary=done(0.5, loss=1.0), options={"x": 2})
    shown = columns(summary_rows([regression, classifier]))
    assert shown["test result"] == ["0.01235 (test/loss)", "50.00 % (test/accuracy)"]


def test_unfinished_runs_are_in_no_statistic_and_are_counted(make_run):
    runs = [make_run("a", summary=done(0.9)), make_run("b", summary=done(0.7), seed=1), make_run("c", seed=2)]
    (row,) = summary_rows(runs)
    assert (row.n, row.unfinished, row.score.n) == (2, 1, 2)
    assert columns([row])["unfinished"] == ["1 of 3"]
    (alone,) = summary_rows(runs[2:])
    assert (alone.score, alone.synapse, alone.n) == (None, "—", 0)


def test_products_have_a_column_of_bytes(make_run):
    def compact(size, **more):
        return done(0.9, products={"compact.safetensors": {"bytes": size, "sha256": "0"}, **more})

    runs = [
        make_run("a", summary=compact(34000), options={"x": 1}),
        make_run("b", summary=compact(34002), options={"x": 1}, seed=1),
        make_run("c", summary=done(0.8), options={"x": 2}),
    ]
    shown = columns(summary_rows(runs))
    assert shown["compact bytes"] == ["34,001 ± 1", "—"]
    assert list(shown).index("active synapses") < list(shown).index("compact bytes") < list(shown).index("seconds")
    assert "compact bytes" not in columns(summary_rows(runs[2:]))
    assert "compact bytes" not in columns(summary_rows(runs), products=False)
    twins = make_run("d", summary=compact(1, **{"compact.bin": {"bytes": 2}}))
    assert {"compact.safetensors bytes", "compact.bin bytes"} <= set(columns(summary_rows([twins])))


@pytest.mark.parametrize("products", [[1], {"a.b": 3}, {"a.b": {"bytes": "3"}}, {"a.b": {}}])
def test_products_that_say_no_size_have_none(make_run, products):
    shown = columns(summary_rows([make_run("a", summary=done(0.9, products=products))]))
    assert not [heading for heading in shown if heading.endswith("bytes")]


def test_values_that_are_no_numbers_are_left_out(make_run):
    runs = [
        make_run("a", summary=done(0.9)),
        make_run("b", summary=done(seconds="long") | {"test/accuracy": None}, seed=1),
    ]
    (row,) = summary_rows(runs)
    assert row.score == Statistic(0.9, None, 1, 0.9, 0.9)
    assert columns([row])["test accuracy"] == ["90.00 % (n = 1)"]
    assert row.seconds.n == 1


def test_the_terminal_table_shows_markup_and_escapes_literally(make_run):
    runs = [make_run("a", summary=done(0.9, synapse="[red]x\x1b[2J")), make_run("b", options={"y": "[/]"})]
    out = io.StringIO()
    Console(file=out, width=200).print(summary_table(runs))
    assert "[red]x\ufffd[2J" in out.getvalue()
    assert "y=[/]" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def with_threads(run, threads):
    (run.path / "recipe.json").write_text(json.dumps(run.recipe | {"threads": threads}))
    return read_run(run.path)


def test_runs_of_one_seed_with_other_threads_are_groups_of_their_own(make_run):
    runs = [with_threads(make_run(f"{seed}-{threads}", seed=seed), threads) for threads in (1, 2) for seed in (0, 1)]
    assert [(group.label, len(group.runs)) for group in group_runs(runs)] == [("threads=1", 2), ("threads=2", 2)]
    repetitions = [runs[0], runs[3]]  # of other seeds
    assert [len(group.runs) for group in group_runs(repetitions)] == [2]
