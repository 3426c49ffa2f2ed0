"""Blocks in processes of their own on microbatches, against backpropagation of the whole network."""

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
from synaptome.learning.parallel.orders import serve
from synaptome.learning.parallel.pipeline import Pipeline, parted
from synaptome.learning.parallel.pipeline import joined as joined_optimizers
from synaptome.learning.parallel.pipeline_block import Microbatches, PipelineBlock, trained
from synaptome.networks.partition import border_shapes, split
from synaptome.networks.stable import StableNetwork

WIDTH, CLASSES, SIZE = 6, 3, 10  # not divisible by 4 microbatches
SIZES = (10, 10, 7, 3, 1, 10)
CASES = [("gpipe", 4, "adam"), ("1f1b", 4, "adam"), ("1f1b", 5, "sgd"), ("gpipe", 1, "summed")]
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "summed": lambda p: torch.optim.SGD(p, lr=0.01),
}


def batch(number, size=SIZE):
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(inputs, inputs[:, :CLASSES].argmax(1))


def parts(count):
    """Blocks, the last one the classifier alone, and the shapes of what goes in and comes out."""
    torch.manual_seed(0)
    network = StableNetwork(WIDTH, CLASSES, dynamics="verlet", width=WIDTH, depth=4, time=4.0)
    blocks = split(network, {2: (4, 0), 3: (2, 1, 1)}[count])
    shapes = [(WIDTH,), *border_shapes(blocks, (WIDTH,)), (CLASSES,)]
    return blocks.double(), shapes


def schedule(optimizer):
    return ExponentialLR(optimizer, 0.9)


def loss_of(kind):
    return "summed-squared-error" if kind == "summed" else "cross-entropy"


def backprop(count, kind):
    model = nn.Sequential(*parts(count)[0])
    optimizer = OPTIMIZERS[kind](trained(model))
    return Backprop(model, optimizer, loss_of(kind), schedule(optimizer))


def block(count, order, microbatches, kind, seconds=SECONDS):
    blocks, shapes = parts(count)
    how = Microbatches(order, microbatches, SIZE)
    return PipelineBlock(
        blocks, OPTIMIZERS[kind], shapes, how, seconds, loss=loss_of(kind), scheduler=schedule
    )  # fmt: skip


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def the_whole_network(rank, count, port, cases):
    joined(rank, count, port)
    for case in cases:
        own = block(count, *case)
        if rank:
            serve(own, SIZE, SECONDS)
            continue
        rule, oracle = Pipeline(own), backprop(count, case[-1])
        for number, size in enumerate(SIZES):
            told, expected = rule.step(batch(number, size)), oracle.step(batch(number, size))
            assert told == pytest.approx(expected, rel=1e-9), (case, size)
            torch.testing.assert_close(gradients(own.model), gradients(oracle.model[0]), rtol=1e-7, atol=1e-12)
        assert rule.evaluate(batch(9)) == pytest.approx(oracle.evaluate(batch(9)), rel=1e-9)
        same_form(rule.state_dict(), oracle.state_dict())

        saved = copy.deepcopy(rule.state_dict())
        after = [rule.step(batch(number)) for number in range(10, 13)]
        rule.load_state_dict(copy.deepcopy(saved))
        assert rule.evaluate(batch(9)) == pytest.approx(oracle.evaluate(batch(9)), rel=1e-9)
        assert [rule.step(batch(number)) for number in range(10, 13)] == after, case
        alone = backprop(count, case[-1])
        alone.load_state_dict(saved)
        for number in range(10, 13):
            assert alone.step(batch(number)) == pytest.approx(after[number - 10], rel=1e-9), case
        same_form(rule.state_dict(), alone.state_dict())
        rule.load_state_dict(copy.deepcopy(alone.state_dict()))  # and back
        assert rule.step(batch(14)) == pytest.approx(alone.step(batch(14)), rel=1e-9)
        rule.close()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("count", "cases"),
    [(2, CASES[1:2]), pytest.param(2, CASES, marks=pytest.mark.slow), pytest.param(3, CASES, marks=pytest.mark.slow)],
    ids=["fast", "2", "3"],
)
def test_microbatches_give_the_gradients_of_the_whole_batch(count, cases):
    ran(the_whole_network, count, cases)


def not_finite(rank, count, port):
    joined(rank, count, port)
    own = block(count, "1f1b", 4, "adam")
    if rank:
        serve(own, SIZE, SECONDS)
    else:
        rule, oracle = Pipeline(own), backprop(count, "adam")
        bad = batch(1)
        bad.inputs[-1, 0] = torch.nan
        before = copy.deepcopy(rule.state_dict())
        with pytest.raises(NumericError, match="the loss is nan"):
            rule.step(bad)
        same_form(rule.state_dict(), before)
        for number in range(3):
            assert rule.step(batch(number)) == pytest.approx(oracle.step(batch(number)), rel=1e-9)
        rule.close()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_changes_nothing_anywhere():
    ran(not_finite, 3)


def loss(rank, count, port, victim, signum, seconds):
    joined(rank, count, port, seconds)
    own = block(count, "1f1b", 4, "adam", seconds)
    if rank == victim:
        own.learn = struck(own.learn, signum)

    def work():
        if rank:
            serve(own, SIZE, seconds)
        else:
            rule = Pipeline(own)
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


def refused(rank, count, port):
    joined(rank, count, port)
    blocks, shapes = parts(count)
    how = Microbatches("gpipe", 4, SIZE)
    with pytest.raises(ConfigurationError, match="at least as many microbatches as there are blocks; given 1"):
        PipelineBlock(blocks, OPTIMIZERS["sgd"], shapes, Microbatches("1f1b", 1, SIZE), SECONDS)
    with pytest.raises(ConfigurationError, match=r"2 blocks have 3 shapes.*given 2"):
        PipelineBlock(blocks, OPTIMIZERS["sgd"], shapes[1:], how, SECONDS)
    with pytest.raises(ConfigurationError, match="LBFGS with 1 groups: choose SGD or Adam"):
        PipelineBlock(blocks, torch.optim.LBFGS, shapes, how, SECONDS)
    with pytest.raises(ConfigurationError, match="as many as there are blocks"):
        PipelineBlock(parts(3)[0], OPTIMIZERS["sgd"], shapes, how, SECONDS)
    with pytest.raises(ConfigurationError, match="timeout is a finite number of seconds above 0; given 0"):
        PipelineBlock(blocks, OPTIMIZERS["sgd"], shapes, how, 0)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_what_does_not_fit_is_refused():
    ran(refused, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("gpip", 4, 8), "unknown order of a pipeline 'gpip'.*'gpipe'"),
        (("gpipe", 0, 8), "whole numbers of at least 1; given 0 and 8"),
        (("gpipe", 4, 0), "whole numbers of at least 1; given 4 and 0"),
    ],
)
def test_microbatches_are_checked(given, message):
    with pytest.raises(ConfigurationError, match=message):
        Microbatches(*given)


def test_the_state_of_one_optimizer_is_parted_and_joined():
    torch.manual_seed(0)
    blocks = [nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)]
    model = nn.Sequential(*blocks)
    whole = torch.optim.Adam(model.parameters(), lr=0.01)
    whole.step()  # without gradients there is no state yet
    assert joined_optimizers(parted(whole.state_dict(), [2, 1, 2])) == whole.state_dict()
    model(torch.randn(4, 2)).square().mean().backward()
    whole.step()
    parts = parted(whole.state_dict(), [2, 1, 2])
    same_form(joined_optimizers(parts), whole.state_dict())
    for own, state in zip(blocks, parts, strict=True):  # as that optimizer itself would have it
        alone = torch.optim.Adam(own.parameters(), lr=0.5)
        alone.load_state_dict(state)
        assert alone.param_groups[0]["lr"] == 0.01
        for parameter in own.parameters():
            assert torch.equal(alone.state[parameter]["exp_avg"], whole.state[parameter]["exp_avg"])
