"""Multilevel training: the promises of a rule, against a loop by hand, and back from a checkpoint at any level."""

import math

import pytest
import torch

from synaptome.conformance import check_rule
from synaptome.data import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.backprop import Backprop
from synaptome.learning.multilevel import Multilevel
from synaptome.learning.optimization import Optimization
from synaptome.networks.multilevel import prolong, smoothness
from synaptome.networks.stable import StableNetwork
from synaptome.training import checkpoint

STEPS = 12  # of a level
OPTIMIZATIONS = {
    "adam": Optimization("adam", rate=0.02, schedule="cosine"),
    "sgd": Optimization("sgd", rate=0.05, momentum=0.9, schedule="drops"),
    "adamw": Optimization("adamw", rate=0.02, weight_decay=0.01),
}


def batch_of(index):
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(index))
    return Batch(x, (x.square().sum(1) > 2).long())


def backprop(optimization=OPTIMIZATIONS["adam"], **options):
    network = StableNetwork(3, 2, **{"dynamics": "verlet", "width": 4, "depth": 3, "time": 2.0, **options})
    return Backprop(
        network, optimization.optimizer(network.parameters()), penalty=lambda model: 1e-3 * smoothness(model)
    )


def make(name="adam", levels=3, **options):
    optimization = OPTIMIZATIONS[name]
    return Multilevel(
        backprop(optimization, **options), levels, STEPS, lambda optimizer: optimization.scheduler(optimizer, STEPS)
    )


def same_bits(first, second):
    states = [{**rule.model.state_dict(), **moments(rule)} for rule in (first, second)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def weights(rule):
    return {name: parameter.detach().clone() for name, parameter in rule.model.named_parameters()}


def moments(rule):
    """What the optimizer remembers of each parameter."""
    optimizer = rule.rule.optimizer if isinstance(rule, Multilevel) else rule.optimizer
    return {
        f"{name}/{key}": value.clone()
        for name, parameter in rule.model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if torch.is_tensor(value)
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("sgd", {"dynamics": "antisymmetric", "gamma": 0.2}),
        ("adamw", {"dynamics": "hamiltonian", "controls": 2}),
        ("adam", {"dynamics": "leapfrog", "reversible": True, "opening": "learned"}),
    ],
)
def test_conformance(name, options):
    """60 steps, of which a resumed rule takes the last 30: from the last level on."""
    check_rule(lambda: make(name, **options), batch_of)


@pytest.mark.parametrize("levels", [1, 3])
def test_conformance_before_the_last_level(levels):
    check_rule(lambda: make(levels=levels), batch_of, steps=STEPS // 2 + 2)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_are_those_of_a_loop_by_hand(name):
    """The loop sets the rate of each step itself: that of the schedule, which each level starts from the beginning."""
    torch.manual_seed(3)
    multilevel = make(name)
    torch.manual_seed(3)
    by_hand = backprop(OPTIMIZATIONS[name])
    done = 0
    for level in range(3):
        if level:
            prolong(by_hand.model, by_hand.optimizer)
        for step in range(STEPS):
            cosine = 0.5 * (1 + math.cos(math.pi * step / STEPS))
            drops = 1.0 if step < 6 else 0.1 if step < 9 else 0.01
            by_hand.optimizer.param_groups[0]["lr"] = 0.02 * cosine if name == "adam" else 0.05 * drops
            assert multilevel.step(batch_of(done)) == by_hand.step(batch_of(done))
            done += 1
            assert (multilevel.level, multilevel.done) == (level, done)
            assert multilevel.model.depth == multilevel.model.controls == 3 * 2**level
            assert multilevel.model.step == pytest.approx(2.0 / (3 * 2**level))
        assert same_bits(multilevel, by_hand)
    multilevel.step(batch_of(done))
    assert multilevel.model.depth == 12  # there is no further level
    assert multilevel.evaluate(batch_of(0)) == multilevel.rule.evaluate(batch_of(0))


def test_the_next_level_starts_where_the_last_one_ended():
    """Weights and moments, before the first step of a level changes them, are on the lines between those before."""
    rule = make()
    for index in range(STEPS):
        rule.step(batch_of(index))
    before, seen = {**weights(rule), **moments(rule)}, {}
    step = rule.rule.step

    def look(batch):
        seen.update(weights(rule) | moments(rule))
        seen["rate"] = rule.rule.optimizer.param_groups[0]["lr"]
        return step(batch)

    rule.rule.step = look
    rule.step(batch_of(0))
    assert seen.pop("rate") == 0.02  # not what was left of it at the end of the level before
    assert set(seen) == set(before)
    assert {name.partition("/")[2] for name in seen} == {"", "step", "exp_avg", "exp_avg_sq"}
    for name, old in before.items():
        if name.partition("/")[0] in ("weight", "bias") and old.dim():
            between = (old + torch.cat([old[1:], old[-1:]])) / 2
            torch.testing.assert_close(seen[name], torch.stack([old, between], 1).flatten(0, 1))
        else:
            assert torch.equal(seen[name], old), name


@pytest.mark.parametrize("name", OPTIMIZATIONS)
@pytest.mark.parametrize("stop", [0, 5, STEPS, STEPS + 1, 2 * STEPS, 2 * STEPS + 7])
def test_a_checkpoint_on_disk_of_any_level_goes_on_to_the_same_bits(name, stop, tmp_path):
    """Also right before and right after a network was prolonged."""
    rule = make(name)
    for index in range(stop):
        rule.step(batch_of(index))
    checkpoint.save(tmp_path, stop, rule.state_dict())
    torch.manual_seed(99)
    resumed = make(name)
    resumed.load_state_dict(checkpoint.load(tmp_path, stop))
    assert (resumed.level, resumed.done) == (rule.level, rule.done)
    assert resumed.model.depth == rule.model.depth == 3 * 2 ** max(0, (stop - 1) // STEPS)
    for index in range(stop, 3 * STEPS):
        assert rule.step(batch_of(index)) == resumed.step(batch_of(index))
        assert rule.rule.optimizer.param_groups[0]["lr"] == resumed.rule.optimizer.param_groups[0]["lr"]
    assert same_bits(rule, resumed)
    assert resumed.level == 2


def test_a_state_of_the_same_level_is_gone_back_to():
    rule = make()
    for index in range(STEPS + 3):
        rule.step(batch_of(index))
    saved = checkpoint_of(rule)
    first = [rule.step(batch_of(index)) for index in range(5)]
    rule.load_state_dict(saved)
    assert [rule.step(batch_of(index)) for index in range(5)] == first


def checkpoint_of(rule):
    state = rule.state_dict()
    return torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if torch.is_tensor(leaf) else leaf, state)


def test_a_state_of_an_earlier_level_is_not_for_a_deeper_network():
    rule = make()
    earlier = checkpoint_of(rule)
    for index in range(STEPS + 1):
        rule.step(batch_of(index))
    with pytest.raises(ConfigurationError, match="at level 2 already, and the state is of level 1; load"):
        rule.load_state_dict(earlier)


def test_without_a_schedule_that_of_the_rule_goes_on_over_all_levels():
    inner = backprop()
    inner.scheduler = torch.optim.lr_scheduler.ExponentialLR(inner.optimizer, 0.9)
    rule = Multilevel(inner, 2, STEPS)
    rates = []
    for index in range(2 * STEPS):
        rates.append(inner.optimizer.param_groups[0]["lr"])
        rule.step(batch_of(index))
    assert rates == pytest.approx([0.02 * 0.9**index for index in range(2 * STEPS)])
    assert inner.model.depth == 6


def test_a_step_that_fails_at_the_start_of_a_level_prolongs_once():
    rule = make()
    for index in range(STEPS):
        rule.step(batch_of(index))
    bad = Batch(torch.full((4, 3), torch.inf), torch.zeros(4, dtype=torch.int64))
    for _ in range(2):
        with pytest.raises(NumericError, match="the loss is nan"):
            rule.step(bad)
    assert (rule.level, rule.done, rule.model.depth) == (1, STEPS, 6)
    twin = make()
    twin.load_state_dict(checkpoint_of(rule))
    for index in range(STEPS, 2 * STEPS + 2):
        assert rule.step(batch_of(index)) == twin.step(batch_of(index))
    assert rule.model.depth == twin.model.depth == 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": 0}, "whole numbers of at least 1; given 0 levels of 12 steps"),
        ({"steps": 0}, "given 2 levels of 0 steps"),
        ({"rule": "linear"}, "time steps of a StableNetwork; given a Linear"),
        ({"rule": "lbfgs"}, "LBFGS keeps one flat history.*take one level, or another optimizer"),
    ],
)
def test_what_has_no_levels_is_refused(changed, message):
    rule = backprop()
    if changed.get("rule") == "linear":
        linear = torch.nn.Linear(3, 2)
        rule = Backprop(linear, torch.optim.Adam(linear.parameters()))
    elif changed.get("rule") == "lbfgs":
        rule.optimizer = torch.optim.LBFGS(rule.model.parameters())
        assert Multilevel(rule, 1, STEPS).level == 0  # which it can
    with pytest.raises(ConfigurationError, match=message):
        Multilevel(rule, changed.get("levels", 2), changed.get("steps", STEPS))
