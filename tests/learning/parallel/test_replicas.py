"""Several processes for each block against one process that has all blocks and whole batches."""

import copy
import signal
from functools import partial

import pytest
import torch
from tests.learning.parallel.processes import (
    SECONDS,
    bereaved,
    free_port,
    joined,
    ran,
    same_form,
    struck,
    survivors_end_in_time,
)
from torch import distributed

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.parallel.blocks import BlockProcesses
from synaptome.learning.parallel.service import serve
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import border_shapes, split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import InputSynthesiser, Synthesiser

WIDTH, CLASSES, BLOCKS, REPLICAS = 6, 3, 2, 2
# Of a batch: equal shares, unequal ones, and one that is empty.
SIZES = (8, 5, 8, 1, 7, 8, 8, 2, 8)
HOWS = (
    {},
    {"delay": 2},
    {"true_share": 1.0, "delay": 0},
    {"true_share": 1.0, "delay": 1},
    {"true_share": 0.5},
    {"warmup": 4, "least_cosine": 0.99},
    {"inputs": True},
    {"inputs": True, "delay": 2, "warmup": 3},
)


def batches():
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        inputs = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
        yield Batch(inputs, inputs[:, :CLASSES].argmax(1))


def made(inputs=False, **how):
    torch.manual_seed(0)
    parts = split(StableNetwork(WIDTH, CLASSES, dynamics="verlet", width=WIDTH, depth=4, time=4.0), (2, 2))
    shapes = border_shapes(parts, (WIDTH,))
    synthesisers = [Synthesiser(shape, CLASSES).double() for shape in shapes]
    guessers = [InputSynthesiser((WIDTH,), shape, "mlp").double() for shape in shapes] if inputs else None
    rule = SyntheticGradients(
        parts.double(),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        synthesisers,
        inputs=guessers,
        how=Decoupling(**how),
    )
    return rule, shapes


def unbound(rank, count, port):
    """Replicas that run freely agree on what has come, and lose nothing."""
    joined(rank, count, port)
    rule, shapes = made(inputs=True, free=True, delay=3)
    if rank:
        serve(rule, shapes, max(SIZES), SECONDS, replicas=REPLICAS, inputs=(WIDTH,))
    else:
        together = BlockProcesses(rule, max(SIZES), SECONDS, replicas=REPLICAS)
        for batch in [*batches()] * 3:
            together.step(batch)
        first, second = together.state_dict()["blocks"]
        for flight in (first, second["inputs"]):
            assert len(flight["pending"]) == len(flight["arrived"]) <= 3
            assert flight["fits"] + len(flight["pending"]) == 3 * len(SIZES)
        together.close()
    distributed.destroy_process_group()


def same_numbers(rank, count, port, ports):
    unbound(rank, count, port)
    for how, own in zip(HOWS, ports, strict=True):
        joined(rank, count, own)
        rule, shapes = made(**how)
        if rank:
            serve(rule, shapes, max(SIZES), SECONDS, replicas=REPLICAS, inputs=(WIDTH,))
        else:
            compare(rule, how)
        distributed.destroy_process_group()


def compare(rule, how):
    alone, _ = made(**how)
    together = BlockProcesses(rule, max(SIZES), SECONDS, replicas=REPLICAS)
    given = list(batches())
    losses = [alone.step(batch)["loss"] for batch in given]
    told = [together.step(batch)["loss"] for batch in given]
    lag = max(1, how.get("delay", 1))
    expected = [losses[max(0, number - lag)] for number in range(len(given))]
    assert told == pytest.approx(expected, rel=1e-9), how
    assert together.evaluate(given[0]) == pytest.approx(alone.evaluate(given[0]), rel=1e-9), how
    saved = copy.deepcopy(together.state_dict())
    same_form(saved["blocks"], alone.state_dict()["blocks"])
    for batch in given:
        together.step(batch)
    together.load_state_dict(saved)
    for batch in given[::-1]:
        alone.step(batch)
        together.step(batch)
    same_form(together.state_dict()["blocks"], alone.state_dict()["blocks"])
    together.close()


@pytest.mark.slow
def test_replicas_compute_what_one_process_does_to_rounding():
    ran(same_numbers, BLOCKS * REPLICAS, [free_port() for _ in HOWS])


def not_finite(rank, count, port):
    """Of one example, in the share of the second replica alone."""
    joined(rank, count, port)
    rule, shapes = made()
    if rank:
        serve(rule, shapes, max(SIZES), SECONDS, replicas=REPLICAS, inputs=(WIDTH,))
    else:
        together = BlockProcesses(rule, max(SIZES), SECONDS, replicas=REPLICAS)
        good = next(batches())
        together.step(good)
        bad = good._replace(inputs=good.inputs.clone())
        bad.inputs[-1] = torch.nan
        together.step(bad)
        with pytest.raises(NumericError, match="the loss is nan"):
            together.step(good)
        state = together.state_dict()
        assert state["blocks"][-1]["done"] == 1
        assert all(value.isfinite().all() for value in state["blocks"][-1]["block"].values())
        together.close()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_share_is_that_of_all():
    ran(not_finite, BLOCKS * REPLICAS)


def lost(rank, count, port, victim, signum, seconds):
    joined(rank, count, port, seconds)
    rule, shapes = made()
    if rank == victim:
        learner = rule.learners[rank // REPLICAS]
        learner.begin = struck(learner.begin, signum)

    def work():
        if rank:
            serve(rule, shapes, max(SIZES), seconds, replicas=REPLICAS, inputs=(WIDTH,))
        else:
            together = BlockProcesses(rule, max(SIZES), seconds, replicas=REPLICAS)
            for _ in range(100):
                together.step(next(batches()))

    bereaved(work, seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "signum"), [*((victim, signal.SIGKILL) for victim in range(BLOCKS * REPLICAS)), (3, signal.SIGSTOP)]
)
def test_a_lost_replica_ends_the_others_in_time(victim, signum):
    survivors_end_in_time(lost, BLOCKS * REPLICAS, victim, signum, 4.0)


def too_few(rank, count, port):
    joined(rank, count, port)
    rule, shapes = made()
    begin = partial(serve, rule, shapes) if rank else partial(BlockProcesses, rule)
    with pytest.raises(ConfigurationError, match=r"2 blocks x 2 replicas need 4 processes; given 3: .*per-node 4"):
        begin(max(SIZES), SECONDS, replicas=REPLICAS)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_every_replica_has_a_process():
    ran(too_few, 3)
