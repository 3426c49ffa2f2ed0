"""Spectra of relaxing networks, against finite differences of their steps, and against what disturbances do."""

import itertools

import numpy as np
import pytest
import torch

from synaptome.analysis.jacobian import (
    eigenvalues,
    network_jacobian,
    population_jacobian,
    population_spectra,
    stable,
)
from synaptome.networks.complete import Sizes
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.sparse_directed import SparseDirectedNetwork

INPUTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.6, 0.2]], dtype=torch.float64)
SIZES = Sizes(2, 5, 1)


def population(activity="hard-sigmoid", leak="one", std=0.8, **options):
    model = Population(range(3), SIZES, leak=leak, bias=True, activity=activity, steps=4000, std=std, **options)
    torch.nn.init.normal_(model.bias, mean=0.3, std=0.2)
    return model


def differences(step, state, size=1e-6):
    """The derivative of a step by each number of a state, by central differences."""
    columns = []
    for k in range(len(state)):
        moved = np.zeros(len(state))
        moved[k] = size
        columns.append((step(state + moved) - step(state - moved)) / (2 * size))
    return np.stack(columns, 1)


def assert_same_spectrum(found, expected):
    """Whether each number has a partner among the others, whatever their order."""
    left = list(expected)
    assert len(found) == len(left)
    for value in found:
        assert abs(value - left.pop(int(np.abs(np.array(left) - value).argmin()))) < 2e-5


def stepped(model, p, inputs):
    """A free step of one network as a function of its free states."""

    def step(free):
        state = torch.zeros(len(model), 1, SIZES.neurons, dtype=torch.float64)
        state[p, 0] = torch.cat((inputs, torch.from_numpy(free)))
        return model.relax(state, steps=1).state[p, 0, 2:].numpy()

    return step


@pytest.mark.parametrize(
    ("activity", "leak"), [("hard-sigmoid", "one"), ("hard-sigmoid", "certified"), ("sigmoid", "one"), ("tanh", "deep")]
)
def test_a_population_moves_as_its_jacobian_says(activity, leak):
    model = population(activity, leak)
    state = model.initial(INPUTS)
    state[..., 2:] = 0.2 + 0.6 * torch.rand(3, 3, 6, dtype=torch.float64)  # away from the bounds
    jacobian, unclipped = population_jacobian(model, state)
    assert unclipped.all()
    for p, m in itertools.product(range(3), range(3)):
        step = differences(stepped(model, p, INPUTS[m]), state[p, m, 2:].numpy())
        np.testing.assert_allclose(np.eye(6) + model.dt * jacobian[p, m].numpy(), step, atol=1e-8)


def test_spectra_at_equilibria_are_those_of_the_steps():
    """An Euler step about an equilibrium has the eigenvalues 1 + dt λ, and 0 for each clipped unit."""
    model = population()
    relaxed = model.relax(model.initial(INPUTS))
    resting = relaxed.residual < 1e-9
    spectra = population_spectra(model, relaxed.state, resting)
    assert set(spectra) == set(map(tuple, resting.nonzero().tolist()))
    assert len(spectra) >= 4
    clipped = 0
    for (p, m), values in spectra.items():
        step = differences(stepped(model, p, INPUTS[m]), relaxed.state[p, m, 2:].numpy())
        clipped += 6 - len(values)
        found = np.concatenate((1 + model.dt * values.numpy(), np.zeros(6 - len(values))))
        assert_same_spectrum(found, np.linalg.eigvals(step))
    assert 0 < clipped < 6 * len(spectra)


def test_a_unit_is_clipped_only_if_it_is_pushed_against_its_bound():
    model = population(std=0.0)
    model.bias.data = torch.tensor([-1.0, 1.0, 2.0, 0.5, 0.0, -1.0]).double().expand(3, -1).clone()
    state = torch.cat((torch.zeros(2), torch.tensor([0.0, 0.0, 1.0, 0.5, 0.0, 1.0]))).double().expand(3, 1, -1)
    # Below 0, pushed up from 0, above 1, within, neither pushed up nor down, pushed down from 1.
    expected = [False, True, False, True, True, True]
    assert population_jacobian(model, state).unclipped.tolist() == [[expected]] * 3
    assert population_jacobian(population("tanh"), state).unclipped.all()


def grown(model, state, p, m):
    """By what factor a small disturbance of the unclipped units grows over many free steps."""
    _, unclipped = population_jacobian(model, state)
    start = state.clone()
    start[p, m, 2:][unclipped[p, m]] += 1e-9 * torch.randn(int(unclipped[p, m].sum()), dtype=torch.float64)
    size = (start - state)[p, m].norm()
    return ((model.relax(start, steps=150).state - state)[p, m].norm() / size).item()


def test_disturbances_decay_where_the_spectrum_is_stable_and_grow_where_it_is_not():
    """At equilibria that are found by Newton's method, which does not mind whether they are stable."""
    model = population("tanh", std=1.6)
    model.stop = False
    told = []
    for p, m in itertools.product(range(3), range(3)):
        free = torch.zeros(6, dtype=torch.float64)
        for _ in range(200):
            state = torch.cat((INPUTS[m], free)).expand(3, 1, -1).contiguous()
            jacobian = population_jacobian(model, state).jacobian[p, 0]
            ds = (model.relax(state, steps=1).state[p, 0, 2:] - free) / model.dt
            free = free - 0.5 * torch.linalg.solve(jacobian, ds)
        state = torch.cat((INPUTS[m], free)).expand(3, 1, -1).contiguous()
        if (model.relax(state, steps=1).residual[p, 0] < 1e-12).item():
            values = eigenvalues(*(found[p, 0] for found in population_jacobian(model, state)))
            if ((1 + model.dt * values).abs().max() - 1).abs() > 0.03:
                told.append(stable(values, model.dt))
                factor = grown(model, state, p, 0)
                assert factor < 0.5 if told[-1] else factor > 2
    assert {True, False} == set(told)


def test_stability_is_that_of_the_euler_step():
    values = torch.tensor([-1 + 0j, -0.5 + 3j, -0.5 - 3j])
    assert stable(values, 0.1)
    assert not stable(values, 0.2)  # |1 + 0.2 (-0.5 + 3i)| = 1.08: the flow is stable, the step is not
    assert not stable(torch.tensor([0.1 + 0j]), 0.1)
    assert not stable(torch.tensor([-41.0 + 0j]), 0.05)
    assert stable(torch.zeros(0, dtype=torch.complex128), 0.1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["hard-sigmoid", "sigmoid", "tanh"])
def test_a_layered_network_moves_as_its_jacobian_says(kind, symmetric):
    network = LayeredNetwork([3, 5, 4, 2], state=kind, symmetric=symmetric, relaxation=Relaxation(2000, 0.3, 1e-12))
    network = network.double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias, mean=0.3, std=0.5)
    x = torch.rand(1, 3, dtype=torch.float64)
    drive = network.drive(x)
    states = network.relax(drive, network.rest(1)).states
    widths = [5, 4, 2]
    found = network_jacobian(network, x, states)

    def step(flat):
        moving = list(torch.from_numpy(flat).unsqueeze(0).split(widths, 1))
        return torch.cat(network.relax(drive, moving, Relaxation(1, 0.3)).states, 1)[0].numpy()

    flat = torch.cat(list(states), 1)[0].numpy()
    own, kept = differences(step, flat), found.unclipped.numpy()
    assert kept.any()
    if kind == "hard-sigmoid":
        assert not kept.all()
    np.testing.assert_allclose((np.eye(11) + 0.3 * found.jacobian.numpy())[kept], own[kept], atol=1e-7)
    values = 1 + 0.3 * eigenvalues(*found).numpy()
    assert_same_spectrum(values, np.linalg.eigvals(own[kept][:, kept]))
    if symmetric and kind == "hard-sigmoid":
        np.testing.assert_allclose(values.imag, 0, atol=1e-6)


def test_a_sparse_network_moves_as_its_jacobian_says():
    network = SparseDirectedNetwork.random(3, 8, 2, 0.6, state="tanh", relaxation=Relaxation(1, 0.3)).double()
    x, flat = torch.rand(1, 3, dtype=torch.float64), torch.rand(1, 10, dtype=torch.float64) - 0.5
    drive = network.drive(x)

    def step(free):
        return network.relax(drive, [torch.from_numpy(free).unsqueeze(0)]).states[0][0].numpy()

    found = network_jacobian(network, x, [flat])
    np.testing.assert_allclose(np.eye(10) + 0.3 * found.jacobian.numpy(), differences(step, flat[0].numpy()), atol=1e-8)
