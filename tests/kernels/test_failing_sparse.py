"""The sparse product with failures: against the dense one with the same failures, finite differences, statistics."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels import failing_sparse, randomness, sparse_product
from synaptome.kernels.failing_linear import failing_linear
from synaptome.kernels.failing_sparse import failing_sparse_linear, grads, product
from synaptome.kernels.sparse_product import compressed, sparse_linear, structure_of

KEY = torch.tensor([123456789, 42])


def structure(outputs, inputs, nnz, index=torch.int32):
    """A graph of nnz places drawn uniformly."""
    place = torch.randperm(outputs * inputs)[:nnz].sort().values
    row, col = place // max(1, inputs), place % max(1, inputs)
    return row, structure_of(compressed(row, outputs).to(index), col.to(index), inputs)


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


def check_against_the_dense_product(outputs, inputs, nnz, batch, failure, key, dtype, tolerance, index=torch.int32):
    """Output and all gradients are those of a dense weight whose synapses fail at the same key."""
    row, graph = structure(outputs, inputs, nnz, index)
    values = torch.randn(nnz, dtype=dtype, requires_grad=True)
    bias = torch.randn(outputs, dtype=dtype, requires_grad=True)
    x = torch.randn(batch, inputs, dtype=dtype, requires_grad=True)
    weight = torch.zeros(outputs, inputs, dtype=dtype).index_put((row, graph.col.long()), values)
    close = {"rtol": tolerance, "atol": 10 * tolerance}
    for given_bias in (bias, None):
        operands = (values, x) if given_bias is None else (values, x, bias)
        expected = failing_linear(x, weight, given_bias, failure, key)
        y = failing_sparse_linear(x, values, given_bias, graph, failure, key)
        torch.testing.assert_close(y, expected, **close)
        grad = torch.randn_like(y)
        for mine, theirs in zip(
            torch.autograd.grad(y, operands, grad),
            torch.autograd.grad(expected, operands, grad, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, **close)


@st.composite
def graphs(draw):
    outputs, inputs = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    return outputs, inputs, draw(st.integers(0, outputs * inputs))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@given(graphs(), st.integers(0, 40), st.floats(0, 0.99), st.integers(0, 2**62), st.integers(0, 2**40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_graph_fails_as_a_dense_weight_does(name, shape, batch, failure, stream, counter, wide):
    torch.manual_seed(counter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", name)
        key, index = torch.tensor([stream, counter]), torch.int64 if wide else torch.int32
        check_against_the_dense_product(*shape, batch, failure, key, torch.float64, 1e-12, index)


# Batches around the vectors of 2 to 16 numbers, and around the blocks of four or eight of them.
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 69, 100, 127, 128, 129, 135, 260])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("inputs", [52, 53])  # halves of the mask alike, or not
def test_batches_of_any_size_fail_as_with_a_dense_weight(backend, batch, dtype, tolerance, inputs):
    check_against_the_dense_product(37, inputs, 400, batch, 0.4, KEY, dtype, tolerance)


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 6), (3, 45), (1, 1), (2, 3), (5, 0), (0, 5)])
@pytest.mark.parametrize("failure", [0.0, 1 / 65536, 0.3, 1 - 1 / 65536])
def test_the_reference_has_the_specified_mask(outputs, inputs, failure):
    row, col = (part.flatten() for part in torch.meshgrid(torch.arange(outputs), torch.arange(inputs), indexing="ij"))
    survives = randomness.surviving_at(KEY, row, col, 7, (outputs, inputs), failure)
    specified = randomness.surviving(KEY, range(7), outputs, inputs, failure)
    assert torch.equal(survives, specified.permute(1, 2, 0).reshape(-1, 7))


def test_empty_rows_and_columns():
    """Outputs 1 and 3 and inputs 1, 2, 4 and 5 have no connection: a bias is left, and gradients of 0."""
    row, col = torch.tensor([0, 2, 2, 4]), torch.tensor([6, 0, 3, 3])
    graph = structure_of(compressed(row, 5), col, 7)
    x = torch.randn(20, 7, requires_grad=True)
    bias = torch.randn(5)
    y = failing_sparse_linear(x, torch.randn(4), bias, graph, 0.5, KEY)
    assert torch.equal(y[:, [1, 3]], bias[[1, 3]].expand(20, 2))
    y.sum().backward()
    assert (x.grad[:, [1, 2, 4, 5]] == 0).all()
    assert (x.grad[:, [0, 3, 6]] != 0).any(0).all()


@pytest.mark.parametrize(
    ("outputs", "inputs", "nnz", "batch"),
    [(4, 5, 9, 3), (1, 1, 1, 1), (4, 5, 0, 3), (4, 5, 9, 0), (0, 3, 0, 2), (3, 0, 0, 2), (6, 6, 3, 18)],
)
def test_gradcheck_and_opcheck(backend, outputs, inputs, nnz, batch):
    _, graph = structure(outputs, inputs, nnz)
    values = torch.randn(nnz, dtype=torch.float64, requires_grad=True)
    x = torch.randn(inputs, batch, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(outputs, batch, dtype=torch.float64)
    assert gradcheck(lambda v, x, b: product(v, x, b, 0.3, KEY, *graph), (values, x, bias))
    assert gradcheck(lambda v, x: product(v, x, None, 0.3, KEY, *graph), (values, x))
    opcheck(product, (values, x, bias, 0.3, KEY, *graph))
    opcheck(product, (values, x, None, 0.3, KEY, *graph))
    opcheck(grads, (values.detach(), x.detach(), grad, 0.3, KEY, *graph[2:]))


def test_only_the_gradients_that_are_asked_for():
    _, graph = structure(6, 5, 12)
    values, x = torch.randn(12, requires_grad=True), torch.randn(5, 20, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    every = torch.autograd.grad(product(values, x, bias, 0.5, KEY, *graph).square().sum(), (values, x, bias))
    for number in range(3):
        operands = [part if i == number else part.detach() for i, part in enumerate((values, x, bias))]
        (one,) = torch.autograd.grad(product(*operands, 0.5, KEY, *graph).square().sum(), operands[number])
        assert torch.equal(one, every[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype):
    """Rows of very different length, of which one thread gets few."""
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    row = torch.cat((torch.full((300,), 5), torch.arange(8, 90).repeat_interleave(3)))
    col = torch.cat((torch.arange(300), torch.arange(82 * 3) % 300))
    row, col = torch.tensor(sorted(torch.stack((row, col)).T.tolist())).unbind(1)
    graph = structure_of(compressed(row, 100), col, 300)
    values, x = torch.randn(len(col), dtype=dtype), torch.randn(300, 150, dtype=dtype)
    grad = torch.randn(100, 150, dtype=dtype)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        both = grads(values, x, grad, 0.4, KEY, *graph[2:])
        results.append([product(values, x, None, 0.4, KEY, *graph), *both])
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_what_fails_transmits_nothing():
    """Not even what is not finite, forward or backward; and what one example has does not reach another."""
    row, col = torch.tensor([0, 0]), torch.tensor([0, 1])
    graph = structure_of(compressed(row, 1), col, 2)
    for batch in (5, 35, 150):
        survives = randomness.surviving_at(KEY, row, col, batch, (1, 2), 0.5)
        x = torch.ones(2, batch)
        x[0] = torch.inf
        y = product(torch.ones(2), x, None, 0.5, KEY, *graph)
        assert torch.equal(torch.isfinite(y[0]), ~survives[0])
        grad = torch.where(survives[0] & ~survives[1], torch.inf, 1.0).unsqueeze(0)
        by_values, by_x = grads(torch.ones(2), torch.ones(2, batch), grad, 0.5, KEY, *graph[2:])
        assert torch.equal(torch.isfinite(by_x[0]), (grad[0] == 1) | ~survives[0])
        assert torch.isfinite(by_x[1]).all()
        assert torch.isfinite(by_values).tolist() == [bool((grad == 1).all()), True]


def test_layouts_and_leading_axes_do_not_matter(backend):
    _, graph = structure(7, 6, 20)
    values, bias = torch.randn(20), torch.randn(7)
    x = torch.randn(2, 3, 4, 6)
    expected = failing_sparse_linear(x.reshape(24, 6), values, bias, graph, 0.5, KEY).reshape(2, 3, 4, 7)
    apart = torch.stack((x, x), -1)[..., 0]
    for given_x in (x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), apart, x):
        assert torch.equal(failing_sparse_linear(given_x, values, bias, graph, 0.5, KEY), expected)
    assert failing_sparse_linear(x[0, 0, 0], values, bias, graph, 0.5, KEY).shape == (7,)
    assert failing_sparse_linear(x[:, :0], values, bias, graph, 0.5, KEY).shape == (2, 0, 4, 7)
    strided = torch.stack((KEY, KEY), 1)[:, 0]
    assert torch.equal(failing_sparse_linear(x, values, bias, graph, 0.5, strided), expected)


def test_no_failures_is_the_sparse_product(backend):
    _, graph = structure(7, 6, 20)
    values, x = torch.randn(20), torch.randn(40, 6)
    expected = sparse_linear(x, values, None, graph)
    torch.testing.assert_close(failing_sparse_linear(x, values, None, graph, 0.0, KEY), expected)


def test_compiled_and_exported_programs_give_the_same_bits(backend):
    graph = structure(7, 6, 20)[1]

    class Net(torch.nn.Module):
        def forward(self, x, values, key):
            y = torch.relu(failing_sparse_linear(x, values, None, graph, 0.5, key))
            return failing_sparse_linear(y[:, :6], values, None, graph, 0.5, key + 1)

    x, values = torch.randn(20, 6, requires_grad=True), torch.randn(20, requires_grad=True)
    y = Net()(x, values, KEY)
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, values, KEY), y)
    exported = torch.export.export(Net(), (x.detach(), values.detach(), KEY))
    assert torch.equal(exported.module()(x, values, KEY), y)
    for mine, theirs in zip(
        torch.autograd.grad(compiled(x, values, KEY).sum(), (x, values)),
        torch.autograd.grad(y.sum(), (x, values)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_narrow_floats_and_autocast():
    _, graph = structure(7, 6, 20)
    values, x = torch.randn(20, requires_grad=True), torch.randn(4, 6)
    narrow = failing_sparse_linear(x.bfloat16(), values.bfloat16(), None, graph, 0.5, KEY)
    assert narrow.dtype == torch.bfloat16
    plain = failing_sparse_linear(x.bfloat16().float(), values, None, graph, 0.5, KEY)
    torch.testing.assert_close(narrow.float(), plain, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = failing_sparse_linear(x.bfloat16(), values, None, graph, 0.5, KEY)
    assert torch.equal(mixed, plain)
    mixed.sum().backward()
    assert values.grad.dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"x is torch\.bfloat16 and the values are torch\.float32"):
        failing_sparse_linear(x.bfloat16(), values, None, graph, 0.5, KEY)


def test_what_does_not_fit_is_refused():
    _, graph = structure(7, 6, 20)
    with pytest.raises(ConfigurationError, match=r"takes x \[\.\.\., 6\]; given x \[2, 5\]"):
        failing_sparse_linear(torch.randn(2, 5), torch.randn(20), None, graph, 0.5, KEY)
    with pytest.raises(ConfigurationError, match=r"20 connections, each with a value; given values \[19\]"):
        failing_sparse_linear(torch.randn(2, 6), torch.randn(19), None, graph, 0.5, KEY)
    for failure in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigurationError, match=r"in \[0, 1\)"):
            failing_sparse_linear(torch.randn(2, 6), torch.randn(20), None, graph, failure, KEY)


# Statistics: a mean of n independent draws is within 5 standard errors of its own with probability 1 - 6e-7.
@pytest.mark.parametrize("failure", [0.1, 0.5, 0.9])
def test_connections_fail_at_the_rate_and_independently(backend, failure):
    """Each output has one connection, of weight 1 from an input of 1: it is 0, or 1 / (1 - p)."""
    size, batch = 300, 400
    graph = structure_of(torch.arange(size + 1), torch.randperm(size), size)
    y = failing_sparse_linear(torch.ones(batch, size), torch.ones(size), None, graph, failure, KEY)
    alive = (y != 0).double()
    survival = 1 - round(failure * 65536) / 65536
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / survival))
    spread = survival * (1 - survival)
    assert abs(alive.mean().item() - survival) < 5 * math.sqrt(spread / alive.numel())
    centred = alive - survival
    other = failing_sparse_linear(torch.ones(batch, size), torch.ones(size), None, graph, failure, KEY + 1) != 0
    for first, second in (
        (centred[1:], centred[:-1]),  # examples
        (centred[:, 1:], centred[:, :-1]),  # connections
        (centred, other.double() - survival),  # passes
    ):
        # The product of independent centred draws has variance spread².
        assert abs((first * second).mean().item()) < 5 * spread / math.sqrt(first.numel())


def test_the_reference_makes_masks_of_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(sparse_product, "GATHERED_ELEMENTS", 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    _, graph = structure(30, 40, 600)
    values, x, grad = torch.randn(600), torch.randn(40, 8), torch.randn(30, 8)
    with Watch():
        failing_sparse._product(values, x, None, 0.5, KEY, *graph)
        failing_sparse._grads(values, x, grad, 0.5, KEY, *graph[2:])
    assert largest <= 600 < 30 * 40


def test_a_step_of_a_wide_layer_takes_memory_for_its_connections_only():
    """n = 16 000 and 500 000 connections: a dense weight would be 1 GB, masks or a gathered batch 16 MB and more."""
    script = """
import resource, torch
from synaptome.kernels.failing_sparse import failing_sparse_linear
from synaptome.kernels.sparse_product import compressed, structure_of
torch.set_num_threads(1)
def step(n, nnz):
    place = torch.randint(n * n, (nnz,)).unique()
    graph = structure_of(compressed(place // n, n).int(), (place % n).int(), n)
    values = torch.randn(len(place), requires_grad=True)
    x = torch.randn(32, n, requires_grad=True)
    failing_sparse_linear(x, values, None, graph, 0.5, torch.tensor([1, 2])).square().sum().backward()
    assert values.grad.abs().sum() > 0 and x.grad.abs().sum() > 0
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
step(64, 500)  # brings numba
base = peak()
step(16_000, 500_000)
print(peak() - base)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
