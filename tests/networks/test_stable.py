"""Stable networks: the equations layer by layer and their gradients, grids in time, blocks, and what is refused."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.networks.dynamics import DYNAMICS, REVERSIBLE
from synaptome.networks.stable import StableNetwork, resample

ALL = sorted(DYNAMICS)


def varied(*args, **options):
    """A network in float64 whose layers and biases all differ."""
    network = StableNetwork(*args, **options).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def action(K, y):
    return y @ K.T if K.dim() == 2 else F.conv2d(y, K, padding=1)


def adjoint(K, y):
    """The transpose of `action` by autograd, which knows nothing of transposed convolutions."""
    if K.dim() == 2:
        return y @ K
    x = torch.zeros_like(y).requires_grad_()
    (gradient,) = torch.autograd.grad((action(K, x) * y).sum(), x, create_graph=True)
    return gradient


def naive(network, x, weight, bias, gamma, half_kick):
    """The path of what is shown to the classifier, written out."""
    h, name = network.time / network.depth, network.dynamics
    if x.dim() == 2:
        y = torch.cat((x, x.new_zeros(len(x), network.width - x.shape[1])), 1)
    else:
        y = torch.cat((x, x.new_zeros(len(x), network.width - x.shape[1], *x.shape[2:])), 1)
    before, z = y, torch.zeros_like(y)
    p, q = y[:, : network.width // 2], y[:, network.width // 2 :]
    path = [y]
    for j in range(network.depth):
        K, b = weight[j], bias[j].view(-1, *(1,) * (x.dim() - 2))
        if name == "euler":
            y = y + h * torch.tanh(action(K, y) + b)
        elif name == "antisymmetric":
            y = y + h * torch.tanh((action(K, y) - adjoint(K, y) - gamma * y) / 2 + b)
        elif name == "runge-kutta":
            k1 = torch.tanh(action(K, y) + b)
            k2 = torch.tanh(action(K, y + h * k1 / 2) + b)
            k3 = torch.tanh(action(K, y + h * k2 / 2) + b)
            k4 = torch.tanh(action(K, y + h * k3) + b)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        elif name == "leapfrog":
            y, before = 2 * y - before - h**2 * adjoint(K, torch.tanh(action(K, y) + b)), y
        elif name == "verlet":
            z = z - (h / 2 if half_kick and j == 0 else h) * torch.tanh(adjoint(K, y) + b)
            y = y + h * torch.tanh(action(K, z) + b)
        else:
            p = p - h / 2 * adjoint(K, torch.tanh(action(K, q) + b))
            q = q + h * adjoint(K, torch.tanh(action(K, p) + b))
            p = p - h / 2 * adjoint(K, torch.tanh(action(K, q) + b))
            y = torch.cat((p, q), 1)
        path.append(y)
    return torch.stack(path)


def on_the_grid(nodes, depth):
    """`nodes` at the times of the layers, by NumPy."""
    flat = nodes.detach().flatten(1).numpy()
    times, own = np.arange(depth) / depth, np.arange(len(nodes)) / len(nodes)
    columns = [np.interp(times, own, column) for column in flat.T]
    return torch.from_numpy(np.stack(columns, 1)).view(depth, *nodes.shape[1:])


@given(
    st.sampled_from(ALL),
    st.sampled_from([(3,), (2, 4, 3)]),
    st.integers(1, 2),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 4),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_outputs_and_gradients_are_those_of_the_equations(name, shape, pairs, depth, controls, batch, plain):
    start = {"start": "zero"} if name == "verlet" and plain else {}
    gamma = {"gamma": 0.4} if name == "antisymmetric" else {}
    network = varied(
        shape,
        2,
        dynamics=name,
        width=2 + 2 * pairs,
        depth=depth,
        time=1.5,
        controls=min(controls, depth),
        **start,
        **gamma,
    )
    x = torch.randn(batch, *shape, dtype=torch.float64)
    weight, bias = (on_the_grid(parameter, depth).requires_grad_() for parameter in (network.weight, network.bias))
    path = naive(network, x, weight, bias, 0.4, not start)
    torch.testing.assert_close(network.features(x), path, rtol=1e-12, atol=1e-12)
    outputs = path[-1].flatten(1) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), outputs, rtol=1e-12, atol=1e-12)
    network(x).square().sum().backward()
    if network.controls == depth:  # else the gradient is that of each layer, summed to the controls
        expected = torch.autograd.grad(outputs.square().sum(), (weight, bias), materialize_grads=True)
        torch.testing.assert_close((network.weight.grad, network.bias.grad), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reversible", [False, True])
def test_gradients_flow_through_the_interpolation(reversible):
    network = varied(3, 2, width=3, depth=7, controls=3, reversible=reversible)
    x = torch.randn(4, 3, dtype=torch.float64)

    def function(weight, bias):
        return torch.func.functional_call(network, {"weight": weight, "bias": bias}, x)

    values = tuple(p.detach().clone().requires_grad_() for p in (network.weight, network.bias))
    assert torch.autograd.gradcheck(function, values)


@given(st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_paths_are_linear_between_their_nodes(controls, count):
    nodes = torch.randn(controls, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(resample(nodes, count), on_the_grid(nodes, count))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
@pytest.mark.parametrize("reversible", [False, True])
def test_parts_compose(name, shape, reversible):
    if reversible and name not in REVERSIBLE:
        return
    network = varied(shape, 2, dynamics=name, width=4, depth=5, opening="learned", reversible=reversible)
    x = torch.randn(3, *shape, dtype=torch.float64)
    whole = network(x)
    for middle in range(1, 6):
        assert torch.equal(network(network(x, stop=middle), start=middle), whole)
    carried = network(x, stop=0)
    fields = DYNAMICS[name].fields if name != "hamiltonian" else 1
    assert carried.shape == (3, 4 * fields, *shape[1:])
    for layer in range(5):
        carried = network.advance(carried, layer)
        assert torch.equal(carried, network(x, stop=layer + 1))
    path = network.features(x)
    assert path.shape == (6, 3, 4, *shape[1:])
    shown = DYNAMICS[name].features(DYNAMICS[name].split(carried))
    torch.testing.assert_close(path[-1], shown, rtol=1e-12, atol=1e-12)  # a path is taken by the plain loop


@given(st.sampled_from(ALL), st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_blocks_compose_and_own_their_parameters(name, balance):
    network = varied(3, 2, dynamics=name, width=4, depth=sum(balance))
    x = torch.randn(3, 3, dtype=torch.float64)
    blocks = network.split(balance)
    y = x
    for block in blocks:
        y = block(y)
    assert torch.equal(y, network(x))
    assert [len(block.weight) for block in blocks] == balance
    y.square().sum().backward()
    assert network.weight.grad is None
    network(x).square().sum().backward()
    torch.testing.assert_close(torch.cat([block.weight.grad for block in blocks]), network.weight.grad)
    count = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in blocks.parameters()) == count
    with torch.no_grad():
        blocks[0].weight.zero_()
    assert network.weight.any()


def test_a_new_network_is_a_path_constant_in_time_with_the_deviation_it_says():
    network = StableNetwork(300, 2, width=300, depth=3)
    assert all(torch.equal(network.weight[0], weight) for weight in network.weight)
    assert not network.bias.any()
    # The sample deviation of n normal numbers has relative standard error 1 / sqrt(2 n).
    assert network.weight[0].std().item() * 2 * math.sqrt(300) == pytest.approx(1, abs=5 / math.sqrt(2 * 300**2))
    images = StableNetwork((3, 8, 8), 2, width=64, depth=2)
    assert images.weight[0].std().item() * 2 * math.sqrt(9 * 64) == pytest.approx(1, abs=5 / math.sqrt(2 * 9 * 64**2))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("leapfrog", 1), ("verlet", 2), ("hamiltonian", 2)])
def test_new_networks_of_any_depth_are_one_differential_equation(name, order):
    x, outputs = torch.randn(5, 2, dtype=torch.float64), []
    for depth in (64, 128, 256):
        torch.manual_seed(3)
        outputs.append(StableNetwork(2, 2, dynamics=name, width=4, depth=depth, time=4.0).double()(x))
    gaps = [(fine - coarse).abs().max().item() for coarse, fine in pairwise(outputs)]
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(order, abs=0.15)


def test_openings():
    padded = StableNetwork((2, 4, 3), 2, width=5, depth=1, dynamics="euler")
    x = torch.randn(3, 2, 4, 3)
    assert torch.equal(padded(x, stop=0), torch.cat((x, torch.zeros(3, 3, 4, 3)), 1))
    learned = StableNetwork(9, 2, width=4, depth=1, opening="learned", dynamics="leapfrog")
    x = torch.randn(3, 9)
    opened = x @ learned.opening.layer.weight.T + learned.opening.layer.bias
    torch.testing.assert_close(learned(x, stop=0), torch.cat((opened, opened), 1))
    assert torch.equal(learned(x.view(3, 3, 3)), learned(x))  # flattened


def test_networks_are_drawn_from_torchs_seed_and_stored():
    def network(seed):
        torch.manual_seed(seed)
        return StableNetwork(2, 2, width=4, depth=3, opening="learned")

    one, same, other = network(1), network(1), network(2)
    x = torch.randn(3, 2)
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert torch.equal(copy.deepcopy(one)(x), one(x))
    assert "depth=3, time=10, controls=3, Flow(dynamics='verlet'" in repr(one)


@pytest.mark.parametrize("name", ALL)
def test_compiled_it_gives_the_same_bits(name):
    network = StableNetwork(2, 2, dynamics=name, width=4, depth=4, controls=3)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2)
    assert torch.equal(compiled(x), network(x))
    exported = torch.export.export(network, (x,)).module()
    assert torch.equal(exported(x), network(x))


@pytest.mark.parametrize("name", ALL)
def test_under_autocast_the_state_stays_in_float32(name):
    network = StableNetwork(2, 2, dynamics=name, width=4, depth=4)
    x = torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        carried = network(x, stop=4)
    assert carried.dtype == torch.float32
    torch.testing.assert_close(carried, network(x, stop=4), rtol=0.1, atol=0.1)


def test_damping_that_makes_the_step_unstable_is_told():
    with pytest.warns(UserWarning, match=r"gamma h = 5 is above 4.*= -1.5.*gamma up to 4, or a depth from 13 on"):
        StableNetwork(2, 2, dynamics="antisymmetric", width=4, depth=10, time=10.0, gamma=5.0)
    StableNetwork(2, 2, dynamics="antisymmetric", width=4, depth=10, time=10.0, gamma=4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dynamics": "verlot"}, "unknown dynamics 'verlot' .did you mean 'verlet'"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"opening": "padd"}, "did you mean 'pad'"),
        ({"start": "half"}, "unknown start 'half'"),
        ({"dynamics": "euler", "start": "zero"}, "start says how Z of the verlet dynamics starts, and euler has no Z"),
        ({"dynamics": "hamiltonian", "width": 5}, "two halves of the features; given width=5, take an even one"),
        ({"time": 0.0}, r"interval \[0, T\], finite and above 0; given 0.0"),
        ({"time": math.nan}, "given nan"),
        ({"time": math.inf}, "given inf"),
        ({"time": 5e-324}, "a step is a finite number above 0; given 0.0"),
        ({"dynamics": "antisymmetric", "gamma": -0.1}, "at least 0; given -0.1"),
        ({"dynamics": "antisymmetric", "gamma": math.nan}, "at least 0; given nan"),
        ({"gamma": 0.1}, "gamma is a damping of the antisymmetric dynamics, and verlet has none"),
        ({"dynamics": "euler", "reversible": True}, "euler cannot be undone.*leapfrog, verlet, hamiltonian$"),
        ({"width": 1}, "at least the 2 features of the inputs; given width=1: widen"),
        ({"width": 0}, "width is a whole number from 1 on; given 0"),
        ({"depth": 0}, "depth is a whole number from 1 on; given 0"),
        ({"outputs": 0}, "outputs is a whole number from 1 on; given 0"),
        ({"inputs": 0}, "each at least 1; given 0"),
        ({"inputs": (3, 4)}, r"given \(3, 4\)"),
        ({"inputs": (5, 4, 4)}, "the 5 channels of the inputs; given width=4"),
        ({"controls": 0}, "1 to 4 controls, at most one in each layer; given 0"),
        ({"controls": 5}, "1 to 4 controls, at most one in each layer; given 5"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        StableNetwork(**{"inputs": 2, "outputs": 2, "width": 4, "depth": 4, **arguments})


def test_inputs_states_and_layers_that_do_not_fit_are_refused():
    network = StableNetwork(2, 2, width=4, depth=3)
    with pytest.raises(ConfigurationError, match=r"takes inputs \[batch, 2\]; given \[5, 3\]"):
        network(torch.randn(5, 3))
    with pytest.raises(ConfigurationError, match=r"given \[2\]"):
        network(torch.randn(2))
    with pytest.raises(ConfigurationError, match=r"carried state of this network is \[batch, 8\]; given \[5, 4\]"):
        network(torch.randn(5, 4), start=1)
    images = StableNetwork((2, 4, 3), 2, width=4, depth=3)
    with pytest.raises(ConfigurationError, match=r"takes inputs \[batch, 2, 4, 3\]; given \[5, 2, 4, 4\]"):
        images(torch.randn(5, 2, 4, 4))
    for start, stop in ((2, 1), (0, 4), (-1, 2), (4, None)):
        with pytest.raises(ConfigurationError, match=f"start={start}, stop={stop}"):
            network(torch.randn(5, 8), start, stop)
    for layer in (-1, 3):
        with pytest.raises(ConfigurationError, match=f"layers 0 to 2; given {layer}"):
            network.advance(torch.randn(5, 8), layer)


@pytest.mark.parametrize("balance", [[], [1], [3, -1], [0, 2], [1, 2]])
def test_a_balance_that_does_not_fit_is_refused(balance):
    with pytest.raises(ConfigurationError, match=r"sum to the depth, 2; given \["):
        StableNetwork(2, 2, width=4, depth=2).split(balance)


def test_interpolated_controls_cannot_be_split():
    with pytest.raises(ConfigurationError, match="one control for each of the 4 layers; this network interpolates 2"):
        StableNetwork(2, 2, width=4, depth=4, controls=2).split([2, 2])
