"""Blocks in processes of their own against the same blocks in one process."""

import copy
import os
import signal
import time
from functools import partial

import pytest
import torch
from tests.learning.parallel.processes import SECONDS, free_port, joined, ran, survivors_end_in_time
from torch import distributed

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError, WorkerLostError
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.parallel.blocks import BlockProcesses
from synaptome.learning.parallel.service import serve
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import border_shapes, split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import InputSynthesiser, Synthesiser

WIDTH, CLASSES, SIZE = 6, 3, 8
HOWS = (
    {},
    {"delay": 0},
    {"delay": 2},
    {"true_share": 1.0, "delay": 0},
    {"true_share": 1.0, "delay": 1},
    {"true_share": 0.5, "delay": 1},
    {"warmup": 3},
    {"warmup": 3, "true_share": 1.0, "delay": 2},
    {"inputs": True, "delay": 0},
    {"inputs": True, "delay": 2, "warmup": 3},
    {"inputs": True, "true_share": 0.5},
)


def batch(number, size=SIZE):
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(size, WIDTH, generator=generator)
    return Batch(inputs, inputs[:, :CLASSES].argmax(1))


def made(blocks, how, dtype=torch.float32):
    """The rule, and the shapes between its blocks; the last block of two is the classifier alone."""
    balance = {2: (4, 0), 3: (2, 1, 1)}[blocks]
    torch.manual_seed(0)
    network = StableNetwork(WIDTH, CLASSES, dynamics="verlet", width=WIDTH, depth=4, time=4.0)
    parts = split(network, balance)
    shapes = border_shapes(parts, (WIDTH,))
    synthesisers = [Synthesiser(shape, CLASSES).to(dtype) for shape in shapes]
    how = dict(how)
    guessers = [InputSynthesiser((WIDTH,), shape).to(dtype) for shape in shapes] if how.pop("inputs", False) else None
    parts.to(dtype)
    rule = SyntheticGradients(
        parts,
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        synthesisers,
        inputs=guessers,
        how=Decoupling(**how),
    )
    return rule, shapes


def same_bits(rank, blocks, port, ports):
    unbound(rank, blocks, port)
    for how, own in zip(HOWS, ports, strict=True):
        joined(rank, blocks, own)
        dtype = torch.float64 if how == {"delay": 2} else torch.float32
        rule, shapes = made(blocks, how, dtype)
        if rank:
            serve(rule, shapes, SIZE, SECONDS, inputs=(WIDTH,))
            distributed.destroy_process_group()
            continue
        oracle, _ = made(blocks, how, dtype)
        batches = [batch(number, 8 if number % 4 else 5) for number in range(15)]
        batches = [given._replace(inputs=given.inputs.to(dtype)) for given in batches]
        elsewhere = BlockProcesses(rule, SIZE, SECONDS)
        losses = [oracle.step(given)["loss"] for given in batches[:9]]
        told = [elsewhere.step(given)["loss"] for given in batches[:9]]
        lag = (blocks - 1) * (max(1, how.get("delay", 1)) + 1) - 1
        assert told == [losses[max(0, number - lag)] for number in range(9)], how
        assert elsewhere.evaluate(batches[14]) == oracle.evaluate(batches[14]), how
        saved = copy.deepcopy(elsewhere.state_dict())
        same(saved["blocks"], oracle.state_dict()["blocks"])
        after = [elsewhere.step(given) for given in batches[9:14]]
        for given in batches[9:14]:
            oracle.step(given)
        same(elsewhere.state_dict()["blocks"], oracle.state_dict()["blocks"])
        elsewhere.load_state_dict(saved)
        again = [elsewhere.step(given) for given in batches[9:14]]
        assert [report["loss"] for report in again] == [report["loss"] for report in after], how
        same(elsewhere.state_dict()["blocks"], oracle.state_dict()["blocks"])
        elsewhere.close()
        distributed.destroy_process_group()


def unbound(rank, blocks, port):
    """Blocks that run freely: nothing is lost of what they send, whatever the timing."""
    joined(rank, blocks, port)
    how = {"free": True, "delay": 3, "inputs": True}
    rule, shapes = made(blocks, how)
    if rank:
        serve(rule, shapes, SIZE, SECONDS, inputs=(WIDTH,))
    else:
        elsewhere = BlockProcesses(rule, SIZE, SECONDS)
        for number in range(40):
            elsewhere.step(batch(number % 3))
        state = copy.deepcopy(elsewhere.state_dict())
        flights = [*state["blocks"][:-1], *(block["inputs"] for block in state["blocks"][1:])]
        assert len(flights) == 2 * (blocks - 1)
        for flight in flights:
            assert len(flight["pending"]) == len(flight["arrived"]) <= 3
            assert flight["fits"] + len(flight["pending"]) == 40
        alone, _ = made(blocks, how)
        alone.load_state_dict(state)
        assert alone.evaluate(batch(0)) == elsewhere.evaluate(batch(0))
        alone.step(batch(0))
        assert [len(learner.gradients.pending) for learner in alone.learners[:-1]] == [1] * (blocks - 1)
        elsewhere.close()
    distributed.destroy_process_group()


def same(first, second, path=""):
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            same(one, other, f"{path}/{number}")
    else:
        assert first == second, path


@pytest.mark.parametrize("blocks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_do_what_one_process_does_to_the_bit(blocks):
    ran(same_bits, blocks, [free_port() for _ in HOWS])


def not_finite(rank, blocks, port):
    joined(rank, blocks, port)
    rule, shapes = made(blocks, {})
    if rank:
        serve(rule, shapes, SIZE, SECONDS)
    else:
        elsewhere = BlockProcesses(rule, SIZE, SECONDS)
        elsewhere.step(batch(0))
        bad = batch(1)._replace(inputs=torch.full((SIZE, WIDTH), torch.nan))
        for _ in range(2 * blocks - 3):  # it comes as late as blocks may be apart
            elsewhere.step(bad)
        with pytest.raises(NumericError, match="the loss is nan"):
            elsewhere.step(bad)
        elsewhere.close()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes_in_good_order():
    ran(not_finite, 3)


def bereaved(rank, blocks, port, victim, how, seconds):
    """One process is killed, stopped or raises; the others must say so in time."""
    joined(rank, blocks, port, seconds)
    rule, shapes = made(blocks, {})

    def strike():
        if how == "raise":
            raise ZeroDivisionError
        os.kill(os.getpid(), how)

    if rank == victim:
        begin, count = rule.learners[rank].begin, 0

        def struck(x, targets):
            nonlocal count
            count += 1
            if count == 4:
                strike()
            return begin(x, targets)

        rule.learners[rank].begin = struck

    def work():
        if rank:
            serve(rule, shapes, SIZE, seconds)
        else:
            elsewhere = BlockProcesses(rule, SIZE, seconds)
            for number in range(100):
                elsewhere.step(batch(number))

    started = time.monotonic()
    with pytest.raises(WorkerLostError, match="has ended, or did not answer within"):
        work()
    assert time.monotonic() - started < seconds + 10
    os._exit(6)


LOSSES = [(victim, how) for victim in range(3) for how in (signal.SIGKILL, signal.SIGSTOP, "raise")]


@pytest.mark.parametrize(
    ("victim", "how"),
    [pytest.param(*loss, marks=[pytest.mark.slow] if loss != (1, signal.SIGKILL) else []) for loss in LOSSES],
)
def test_a_lost_process_ends_the_others_in_time(victim, how):
    survivors_end_in_time(bereaved, 3, victim, how, 4.0)


def too_few(rank, blocks, port):
    joined(rank, blocks, port)
    rule, shapes = made(3, {})
    start = partial(serve, rule, shapes) if rank else partial(BlockProcesses, rule)
    with pytest.raises(ConfigurationError, match=r"3 blocks and 2 processes: start as many .*--nproc-per-node 3"):
        start(SIZE, SECONDS)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_each_block_has_a_process():
    ran(too_few, 2)
