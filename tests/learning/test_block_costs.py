"""Costs of blocks, and the balance that they ask for."""

import time
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning import block_costs
from synaptome.learning.block_costs import BlockCost, balanced, measured_costs, predicted_speedup
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import split
from synaptome.networks.synthesisers import Synthesiser


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_no_other_balance_has_a_faster_slowest_block(costs, data):
    blocks = data.draw(st.integers(1, len(costs)))
    overheads = data.draw(st.lists(st.integers(0, 9), min_size=blocks, max_size=blocks))

    def slowest(balance):
        cuts = [sum(balance[:number]) for number in range(blocks + 1)]
        return max(
            sum(costs[start:stop]) + extra for (start, stop), extra in zip(pairwise(cuts), overheads, strict=True)
        )

    every = [
        tuple(stop - start for start, stop in pairwise((0, *cuts, len(costs))))
        for cuts in combinations(range(1, len(costs)), blocks - 1)
    ]
    found = balanced([float(cost) for cost in costs], [float(cost) for cost in overheads])
    assert found in every
    assert slowest(found) == min(map(slowest, every))


def test_equal_blocks_gain_what_the_formula_says():
    blocks, learning, synthesis, replay, transfer = 4, 3.0, 0.5, 0.125, 0.25
    costs = [BlockCost(1.0, 1.5, 0.5, synthesis, replay, transfer)] * (blocks - 1) + [BlockCost(1.0, 1.5, 0.5)]
    gain = blocks / (1 + blocks * (synthesis + replay + transfer) / (blocks * learning))
    assert predicted_speedup(costs) == pytest.approx(gain)


def rule_of(parts, rate=0.1, **options):
    return SyntheticGradients(
        parts, lambda p: torch.optim.SGD(p, rate, momentum=0.9), [Synthesiser((8,), 3)] * 2, **options
    )


BATCH = Batch(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0]))


def test_measuring_leaves_the_rule_as_it_is(monkeypatch):
    monkeypatch.setattr(block_costs, "SECONDS", 0.0)
    torch.manual_seed(0)
    parts = split(FeedForward([8, 8, 8, 3]), (1, 1, 1))
    rule = rule_of(parts, how=Decoupling(delay=2))
    rule.step(BATCH)
    for parameter in rule.model.parameters():
        parameter.grad = None
    before = {name: tensor.clone() for name, tensor in rule.model.state_dict().items()}
    generator = torch.get_rng_state()
    costs = measured_costs(rule, BATCH, [0.5, 0.25])
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rule.model.state_dict().items())
    assert all(parameter.grad is None for parameter in rule.model.parameters())
    assert [learner.done for learner in rule.learners] == [1, 1, 1]
    assert all(learner.synthesis.fits == 0 for learner in rule.learners[:2])
    assert [cost.transfer for cost in costs] == [0.5, 0.75, 0.25]
    assert all(min(cost.forward, cost.learning, cost.update) > 0 for cost in costs)
    assert [cost.synthesis > 0 for cost in costs] == [True, True, False]
    assert [cost.transfer for cost in measured_costs(rule, BATCH)] == [0.0, 0.0, 0.0]


class Clock:
    """Seconds that pass when something says so, and a little with each look at it."""

    now = 0.0

    def look(self):
        self.now += 0.001
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


class Slow(nn.Module):
    """A module that takes a known time forward, and another one backward."""

    def __init__(self, clock, forward, backward):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.clock, self.seconds = clock, (forward, backward)

    def forward(self, x, labels=None):
        self.clock.pass_by(self.seconds[0])
        y = self.layer(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: self.clock.pass_by(self.seconds[1]))
        return y

    def __deepcopy__(self, memo):  # with the same clock
        return Slow(self.clock, *self.seconds)


class SlowSGD(torch.optim.SGD):
    """Its update takes 7 seconds."""

    clock = Clock()

    def step(self, closure=None):
        self.clock.pass_by(7)
        return super().step(closure)


def test_each_part_is_measured_by_itself(monkeypatch):
    clock = SlowSGD.clock
    monkeypatch.setattr(time, "perf_counter", clock.look)
    rule = SyntheticGradients(
        [Slow(clock, 1, 2), Slow(clock, 3, 5), nn.Linear(8, 3)],
        lambda p: SlowSGD(p, 0.01),
        [Slow(clock, 10, 20), Slow(clock, 30, 40)],
        inputs=[Slow(clock, 100, 200), Slow(clock, 300, 400)],
        synthesis=lambda p: SlowSGD(p, 0.01),
    )
    costs = measured_costs(rule, BATCH)
    assert [cost.forward for cost in costs] == pytest.approx([1, 3, 0], abs=0.01)
    assert [cost.backward for cost in costs] == pytest.approx([2, 5, 0], abs=0.01)
    assert [cost.update for cost in costs] == pytest.approx([7, 7, 7], abs=0.01)
    # A guess, and a fit: the first block guesses gradients, the last one inputs, the one between both.
    gradients, inputs = [2 * 10 + 20 + 7, 2 * 30 + 40 + 7], [2 * 100 + 200 + 7, 2 * 300 + 400 + 7]
    every = [gradients[0], gradients[1] + inputs[0], inputs[1]]
    assert [cost.synthesis for cost in costs] == pytest.approx(every, abs=0.01)


@pytest.mark.parametrize(
    ("how", "replays"),
    [
        (Decoupling(delay=1), [0, 0, 0]),
        (Decoupling(delay=0, true_share=1.0), [0, 0, 0]),
        (Decoupling(delay=2, true_share=1.0), [1, 3, 0]),  # forward again
        (Decoupling(delay=1, true_share=0.5), [1 + 2, 3 + 5, 0]),  # and backward, beside the guess
    ],
    ids=str,
)
def test_late_true_gradients_are_replayed(monkeypatch, how, replays):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.look)
    blocks = [Slow(clock, 1, 2), Slow(clock, 3, 5), nn.Linear(8, 3)]
    costs = measured_costs(rule_of(blocks, how=how), BATCH)
    assert [cost.replay for cost in costs] == pytest.approx(replays, abs=0.01)


def test_blocks_are_measured_on_what_the_network_gives_them(monkeypatch):
    """However far measuring takes the copies."""
    monkeypatch.setattr(block_costs, "SECONDS", 0.0)
    given = []

    class Seen(nn.Linear):
        def forward(self, x):
            given.append(x.detach())
            return super().forward(x)

    torch.manual_seed(0)
    rule = SyntheticGradients(
        [nn.Linear(8, 8), Seen(8, 3)], lambda p: torch.optim.SGD(p, 1e3), how=Decoupling(delay=0, true_share=1.0)
    )
    measured_costs(rule, BATCH)
    expected = rule.learners[0].block(BATCH.inputs)
    assert all(torch.equal(x, expected) for x in given)


def test_there_are_as_many_blocks_as_layers_at_most():
    with pytest.raises(ConfigurationError, match="from 1 to 2 blocks; given 3"):
        balanced([1.0, 1.0], [0.0] * 3)
    with pytest.raises(ConfigurationError, match="from 1 to 2 blocks; given 0"):
        balanced([1.0, 1.0], [])
