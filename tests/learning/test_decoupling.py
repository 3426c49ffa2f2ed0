"""Blocks that run freely: ahead of the next one by up to `delay` batches, and never more."""

import copy
import threading
import time

import pytest
import torch
from tests.learning.parallel.processes import SECONDS, free_port, joined
from torch import distributed, multiprocessing

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.parallel.blocks import BlockProcesses
from synaptome.learning.parallel.messages import GRADIENT
from synaptome.learning.parallel.service import serve
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import split
from synaptome.networks.synthesisers import InputSynthesiser, Synthesiser

WIDTH, CLASSES, SIZE, DELAY = 6, 3, 8, 3


def batch(number):
    inputs = torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(number))
    return Batch(inputs, inputs[:, :CLASSES].argmax(1))


def made(inputs=False, **how):
    torch.manual_seed(0)
    blocks = split(FeedForward([WIDTH, WIDTH, WIDTH, CLASSES], activation="tanh"), (1, 1, 1))
    return SyntheticGradients(
        blocks,
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        [Synthesiser((WIDTH,), CLASSES) for _ in range(2)],
        inputs=[InputSynthesiser((WIDTH,), (WIDTH,)) for _ in range(2)] if inputs else None,
        how=Decoupling(**how),
    )


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("true_share", [0.0, 0.5])
def test_in_one_process_gradients_and_activities_are_there_at_the_next_step(inputs, true_share):
    free = made(inputs, free=True, delay=5, true_share=true_share)
    fixed = made(inputs, delay=1, true_share=true_share)
    assert [free.step(batch(number)) for number in range(20)] == [fixed.step(batch(number)) for number in range(20)]
    for own, other in zip(free.model.parameters(), fixed.model.parameters(), strict=True):
        assert torch.equal(own, other)


def paced(rank, count, port, gate, reached):
    """The last of three blocks takes a batch each time that the first one opens the gate."""
    joined(rank, count, port)
    rule = made(delay=DELAY, free=True)
    learner = rule.learners[rank]
    if rank == 2:
        conclude = learner.conclude

        def gated():
            assert gate.acquire(timeout=SECONDS)
            return conclude()

        learner.conclude = gated
    if rank == 1:
        learn = learner.learn

        def told(fetch, send):
            learn(fetch, send)
            reached.value = max(reached.value, len(learner.gradients.pending))

        learner.learn = told
    if rank:
        serve(rule, [(WIDTH,), (WIDTH,)], SIZE, SECONDS)
    else:
        lead(rule, gate)
    distributed.destroy_process_group()


def lead(rule, gate):
    elsewhere = BlockProcesses(rule, SIZE, SECONDS)
    first, line = rule.learners[0], elsewhere._next

    def here():
        begun = time.monotonic()
        while not line.here(GRADIENT):  # of the second block, which needs no gradient of its own for it
            assert time.monotonic() - begun < SECONDS
            time.sleep(0.01)

    gate.release()  # for the first batch, whose loss the first step waits for
    for number in range(2 + DELAY):
        elsewhere.step(batch(number))
        here()
        assert len(first.gradients.pending) == 1  # a gradient that is there is used at once, earlier than it is due
    # The second block has more batches without a gradient than it may, and waits; the first one goes on.
    for number in range(DELAY):
        elsewhere.step(batch(2 + DELAY + number))
    assert len(first.gradients.pending) == DELAY
    begun = time.monotonic()
    threading.Timer(0.5, lambda: [gate.release() for _ in range(100)]).start()
    elsewhere.step(batch(0))
    assert time.monotonic() - begun > 0.4  # one more it waits for
    for number in range(30):
        elsewhere.step(batch(number))
        assert len(first.gradients.pending) <= DELAY
    state = copy.deepcopy(elsewhere.state_dict())
    for block in state["blocks"][:2]:
        assert len(block["arrived"]) == len(block["pending"])  # no message is lost
        assert block["fits"] + len(block["pending"]) == block["done"] == 2 * DELAY + 33
    alone = made(delay=DELAY, free=True)
    alone.load_state_dict(state)
    alone.step(batch(0))
    assert [len(learner.gradients.pending) for learner in alone.learners[:2]] == [1, 1]
    elsewhere.load_state_dict(alone.state_dict())
    for number in range(5):
        elsewhere.step(batch(number))
    assert [block["done"] for block in elsewhere.state_dict()["blocks"]] == [2 * DELAY + 39] * 3
    elsewhere.close()


@pytest.mark.slow
def test_a_block_runs_ahead_of_a_slow_one_by_so_many_batches_and_no_more():
    context = multiprocessing.get_context("spawn")
    gate, reached = context.Semaphore(0), context.Value("i", 0)
    multiprocessing.spawn(paced, (3, free_port(), gate, reached), nprocs=3, join=True)
    assert reached.value == DELAY


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"delay": -1}, "at least 0; given delay -1"),
        ({"true_share": 1.5}, r"share in \[0, 1\]; given 1.5"),
        ({"least_cosine": 2.0}, "given 2.0"),
        ({"least_cosine": 0.5, "true_share": 1.0}, "there are none"),
        ({"free": True, "delay": 0}, "given delay 0 and true_share 0.0: choose a delay of at least 1"),
        ({"free": True, "true_share": 1.0}, "given delay 1 and true_share 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(how, message):
    with pytest.raises(ConfigurationError, match=message):
        Decoupling(**how)
