"""A rule on connections that change: its promises, against a loop by hand, and back from a checkpoint on disk."""

import pytest
import torch

import synaptome as syn
from synaptome.conformance import check_rule
from synaptome.data import Batch
from synaptome.errors import NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.evolving import Evolving
from synaptome.learning.optimization import Optimization
from synaptome.training import checkpoint

METHODS = {
    "set": {"drop": "set", "grow": "random", "every": 5},
    "fresh values": {"drop": "set", "grow": "random-unfired", "every": 3, "initial": "distribution"},
    "rigl": {"grow": "gradient", "every": 4, "until": 50, "schedule": "cosine"},
    "snfs": {"grow": "momentum", "every": 7, "fraction": 0.5, "redistribute": "momentum"},
    "taylor": {"drop": "taylor", "every": 2},
}


def batch_of(index):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(index))
    return Batch(x, x[:, :3].argmax(1))


def layers():
    return torch.nn.Sequential(
        syn.SparseLinear(6, 30, density=0.5), torch.nn.ReLU(), syn.SparseLinear(30, 3, density=0.4)
    )


def make(method, optimizer="sgd", **options):
    model = layers()
    optimization = Optimization(optimizer, rate=0.05, momentum=0.9 if optimizer == "sgd" else 0.0, schedule="cosine")
    made = optimization.optimizer(model.parameters())
    rule = Backprop(model, made, scheduler=optimization.scheduler(made, 100))
    return Evolving(rule, syn.Evolution(model, made, track_visited=True, **{**METHODS[method], **options}))


def connections(rule):
    return [rule.model[index].nnz for index in (0, 2)]


@pytest.mark.parametrize(("method", "optimizer"), [*((method, "sgd") for method in METHODS), ("snfs", "adam")])
def test_conformance(method, optimizer):
    check_rule(lambda: make(method, optimizer), batch_of)


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_those_of_the_rule_and_then_the_evolution(method):
    torch.manual_seed(4)
    evolving = make(method)
    torch.manual_seed(4)
    by_hand = make(method)
    replaced = 0
    for index in range(25):
        report = evolving.step(batch_of(index))
        assert report == by_hand.rule.step(batch_of(index))
        replaced += by_hand.evolution.step()
        assert evolving.replaced == replaced
    assert replaced > 0
    assert evolving.model is evolving.rule.model
    for mine, theirs in zip(evolving.model.state_dict().values(), by_hand.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert evolving.evaluate(batch_of(0)) == by_hand.rule.evaluate(batch_of(0))


@pytest.mark.parametrize("stop", [13, 28])  # in the middle of collecting gradients, and right after a change
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_on_disk_goes_on_to_the_same_bits(method, stop, tmp_path):
    rule = make(method)
    start = connections(rule)
    for index in range(stop):
        rule.step(batch_of(index))
    if "redistribute" in METHODS[method]:
        assert connections(rule) != start  # the values of a layer have another length than when it was made
        assert sum(connections(rule)) == sum(start)
    checkpoint.save(tmp_path, stop, rule.state_dict())
    torch.manual_seed(99)
    resumed = make(method)
    resumed.load_state_dict(checkpoint.load(tmp_path, stop))
    reports = [(rule.step(batch_of(i)), resumed.step(batch_of(i))) for i in range(stop, stop + 20)]
    assert all(mine == theirs for mine, theirs in reports)
    assert rule.replaced == resumed.replaced > 0
    for mine, theirs in zip(rule.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert rule.evolution.itop_rate() == resumed.evolution.itop_rate()


def test_weights_that_are_not_finite_change_no_connection():
    rule = make("set", every=1)
    rule.rule.optimizer.param_groups[0]["lr"] = float("inf")
    rule.rule.scheduler = None
    before = [rule.model[index].col.clone() for index in (0, 2)]
    with pytest.raises(NumericError, match=r"a weight of layer '0' is not finite; no connection was changed"):
        rule.step(batch_of(0))
    assert all(torch.equal(rule.model[index].col, col) for index, col in zip((0, 2), before, strict=True))
