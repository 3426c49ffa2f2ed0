"""Multilevel training: prolonged networks and optimizers, and what keeps weights smooth."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.errors import ConfigurationError
from synaptome.networks.dynamics import DYNAMICS
from synaptome.networks.multilevel import pixel_smoothness, prolong, prolong_blocks, smoothness
from synaptome.networks.stable import StableNetwork

TIME = 2.0
OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.05}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Adadelta, {}),
]


def halfway(path):
    """Twice as many rows: each old one, followed by what lies halfway to the next; the last one is repeated."""
    rows = path.detach().numpy()
    after = np.concatenate((rows[1:], rows[-1:]))
    return torch.from_numpy(np.stack((rows, (rows + after) / 2), 1).reshape(2 * len(rows), *rows.shape[1:]))


def on_a_path(name, depth, constant=False):
    """A network whose weights are a smooth path in time, or stand still, taken at the times of so many layers."""
    torch.manual_seed(5)
    network = StableNetwork(4, 2, dynamics=name, width=4, depth=depth, time=TIME).double()
    n = network.bias.shape[1]
    first, last = torch.randn(2, n, n, dtype=torch.float64) / math.sqrt(n)
    b, c = torch.randn(2, n, dtype=torch.float64) / 2
    for j in range(depth):
        t = 0.0 if constant else j / depth
        network.weight.data[j] = math.cos(2 * t) * first + math.sin(2 * t) * last
        network.bias.data[j] = b + t**2 * c
    return network


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", sorted(DYNAMICS))
def test_a_prolonged_network_tends_to_the_coarse_one(name, constant):
    """The gap is the error of the coarse one: of the method's order if weights stand still, else of order 1."""
    order = {"verlet": 2, "hamiltonian": 2, "runge-kutta": 4}.get(name, 1) if constant else 1
    x, gaps = torch.randn(6, 4, dtype=torch.float64), []
    for depth in (32, 64, 128, 256):
        network = on_a_path(name, depth, constant)
        coarse = network(x)
        prolong(network)
        gaps.append((network(x) - coarse).abs().max().item())
    slopes = [math.log2(before / after) for before, after in pairwise(gaps)]
    assert slopes[1:] == pytest.approx([order] * 2, abs=0.15)


@given(st.integers(1, 5), st.integers(0, 3), st.sampled_from([3, (2, 3, 4)]))
@settings(max_examples=25, deadline=None)
def test_prolonging_interpolates_and_keeps_the_time(controls, more, inputs):
    network = StableNetwork(inputs, 2, width=4, depth=controls + more, controls=controls, time=TIME).double()
    with torch.no_grad():
        network.weight.normal_()
        network.bias.normal_()
    weight, bias, classifier, step = network.weight, network.bias, network.classifier.weight, network.step
    prolong(network)
    torch.testing.assert_close(network.weight.data, halfway(weight))
    torch.testing.assert_close(network.bias.data, halfway(bias))
    assert network.classifier.weight is classifier
    assert (network.depth, network.controls) == (2 * (controls + more), 2 * controls)
    assert (network.time, network.step) == (TIME, step / 2)
    assert isinstance(network.weight, torch.nn.Parameter)
    assert network.weight.requires_grad
    x = torch.randn(3, *((inputs,) if isinstance(inputs, int) else inputs), dtype=torch.float64)
    assert network.features(x).shape[0] == 2 * (controls + more) + 1
    torch.testing.assert_close(network(network(x, stop=1), start=1), network(x))


def test_the_first_kick_is_halved_once_on_each_level():
    network = on_a_path("verlet", 8, constant=True)
    x = torch.randn(6, 4, dtype=torch.float64)
    prolong(network)
    assert torch.equal(network(x), on_a_path("verlet", 16, constant=True)(x))


def trained(cls, options, steps=4):
    torch.manual_seed(1)
    network = StableNetwork(3, 2, width=3, depth=4, opening="learned")
    groups = [
        {"params": [network.weight, network.classifier.weight]},
        {"params": [network.bias, network.classifier.bias], "lr": 0.003},
    ]
    optimizer = cls(groups, **options)
    for _ in range(steps):
        step(network, optimizer)
    return network, optimizer


def step(network, optimizer):
    optimizer.zero_grad()
    network(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS, ids=lambda x: x.__name__ if isinstance(x, type) else "")
def test_the_optimizers_state_is_interpolated_as_the_weights_are(cls, options):
    network, optimizer = trained(cls, options)
    others = [network.classifier.weight, network.classifier.bias]
    before = {name: (parameter, copy.deepcopy(optimizer.state[parameter])) for name, parameter in paths(network)}
    kept = [copy.deepcopy(optimizer.state[parameter]) for parameter in others]
    lrs = [group["lr"] for group in optimizer.param_groups]
    prolong(network, optimizer)
    held = [group["params"] for group in optimizer.param_groups]
    assert [[id(p) for p in group] for group in held] == [
        [id(network.weight), id(others[0])],
        [id(network.bias), id(others[1])],
    ]
    assert [group["lr"] for group in optimizer.param_groups] == lrs
    for name, parameter in paths(network):
        old, states = before[name]
        assert old not in optimizer.state
        after = optimizer.state[parameter]
        assert after.keys() == states.keys()
        for key, state in states.items():
            if isinstance(state, torch.Tensor) and state.dim() > 0:
                torch.testing.assert_close(after[key], halfway(state))
                assert state.any()
                if (state >= 0).all():
                    assert (after[key] >= 0).all()
            else:
                assert after[key] == state
    for parameter, states in zip(others, kept, strict=True):
        for key, state in states.items():
            assert torch.equal(torch.as_tensor(optimizer.state[parameter][key]), torch.as_tensor(state))
    weight = network.weight.detach().clone()
    step(network, optimizer)
    assert not torch.equal(network.weight, weight)
    assert torch.isfinite(network.weight).all()


def paths(network):
    return [("weight", network.weight), ("bias", network.bias)]


def test_training_goes_on_from_level_to_level():
    torch.manual_seed(2)
    network = StableNetwork(2, 2, width=8, depth=8, time=4.0)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    x = torch.randn(200, 2)
    classes = (x.norm(dim=1) > 1.2).long()
    losses = []
    for level in range(3):
        if level:
            prolong(network, optimizer)
        for _ in range(40):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert network.depth == 32
    assert losses[-1] < 0.1 < 0.6 < losses[0]
    # A level starts about where the one before ended: at its discretisation's error, which falls with the step.
    assert losses[40] < 0.3
    assert losses[80] < 0.15


def unchanged(network, optimizer, message):
    before, held = copy.deepcopy(network.state_dict()), list(network.parameters())
    with pytest.raises(ConfigurationError, match=message):
        prolong(network, optimizer)
    assert network.depth == 4
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert all(mine is theirs for mine, theirs in zip(network.parameters(), held, strict=True))


def test_optimizers_that_cannot_follow_are_refused_before_anything_changes():
    network, optimizer = trained(torch.optim.Adam, {})
    unchanged(network, torch.optim.LBFGS(network.parameters()), "LBFGS keeps one flat history.*make a new one")
    unchanged(network, torch.optim.SGD([network.weight], 0.1), "does not hold the bias of this network; make it from")
    optimizer.state[network.bias]["curvature"] = torch.zeros(3)
    unchanged(network, optimizer, r"Adam keeps a state 'curvature' of shape \[3\] for the bias, \[4, 3\]")
    factored = torch.optim.Adafactor(network.parameters())
    step(network, factored)
    unchanged(network, factored, r"Adafactor keeps a state 'row_var' of shape \[4, 3, 1\] for the weight")


def test_parameters_that_are_not_trained_need_no_optimizer():
    network = StableNetwork(3, 2, width=3, depth=4)
    network.bias.requires_grad_(False)
    prolong(network, torch.optim.SGD([network.weight], 0.1))
    assert len(network.bias) == 8
    assert not network.bias.requires_grad


def test_smoothness_is_that_of_the_formula_and_carries_over_depths():
    network = on_a_path("verlet", 8)
    W, b = network.weight.detach().numpy(), network.bias.detach().numpy()
    expected = sum(((W[j + 1] - W[j]) ** 2).sum() + ((b[j + 1] - b[j]) ** 2).sum() for j in range(7)) / (2 * TIME / 8)
    assert smoothness(network).item() == pytest.approx(expected, rel=1e-12)
    before = smoothness(network).item()
    prolong(network)  # the same lines in time, hence the same integral of the squared derivative
    assert smoothness(network).item() == pytest.approx(before, rel=1e-12)
    coarse, fine, finest = (smoothness(on_a_path("verlet", depth)).item() for depth in (64, 128, 256))
    assert abs(finest - fine) < 0.6 * abs(fine - coarse) < 0.05 * finest
    assert smoothness(StableNetwork(3, 2, width=3, depth=1)).item() == 0


def test_pixel_smoothness_is_that_of_the_formula():
    network = StableNetwork((1, 3, 4), 2, width=5, depth=2, dynamics="leapfrog")
    images = network.classifier.weight.detach().double().numpy().reshape(2, 5, 3, 4)
    expected = 0.0
    for row in range(3):
        for column in range(4):
            if row < 2:
                expected += ((images[:, :, row + 1, column] - images[:, :, row, column]) ** 2).sum()
            if column < 3:
                expected += ((images[:, :, row, column + 1] - images[:, :, row, column]) ** 2).sum()
    assert pixel_smoothness(network).item() == pytest.approx(expected, rel=1e-5)
    pixel_smoothness(network).backward()
    assert network.classifier.weight.grad.any()


def test_pixel_smoothness_of_a_fully_connected_network_is_refused():
    with pytest.raises(ConfigurationError, match="fully connected: its features have no neighbours"):
        pixel_smoothness(StableNetwork(3, 2, width=3, depth=2))


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
@pytest.mark.parametrize("balance", [(3, 1), (4, 0), (1, 2, 1), (4,)])
def test_prolonged_blocks_are_those_of_the_prolonged_network(optimizer, options, balance):
    network = on_a_path("verlet", 4)
    blocks = network.split(balance)
    whole = optimizer(network.parameters(), **options)
    parts = [optimizer(block.parameters(), **options) for block in blocks]
    x = torch.randn(5, 4, dtype=torch.float64)

    def step():
        for model, holders in ((network, [whole]), (torch.nn.Sequential(*blocks), parts)):
            for each in holders:
                each.zero_grad()
            model(x).square().sum().backward()
            for each in holders:
                each.step()

    step()
    prolong(network, whole)
    prolong_blocks(blocks, parts)
    step()
    assert [block.depth for block in blocks] == [2 * layers for layers in balance]
    assert network.depth == 8
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            torch.cat([block.get_parameter(name) for block in blocks]), network.get_parameter(name)
        )
    torch.testing.assert_close(torch.nn.Sequential(*blocks)(x), network(x))


def test_blocks_without_an_optimizers_state_stay_as_they_were():
    network = on_a_path("euler", 4)
    blocks = network.split((2, 2))
    optimizers = [torch.optim.Adam(blocks[0].parameters()), torch.optim.LBFGS(blocks[1].parameters())]
    with pytest.raises(ConfigurationError, match="LBFGS"):
        prolong_blocks(blocks, optimizers)
    assert [block.depth for block in blocks] == [2, 2]
    assert [len(block.weight) for block in blocks] == [2, 2]
