"""Learning on the exact expectation: against sampled batches, full batches, and the rule's promises."""

import copy

import pytest
import torch

import synaptome as syn
from synaptome.conformance import check_rule
from synaptome.data import Batch, linear_regression, semantic_hierarchy
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.learning.exact_expectation import ExactExpectation
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.failing import Failing

NOTHING = Batch(torch.empty(0, 20), torch.empty(0, 1))


def network(widths, failure=0.0):
    return FeedForward(widths, activation="linear", bias=False, wiring=Failing(failure)).double()


def sgd(model, rate):
    return torch.optim.SGD(model.parameters(), lr=rate)


def test_conformance():
    teacher = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def batch(index):
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return Batch(x, x @ teacher.mT)

    def make():
        model = network([6, 8, 2], 0.3)
        return ExactExpectation(model, torch.optim.Adam(model.parameters(), 0.01), teacher, batch_size=4)

    check_rule(make, batch)


@pytest.mark.parametrize("correlated", [False, True])
def test_without_failures_it_is_backprop_on_the_population(correlated):
    places = torch.arange(5.0)
    covariance = 0.5 ** (places.view(-1, 1) - places).abs().double() if correlated else None
    pairs = linear_regression(5, 2, covariance=covariance, population=True, dtype=torch.float64)
    torch.manual_seed(3)
    model = network([5, 7, 2])
    twin = copy.deepcopy(model)
    exact = ExactExpectation(model, sgd(model, 1e-3), pairs.teacher, covariance, batch_size=5)
    plain = Backprop(twin, sgd(twin, 1e-3), "summed-squared-error")
    whole = pairs.train[:3]
    assert len(whole.targets) == 5  # whatever is asked for, it is all of it
    for _ in range(20):
        assert exact.step(NOTHING)["loss"] == pytest.approx(plain.step(whole)["loss"], rel=1e-9)
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_sampled_and_exact_trajectories_agree():
    failure, rate, batch, replicas, steps = 0.3, 0.02, 500, 16, 60
    features, depth = 20, 3
    teacher = torch.full((1, features), features**-0.5, dtype=torch.float64)
    torch.manual_seed(5)
    start = network([*[features] * depth, 1], failure)
    for parameter in start.parameters():
        parameter.data.mul_(0.8)

    def mode(model):
        """How much of the teacher the network has learned: W* P' and the norm of each layer."""
        first, second, third = model.parameters()
        along = (third @ second @ first @ teacher.mT).item()
        return [along, *(p.norm().item() for p in model.parameters())]

    def trajectory(rule, batches):
        seen = []
        for step in range(1, steps + 1):
            rule.step(next(batches))
            if step in (5, 20, steps):
                seen.append(mode(rule.model))
        return torch.tensor(seen, dtype=torch.float64)

    def examples():
        while True:
            x = torch.randn(batch, features, dtype=torch.float64)
            yield Batch(x, x @ teacher.mT)

    model = copy.deepcopy(start)
    exact = trajectory(
        ExactExpectation(model, sgd(model, rate / batch), teacher, batch_size=batch), iter(lambda: NOTHING, None)
    )
    sampled = []
    for replica in range(replicas):
        model = copy.deepcopy(start)
        for layer in model.layers:
            layer.failures.stream.fill_(1000 * replica + layer.failures.stream % 997)
        sampled.append(trajectory(Backprop(model, sgd(model, rate / batch), "summed-squared-error"), examples()))
    runs = torch.stack(sampled)
    error = runs.std(0) / replicas**0.5
    # Twelve numbers at once: 4 standard errors, and half a percent for the drift that noise of finite steps leaves.
    assert ((runs.mean(0) - exact).abs() < 4 * error + 0.005 * exact.abs()).all()
    assert exact[-1, 0] > exact[0, 0] + 0.2  # something was learned meanwhile
    # The failures matter: without them the exact trajectory is another one, far outside that error.
    model = copy.deepcopy(start)
    for layer in model.layers:
        layer.failures.rate = 0.0
    other = trajectory(
        ExactExpectation(model, sgd(model, rate / batch), teacher, batch_size=batch), iter(lambda: NOTHING, None)
    )
    assert ((runs.mean(0) - other).abs() > 4 * error + 0.005 * other.abs()).any()


def test_the_semantic_task_is_learned_from_its_own_covariance():
    items = semantic_hierarchy(dtype=torch.float64)
    torch.manual_seed(0)
    model = network([4, 16, 7])
    covariance = items.train.inputs.mT @ items.train.inputs / 4
    rule = ExactExpectation(model, sgd(model, 0.02), items.teacher, covariance, batch_size=4)
    for _ in range(1000):
        rule.step(NOTHING)
    first, second = model.parameters()
    torch.testing.assert_close((second @ first).detach(), items.teacher, atol=1e-3, rtol=0)
    assert rule.evaluate(items.test[:4])["loss"] < 1e-5


def test_networks_without_an_exact_expectation_are_refused():
    teacher = torch.zeros(1, 4, dtype=torch.float64)
    for wrong in (
        FeedForward([4, 3, 1], activation="relu", bias=False),
        FeedForward([4, 3, 1], activation="linear", bias=True),
        FeedForward([4, 3, 1], activation="linear", bias=False, output="softmax"),
    ):
        with pytest.raises(ConfigurationError, match="known for linear networks without biases"):
            ExactExpectation(wrong, sgd(wrong, 0.1), teacher)
    sparse = FeedForward([4, 3, 1], activation="linear", bias=False, wiring=syn.Sparse(0.5))
    with pytest.raises(ConfigurationError, match="for dense and failing layers; given SparseLinear, SparseLinear"):
        ExactExpectation(sparse, sgd(sparse, 0.1), teacher)
    model = network([4, 3, 1])
    with pytest.raises(ConfigurationError, match=r"the teacher is \[1, 4\]"):
        ExactExpectation(model, sgd(model, 0.1), teacher.mT)
