"""The forces of the costs against autograd, and the phases that a nudging compares."""

import pytest
import torch
from torch.nn import functional as F

from synaptome.learning.nudging import cost_named, drawn_phases
from synaptome.networks.layered import LayeredNetwork

Y = torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize("name", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("beta", [0.7, -0.3])
def test_the_push_is_the_cost_downhill(name, beta):
    torch.manual_seed(1)
    network = LayeredNetwork((5, 4, 3), readout=name == "cross-entropy").double()
    cost = cost_named(name, network)
    targets = cost.prepared(Y)
    s = torch.rand(4, network.widths[-1], dtype=torch.float64, requires_grad=True)
    (downhill,) = torch.autograd.grad(-cost.per_example(network.outputs([s]), targets).sum(), s)
    drive = torch.rand_like(s)
    before = drive.clone()
    with torch.no_grad():
        cost.push(s, drive, targets, beta)
    torch.testing.assert_close(drive - before, beta * downhill)


def test_the_costs_are_half_the_squared_distance_and_the_surprise():
    network, reading = LayeredNetwork((5, 3)), LayeredNetwork((5, 4, 3), readout=True)
    outputs = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.0, 0.0], [0.2, 0.4, 0.2], [0.0, 0.0, 0.0]])
    cost = cost_named("squared-error", network)
    expected = torch.tensor([0.125, 0.0, 0.22, 0.5])
    torch.testing.assert_close(cost.per_example(outputs, cost.prepared(Y)), expected)
    torch.testing.assert_close(cost.per_example(outputs, cost.prepared(F.one_hot(Y, 3).float())), expected)
    cost = cost_named("cross-entropy", reading)
    surprise = -torch.log_softmax(outputs, 1)[torch.arange(4), Y]
    torch.testing.assert_close(cost.per_example(outputs, cost.prepared(Y)), surprise)


def test_the_phases_that_are_compared():
    assert drawn_phases("one-sided", 0.4) == (0.4, 0.0)
    assert drawn_phases("centered", 0.4) == (0.4, -0.4)
    torch.manual_seed(0)
    drawn = [drawn_phases("random-sign", 0.4) for _ in range(400)]
    assert set(drawn) == {(0.4, 0.0), (-0.4, 0.0)}
    assert abs(drawn.count((0.4, 0.0)) - 200) < 4 * 10  # four standard deviations
