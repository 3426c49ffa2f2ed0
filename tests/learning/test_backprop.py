"""Backprop: the protocol, losses and schedules against torch's own, and where numbers stop being finite."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synaptome as syn
from synaptome.conformance import ConformanceError, check_rule
from synaptome.data import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.diagnosis import first_non_finite
from synaptome.learning.loss import LOSSES
from synaptome.learning.optimization import OPTIMIZERS, Optimization
from synaptome.networks.feedforward import FeedForward

RATES = {"adadelta": 5.0, "adagrad": 0.3, "rprop": 0.05, "asgd": 0.5, "sgd": 0.5, "adafactor": 0.1, "lbfgs": 0.01}


def batch_of(index):
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(40, 6, generator=generator)
    return Batch(x, x[:, :3].argmax(1))


@pytest.mark.parametrize("failure", [0.0, 0.2])
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"muon"}))
def test_conformance_with_every_optimizer(optimizer, failure):
    def make():
        network = FeedForward([6, 12, 3], wiring=syn.Failing(failure))
        optimization = Optimization(optimizer, rate=RATES.get(optimizer, 0.02), schedule="cosine")
        made = optimization.optimizer(network.parameters())
        return Backprop(network, made, "cross-entropy", optimization.scheduler(made, 100))

    check_rule(make, batch_of)


def test_conformance_notices_a_rule_that_breaks_its_promises():
    class Forgetful(Backprop):
        def state_dict(self):
            return {**super().state_dict(), "optimizer": {"state": {}, "param_groups": []}}

        def load_state_dict(self, state):
            self.model.load_state_dict(state["model"])

    def make(kind, **options):
        network = FeedForward([6, 12, 3])
        return kind(network, torch.optim.SGD(network.parameters(), **options))

    with pytest.raises(ConformanceError, match="goes on with other numbers"):
        check_rule(lambda: make(Forgetful, lr=0.1, momentum=0.9), batch_of)
    with pytest.raises(ConformanceError, match="the loss went from"):
        check_rule(lambda: make(Backprop, lr=1e-3, maximize=True), batch_of)


def test_one_step_is_that_of_plain_torch():
    torch.manual_seed(0)
    network = FeedForward([6, 5, 3])
    twin = FeedForward([6, 5, 3])
    twin.load_state_dict(network.state_dict())
    batch = batch_of(0)
    report = Backprop(network, torch.optim.SGD(network.parameters(), 0.1)).step(batch)
    outputs = twin(batch.inputs)
    loss = F.cross_entropy(outputs, batch.targets)
    loss.backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert report["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert report["accuracy"] == (outputs.argmax(1) == batch.targets).double().mean().item()
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_losses_are_those_of_torch():
    outputs, classes = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    onehot = F.one_hot(classes, 4).double()
    summed = LOSSES["summed-squared-error"]
    for targets in (classes, onehot):
        mean = LOSSES["mean-squared-error"]
        torch.testing.assert_close(mean.objective(mean.per_example(outputs, targets)), F.mse_loss(outputs, onehot))
        torch.testing.assert_close(
            summed.objective(summed.per_example(outputs, targets)), F.mse_loss(outputs, onehot, reduction="sum")
        )
    entropy = LOSSES["cross-entropy"]
    torch.testing.assert_close(
        entropy.objective(entropy.per_example(outputs, classes)), F.cross_entropy(outputs, classes)
    )


def test_schedules_start_at_the_rate_and_end_where_they_should():
    for schedule, middle, end in (("cosine", 0.5, 0.0), ("linear", 0.5, 0.0)):
        parameter = nn.Parameter(torch.zeros(1))
        optimization = Optimization(rate=2.0, schedule=schedule)
        optimizer = optimization.optimizer([parameter])
        scheduler = optimization.scheduler(optimizer, 10)
        rates = [optimizer.param_groups[0]["lr"]]
        for _ in range(10):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates[0] == 2.0
        assert rates[5] == pytest.approx(2 * middle)
        assert rates[10] == pytest.approx(2 * end, abs=1e-9)
    assert Optimization().scheduler(Optimization().optimizer([parameter]), 10) is None


@pytest.mark.parametrize(
    ("drops", "steps", "expected"),
    [
        ((0.5, 0.75), 8, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),  # 32 000 and 48 000 of 64 000 steps: He et al. 2016
        ((0.7,), 10, [1] * 7 + [0.1] * 3),
        ((0.2, 0.3, 0.9), 5, [1, 0.1, 0.01, 0.01, 0.01]),  # a drop between two steps comes with the later one
    ],
)
def test_the_rate_drops_by_ten_at_the_given_shares(drops, steps, expected):
    parameter = nn.Parameter(torch.zeros(1))
    optimization = Optimization(rate=3.0, schedule="drops", drops=drops)
    optimizer = optimization.optimizer([parameter])
    scheduler = optimization.scheduler(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([3 * factor for factor in expected], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adan"}, "did you mean 'adam'"),
        ({"rate": 0.0}, "positive"),
        ({"rate": math.nan}, "positive"),
        ({"name": "adam", "momentum": 0.9}, "adam has no momentum"),
        ({"weight_decay": -1.0}, "at least 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "cosine", "drops": (0.5,)}, "the schedule is 'cosine'; given drops 0.5"),
        ({"schedule": "drops", "drops": ()}, "at least one, .* given none"),
        ({"schedule": "drops", "drops": (0.5, 0.5)}, "ascending; given 0.5, 0.5"),
        ({"schedule": "drops", "drops": (0.0, 0.5)}, "between 0 and 1"),
        ({"schedule": "drops", "drops": (0.5, 1.0)}, "between 0 and 1"),
        ({"schedule": "drops", "drops": (math.nan,)}, "given nan"),
    ],
)
def test_optimization_refuses(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Optimization(**options)


def test_a_loss_that_is_not_finite_changes_nothing():
    network = FeedForward([6, 5, 3])
    rule = Backprop(network, torch.optim.SGD(network.parameters(), 0.1))
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(NumericError, match="the loss is nan"):
        rule.step(Batch(torch.full((4, 6), math.nan), torch.zeros(4, dtype=torch.int64)))
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_penalty_is_minimised_and_no_part_of_the_loss():
    """One step against plain torch, for a loss that is a mean and one that is a sum; the penalty counts once."""
    batch = batch_of(0)
    for loss, reduction in (("cross-entropy", "mean"), ("summed-squared-error", "sum")):
        torch.manual_seed(0)
        network, twin = FeedForward([6, 5, 3]), FeedForward([6, 5, 3])
        twin.load_state_dict(network.state_dict())
        rule = Backprop(
            network,
            torch.optim.SGD(network.parameters(), 0.01),
            loss,
            penalty=lambda model: 0.3 * model.layers[0].weight.abs().sum(),
        )
        measured = rule.evaluate(batch)
        report = rule.step(batch)
        outputs = twin(batch.inputs)
        onehot = F.one_hot(batch.targets, 3).float()
        plain = F.cross_entropy(outputs, batch.targets) if reduction == "mean" else (outputs - onehot).square().sum()
        (plain + 0.3 * twin.layers[0].weight.abs().sum()).backward()
        torch.optim.SGD(twin.parameters(), 0.01).step()
        assert report == pytest.approx(measured)
        assert report["loss"] == pytest.approx(plain.item() / (1 if reduction == "mean" else 40), rel=1e-6)
        assert set(report) == {"loss", "accuracy"}
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_conformance_with_a_penalty():
    def make():
        network = FeedForward([6, 12, 3])
        optimizer = torch.optim.SGD(network.parameters(), 0.3)
        return Backprop(network, optimizer, penalty=lambda model: 0.01 * model.layers[0].weight.square().sum())

    check_rule(make, batch_of)


def test_an_optimizer_that_calls_again_sees_the_penalty_each_time():
    def penalty(model):
        return 0.1 * model.layers[0].weight.square().sum()

    torch.manual_seed(0)
    batch = batch_of(0)
    network, twin = FeedForward([6, 5, 3]), FeedForward([6, 5, 3])
    twin.load_state_dict(network.state_dict())
    Backprop(network, torch.optim.LBFGS(network.parameters(), 0.1), penalty=penalty).step(batch)
    plain = torch.optim.LBFGS(twin.parameters(), 0.1)

    def closure():
        plain.zero_grad()
        objective = F.cross_entropy(twin(batch.inputs), batch.targets) + penalty(twin)
        objective.backward()
        return objective

    plain.step(closure)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_penalty_that_is_not_finite_changes_nothing():
    network = FeedForward([6, 5, 3])
    rule = Backprop(
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        penalty=lambda model: model.layers[0].weight.sum() * math.inf,
    )
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(NumericError, match=r"the loss is finite, but with the penalty it is -?inf"):
        rule.step(batch_of(0))
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_diagnosis_names_the_first_place():
    x = torch.randn(4, 6)
    network = FeedForward([6, 5, 3], wiring=syn.Failing(0.1))
    assert "every module is finite" in first_non_finite(network, x)
    assert first_non_finite(network, x / 0) == "the inputs of the batch"
    with torch.no_grad():
        network.layers[1].bias[0] = math.inf
    assert first_non_finite(network, x) == "the bias of layers.1 (FailingLinear)"
    with torch.no_grad():
        network.layers[0].weight.fill_(3e38)
    assert first_non_finite(network, x) == "the output of layers.0 (FailingLinear)"


def test_an_optimizer_that_cannot_train_learned_layers_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    syn.rewire(model, syn.Learned("prune"))
    with pytest.raises(ConfigurationError, match="does not hold the scores of 0"):
        Backprop(model, before)
    Backprop(model, torch.optim.SGD(model.parameters(), lr=0.1))
