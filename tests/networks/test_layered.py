"""Layered networks against one dense matrix of all couplings: drives, energy, relaxation, and the bound on steps."""

import copy

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.kernels.relax import CONVERGED, OUT_OF_STEPS
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.states import STATES

EVERY = pytest.mark.parametrize("state", STATES)
SHAPES = pytest.mark.parametrize("widths", [(5, 3), (5, 4, 3), (5, 4, 6, 3), (5, 4, 3, 5, 2)])
LONG = Relaxation(3000, 0.5, tolerance=1e-15)


def made(widths, seed=0, scale=1.0, **options):
    torch.manual_seed(seed)
    network = LayeredNetwork(widths, **options).double()
    for parameter in network.parameters():
        parameter.data.mul_(scale)
        if parameter.dim() == 1:
            parameter.data.uniform_(-0.2, 0.4)
    return network


def dense(network):
    """`[neurons, neurons]`, the weight from row to column, written down from the equations."""
    ends = torch.tensor([0, *network.widths]).cumsum(0)
    W = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for number in range(1, len(network.widths)):
        below, here = slice(ends[number - 1], ends[number]), slice(ends[number], ends[number + 1])
        forward = network.layers[number].weight.detach()
        W[below, here] = forward.T
        W[here, below] = forward if network.symmetric else network.feedback[number - 1].weight.detach().T
    return W


def some_states(network, batch=4):
    low, high = network.state.low, network.state.high
    return [torch.rand(batch, width, dtype=torch.float64) * (high - low) + low for width in network.widths]


@SHAPES
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_drive_is_a_product_with_one_dense_matrix(widths, symmetric):
    network = made(widths, symmetric=symmetric)
    x, states = torch.rand(4, 5, dtype=torch.float64), some_states(network)
    constant = torch.cat([layer.bias for layer in network.layers]).expand(4, -1).clone()
    constant[:, : network.widths[0]] += x @ network.layers[0].weight.T
    expected = (torch.cat(states, 1) @ dense(network) + constant).detach()
    drive = network.drive(x)
    torch.testing.assert_close(torch.cat(drive(states), 1).detach(), expected)
    written = [torch.empty_like(state) for state in states]
    with torch.no_grad():
        drive.write(states, written)
    torch.testing.assert_close(torch.cat(written, 1), expected)


@SHAPES
def test_the_transposed_drive_is_the_same_here_and_has_the_transposed_derivative(widths):
    network = made(widths, symmetric=False)
    x, states = torch.rand(4, 5, dtype=torch.float64), some_states(network)
    drive = network.drive(x)
    transposed = drive.transposed_about(states)
    torch.testing.assert_close(torch.cat(transposed(states), 1), torch.cat(drive(states), 1))
    moved = some_states(network)
    difference = torch.cat(transposed(moved), 1) - torch.cat(drive(states), 1)
    torch.testing.assert_close(difference, (torch.cat(moved, 1) - torch.cat(states, 1)) @ dense(network).T)


@EVERY
@SHAPES
def test_the_drive_less_the_inverse_of_rho_is_the_downhill_gradient_of_the_energy(state, widths):
    network = made(widths, state=state)
    x = torch.rand(4, 5, dtype=torch.float64)
    states = [s.requires_grad_() for s in some_states(network)]
    gradients = torch.autograd.grad(network.energy(x, states).sum(), states)
    for s, gradient, drive in zip(states, gradients, network.drive(x)(states), strict=True):
        inverse = {"hard-sigmoid": s, "sigmoid": torch.logit(s), "tanh": torch.atanh(s)}[state]
        torch.testing.assert_close(-gradient, drive - inverse)


@EVERY
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_energy_never_increases_in_small_steps(state, scale):
    network = made((5, 8, 6, 3), state=state, scale=scale)
    x, states = torch.rand(20, 5, dtype=torch.float64), some_states(network, 20)
    drive, step = network.drive(x), Relaxation(1, 0.05)
    energies = [network.energy(x, states)]
    for _ in range(300):
        states = network.relax(drive, states, step).states
        energies.append(network.energy(x, states))
    course = torch.stack(energies).detach()
    assert (course.diff(dim=0) <= 1e-12).all()
    assert (course[-1] < course[0] - 1e-3).all()


def test_the_energy_of_the_hard_sigmoid_falls_up_to_the_bound_on_steps_and_rises_beyond_it():
    """Two neurons and one coupling w: the curvature of the energy is 1 + |w|, and steps may be up to 2 / (1 + |w|)."""
    network = LayeredNetwork((1, 1, 1)).double()
    for layer, weight in zip(network.layers, (0.0, -0.9), strict=True):
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(0.5 * (1 + 0.9))  # at rest where both states are 0.5 and the input says nothing
    bound = network.step_bound()
    assert bound == pytest.approx(2 / 1.9)
    x = torch.zeros(1, 1, dtype=torch.float64)
    start = [torch.tensor([[0.5 + 1e-3]], dtype=torch.float64), torch.tensor([[0.5 + 1e-3]], dtype=torch.float64)]
    drive = network.drive(x)
    for dt, grows in ((0.95 * bound, False), (1.05 * bound, True)):
        factor = abs(1 - dt * 1.9)
        moved = [network.state.moved(s, a, dt) for s, a in zip(start, drive(start), strict=True)]
        assert (moved[0].item() - 0.5) == pytest.approx(factor * 1e-3 * (-1), rel=1e-6)
        assert (network.energy(x, moved) > network.energy(x, start)).item() is grows


@SHAPES
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_bound_on_steps_is_that_of_all_eigenvalues(widths, symmetric):
    network = made(widths, symmetric=symmetric, scale=2.0)
    values = torch.linalg.eigvals(dense(network))
    values = values[values.real < 1 - 1e-9]

    def growth(dt):
        return (1 + dt * (values - 1)).abs().max().item()

    bound = network.step_bound()
    assert growth(bound) == pytest.approx(1, abs=1e-6)
    assert growth(0.99 * bound) <= 1 + 1e-9
    assert growth(1.01 * bound) > 1


@EVERY
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_state_restarted_at_a_fixed_point_stays(state, symmetric):
    network = made((5, 8, 6, 3), state=state, symmetric=symmetric, scale=0.5, relaxation=LONG)
    x = torch.rand(6, 5, dtype=torch.float64)
    drive = network.drive(x)
    first = network.relax(drive, network.rest(6))
    assert (first.outcome == CONVERGED).all()
    for s, a in zip(first.states, drive(first.states), strict=True):
        torch.testing.assert_close(s, network.state.function(a), rtol=0, atol=1e-13)
    again = network.relax(drive, first.states)
    assert (again.steps == 1).all()
    torch.testing.assert_close(again.states, first.states, rtol=0, atol=1e-14)
    torch.testing.assert_close(network(x), first.states[-1])


@EVERY
def test_fixed_sweeps_and_small_steps_come_to_rest_at_the_same_point(state):
    network = made((5, 8, 3), state=state, scale=0.5)
    x = torch.rand(6, 5, dtype=torch.float64)
    drive = network.drive(x)
    swept, crept = (network.relax(drive, network.rest(6), Relaxation(3000, dt, 1e-15)) for dt in (1.0, 0.1))
    assert (swept.outcome == CONVERGED).all()
    torch.testing.assert_close(swept.states, crept.states, rtol=0, atol=1e-12)
    assert swept.steps.max() < crept.steps.min()


def test_out_of_steps_is_told():
    network = made((5, 8, 3), relaxation=Relaxation(2, 0.1, tolerance=1e-6))
    done = network.relax(network.drive(torch.rand(6, 5).double()), network.rest(6))
    assert (done.outcome == OUT_OF_STEPS).all()
    assert (done.residual > 1e-6).all()


def test_a_readout_reads_the_last_hidden_layer_and_does_not_act_on_it():
    network = made((5, 8, 4, 3), readout=True)
    x = torch.rand(6, 5, dtype=torch.float64)
    assert network.widths == [8, 4]
    states = network.relax(network.drive(x), network.rest(6)).states
    torch.testing.assert_close(network(x), states[-1] @ network.readout.weight.T + network.readout.bias)
    other = copy.deepcopy(network)
    other.readout.weight.data.zero_()
    torch.testing.assert_close(other.relax(other.drive(x), other.rest(6)).states, states)


def test_parameters_by_layer():
    network = made((5, 8, 4, 3), readout=True, symmetric=False)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [[names[id(p)] for p in group] for group in network.synapses()] == [
        ["layers.0.weight", "layers.0.bias"],
        ["layers.1.weight", "layers.1.bias", "feedback.0.weight"],
        ["readout.weight", "readout.bias"],
    ]
    assert len(names) == sum(map(len, network.synapses()))


def test_the_same_seed_gives_the_same_bits_and_glorots_range():
    first, second = (made((50, 30, 10), seed=3) for _ in range(2))
    x = torch.rand(7, 50, dtype=torch.float64)
    assert torch.equal(first(x), second(x))
    weights = first.layers[0].weight
    assert weights.abs().max() <= (6 / 80) ** 0.5
    assert weights.var().item() == pytest.approx(2 / 80, rel=0.1)


def test_images_are_flattened_and_float32_stays():
    network = LayeredNetwork((12, 4, 3))
    assert network(torch.rand(2, 3, 4)).dtype == torch.float32
    assert "hard-sigmoid" in repr(network)


@pytest.mark.parametrize(
    ("widths", "options", "message"),
    [
        ((5,), {}, r"a layered network needs at least 2 widths, each at least 1; given \[5\]"),
        ((5, 3), {"readout": True}, r"a layered network with a read-out needs at least 3 widths"),
        ((5, 0, 3), {}, r"given \[5, 0, 3\]"),
        ((5, 3), {"state": "relu"}, "unknown state function 'relu'"),
    ],
)
def test_what_is_no_network(widths, options, message):
    with pytest.raises(ConfigurationError, match=message):
        LayeredNetwork(widths, **options)


def test_there_is_no_energy_without_symmetry():
    network = made((5, 4, 3), symmetric=False)
    with pytest.raises(ConfigurationError, match="has no energy; make it with symmetric=True"):
        network.energy(torch.rand(2, 5).double(), network.rest(2))
