"""A batch shared out among processes against the whole batch in one."""

import copy

import pytest
import torch
from tests.learning.parallel.processes import (
    LOSSES,
    SECONDS,
    bereaved,
    joined,
    ran,
    same_form,
    struck,
    survivors_end_in_time,
)
from torch import distributed, nn
from torch.optim.lr_scheduler import ExponentialLR

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.parallel.data_parallel import DataParallel, Replica, counted, rows_of
from synaptome.learning.parallel.orders import serve

WIDTH, CLASSES, SIZE = 6, 3, 8
SIZES = (8, 8, 5, 7, 2, 1)  # the last one is smaller than there are processes


def batch(number, size=SIZE):
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(inputs, inputs[:, :CLASSES].argmax(1))


def shrinkage(model):
    return 0.01 * sum(parameter.square().sum() for parameter in model.parameters())


KINDS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {}),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), {"penalty": shrinkage}),
    "summed": (lambda p: torch.optim.SGD(p, lr=0.01), {"loss": "summed-squared-error"}),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"), {}),
}


def made(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    optimizer, options = KINDS[kind]
    optimizer = optimizer(model.parameters())
    return Backprop(model, optimizer, scheduler=ExponentialLR(optimizer, 0.9), **options)


def gradients(rule):
    return [parameter.grad for parameter in rule.model.parameters()]


def the_whole_batch(rank, count, port, kinds):
    joined(rank, count, port)
    for kind in kinds:
        replica = Replica(made(kind), (WIDTH,), SECONDS)
        if rank:
            serve(replica, SIZE, SECONDS)
            continue
        rule, oracle = DataParallel(replica, SIZE), made(kind)
        for number, size in enumerate(SIZES):
            told, expected = rule.step(batch(number, size)), oracle.step(batch(number, size))
            assert told == pytest.approx(expected, rel=1e-9), (kind, size)
            torch.testing.assert_close(gradients(replica), gradients(oracle), rtol=1e-7, atol=1e-12)
        same_form(rule.state_dict(), oracle.state_dict())
        assert rule.evaluate(batch(9)) == pytest.approx(oracle.evaluate(batch(9)), rel=1e-9)

        saved = copy.deepcopy(rule.state_dict())
        after = [rule.step(batch(number)) for number in range(10, 13)]
        rule.load_state_dict(copy.deepcopy(saved))
        assert [rule.step(batch(number)) for number in range(10, 13)] == after, kind
        alone = made(kind)
        alone.load_state_dict(saved)
        for number in range(10, 13):
            assert alone.step(batch(number)) == pytest.approx(after[number - 10], rel=1e-9), kind
        same_form(rule.state_dict(), alone.state_dict())
        rule.load_state_dict(copy.deepcopy(alone.state_dict()))  # and back
        assert rule.step(batch(14)) == pytest.approx(alone.step(batch(14)), rel=1e-9)
        rule.close()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("count", "kinds"),
    [(2, ["sgd"]), pytest.param(2, ["adam", "summed", "lbfgs"], marks=pytest.mark.slow),
     pytest.param(3, list(KINDS), marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
def test_shares_give_the_gradients_of_the_whole_batch(count, kinds):
    ran(the_whole_batch, count, kinds)


def not_finite(rank, count, port):
    joined(rank, count, port)
    replica = Replica(made("sgd"), (WIDTH,), SECONDS)
    if rank:
        serve(replica, SIZE, SECONDS)
    else:
        rule, oracle = DataParallel(replica, SIZE), made("sgd")
        bad = batch(1)
        bad.inputs[-1, 0] = torch.nan  # in the share of the last process
        before = copy.deepcopy(rule.state_dict())
        with pytest.raises(NumericError, match="the loss is nan"):
            rule.step(bad)
        same_form(rule.state_dict(), before)
        for number in range(3):
            assert rule.step(batch(number)) == pytest.approx(oracle.step(batch(number)), rel=1e-9)
        for wrong in (torch.zeros(SIZE + 1, dtype=torch.int64), torch.zeros(SIZE), torch.zeros(0, dtype=torch.int64)):
            with pytest.raises(ConfigurationError, match="learn classes, int64, from 1 to 8 a step; given"):
                rule.step(Batch(torch.zeros(len(wrong), WIDTH, dtype=torch.float64), wrong))
        rule.close()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_changes_nothing_anywhere():
    ran(not_finite, 2)


def loss(rank, count, port, victim, signum, seconds):
    joined(rank, count, port, seconds)
    replica = Replica(made("sgd"), (WIDTH,), seconds)
    if rank == victim:
        replica.learn = struck(replica.learn, signum)

    def work():
        if rank:
            serve(replica, SIZE, seconds)
        else:
            rule = DataParallel(replica, SIZE)
            for number in range(100):
                rule.step(batch(number))

    bereaved(work, seconds)


FAST = (1, LOSSES[0])


@pytest.mark.parametrize(
    ("victim", "signum"),
    [
        pytest.param(victim, signum, marks=[] if (victim, signum) == FAST else [pytest.mark.slow])
        for victim in range(3)
        for signum in LOSSES
    ],
)
def test_a_lost_process_ends_the_others_in_time(victim, signum):
    survivors_end_in_time(loss, 3, victim, signum, 10.0)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_row_counts_once(processes):
    for examples in range(1, 12):
        rows = []
        for rank in range(processes):
            share = range(examples)[rows_of(examples, rank, processes)]
            assert len(share) >= 1
            rows += share[: counted(examples, rank, processes)]
        assert rows == list(range(examples))


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(ConfigurationError, match="start them with torchrun"):
        Replica(made("sgd"), (WIDTH,), SECONDS)
