"""Backpropagation through time against finite differences and at equilibrium, and the angle between gradients."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synaptome.analysis.alignment import alignment, bptt_gradient
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.states import STATES

X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def cost(outputs):
    return F.cross_entropy(3 * outputs, Y)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"readout": True}])
@pytest.mark.parametrize("steps", [1, 7])
def test_bptt_is_the_derivative_of_the_cost_of_what_the_network_says(state, options, steps):
    network = LayeredNetwork((5, 6, 4, 3), state=state, relaxation=Relaxation(steps, 0.4), **options).double()
    for layer in network.layers:
        layer.bias.data.fill_(0.3)
    value, gradient = bptt_gradient(network, X, cost)
    with torch.no_grad():
        torch.testing.assert_close(value, cost(network(X)))
        for name, parameter in network.named_parameters():
            direction = torch.randn_like(parameter)
            costs = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * 1e-6)
                costs.append(cost(network(X)).item())
                parameter.add_(direction, alpha=-sign * 1e-6)
            slope = (costs[0] - costs[1]) / 2e-6
            assert (gradient[name] * direction).sum().item() == pytest.approx(slope, abs=1e-7)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_parallel_opposite_and_orthogonal_gradients():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    first = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    assert alignment(model, first, {name: 3 * g for name, g in first.items()}) == pytest.approx({"0": 1.0, "2": 1.0})
    assert alignment(model, first, {name: -g for name, g in first.items()}) == pytest.approx({"0": -1.0, "2": -1.0})
    a = {"0.weight": torch.tensor([[1.0, 0.0]]), "0.bias": torch.tensor([0.0])}
    b = {"0.weight": torch.tensor([[1.0, 1.0]]), "0.bias": torch.tensor([1.0])}
    zero = {"2.weight": torch.zeros(2, 1), "2.bias": torch.zeros(2)}
    assert alignment(model, a | zero, b | zero) == pytest.approx({"0": 1 / math.sqrt(3), "2": 0.0})


def test_a_module_with_parameters_of_its_own_has_its_name():
    cell = nn.RNNCell(2, 3)
    gradient = {name: torch.ones_like(p) for name, p in cell.named_parameters()}
    assert alignment(cell, gradient, gradient) == pytest.approx({"": 1.0})
