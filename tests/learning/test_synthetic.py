"""Synthetic gradients against backpropagation, and against plain loops with autograd."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synaptome.conformance import check_rule
from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.guesses import REMEMBERED, cosine
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import split
from synaptome.networks.stable import StableNetwork
from synaptome.networks.synthesisers import InputSynthesiser, Synthesiser

WIDTH, CLASSES = 6, 3
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


def batches(count, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        inputs = torch.randn(size, WIDTH, generator=generator)
        yield Batch(inputs, inputs[:, :CLASSES].argmax(1))


def made(balance=(2, 1, 2), *, optimizer=OPTIMIZERS["sgd"], stable=False, inputs=False, seed=0, **how):
    torch.manual_seed(seed)
    if stable:
        network = StableNetwork(WIDTH, CLASSES, dynamics="verlet", width=WIDTH, depth=sum(balance), time=4.0)
        shape = (2 * WIDTH,)
    else:
        network = FeedForward([WIDTH] * sum(balance) + [CLASSES], activation="tanh")
        shape = (WIDTH,)
    synthesisers = [Synthesiser(shape, CLASSES) for _ in balance[1:]]
    guessers = [InputSynthesiser((WIDTH,), shape) for _ in balance[1:]] if inputs else None
    blocks = split(copy.deepcopy(network), balance)
    return network, SyntheticGradients(blocks, optimizer, synthesisers, inputs=guessers, how=Decoupling(**how))


def parameters(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def flat(rule, stable):
    """Parameters in the order of the unsplit network's."""
    if not stable:
        return [p for block in rule.model for p in block.parameters()]
    blocks = list(rule.model)
    weights, biases = (torch.cat([getattr(block, name) for block in blocks]) for name in ("weight", "bias"))
    return [weights, biases, *blocks[-1].classifier.parameters()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("how", [{"true_share": 1.0, "delay": 0}, {"warmup": 100}, {"warmup": 100, "inputs": True}])
def test_with_true_gradients_it_is_backpropagation_to_the_bit(optimizer, stable, how):
    network, rule = made(optimizer=OPTIMIZERS[optimizer], stable=stable, **how)
    oracle = Backprop(network, OPTIMIZERS[optimizer](network.parameters()))
    for batch in batches(12):
        told, expected = rule.step(batch), oracle.step(batch)
        assert told["loss"] == expected["loss"]
    expected = [network.weight, network.bias, *network.classifier.parameters()] if stable else network.parameters()
    for own, other in zip(flat(rule, stable), expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_guesses_start_at_zero_and_change_nothing(optimizer):
    _, rule = made(optimizer=OPTIMIZERS[optimizer])
    before = [parameters(block) for block in rule.model]
    rule.step(next(batches(1)))
    after = [parameters(block) for block in rule.model]
    for own, other in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert torch.equal(own, other)
    assert not all(torch.equal(own, other) for own, other in zip(before[2], after[2], strict=True))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_guesses_are_fitted_to_gradients_of_so_many_steps_before(delay):
    """Two blocks, by hand: the guess on this batch, and least squares on the one that is due."""
    _, rule = made((2, 2), delay=delay)
    first, second = (copy.deepcopy(block) for block in rule.model)
    guesser = copy.deepcopy(rule.learners[0].synthesis.module)
    optimizers = [OPTIMIZERS["sgd"](block.parameters()) for block in (first, second)]
    fitter = torch.optim.Adam(guesser.parameters(), lr=1e-3)
    waiting = []
    for batch in batches(9):
        rule.step(batch)
        h = first(batch.inputs)
        cut = h.detach().requires_grad_()
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(second(cut), batch.targets).backward()
        h.backward(guesser(cut, batch.targets).detach() / 8)
        for optimizer in optimizers:
            optimizer.step()
        waiting.append((cut.detach(), batch.targets, 8 * cut.grad))
        if len(waiting) > delay:
            seen, labels, target = waiting.pop(0)
            fitter.zero_grad()
            F.mse_loss(guesser(seen, labels), target).backward()
            fitter.step()
    for own, other in zip(rule.model.parameters(), [*first.parameters(), *second.parameters()], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    assert (waiting == []) == (delay == 0)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_inputs_are_guessed_and_fitted_to_activities_of_so_many_steps_before(delay):
    """Two blocks, by hand: the second learns on a guess; the gradient by it is what the first one's is fitted to."""
    _, rule = made((2, 2), inputs=True, delay=delay)
    first, second = (copy.deepcopy(block) for block in rule.model)
    gradients = copy.deepcopy(rule.learners[0].synthesis.module)
    activities = copy.deepcopy(rule.learners[1].inputs.synthesis.module)
    optimizers = [OPTIMIZERS["sgd"](block.parameters()) for block in (first, second)]
    fitters = [torch.optim.Adam(module.parameters(), lr=1e-3) for module in (gradients, activities)]
    waiting, told = [], []
    for batch in batches(9):
        told.append(rule.step(batch))
        h, guess = first(batch.inputs), activities(batch.inputs).detach().requires_grad_()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(second(guess), batch.targets)
        loss.backward()
        h.backward(gradients(h.detach(), batch.targets).detach() / 8)
        for optimizer in optimizers:
            optimizer.step()
        assert told[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        waiting.append((batch, h.detach(), 8 * guess.grad))
        if len(waiting) > delay:
            seen, activity, gradient = waiting.pop(0)
            for fitter in fitters:
                fitter.zero_grad()
            F.mse_loss(gradients(activity, seen.targets), gradient).backward()
            F.mse_loss(activities(seen.inputs), activity).backward()
            for fitter in fitters:
                fitter.step()
    for own, other in zip(rule.model.parameters(), [*first.parameters(), *second.parameters()], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    learned = rule.learners[1].inputs.synthesis
    for own, other in zip(learned.module.parameters(), activities.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    assert learned.fits == 9 - delay
    assert told[-1]["input_cosine/1"] == learned.cosine > 0


def test_without_guesses_true_gradients_are_replayed_on_their_batches():
    """Three blocks at delay 1: the first learns from the batch of two steps before, the second of one."""
    _, rule = made((1, 1, 1), delay=1, true_share=1.0)
    blocks = [copy.deepcopy(block) for block in rule.model]
    optimizers = [OPTIMIZERS["sgd"](block.parameters()) for block in blocks]
    seen, inputs, deltas = [], ({}, {}, {}), ({}, {}, {})
    for step, batch in enumerate(batches(8)):
        rule.step(batch)
        seen.append(batch)
        x = batch.inputs
        for number, block in enumerate(blocks):
            inputs[number][step] = x.detach()
            x = block(x).detach()
        for number in (2, 1, 0):
            own = step - (2 - number)  # the batch that the block learns from
            if own < 0:
                continue
            given = inputs[number][own].requires_grad_()
            optimizers[number].zero_grad()
            out = blocks[number](given)
            if number == 2:
                F.cross_entropy(out, seen[own].targets).backward()
            else:
                out.backward(deltas[number + 1][own])
            deltas[number][own] = given.grad
            optimizers[number].step()
    for own, other in zip(rule.model.parameters(), [p for b in blocks for p in b.parameters()], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_a_share_of_true_gradients_of_the_same_batch_is_the_mean_of_both():
    _, rule = made((2, 2), true_share=0.25, delay=0)
    learner = rule.learners[0]
    with torch.no_grad():
        for parameter in learner.synthesis.module.parameters():
            parameter.normal_(std=0.3)
    first, second = (copy.deepcopy(block) for block in rule.model)
    guesser = copy.deepcopy(learner.synthesis.module)
    batch = next(batches(1))
    rule.step(batch)
    h = first(batch.inputs)
    cut = h.detach().requires_grad_()
    F.cross_entropy(second(cut), batch.targets).backward()
    h.backward(0.75 * guesser(cut, batch.targets).detach() / 8 + 0.25 * cut.grad)
    torch.optim.SGD(first.parameters(), lr=0.1).step()
    for own, other in zip(rule.model[0].parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_late_true_gradients_join_the_guesses_of_the_batch_at_hand():
    """At delay 1 and half a share, what is sent back is still the whole gradient by the guess."""
    _, rule = made((2, 2), true_share=0.5, delay=1)
    learner = rule.learners[0]
    with torch.no_grad():
        for parameter in learner.synthesis.module.parameters():
            parameter.normal_(std=0.3)
    first, second = (copy.deepcopy(block) for block in rule.model)
    guesser = copy.deepcopy(learner.synthesis.module)
    one, two = batches(2)
    rule.step(one)
    h = first(one.inputs)  # nothing has come yet: half the guess
    h.backward(0.5 * guesser(h.detach(), one.targets).detach() / 8)
    optimizer = OPTIMIZERS["sgd"](first.parameters())
    optimizer.step()
    for own, other in zip(rule.model[0].parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    cut = h.detach().requires_grad_()
    F.cross_entropy(second(cut), one.targets).backward()
    rule.step(two)
    optimizer.zero_grad()
    h = first(two.inputs)
    # The guess is that of a synthesiser that has not been fitted yet: the fit comes after the update.
    h.backward(0.5 * guesser(h.detach(), two.targets).detach() / 8)
    first(one.inputs).backward(0.5 * cut.grad)
    optimizer.step()
    for own, other in zip(rule.model[0].parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_doubted_guesses_are_not_taken():
    """With a least cosine of 1 a block waits from the first cosine that counts: steps are those of backpropagation."""
    _, rule = made((2, 2), least_cosine=1.0)
    for batch in batches(REMEMBERED + 1):
        assert not rule.learners[0].waits
        rule.step(batch)
    assert rule.learners[0].waits
    blocks = copy.deepcopy(nn.Sequential(*rule.model))
    batch = next(batches(1, seed=1))
    F.cross_entropy(blocks(batch.inputs), batch.targets).backward()
    rule.step(batch)
    for own, other in zip(rule.model[0].parameters(), blocks[0].parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert not rule.learners[0].gradients.pending


def test_cosines_are_those_of_guess_and_true_gradient():
    a = torch.tensor([[3.0, 4.0]])
    assert cosine(a, torch.tensor([[4.0, 3.0]])) == pytest.approx(24 / 25)
    assert cosine(a, torch.zeros(1, 2)) == 0
    _, rule = made((2, 2))
    told = [rule.step(batch)["cosine/1"] for batch in batches(30)]
    assert told[0] == told[1] == 0  # before the first true gradient, and of a guess of 0
    assert all(-1 <= value <= 1 for value in told)
    assert told[-1] > 0


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"delay": 3},
        {"true_share": 1.0, "delay": 2},
        {"true_share": 0.5},
        {"warmup": 2},
        {"least_cosine": 0.9},
        {"free": True, "delay": 3},
        {"inputs": True},
        {"inputs": True, "delay": 3, "warmup": 2},
        {"inputs": True, "free": True, "delay": 3, "true_share": 0.5},
    ],
    ids=str,
)
def test_conformance(how):
    def make():
        return made((2, 1, 1), optimizer=OPTIMIZERS["adam"], **how)[1]

    check_rule(make, lambda number: next(batches(1, seed=number)))


def test_a_loss_that_is_not_finite_changes_nothing():
    _, rule = made()
    rule.step(next(batches(1)))
    before = parameters(rule.model)
    bad = next(batches(1))
    with pytest.raises(NumericError, match="loss is nan"):
        rule.step(bad._replace(inputs=bad.inputs * torch.nan))
    for own, other in zip(before, parameters(rule.model), strict=True):
        assert torch.equal(own, other)


def test_each_border_has_a_synthesiser():
    blocks = split(FeedForward([4, 4, 4, 3]), (1, 1, 1))
    with pytest.raises(ConfigurationError, match="3 blocks take 2 synthesisers"):
        SyntheticGradients(blocks, OPTIMIZERS["sgd"], [Synthesiser((4,), 3)])
    with pytest.raises(ConfigurationError, match="given 0"):
        SyntheticGradients(blocks, OPTIMIZERS["sgd"])
    guessers = [InputSynthesiser((4,), (4,)) for _ in range(2)]
    both = [Synthesiser((4,), 3) for _ in range(2)]
    with pytest.raises(ConfigurationError, match=r"take 2 synthesisers of inputs, .*; given 1 and true_share 0"):
        SyntheticGradients(blocks, OPTIMIZERS["sgd"], both, inputs=guessers[:1])
    with pytest.raises(ConfigurationError, match=r"guesses of gradients; given 2 and true_share 1"):
        SyntheticGradients(blocks, OPTIMIZERS["sgd"], both, inputs=guessers, how=Decoupling(true_share=1.0))
    SyntheticGradients(blocks, OPTIMIZERS["sgd"], how=Decoupling(true_share=1.0))
