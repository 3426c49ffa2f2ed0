"""All layers in one call: against loops over examples, finite differences, and the exact tanh; what it stores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels import flow as flow_module
from synaptome.kernels.flow import DYNAMICS, REVERSIBLE, covers, flow, grads, layers

FIELDS = {"euler": 1, "antisymmetric": 1, "leapfrog": 2, "verlet": 2, "hamiltonian": 2}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


def network(dynamics, batch, width, depth, dtype=torch.float64):
    """A state, weights that keep it of order 1, and biases, all with gradients."""
    state = torch.randn(batch, FIELDS[dynamics] * width, dtype=dtype)
    if dynamics == "leapfrog":  # its fields are states one step apart
        state[:, width:] = state[:, :width] + 0.01 * state[:, width:]
    weight = torch.randn(depth, width, width, dtype=dtype) / width**0.5
    return [operand.requires_grad_() for operand in (state, weight, torch.randn(depth, width, dtype=dtype))]


def options(dynamics, **others):
    """Those of these dynamics, none at its default."""
    own = {"antisymmetric": {"gamma": 0.3}, "verlet": {"half_kick": True}}.get(dynamics, {})
    return {"dynamics": dynamics, "step": 0.3} | own | others


def column_by_column(state, weight, bias, *, dynamics, step, gamma=0.0, half_kick=False, activation="tanh"):
    """The equations as they are printed, of one example, a column, at a time."""
    s, h = getattr(torch, activation), step
    ends = []
    for column in state:
        fields = list(column.split(weight.shape[1]))
        for layer, (K, b) in enumerate(zip(weight, bias, strict=True)):
            if dynamics in ("euler", "antisymmetric"):
                A = 0.5 * (K - K.T - gamma * torch.eye(len(K), dtype=K.dtype)) if dynamics == "antisymmetric" else K
                fields = [fields[0] + h * s(A.mv(fields[0]) + b)]
            elif dynamics == "leapfrog":
                now, before = fields
                fields = [2 * now - before - h * h * K.T.mv(s(K.mv(now) + b)), now]
            elif dynamics == "verlet":
                y, z = fields
                z = z - (h / 2 if half_kick and layer == 0 else h) * s(K.T.mv(y) + b)
                fields = [y + h * s(K.mv(z) + b), z]
            else:
                p, q = fields
                p = p - h / 2 * K.T.mv(s(K.mv(q) + b))
                q = q + h * K.T.mv(s(K.mv(p) + b))
                fields = [p - h / 2 * K.T.mv(s(K.mv(q) + b)), q]
        ends.append(torch.cat(fields))
    return torch.stack(ends) if ends else state.clone()


def assert_same(operands, expected, end, **tolerance):
    """Two final states, and their gradients by all operands."""
    torch.testing.assert_close(end, expected, **tolerance)
    upstream = torch.randn_like(end)
    mine, theirs = (
        torch.autograd.grad(y, operands, upstream, materialize_grads=True, retain_graph=True) for y in (end, expected)
    )
    torch.testing.assert_close(mine, theirs, **tolerance)


@given(st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_states_and_gradients_are_those_of_the_equations(name, dynamics, data):
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    operands = network(dynamics, *(data.draw(st.integers(low, 9)) for low in (0, 1, 0)))
    chosen = options(dynamics, activation=data.draw(st.sampled_from(["tanh", "relu"])))
    if dynamics == "verlet":
        chosen["half_kick"] = data.draw(st.booleans())
    reversible = dynamics in REVERSIBLE and data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", name)
        patch.setattr(flow_module, "SEGMENT_BYTES", data.draw(st.sampled_from([0, 2**12, 2**19])))
        end = flow(*operands, **chosen, reversible=reversible)
        assert_same(operands, column_by_column(*operands, **chosen), end, **EXACT)


# Batches around the vectors of 2 to 16 numbers, the chunks of 64 or 128, and the eight groups of these; widths around
# tiles of four; with width 64 a segment is eight kicks.
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(
    ("batch", "width", "depth"),
    [
        *((1, 1, 1), (15, 2, 3), (16, 3, 40), (17, 4, 5), (63, 5, 2), (64, 7, 9), (65, 8, 300), (127, 11, 8)),
        *((128, 16, 7), (129, 17, 6), (200, 33, 5), (260, 64, 8), (40, 64, 9), (3, 64, 17), (2, 70, 11), (2100, 2, 3)),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-12)])
def test_the_kernel_gives_what_the_reference_gives(monkeypatch, dynamics, batch, width, depth, dtype, tolerance):
    operands = network(dynamics, batch, width, depth, dtype)
    chosen = options(dynamics, step=0.5 / depth)
    if dynamics == "leapfrog":  # rounding errors grow like velocities
        tolerance *= depth
    monkeypatch.setenv("SYNAPTOME_BACKEND", "reference")
    expected = flow(*operands, **chosen)
    upstream = torch.randn_like(expected)
    by_reference = torch.autograd.grad(expected, operands, upstream)
    monkeypatch.setenv("SYNAPTOME_BACKEND", "cpu")
    for reversible in (False, True)[: 1 + (dynamics in REVERSIBLE)]:
        end = flow(*operands, **chosen, reversible=reversible)
        torch.testing.assert_close(end, expected, rtol=tolerance, atol=tolerance)
        for mine, theirs in zip(torch.autograd.grad(end, operands, upstream), by_reference, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * max(1, theirs.abs().max().item()))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_gradcheck(backend, dynamics):
    for reversible in (False, True)[: 1 + (dynamics in REVERSIBLE)]:
        chosen = options(dynamics, reversible=reversible)
        operands = network(dynamics, 3, 3, 4)
        assert gradcheck(lambda *operands, chosen=chosen: flow(*operands, **chosen), operands)


@pytest.mark.parametrize(
    ("dynamics", "batch", "depth"),
    [*((name, 70, 2) for name in ("euler", *REVERSIBLE)), ("verlet", 0, 2), ("leapfrog", 5, 0), ("euler", 5, 3)],
)
def test_opcheck(backend, dynamics, batch, depth):
    operands = network(dynamics, batch, 3, depth)
    start, weight, bias = (operand.detach() for operand in operands)
    for stored in (True, False)[: 1 + (dynamics in REVERSIBLE)]:
        rest = dynamics, 0.1, dynamics == "verlet", "tanh", stored
        opcheck(layers, (*operands, *rest))
        end, tape = layers(start, weight, bias, *rest)
        opcheck(grads, (torch.randn_like(end), weight, bias, start, end, tape, *rest))


@pytest.mark.parametrize("dynamics", REVERSIBLE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_undone_layers_give_the_stored_gradient(dynamics, dtype, tolerance):
    """256 layers of a time of 10: every state is met again, so that the gradients are the same up to rounding."""
    if dynamics == "leapfrog":  # rounding errors grow like velocities
        tolerance *= 256
    operands = network(dynamics, 30, 6, 256, dtype)
    chosen = options(dynamics, step=10 / 256)
    end = flow(*operands, **chosen)
    upstream = torch.randn_like(end)
    stored = torch.autograd.grad(end, operands, upstream)
    undone = torch.autograd.grad(flow(*operands, **chosen, reversible=True), operands, upstream)
    for mine, theirs in zip(undone, stored, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())
        assert theirs.abs().max() > 0.1


def test_a_reversed_flow_comes_back():
    """Leapfrog is its own inverse once its two fields have changed places."""
    state, weight, bias = (operand.detach() for operand in network("leapfrog", 30, 6, 256))
    end = flow(state, weight, bias, dynamics="leapfrog", step=0.04)
    assert (end - state).abs().max() > 1
    back = flow(end.roll(6, 1), weight.flip(0), bias.flip(0), dynamics="leapfrog", step=0.04).roll(6, 1)
    torch.testing.assert_close(back, state, rtol=0, atol=1e-11)


def test_a_gradient_reaches_the_raw_weights_of_antisymmetric_layers(backend):
    """Symmetric parts of K have no effect on the flow, and none of its gradient."""
    state, weight, bias = network("antisymmetric", 9, 5, 4)
    flow(state, weight, bias, dynamics="antisymmetric", step=0.2, gamma=0.1).square().sum().backward()
    torch.testing.assert_close(weight.grad, -weight.grad.mT)
    assert weight.grad.abs().max() > 0.1
    shifted = (weight + weight.detach().mT).detach()
    args = {"dynamics": "antisymmetric", "step": 0.2, "gamma": 0.1}
    torch.testing.assert_close(flow(state, shifted - weight.mT, bias, **args), flow(state, weight, bias, **args))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_layouts_do_not_matter(backend, dynamics):
    operands = network(dynamics, 9, 5, 4)
    expected = flow(*operands, **options(dynamics))
    strided = [operand.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for operand in operands]
    assert not strided[1].is_contiguous()
    end = flow(*strided, **options(dynamics))
    torch.testing.assert_close(end, expected, **EXACT)
    assert end.is_contiguous()
    for upstream in (torch.ones(()).double().expand(end.shape), torch.randn(end.T.shape, dtype=torch.float64).T):
        mine = torch.autograd.grad(end, strided, upstream, retain_graph=True)
        theirs = torch.autograd.grad(expected, operands, upstream.contiguous(), retain_graph=True)
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(monkeypatch, dynamics, dtype):
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    operands = network(dynamics, 1500, 3, 6, dtype)
    upstream = torch.randn_like(operands[0])
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        for reversible in (False, True)[: 1 + (dynamics in REVERSIBLE)]:
            end = flow(*operands, **options(dynamics), reversible=reversible)
            results.append((reversible, end, *torch.autograd.grad(end, operands, upstream)))
    for kind in {reversible for reversible, *_ in results}:
        first, *others = [parts for reversible, *parts in results if reversible == kind]
        for other in others:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, other, strict=True))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_what_is_not_finite_stays_with_its_example(backend, dynamics):
    operands = network(dynamics, 70, 3, 4)
    chosen = options(dynamics)
    expected = flow(*operands, **chosen)
    finite = torch.arange(70) != 69
    broken = operands[0].detach().clone()
    broken[69] = math.nan
    broken.requires_grad_()
    end = flow(broken, *operands[1:], **chosen)
    assert end[69].isnan().all()
    assert torch.equal(end[finite], expected[finite])
    upstream = torch.randn_like(end)
    by_state = torch.autograd.grad(end, broken, upstream)[0]
    assert torch.equal(by_state[finite], torch.autograd.grad(expected, operands[0], upstream)[0][finite])


@pytest.mark.parametrize(("dtype", "exact", "ulps"), [(np.float32, np.float64, 2.6), (np.float64, np.longdouble, 2.8)])
def test_tanh_is_accurate_to_its_last_digits(dtype, exact, ulps):
    """Verlet from Y = 0 with K = 1, b = 0 and h = 1 leaves Z alone and takes tanh(Z) for Y."""
    random = np.random.default_rng(0)
    size = np.concatenate([10 ** random.uniform(low, high, 200_000) for low, high in ((-30, -3), (-3, 0), (-1, 1.5))])
    z = np.concatenate((size, -size)).astype(dtype)
    state = torch.from_numpy(np.stack((np.zeros_like(z), z), 1))
    one = torch.ones(1, 1, 1, dtype=state.dtype)
    y = flow(state, one, torch.zeros_like(one[0]), dynamics="verlet", step=1.0)[:, 0].numpy()
    expected = np.tanh(z.astype(exact))
    error = np.abs(y.astype(exact) - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert error.max() < ulps
    assert error.mean() < 0.5
    assert np.all(np.abs(y) <= 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_of_special_numbers(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    z = torch.tensor([math.inf, -math.inf, math.nan, 0.0, tiny, -tiny, 1e30, -1e30, 20.0, 9.0], dtype=dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    state = torch.stack((torch.zeros_like(z), z), 1)
    y = flow(state, one, torch.zeros_like(one[0]), dynamics="verlet", step=1.0)[:, 0]
    torch.testing.assert_close(y, torch.tanh(z), rtol=1e-6, atol=0, equal_nan=True)


def held(dynamics, width, depth, reversible):
    """Bytes that the graph holds, but for those of the parameters."""
    operands = network(dynamics, 256, width, depth, torch.float32)
    parameters = {operand.data_ptr() for operand in operands[1:]}
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        end = flow(*operands, dynamics=dynamics, step=0.01, reversible=reversible)
    end.sum().backward()
    return sum(size for place, size in sizes.items() if place not in parameters)


@pytest.mark.parametrize("dynamics", REVERSIBLE)
def test_reversible_memory_does_not_grow_with_depth(dynamics):
    assert held(dynamics, 4, 64, True) == held(dynamics, 4, 1024, True) == 2 * 256 * 4 * 2 * 4


@pytest.mark.parametrize(("width", "share"), [(4, 1 / 64), (64, 1 / 7)])
def test_stored_memory_is_a_fraction_of_the_states(width, share):
    ends = 2 * 256 * width * 4
    assert ends < held("euler", width, 512, False) <= ends + share * 512 * 256 * width * 4


def test_nothing_is_stored_where_no_gradient_is_asked_for(monkeypatch):
    tapes = []
    monkeypatch.setattr(flow_module, "layers", lambda *operands: tapes.append(layers(*operands)) or tapes[-1])
    operands = network("euler", 70, 3, 4)
    constants = [operand.detach() for operand in operands]
    stored = []
    for grad_mode, inputs in ((False, operands), (True, constants), (True, operands)):
        with torch.set_grad_enabled(grad_mode):
            flow(*inputs, dynamics="euler", step=0.1)
        stored.append(tapes[-1][1].numel() > 0)
    assert stored == [False, False, True]


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_compiled_and_exported_programs_give_the_same_bits(backend, dynamics):
    class Net(torch.nn.Module):
        def forward(self, state, weight, bias):
            return flow(torch.sin(state), weight, bias, **options(dynamics)).square()

    operands = network(dynamics, 20, 3, 4)
    end = Net()(*operands)
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)(*operands)
    assert torch.equal(compiled, end)
    exported = torch.export.export(Net(), tuple(operand.detach() for operand in operands))
    assert torch.equal(exported.module()(*operands), end)
    for mine, theirs in zip(
        torch.autograd.grad(compiled.sum(), operands), torch.autograd.grad(end.sum(), operands), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_narrow_floats_and_autocast():
    operands = network("verlet", 20, 3, 4, torch.float32)
    plain = flow(*operands, **options("verlet"))
    narrow = flow(*(operand.bfloat16() for operand in operands), **options("verlet"))
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), plain, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = flow(operands[0].bfloat16(), *operands[1:], **options("verlet"))
    assert torch.equal(mixed, flow(operands[0].bfloat16().float(), *operands[1:], **options("verlet")))
    mixed.sum().backward()
    assert operands[1].grad.dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"have one dtype; given torch\.bfloat16, torch\.float32"):
        flow(operands[0].bfloat16(), *operands[1:], **options("verlet"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dynamics": "verlett"}, r"unknown dynamics of flow 'verlett' \(did you mean 'verlet'\?\)"),
        ({"dynamics": "runge-kutta"}, "allowed: .*euler"),
        ({"activation": "swish"}, "unknown activation of flow 'swish'.* allowed: tanh, relu"),
        ({"step": 0.0}, "a finite number above 0; given 0.0"),
        ({"step": math.nan}, "a finite number above 0; given nan"),
        ({"step": math.inf}, "a finite number above 0; given inf"),
        ({"dynamics": "antisymmetric", "gamma": -1.0}, "gamma is a damping, .* at least 0; given -1.0"),
        ({"gamma": 0.5}, "gamma is for antisymmetric dynamics; leave it out for euler; given 0.5"),
        ({"half_kick": True}, "half_kick is a start of verlet dynamics; leave it out for euler"),
        ({"reversible": True}, "of euler cannot be undone; reversible is for leapfrog, verlet, hamiltonian"),
        ({"state": torch.zeros(5, 4)}, r"of width 3 take a state \[batch, 3\]; given \[5, 4\]"),
        ({"state": torch.zeros(3)}, r"take a state \[batch, 3\]; given \[3\]"),
        ({"dynamics": "verlet"}, r"verlet dynamics with weights of width 3 take a state \[batch, 6\]; given \[5, 3\]"),
        ({"weight": torch.zeros(2, 3, 4)}, r"a weight \[depth, width, width\].*; given \[2, 3, 4\] and \[2, 3\]"),
        ({"weight": torch.zeros(2, 0, 0), "bias": torch.zeros(2, 0)}, "width at least 1"),
        ({"bias": torch.zeros(1, 3)}, r"given \[2, 3, 3\] and \[1, 3\]"),
        ({"weight": torch.zeros(2, 3, 3).double()}, "one dtype; given torch.float32, torch.float64 and torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    fine = {"state": torch.zeros(5, 3), "weight": torch.zeros(2, 3, 3), "bias": torch.zeros(2, 3)}
    with pytest.raises(ConfigurationError, match=message):
        flow(**fine | {"dynamics": "euler", "step": 0.1} | given)


def test_covers_draws_the_line(monkeypatch):
    state = torch.zeros(4, 8)
    assert covers(state, 8, "euler", "tanh")
    assert covers(state.double(), 64, "hamiltonian", "relu")
    assert not covers(state, 65, "euler", "tanh")
    assert not covers(state, 8, "runge-kutta", "tanh")
    assert not covers(state, 8, "euler", "swish")
    assert not covers(state.bfloat16(), 8, "euler", "tanh")
    assert not covers(state.to("meta"), 8, "euler", "tanh")
    monkeypatch.setenv("SYNAPTOME_BACKEND", "reference")
    assert not covers(state, 8, "euler", "tanh")
