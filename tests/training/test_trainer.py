"""The trainer: rows, order, callbacks, stopping, and resuming to the same bits."""

import copy
import math
import os
import re
import signal
from collections import Counter

import pytest
import torch

import synaptome as syn
from synaptome.data import Dataset, Split, epoch_order
from synaptome.data.augmentation import augment, augmented
from synaptome.errors import ConfigurationError, Interrupted, NumericError
from synaptome.learning.backprop import Backprop
from synaptome.networks.feedforward import FeedForward
from synaptome.training.callbacks import Callback, each_epoch, each_steps, log_spaced
from synaptome.training.progress import Live, Plain, Quiet, describe
from synaptome.training.seeding import random_state, restore_random_state, seed_everything
from synaptome.training.trainer import Trainer


def split(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return Split(x, x[:, :3].argmax(1))


DATA = Dataset("made", split(50, 1), split(13, 2), split(17, 3), classes=("a", "b", "c"))


def trainer(data=DATA, rate=0.1, **options):
    seed_everything(5)
    network = FeedForward([6, 8, 3], wiring=syn.Failing(0.3))
    rule = Backprop(network, torch.optim.Adam(network.parameters(), rate))
    return Trainer(rule, data, **{"epochs": 3, "batch": 8, "seed": 5, "evaluation_batch": 5, **options})


class Memory:
    """A store that keeps everything."""

    def __init__(self):
        self.rows, self.states = [], {}

    def append(self, row):
        self.rows.append(row)

    def save(self, step, state):
        self.states[step] = copy.deepcopy(state)


def timeless(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_rows_hold_means_over_whole_splits():
    t = trainer()
    seen = Counter()
    step, losses = t.rule.step, []

    def watched(batch):
        seen.update(map(tuple, batch.inputs.tolist()))
        report = step(batch)
        losses.append((report["loss"], len(batch.targets)))
        return report

    t.rule.step = watched
    last = t.fit()
    assert [(row["step"], row["epoch"]) for row in t.rows] == [(0, 0), (7, 1), (14, 2), (21, 3)]
    assert set(seen.values()) == {3}  # every example once an epoch
    assert len(seen) == 50
    assert "train/loss" not in t.rows[0]
    for epoch, row in enumerate(t.rows[1:]):
        part = losses[7 * epoch : 7 * epoch + 7]
        assert row["train/loss"] == pytest.approx(sum(loss * n for loss, n in part) / 50)
    whole = t.rule.evaluate(DATA.test[:])
    assert last["test/accuracy"] == pytest.approx(whole["accuracy"])
    assert last["test/loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert last["test/loss"] < t.rows[0]["test/loss"]


def test_order_is_a_permutation_that_seed_and_epoch_decide():
    orders = [tuple(epoch_order(20, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 4
    assert orders[3] == tuple(epoch_order(20, 1, 1).tolist())


def test_callbacks_come_when_they_should():
    told = {}

    def record(name):
        def action(t):
            told.setdefault(name, []).append(t.step)
            return {f"measure/{name}": float(t.step)}

        return action

    whens = {"epochs": each_epoch(2), "steps": each_steps(5), "log": log_spaced(2)}
    t = trainer(callbacks=[Callback(when, record(name)) for name, when in whens.items()], evaluate=each_epoch())
    t.fit()
    assert told["epochs"] == [0, 14, 21]
    assert told["steps"] == [0, 5, 10, 15, 20, 21]
    assert told["log"] == [0, 1, 4, 10, 21]  # the half decades 1, 3.16, 10 and the last step
    row = next(row for row in t.rows if row["step"] == 5)
    assert row["measure/steps"] == 5.0
    assert "test/loss" not in row


@pytest.mark.parametrize("make", [each_epoch, each_steps, log_spaced])
def test_intervals_are_at_least_one(make):
    with pytest.raises(ConfigurationError, match="at least 1; given 0"):
        make(0)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch": 0}, {"checkpoint_seconds": math.nan}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError, match=r"at least [01]"):
        trainer(**options)


def test_evaluating_more_often_changes_no_weight():
    often, seldom = trainer(evaluate=each_steps(1)), trainer()
    often.fit()
    seldom.fit()
    for mine, theirs in zip(often.rule.model.parameters(), seldom.rule.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_going_on_from_any_step_gives_the_same_bits():
    store = Memory()
    whole = trainer(store=store, checkpoint_seconds=0.0)
    last = whole.fit()
    assert sorted(store.states) == list(range(22))
    for step in (0, 1, 6, 7, 8, 20, 21):
        again = trainer()
        torch.randn(step)  # whatever the generators did meanwhile
        again.load_state_dict(store.states[step])
        assert timeless([again.fit()]) == timeless([last])
        assert timeless(again.rows) == timeless(whole.rows)[-len(again.rows) :]
        for mine, theirs in zip(
            again.rule.model.state_dict().values(), whole.rule.model.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, theirs)


def images():
    """20 images of 5 x 4 in place of the training examples."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(20, 1, 5, 4, generator=generator)
    parts = [Split(x[:, :, :3, :2].flatten(1), torch.arange(20) % 3) for _ in range(2)]
    return augmented(Dataset("made", Split(x, torch.arange(20) % 3), *parts, classes=("a", "b", "c")), padding=2)


def test_each_step_learns_from_images_of_its_own():
    data = images()
    t = trainer(data=data)
    seen = []

    def watched(batch):
        seen.append(batch)
        return {"loss": 0.0}

    t.rule.step = watched
    t.fit()
    assert len(seen) == 9
    for step, batch in enumerate(seen):
        epoch, position = divmod(step, 3)
        index = epoch_order(20, 5, epoch)[8 * position : 8 * position + 8]
        assert torch.equal(batch.inputs, augment(data.train.inputs[index], 5, step, padding=2))
        assert torch.equal(batch.targets, data.train.targets[index])


def test_going_on_from_any_step_sees_the_same_images():
    def made(**options):
        seed_everything(5)
        data = images()
        network = FeedForward([20, 8, 3], wiring=syn.Failing(0.3))
        flat = Split(data.train.inputs[:7], data.train.targets[:7])
        rule = Backprop(network, torch.optim.Adam(network.parameters(), 0.1))
        data = Dataset("made", data.train, None, flat, data.classes)
        return Trainer(rule, data, epochs=3, batch=8, seed=5, **options)

    store = Memory()
    whole = made(store=store, checkpoint_seconds=0.0)
    last = whole.fit()
    for step in (0, 1, 3, 8):
        again = made()
        torch.randn(step)
        again.load_state_dict(store.states[step])
        assert timeless([again.fit()]) == timeless([last])
        for mine, theirs in zip(again.rule.model.parameters(), whole.rule.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    plain = made()
    plain.data = Dataset("made", Split(*plain.data.train[:]), None, plain.data.test, plain.data.classes)
    assert plain.fit()["test/loss"] != last["test/loss"]  # what is drawn does matter


def test_a_signal_ends_after_the_step_and_saves():
    store = Memory()
    t = trainer(store=store)
    step = t.rule.step

    def interrupted(batch):
        if t.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    t.rule.step = interrupted
    with pytest.raises(Interrupted, match=r"stopped after step 10 of 21, saved \(SIGTERM\)") as stopped:
        t.fit()
    assert stopped.value.exit_code == 143
    assert sorted(store.states) == [0, 10]
    again = trainer()
    again.load_state_dict(store.states[10])
    assert timeless([again.fit()]) == timeless([trainer().fit()])


def test_a_second_interrupt_stops_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    t = trainer()

    def impatient(batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 0.0}

    t.rule.step = impatient
    with pytest.raises(KeyboardInterrupt):
        t.fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_stops_within_one_step():
    store = Memory()
    inputs = DATA.train.inputs.clone()
    position = epoch_order(50, 5, 0).tolist().index(30)  # example 30 is in the step position // 8 + 1
    inputs[30] = math.nan
    t = trainer(
        data=Dataset("made", Split(inputs, DATA.train.targets), None, DATA.test, DATA.classes),
        store=store,
        checkpoint_seconds=0.0,
    )
    step = position // 8 + 1
    with pytest.raises(
        NumericError, match=rf"step {step}: the loss is nan; .* is in the inputs.*step {step - 1} is kept"
    ):
        t.fit()
    assert max(store.states) == step - 1


def test_a_test_loss_that_is_not_finite_stops():
    bad = Split(torch.full((3, 6), math.nan), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(
        NumericError, match=r"after step 0: test/loss is nan; .* in the inputs of the batch; nothing is saved"
    ):
        trainer(data=Dataset("made", DATA.train, None, bad, DATA.classes)).fit()


def test_random_state_comes_back():
    import random

    import numpy as np

    seed_everything(3)
    state = random_state()
    draw = lambda: (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())  # noqa: E731
    first = draw()
    assert draw() != first
    restore_random_state(state)
    assert draw() == first


def test_progress_views_say_what_happens(capsys):
    from rich.console import Console

    plain = Plain(interval=0)
    trainer(progress=plain, label="run").fit()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("run: epoch 0, validation/loss")
    assert "train/accuracy" in lines[-1]
    assert "left" in lines[-1]
    trainer(progress=Live(Console(stderr=True, force_terminal=True, width=200)), label="run").fit()
    told = capsys.readouterr().err
    for part in ("run", "100 %", "epoch 3, accuracy", "loss", "steps/s", "left"):
        assert part in told
    trainer(progress=Live(Console(stderr=True, force_terminal=True, width=80)), label="run").fit()
    last = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).strip())[-1]
    assert "…" not in last  # nothing cut off on a narrow terminal
    assert "steps/s" in last
    trainer(progress=Quiet()).fit()
    assert capsys.readouterr().err == ""
    assert describe({"epoch": 2, "test/accuracy": 0.5, "test/loss": 1}) == "epoch 2, test/accuracy 50.00 %, test/loss 1"
