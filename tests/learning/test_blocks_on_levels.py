"""Blocks that learn apart on several levels, against backpropagation through the whole network on as many."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.multilevel import Multilevel
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import Synthesiser

WIDTH, CLASSES, STEPS, LEVELS = 4, 3, 3, 3
LOCKED = Decoupling(delay=0, true_share=1.0)


def network():
    torch.manual_seed(0)
    return StableNetwork(WIDTH, CLASSES, dynamics="verlet", width=WIDTH, depth=4, time=4.0).double()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, STEPS)


def batch(number):
    inputs = torch.randn(6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    return Batch(inputs, inputs[:, :CLASSES].argmax(1))


def in_blocks(how, balance=(2, 2)):
    parts = split(network(), balance)
    guessers = None
    if how.true_share < 1:
        guessers = [Synthesiser((2 * WIDTH,), CLASSES).double() for _ in balance[1:]]
    rule = SyntheticGradients(parts, adam, guessers, how=how, scheduler=cosine)
    return Multilevel(rule, LEVELS, STEPS)


def whole():
    model = network()
    optimizer = adam(model.parameters())
    return Multilevel(Backprop(model, optimizer), LEVELS, STEPS, cosine)


@pytest.mark.parametrize("balance", [(2, 2), (4, 0), (1, 2, 1)])
def test_blocks_that_wait_are_backpropagation_on_levels(balance):
    blocks, oracle = in_blocks(LOCKED, balance), whole()
    for number in range(LEVELS * STEPS + 2):
        assert blocks.step(batch(number))["loss"] == pytest.approx(oracle.step(batch(number))["loss"], rel=1e-9)
    assert blocks.level == oracle.level == LEVELS - 1
    x = batch(99).inputs
    torch.testing.assert_close(blocks.model(x), oracle.model(x))
    assert [len(block.weight) for block in blocks.model] == [4 * layers for layers in balance]


def test_guesses_go_on_over_levels_and_are_used_after_the_warm_up():
    rule = in_blocks(Decoupling(warmup=(LEVELS - 1) * STEPS))
    oracle = whole()
    for number in range((LEVELS - 1) * STEPS):
        assert rule.step(batch(number))["loss"] == pytest.approx(oracle.step(batch(number))["loss"], rel=1e-9)
    synthesiser = copy.deepcopy(rule.rule.learners[0].synthesis.module)
    assert any(parameter.any() for parameter in synthesiser.parameters())
    rule.step(batch(50))
    assert rule.level == LEVELS - 1
    oracle.step(batch(50))
    x = batch(99).inputs
    with pytest.raises(AssertionError):  # the first block has learned from a guess
        torch.testing.assert_close(rule.model(x), oracle.model(x))


@pytest.mark.parametrize("done", [2, 3, 4, 7])
def test_a_state_of_any_level_goes_on_to_the_same_bits(done):
    how = Decoupling(warmup=(LEVELS - 1) * STEPS)
    rule = in_blocks(how)
    for number in range(done):
        rule.step(batch(number))
    state = copy.deepcopy(rule.state_dict())
    again = in_blocks(how)
    again.load_state_dict(state)
    for number in range(done, LEVELS * STEPS + 1):
        assert rule.step(batch(number)) == again.step(batch(number))
    for mine, theirs in zip(rule.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_blocks_in_time_are_prolonged():
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    rule = SyntheticGradients([layers[:1], layers[1:]], adam, how=LOCKED)
    with pytest.raises(ConfigurationError, match="those of a StableNetwork; given Sequential, Sequential"):
        rule.refine()
