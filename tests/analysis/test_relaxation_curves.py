"""Residuals and energies along a relaxation, against plain loops and autograd."""

import numpy as np
import pytest
import torch

from synaptome.analysis.relaxation_curves import chosen_steps, network_relaxation, population_residuals
from synaptome.networks.complete import Sizes
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import Relaxation

INPUTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.6, 0.2]], dtype=torch.float64)


def test_all_steps_are_chosen_of_few_and_some_on_a_logarithmic_scale_of_many():
    assert chosen_steps(1) == [1]
    assert chosen_steps(200) == list(range(1, 201))
    some = chosen_steps(1000)
    assert (some[0], some[-1]) == (1, 1000)
    assert some == sorted(set(some))
    assert 100 < len(some) <= 200
    ratios = np.array(some[60:]) / np.array(some[59:-1])
    assert ratios.max() < 1.1


def looped(model, p, m, steps):
    """The residual of each step, one network and pattern alone, by matrices of numpy."""
    weight, bias = model.weight[p].numpy(), model.bias[p].detach().numpy()
    s = model.initial(INPUTS)[p, m].numpy()
    found = []
    for _ in range(steps):
        new = s.copy()
        new[2:] = np.clip(s[2:] + model.dt * ((s @ weight)[2:] + bias - s[2:]), 0, 1)
        found.append(np.abs(new - s).max())
        s = new
    return found


def test_residuals_of_a_population_are_those_of_a_loop():
    model = Population(range(3), Sizes(2, 4, 1), leak="one", bias=True, std=1.0, dt=0.2, steps=300)
    torch.nn.init.normal_(model.bias, std=0.5)
    at = [1, 2, 3, 7, 20, 90, 300]
    found = population_residuals(model, model.initial(INPUTS), at)
    assert found.shape == (7, 3, 3)
    for p in range(3):
        for m in range(3):
            expected = np.array(looped(model, p, m, 300))[np.array(at) - 1]
            np.testing.assert_allclose(found[:, p, m], expected, atol=1e-12)
    assert (found[-1] < 1e-6).any()
    assert (found[0] > 0.01).all()


def test_a_residual_that_is_not_finite_is_infinite():
    model = Population([0], Sizes(2, 3, 1), leak="deep", activity="tanh", std=9.0, dt=5.0, steps=2000)
    found = population_residuals(model, model.initial(INPUTS), [1, 2000])
    assert found[0].isfinite().all()
    assert found[1].isinf().any()


@pytest.mark.parametrize("kind", ["hard-sigmoid", "sigmoid", "tanh"])
def test_the_energy_of_a_layered_network_falls_as_its_gradient_says(kind):
    """The change of the energy in a small step is its gradient, by autograd, times the step that was taken."""
    dt = 1e-4
    network = LayeredNetwork([2, 6, 3], state=kind, relaxation=Relaxation(5, dt)).double()
    for layer in network.layers:
        torch.nn.init.uniform_(layer.bias, 0.1, 0.4)
    start = [0.3 + 0.4 * torch.rand(3, width, dtype=torch.float64) for width in (6, 3)]
    residuals, energies = network_relaxation(network, INPUTS, start, 1)
    moving = [state.clone().requires_grad_() for state in start]
    energy = network.energy(INPUTS, moving)
    torch.testing.assert_close(energies[0], energy.detach())
    gradients = torch.autograd.grad(energy.sum(), moving)
    moved = [
        network.state.moved(state, drive, dt) for state, drive in zip(start, network.drive(INPUTS)(start), strict=True)
    ]
    expected = sum(((new - s) * g).sum(1) for new, s, g in zip(moved, start, gradients, strict=True)).detach()
    torch.testing.assert_close(energies[1] - energies[0], expected, rtol=0.02, atol=0)
    assert (expected < 0).all()
    largest = torch.stack([(new - s).abs().amax(1) for new, s in zip(moved, start, strict=True)]).amax(0)
    torch.testing.assert_close(residuals[0], largest.detach())


def test_steps_follow_one_another_and_energies_never_rise():
    network = LayeredNetwork([2, 6, 5, 3], relaxation=Relaxation(40, 0.2)).double()
    rest = network.rest(3)
    residuals, energies = network_relaxation(network, INPUTS, rest, 40)
    assert residuals.shape == (40, 3)
    assert energies.shape == (41, 3)
    outcome = network.relax(network.drive(INPUTS), rest)
    torch.testing.assert_close(residuals[-1], outcome.residual)
    torch.testing.assert_close(energies[-1], network.energy(INPUTS, outcome.states))
    assert (energies.diff(dim=0) <= 1e-14).all()
    assert (energies[0] - energies[-1] > 1e-3).any()


def test_separate_feedback_has_no_energy():
    network = LayeredNetwork([2, 4, 1], symmetric=False).double()
    residuals, energies = network_relaxation(network, INPUTS, network.rest(3), 4)
    assert residuals.shape == (4, 3)
    assert energies is None
