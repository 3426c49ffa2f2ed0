"""What stability measures, against equations written out, against autograd by hand and against theory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from synaptome.analysis.stability import (
    energy_drift,
    flow_eigenvalues,
    gradient_norms,
    spectral_abscissa,
    states,
    step_eigenvalues,
)
from synaptome.errors import ConfigurationError
from synaptome.networks.dynamics import DYNAMICS
from synaptome.networks.stable import StableNetwork

LAYERS = [0, 1, 4]


def network_of(dynamics, width=6, depth=5, time=2.0, spread=0.5, **options):
    """In float64, with other weights and biases in each layer."""
    torch.manual_seed(3)
    network = StableNetwork(2, 3, dynamics=dynamics, width=width, depth=depth, time=time, **options).double()
    with torch.no_grad():
        network.weight += spread * torch.randn_like(network.weight)
        network.bias += spread * torch.randn_like(network.bias)
    return network


def examples(count=7):
    torch.manual_seed(5)
    return torch.randn(count, 2, dtype=torch.float64), torch.arange(count) % 3


def carried_by_hand(network, inputs):
    """Every carried state, one layer after another."""
    found = [network.opening(inputs)]
    for layer in range(network.depth):
        found.append(network.advance(found[-1], layer))
    return found


def same(found, expected, rtol=1e-9, atol=1e-9):
    """Eigenvalues have no order, and rounding parts those that are equal; sums of their powers do not mind either."""
    for power in (1, 2, 3, 4):
        torch.testing.assert_close((found**power).sum(-1), (expected**power).sum(-1), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_states_are_those_before_the_layers(dynamics):
    network, (inputs, _) = network_of(dynamics, controls=3), examples()
    every = carried_by_hand(network, inputs)
    found = states(network, inputs, [0, 2, 3, 5])
    torch.testing.assert_close(found, torch.stack([every[layer] for layer in (0, 2, 3, 5)]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states(network, inputs, [4])[0], every[4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_eigenvalues_of_a_step_are_those_of_its_differences(dynamics):
    network, (inputs, _) = network_of(dynamics), examples(2)
    carried = states(network, inputs, LAYERS)
    found = step_eigenvalues(network, carried, LAYERS)
    n = carried.shape[-1]
    assert found.shape == (len(LAYERS), 2, n)
    small = 1e-5 * torch.eye(n, dtype=torch.float64)
    with torch.no_grad():
        for place, layer in enumerate(LAYERS):
            for example in range(2):
                state = carried[place, example]
                differences = network.advance(state + small, layer) - network.advance(state - small, layer)
                same(found[place, example], torch.linalg.eigvals(differences / 2e-5), rtol=1e-7, atol=1e-7)


def written_out(network, x, layer):
    """The Jacobian of the differential equation, block by block, from its equations."""
    K, b = network.weight[layer].detach(), network.bias[layer].detach()
    n = len(b)
    y, z = x[:n], x[n:]

    def slope(K, at):  # diag(s'(K at + b)) K
        return (1 - torch.tanh(K @ at + b) ** 2)[:, None] * K

    nothing, identity = torch.zeros_like(K), torch.eye(n, dtype=K.dtype)
    if network.dynamics in ("euler", "runge-kutta"):
        return slope(K, y)
    if network.dynamics == "antisymmetric":
        return slope((K - K.T - network.flow.gamma * identity) / 2, y)
    if network.dynamics == "leapfrog":
        return torch.cat((torch.cat((nothing, identity), 1), torch.cat((-K.T @ slope(K, y), nothing), 1)))
    if network.dynamics == "verlet":
        return torch.cat((torch.cat((nothing, slope(K, z)), 1), torch.cat((-slope(K.T, y), nothing), 1)))
    p, q = y, z
    return torch.cat((torch.cat((nothing, -K.T @ slope(K, q)), 1), torch.cat((K.T @ slope(K, p), nothing), 1)))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_eigenvalues_of_the_flow_are_those_of_the_equation(dynamics):
    network, (inputs, _) = network_of(dynamics), examples(2)
    carried = states(network, inputs, LAYERS)
    found = flow_eigenvalues(network, carried, LAYERS)
    expected = torch.stack(
        [
            torch.stack([torch.linalg.eigvals(written_out(network, x, layer)) for x in batch])
            for batch, layer in zip(carried, LAYERS, strict=True)
        ]
    )
    same(found, expected)
    abscissa = spectral_abscissa(network, carried, LAYERS)
    torch.testing.assert_close(abscissa, expected.real.amax(-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_antisymmetric_layers_with_a_linear_activation_decay_at_half_of_gamma(gamma):
    network = network_of("antisymmetric", gamma=gamma, activation="linear", depth=20, time=2.0)
    carried = states(network, examples()[0], [0, 7, 19])
    found = flow_eigenvalues(network, carried, [0, 7, 19])
    torch.testing.assert_close(found.real, torch.full_like(found.real, -gamma / 2), rtol=0, atol=1e-12)
    assert found.imag.abs().max() > 0.5


@pytest.mark.parametrize("dynamics", ["verlet", "hamiltonian", "leapfrog"])
def test_what_oscillates_neither_grows_nor_decays(dynamics):
    network = network_of(dynamics)
    carried = states(network, examples()[0], LAYERS)
    found = flow_eigenvalues(network, carried, LAYERS)
    assert found.imag.abs().max() > 0.1
    # Of leapfrog an eigenvalue of K'DK that is nearly 0 gives two whose square it is: rounding counts by its root.
    assert spectral_abscissa(network, carried, LAYERS).abs().max() < (1e-7 if dynamics == "leapfrog" else 1e-12)


def test_eigenvalues_are_found_where_most_neurons_are_silent():
    """A Jacobian with many rows of zeros, of which torch 2.13 finds none: its routine does not balance it."""
    K = torch.zeros(4, 4, dtype=torch.float64)
    K[2] = torch.tensor([-0.04977424442768097, -0.1088605672121048, 0.0979941338300705, -0.17139434814453125])
    K[:, 2] = torch.tensor([-0.15978775918483734, 0.1181202158331871, 0.0979941338300705, -0.043719224631786346])
    K[:, 3] = torch.tensor([0.2566150426864624, 0.2217259556055069, -0.17139434814453125, 0.10046081244945526])
    network = StableNetwork(4, 2, dynamics="verlet", width=4, depth=1, activation="relu").double()
    with torch.no_grad():
        network.weight[0] = K
        network.bias[0] = torch.tensor([-1.0, -1.0, 1.0, -1.0])
    # Y with K'Y = (0, 0, 0, 2), so that of K'Y + b the last two are at work, and of K Z + b the third.
    y = torch.linalg.pinv(K.T) @ torch.tensor([0.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    carried = torch.cat((y, torch.zeros_like(y)))[None, None]
    found = flow_eigenvalues(network, carried, [0])[0, 0]
    # Those of [[0, A], [-B, 0]] with A = D1 K and B = D2 K' are the roots of those of -A B, with both signs.
    one, two = (torch.diag(torch.tensor(active, dtype=torch.float64)) for active in ([0, 0, 1, 0], [0, 0, 1, 1]))
    turning = (one @ K @ two @ K.T).trace().sqrt()  # the only eigenvalue of A B that is not 0
    assert found.abs().sort().values[-2:].tolist() == pytest.approx([turning.item()] * 2)
    assert found.abs().sort().values[:-2].max() < 1e-8
    assert found.real.abs().max() < 1e-8


@pytest.mark.parametrize("dynamics", ["euler", "antisymmetric"])
def test_a_step_of_euler_has_the_eigenvalues_of_the_flow_times_h_and_1_more(dynamics):
    network = network_of(dynamics, time=0.7)
    carried = states(network, examples()[0], LAYERS)
    steps, flow = step_eigenvalues(network, carried, LAYERS), flow_eigenvalues(network, carried, LAYERS)
    same((steps - 1) / network.step, flow)


def test_eigenvalues_of_a_convolution_are_those_of_its_matrix():
    torch.manual_seed(1)
    network = StableNetwork((1, 3, 4), 2, dynamics="antisymmetric", width=2, depth=3, activation="linear").double()
    with torch.no_grad():
        network.weight.normal_()
    carried = states(network, torch.randn(2, 1, 3, 4, dtype=torch.float64), [1])
    found = flow_eigenvalues(network, carried, [1])
    assert found.shape == (1, 2, 24)
    assert found.real.abs().max() < 1e-12
    K = network.flow.matrices(network.weight[1].detach())
    unit = torch.eye(24, dtype=torch.float64).view(24, 2, 3, 4)
    matrix = F.conv2d(unit, K, padding=1).flatten(1).T
    same(found, torch.linalg.eigvals(matrix).expand(1, 2, 24))


@pytest.mark.parametrize("options", [{}, {"reversible": True}])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_gradient_norms_are_those_of_autograd(dynamics, options):
    if options and dynamics not in ("leapfrog", "verlet", "hamiltonian"):
        return
    network, (inputs, targets) = network_of(dynamics, **options), examples()
    found = gradient_norms(network, inputs, targets, [0, 2, 5])
    every = carried_by_hand(network, inputs)
    for norm, layer in zip(found, (0, 2, 5), strict=True):
        x = every[layer].detach()
        n = x.shape[1] // 2
        if dynamics == "leapfrog":  # Y and Y' for Y and the Y before
            x = torch.cat((x[:, :n], (x[:, :n] - x[:, n:]) / network.step), 1)
        x.requires_grad_()
        state = torch.cat((x[:, :n], x[:, :n] - network.step * x[:, n:]), 1) if dynamics == "leapfrog" else x
        for later in range(layer, network.depth):
            state = network.advance(state, later)
        outputs = network.classifier(state[:, : network.width])
        losses = outputs.logsumexp(1) - outputs[torch.arange(len(x)), targets]
        (gradient,) = torch.autograd.grad(losses.mean(), x)
        assert norm.item() == pytest.approx(gradient.square().sum().sqrt().item(), rel=1e-10)


def test_gradient_norms_need_no_gradients_by_weights_and_leave_none():
    network, (inputs, targets) = network_of("verlet"), examples()
    trained = gradient_norms(network, inputs, targets, [1, 3])
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        again = gradient_norms(network.requires_grad_(False), inputs, targets, [1, 3])
    assert torch.equal(trained, again)
    assert not trained.requires_grad


def test_gradients_of_a_decaying_network_shrink_by_the_factor_of_its_step():
    network = network_of("antisymmetric", activation="linear", gamma=0.5, depth=40, time=4.0, spread=0.0)
    with torch.no_grad():
        network.weight.zero_()
    norms = gradient_norms(network, *examples(), [0, 40])
    assert (norms[0] / norms[1]).item() == pytest.approx((1 - 0.5 * 0.1 / 2) ** 40, rel=1e-10)


def energy_by_hand(state, K, b):
    p, q = state.chunk(2)
    return sum(math.log(math.cosh(value)) for value in [*(K @ q + b).tolist(), *(K @ p + b).tolist()])


def test_energy_drift_is_what_a_direct_computation_gives():
    network, (inputs, _) = network_of("hamiltonian", depth=6, time=3.0), examples(3)
    every = [state.detach() for state in carried_by_hand(network, inputs)]
    weight, bias = network.weight.detach(), network.bias.detach()
    start = sum(energy_by_hand(state, weight[0], bias[0]) for state in every[0]) / 3
    drift = energy_drift(network, inputs)
    assert drift.total.shape == drift.steps.shape == (7, 3)
    for example in range(3):
        first, made = energy_by_hand(every[0][example], weight[0], bias[0]), 0.0
        for layer in range(7):
            at = min(layer, 5)
            gained = energy_by_hand(every[layer][example], weight[at], bias[at]) - first
            assert drift.total[layer, example].item() == pytest.approx(gained / start, abs=1e-12)
            assert drift.steps[layer, example].item() == pytest.approx(made / start, abs=1e-12)
            if layer < 6:
                K, b = weight[layer], bias[layer]
                made += energy_by_hand(every[layer + 1][example], K, b) - energy_by_hand(every[layer][example], K, b)


def test_with_constant_weights_the_drift_is_that_of_the_steps_and_falls_by_4_when_h_halves():
    drifts = []
    for depth in (40, 80, 160):
        network = StableNetwork(2, 2, dynamics="hamiltonian", width=4, depth=depth, time=8.0).double()
        torch.manual_seed(2)
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 2, dtype=torch.float64))
            network.bias.copy_(torch.randn(2, dtype=torch.float64))
        drift = energy_drift(network, examples()[0])
        torch.testing.assert_close(drift.total, drift.steps, rtol=0, atol=1e-12)
        drifts.append(drift.total.abs().max().item())
    assert drifts[0] / drifts[1] == pytest.approx(4, rel=0.15)
    assert drifts[1] / drifts[2] == pytest.approx(4, rel=0.1)


def test_a_network_without_energy_gains_none():
    network = StableNetwork(2, 2, dynamics="hamiltonian", width=4, depth=3)
    torch.nn.init.zeros_(network.weight)
    assert not energy_drift(network, torch.randn(5, 2)).total.any()


def test_what_does_not_fit_is_refused():
    network, (inputs, targets) = network_of("euler"), examples()
    for layers in ([], [0, 6], [-1, 2], [2, 1], [1, 1]):
        with pytest.raises(ConfigurationError, match="numbers from 0 to 5, each once and ascending"):
            states(network, inputs, layers)
        with pytest.raises(ConfigurationError, match="numbers from 0 to 5"):
            gradient_norms(network, inputs, targets, layers)
    carried = states(network, inputs, [0, 5])
    with pytest.raises(ConfigurationError, match="numbers from 0 to 4"):
        step_eigenvalues(network, carried, [0, 5])
    with pytest.raises(ConfigurationError, match="3 layers take as many batches of states; given 2"):
        spectral_abscissa(network, carried, [0, 1, 2])
    with pytest.raises(ConfigurationError, match="the euler dynamics with tanh"):
        energy_drift(network, inputs)
    with pytest.raises(ConfigurationError, match="the hamiltonian dynamics with relu"):
        energy_drift(network_of("hamiltonian", activation="relu"), inputs)
