"""Sparse directed networks against one dense matrix in numpy: relaxation, drives, spectra, paths, memory, threads."""

import numpy
import pytest
import torch

from synaptome.analysis.alignment import bptt_gradient
from synaptome.analysis.size import count_synapses
from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.kernels.relax import CONVERGED
from synaptome.learning.equilibrium import EquilibriumPropagation
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.sparse_directed import SparseDirectedNetwork
from synaptome.networks.states import STATES
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_recurrent import SparseRecurrent

EVERY = pytest.mark.parametrize("state", STATES)
NUMPY = {
    "hard-sigmoid": lambda a: a.clip(0, 1),
    "sigmoid": lambda a: 1 / (1 + numpy.exp(-a)),
    "tanh": numpy.tanh,
}


def made(seed=0, inputs=5, hidden=20, outputs=3, density=0.3, **options):
    torch.manual_seed(seed)
    network = SparseDirectedNetwork.random(inputs, hidden, outputs, density, **options).double()
    network.afferent.bias.data.uniform_(-0.2, 0.4)
    return network


def dense(network):
    """Weights from inputs `[inputs, free]`, those among free neurons `[free, free]`, from row to column, and biases."""
    matrices = []
    for layer in (network.afferent, network.recurrent):
        W = numpy.zeros((layer.in_features, layer.out_features))
        for target, source, value in zip(layer.row_of.tolist(), layer.col.tolist(), layer.values.tolist(), strict=True):
            W[source, target] = value
        matrices.append(W)
    return *matrices, network.afferent.bias.detach().numpy()


def some_states(network, batch=4):
    low, high = network.state.low, network.state.high
    return torch.rand(batch, network.widths[0], dtype=torch.float64) * (high - low) + low


@EVERY
@pytest.mark.parametrize("dt", [0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_a_relaxation_is_that_of_one_dense_matrix(state, dt, beta):
    network = made(state=state, radius=0.9)
    x, start, y = torch.rand(4, 5, dtype=torch.float64), some_states(network), torch.rand(4, 3, dtype=torch.float64)
    V, W, b = dense(network)
    s, rho = start.numpy().copy(), NUMPY[state]
    for _ in range(12):
        a = x.numpy() @ V + s @ W + b
        a[:, -3:] += beta * (y.numpy() - s[:, -3:])
        s = rho(s + dt * (a - s)) if state == "hard-sigmoid" else s + dt * (rho(a) - s)

    def nudge(states, drive):
        drive.add_(beta * (y - states))

    before = start.clone()
    relaxed = network.relax(network.drive(x), [start], Relaxation(12, dt), nudge if beta else None)
    numpy.testing.assert_allclose(relaxed.states[0].numpy(), s, rtol=0, atol=1e-13)
    assert torch.equal(start, before)
    assert torch.equal(network.outputs(relaxed.states), relaxed.states[0][:, 20:])


def test_what_it_says_is_read_after_a_free_phase_from_zero():
    network = made(relaxation=Relaxation(9, 0.5))
    x = torch.rand(4, 1, 5, dtype=torch.float64)
    V, W, b = dense(network)
    s = numpy.zeros((4, 23))
    for _ in range(9):
        s = (s + 0.5 * (x[:, 0].numpy() @ V + s @ W + b - s)).clip(0, 1)
    numpy.testing.assert_allclose(network(x).numpy(), s[:, -3:], rtol=0, atol=1e-13)


def test_the_transposed_drive_is_the_same_here_and_has_the_transposed_derivative():
    network = made()
    x, states, moved = torch.rand(4, 5, dtype=torch.float64), some_states(network), some_states(network)
    drive = network.drive(x)
    with torch.no_grad():
        turned = drive.transposed_about([states])
        torch.testing.assert_close(turned([states]), drive([states]))
        W = torch.from_numpy(dense(network)[1])
        torch.testing.assert_close(turned([moved])[0] - drive([states])[0], (moved - states) @ W.T)
        torch.testing.assert_close(turned.transposed_about([states])([moved]), drive([moved]))
        for own, given in zip(turned.transposed_about([states]).structure, drive.structure, strict=True):
            assert torch.equal(own, given)


@EVERY
def test_its_free_phase_can_be_differentiated_through_time(state):
    network = made(state=state, relaxation=Relaxation(6, 0.4))
    x = torch.rand(4, 5, dtype=torch.float64)
    V, W, b = (torch.from_numpy(part).requires_grad_() for part in dense(network))
    s = torch.zeros(4, 23, dtype=torch.float64)
    for _ in range(6):
        s = network.state.moved(s, x @ V + s @ W + b, 0.4)
    by_V, by_W, by_b = torch.autograd.grad(s[:, -3:].square().sum(), (V, W, b))
    _, gradient = bptt_gradient(network, x, lambda outputs: outputs.square().sum())
    afferent, recurrent = network.afferent, network.recurrent
    torch.testing.assert_close(gradient["afferent.values"], by_V[afferent.col, afferent.row_of])
    torch.testing.assert_close(gradient["recurrent.values"], by_W[recurrent.col, recurrent.row_of])
    torch.testing.assert_close(gradient["afferent.bias"], by_b)


@EVERY
def test_from_its_initial_weights_it_comes_to_rest_and_stays_there(state):
    torch.manual_seed(2)
    network = SparseDirectedNetwork.random(50, 390, 10, 0.1, state=state).double()
    x = torch.rand(20, 50, dtype=torch.float64)
    drive = network.drive(x)
    rested = network.relax(drive, network.rest(20), Relaxation(200, 1.0, tolerance=1e-12))
    assert (rested.outcome == CONVERGED).all()
    again = network.relax(drive, rested.states, Relaxation(200, 0.5, tolerance=1e-11))
    assert (again.steps == 1).all()
    other = network.relax(drive, [some_states(network, 20)], Relaxation(200, 0.7, tolerance=1e-12))
    torch.testing.assert_close(other.states, rested.states, rtol=0, atol=1e-10)


def test_initial_weights_carry_activity_of_the_size_of_the_input():
    torch.manual_seed(0)
    network = SparseDirectedNetwork.random(784, 1990, 10, 0.05)
    x = torch.rand(50, 784)
    hidden, outputs = network.afferent(x).detach().split((1990, 10), 1)
    assert hidden.std().item() == pytest.approx(x.square().mean().sqrt().item(), rel=0.05)
    assert network.afferent.bias[:1990].abs().max() == 0
    assert (network.afferent.bias[1990:] == 0.1).all()
    # Outputs are near the mean of one-hot targets, and none is clipped at 0.
    assert (outputs - 0.1).std().item() == pytest.approx(0.1 * x.square().mean().sqrt().item(), rel=0.4)
    assert (network(x) > 0.01).float().mean() > 0.9
    to_outputs = network.recurrent.values[network.recurrent.row_of >= 1990].std()
    assert to_outputs.item() == pytest.approx(0.1 * 0.5 / 100**0.5, rel=0.1)
    assert count_synapses(network) == (78400 + 2000 + 199900, 278300, 278300)


@pytest.mark.parametrize("radius", [0.5, 0.9])
def test_the_spectral_radius_and_the_bound_on_steps(radius):
    network = made(hidden=297, density=0.1, radius=radius)
    values = torch.linalg.eigvals(torch.from_numpy(dense(network)[1]))
    largest = values.abs().max().item()
    assert network.spectral_radius() == pytest.approx(largest, rel=0.05)
    bound = network.step_bound()
    assert bound == pytest.approx(2 / (1 + largest), rel=0.03)
    for dt in (0.5, 1.0, 0.98 * bound):
        assert (1 + dt * (values - 1)).abs().max() < 1
    network.recurrent.values.data.zero_()
    assert network.spectral_radius() == 0


def test_a_bound_that_is_met():
    """Two neurons that inhibit each other have the eigenvalues 0.8 and -0.8, and overshoot above 2 / 1.8."""
    recurrent = SparseRecurrent(2, edges=([0, 1], [1, 0]))
    recurrent.values.data.fill_(-0.8)
    network = SparseDirectedNetwork(SparseLinear(1, 2, density=1.0), recurrent, 1)
    assert network.spectral_radius() == pytest.approx(0.8)
    assert network.step_bound() == pytest.approx(2 / 1.8)
    network.state = STATES["sigmoid"]  # whose slope is at most 1/4
    assert network.step_bound() == pytest.approx(2 / 1.2)


def test_a_state_brings_its_graph_with_it():
    network, other = made(seed=1), made(seed=2, density=0.5)
    x = torch.rand(4, 5, dtype=torch.float64)
    assert not torch.equal(network(x), other(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x), other(x))
    assert other.recurrent.nnz == network.recurrent.nnz
    with pytest.raises(ConfigurationError, match=r"'afferent' is that of a weight \[23, 5\], and its own is \[24, 5\]"):
        made(hidden=21).load_state_dict(network.state_dict())


def learned(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(3)
    network = SparseDirectedNetwork.random(100, 790, 10, 0.05, relaxation=Relaxation(8, 0.7))
    rule = EquilibriumPropagation(
        network, torch.optim.SGD(network.parameters(), 0.1), corrected=True, nudging="centered"
    )
    for _ in range(3):
        rule.step(Batch(torch.rand(30, 100), torch.randint(10, (30,))))
    return network.state_dict()


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        first, second = learned(1), learned(2)
    finally:
        torch.set_num_threads(threads)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_nothing_of_the_size_of_a_matrix_is_made():
    """As a matrix, the weights among 200 000 neurons would take 160 GB."""
    torch.manual_seed(0)
    neurons = 200_000
    afferent, recurrent = SparseLinear(20, neurons, nnz=50_000), SparseRecurrent(neurons, nnz=400_000)
    network = SparseDirectedNetwork(afferent, recurrent, 2, relaxation=Relaxation(3, 0.5))
    before = recurrent.values.detach().clone()
    rule = EquilibriumPropagation(network, torch.optim.SGD(network.parameters(), 1.0), corrected=True)
    rule.step(Batch(torch.rand(2, 20), torch.tensor([0, 1])))
    assert not torch.equal(recurrent.values, before)


def test_outputs_that_no_input_reaches_are_refused():
    afferent = SparseLinear(2, 5, edges=([0, 1], [0, 1]))
    chain = SparseRecurrent(5, edges=([2, 3], [1, 2]))  # 1 to 2 to 3; nothing leads to 4
    SparseDirectedNetwork(SparseLinear(2, 4, edges=([0, 1], [0, 1])), SparseRecurrent(4, edges=([2, 3], [1, 2])), 1)
    with pytest.raises(ConfigurationError, match="no path of connections leads to output 1: take more connections"):
        SparseDirectedNetwork(afferent, chain, 2)
    backwards = SparseRecurrent(5, edges=([1, 2, 0], [3, 4, 3]))
    with pytest.raises(ConfigurationError, match="leads to output 0, 1, 2"):
        SparseDirectedNetwork(afferent, backwards, 3)
    torch.manual_seed(0)
    with pytest.raises(ConfigurationError, match="leads to output"):
        SparseDirectedNetwork.random(20, 90, 10, 0.005)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(density=0.0), r"share of all places in \(0, 1\]; given 0.0"),
        (lambda: made(density=1.1), "given 1.1"),
        (lambda: made(hidden=-1), "at least 1 output, and hidden neurons or none; given 3 and -1"),
        (lambda: made(radius=-1.0), "a number above 0; given -1.0"),
        (lambda: made(state="relu"), "unknown state function 'relu'"),
        (lambda: made(outputs=0), "at least 1 output, and hidden neurons or none; given 0 and 20"),
        (
            lambda: SparseDirectedNetwork(SparseLinear(2, 5, density=1.0), SparseRecurrent(5, density=1.0), 6),
            "at least 1 and at most all are outputs; given connections to 5 neurons, among 5, and 6 outputs",
        ),
        (
            lambda: SparseDirectedNetwork(SparseLinear(2, 5, density=1.0), SparseRecurrent(6, density=1.0), 2),
            "given connections to 5 neurons, among 6, and 2 outputs",
        ),
    ],
)
def test_what_is_no_network(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_what_it_says_of_itself():
    assert "outputs=3, state='hard-sigmoid'" in repr(made())
    assert [[p.numel() for p in group] for group in made().synapses()] == [[34, 23], [152]]
