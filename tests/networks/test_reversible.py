"""Reversible networks: the gradients of plain backpropagation, with memory that does not grow with depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.profiler import profile

from synaptome.errors import ConfigurationError
from synaptome.networks.dynamics import REVERSIBLE
from synaptome.networks.feedforward import ACTIVATIONS
from synaptome.networks.reversible import SLOPES
from synaptome.networks.stable import StableNetwork


@pytest.fixture(autouse=True)
def by_the_plain_loop(monkeypatch):
    """Narrow layers have a kernel, which undoes them in its own way; see tests/kernels/test_flow.py."""
    monkeypatch.setattr("synaptome.kernels.flow.covers", lambda *_: False)


def pair(inputs, dtype=torch.float64, **options):
    """A network that recomputes its states and one that keeps them, with the same parameters, no two layers alike."""
    plain = StableNetwork(inputs, 3, **options).to(dtype)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    twin = StableNetwork(inputs, 3, reversible=True, **options).to(dtype)
    twin.load_state_dict(plain.state_dict())
    return twin, plain


def gradients(network, x):
    """By the inputs and all parameters."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x).square().sum(), (x, *network.parameters()))


def gap(network, other, x):
    """The largest difference of a gradient, relative to the largest number of that gradient."""
    differences = [
        ((mine - theirs).abs().max() / theirs.abs().max()).item()
        for mine, theirs in zip(gradients(network, x), gradients(other, x), strict=True)
    ]
    return max(differences)


@given(
    st.sampled_from(REVERSIBLE),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from([(3,), (2, 4, 3)]),
    st.integers(2, 3),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from(["half-kick", "zero"]),
)
@settings(max_examples=60, deadline=None)
def test_gradients_are_those_of_plain_backpropagation(name, activation, shape, pairs, depth, controls, batch, start):
    network, plain = pair(
        shape,
        dynamics=name,
        width=2 * pairs,
        depth=depth,
        time=0.1 * depth,
        controls=min(controls, depth),
        activation=activation,
        start=start if name == "verlet" else "half-kick",
    )
    x = torch.randn(batch, *shape, dtype=torch.float64)
    assert torch.equal(network(x), plain(x))
    assert gap(network, plain, x) < 1e-12


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("shape", [(6,), (3, 5, 4)])
def test_gradients_of_many_layers(name, shape):
    torch.manual_seed(3)
    network, plain = pair(shape, dynamics=name, width=6, depth=256)
    assert gap(network, plain, torch.randn(5, *shape, dtype=torch.float64)) < 1e-12
    network, plain = pair(shape, torch.float32, dynamics=name, width=6, depth=256)
    assert gap(network, plain, torch.randn(5, *shape)) < (1e-4 if name == "leapfrog" else 5e-6)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_blocks_recompute_their_own_states(name):
    network, plain = pair(3, dynamics=name, width=4, depth=6)
    x = torch.randn(5, 3, dtype=torch.float64)
    blocks = torch.nn.Sequential(*network.split([1, 3, 2]))
    blocks(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(torch.cat([block.weight.grad for block in blocks]), plain.weight.grad)


def test_no_layers_and_no_examples():
    network, _ = pair(3, width=4, depth=6)
    state = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    same = network(state, 2, 2)
    assert torch.equal(same, state)
    (gradient,) = torch.autograd.grad(same.sum(), state)
    assert (gradient == 1).all()
    for shape in ((3,), (2, 4, 3)):
        network, _ = pair(shape, width=4, depth=6)
        assert not any(g.any() for g in gradients(network, torch.randn(0, *shape, dtype=torch.float64))[1:-1])


def saved_bytes(network, x):
    """What autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x).square().sum()
        loss.backward()
    return sum(kept.values())


def peak_bytes(network, x):
    """The largest number of bytes that torch has allocated at a time in a step, beyond those from before it."""
    with profile(profile_memory=True, acc_events=True) as profiler:
        network(x).square().sum().backward()
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("shape", [(2,), (2, 8, 8)])
def test_memory_does_not_grow_with_depth(name, shape):
    x = torch.randn(1024 if len(shape) == 1 else 16, *shape)
    options = {"dynamics": name, "width": 4, "time": 5.0}
    shallow, deep = (StableNetwork(shape, 2, depth=depth, reversible=True, **options) for depth in (4, 48))
    assert saved_bytes(shallow, x) == saved_bytes(deep, x)
    plain = StableNetwork(shape, 2, depth=48, **options)
    assert saved_bytes(plain, x) > 10 * saved_bytes(deep, x)
    # The gradients themselves are one more copy of the parameters, and autograd may hold a second one.
    parameters = sum(p.numel() * p.element_size() for p in deep.parameters())
    assert peak_bytes(deep, x) < 1.1 * peak_bytes(shallow, x) + 2 * parameters
    assert peak_bytes(plain, x) > 3 * peak_bytes(deep, x)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_slopes_are_those_of_autograd(activation):
    a = torch.cat((torch.linspace(-4, 4, 81), torch.zeros(1))).double().requires_grad_()
    s = ACTIVATIONS[activation](a)
    grad = torch.randn_like(a)
    (expected,) = torch.autograd.grad(s, a, grad)
    torch.testing.assert_close(SLOPES[activation](grad, a.detach(), s.detach()), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("shape", [(8,), (8, 4, 3)])
def test_opcheck(name, shape):
    width, kernel = (4, (3, 3)) if len(shape) == 3 else (4, ())
    state = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, width, width, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, width, dtype=torch.float64, requires_grad=True)
    options = (name, 0.1, True, "tanh")
    opcheck(torch.ops.synaptome.reversible_flow.default, (state, weight, bias, *options))
    operands = (state.detach(), state.detach(), weight.detach(), bias.detach())
    opcheck(torch.ops.synaptome.reversible_flow_backward.default, (*operands, *options))


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_compiled_and_exported_it_gives_the_same_bits(name, shape):
    network, _ = pair(shape, torch.float32, dynamics=name, width=4, depth=5)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, *shape)
    assert torch.equal(compiled(x), network(x))
    for mine, theirs in zip(gradients(compiled, x), gradients(network, x), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_under_autocast_layers_compute_in_float32(name):
    network, plain = pair(3, torch.float32, dynamics=name, width=4, depth=64)
    x = torch.randn(5, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        carried = network(x, stop=64)
        assert network(x).dtype == torch.bfloat16  # of the classifier
    assert carried.dtype == torch.float32
    assert torch.equal(carried, plain(x, stop=64))
    (mine,) = torch.autograd.grad(carried.square().sum(), network.weight)
    (theirs,) = torch.autograd.grad(plain(x, stop=64).square().sum(), plain.weight)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_narrow_numbers_are_refused():
    network, _ = pair(3, torch.bfloat16, width=4, depth=2)
    with pytest.raises(ConfigurationError, match="bfloat16 is too coarse; give it float32 or float64"):
        network(torch.randn(5, 3, dtype=torch.bfloat16))


def test_a_second_derivative_is_refused():
    network, _ = pair(3, width=4, depth=2)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
