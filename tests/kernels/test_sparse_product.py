"""Sparse products: against dense ones, SciPy and a Python loop, finite differences, and the memory that they take."""

import subprocess
import sys

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels import sparse_product
from synaptome.kernels.sparse_product import grads, input_grad, sddmm, sparse_linear, spmm, structure_of


def structure(outputs, inputs, nnz, index=torch.int32):
    """A graph of nnz places drawn uniformly."""
    row, col = torch.randperm(outputs * inputs)[:nnz].sort().values.unsqueeze(0).repeat(2, 1)
    row, col = row // max(1, inputs), col % max(1, inputs)
    return row, structure_of(sparse_product.compressed(row, outputs).to(index), col.to(index), inputs)


def dense(row, graph, values, shape):
    weight = values.new_zeros(shape)
    weight[row, graph.col.long()] = values
    return weight


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


@st.composite
def graphs(draw):
    outputs, inputs = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return outputs, inputs, draw(st.integers(0, outputs * inputs))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@given(graphs(), st.integers(0, 40), st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_a_python_loop(name, shape, batch, seed, wide, with_bias):
    outputs, inputs, nnz = shape
    torch.manual_seed(seed)
    row, graph = structure(outputs, inputs, nnz, torch.int64 if wide else torch.int32)
    values, bias = torch.randn(nnz, dtype=torch.float64), torch.randn(outputs, dtype=torch.float64)
    x, grad = torch.randn(inputs, batch, dtype=torch.float64), torch.randn(outputs, batch, dtype=torch.float64)
    y = bias.unsqueeze(1).repeat(1, batch) if with_bias else torch.zeros_like(grad)
    by_x, by_values = torch.zeros_like(x), torch.zeros_like(values)
    for k, (o, i) in enumerate(zip(row.tolist(), graph.col.tolist(), strict=True)):
        y[o] += values[k] * x[i]
        by_x[i] += values[k] * grad[o]
        by_values[k] = (grad[o] * x[i]).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", name)
        torch.testing.assert_close(spmm(values, x, bias if with_bias else None, *graph), y)
        torch.testing.assert_close(input_grad(values, grad, graph.ccol, graph.row, graph.permutation), by_x)
        torch.testing.assert_close(sddmm(grad, x, graph.crow, graph.col), by_values)
        both = grads(values, x, grad, graph.ccol, graph.row, graph.permutation)
        torch.testing.assert_close(both, (by_values, by_x))


# Batches around the vectors of 2 to 16 numbers, and around the blocks of eight of them.
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 260])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_products_are_those_of_a_dense_weight_and_of_scipy(backend, batch, dtype, tolerance):
    outputs, inputs, nnz = 37, 53, 400
    row, graph = structure(outputs, inputs, nnz)
    values = torch.randn(nnz, dtype=dtype, requires_grad=True)
    bias = torch.randn(outputs, dtype=dtype, requires_grad=True)
    x = torch.randn(batch, inputs, dtype=dtype, requires_grad=True)
    y = sparse_linear(x, values, bias, graph)
    other = scipy.sparse.csr_array((values.detach().numpy(), graph.col.numpy(), graph.crow.numpy()), (outputs, inputs))
    from_scipy = torch.from_numpy(other @ x.detach().numpy().T).T + bias
    expected = x @ dense(row, graph, values, (outputs, inputs)).T + bias
    close = {"rtol": tolerance, "atol": 10 * tolerance}
    torch.testing.assert_close(y, from_scipy, **close)
    torch.testing.assert_close(y, expected, **close)
    grad = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, (values, x, bias), grad),
        torch.autograd.grad(expected, (values, x, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **close)


@given(graphs(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_transposed_structure_is_scipys(shape, seed):
    outputs, inputs, nnz = shape
    torch.manual_seed(seed)
    row, graph = structure(outputs, inputs, nnz)
    assert all(part.dtype == torch.int32 for part in graph)
    assert torch.equal(sparse_product.row_indices(graph.crow, nnz).long(), row)
    numbered = scipy.sparse.coo_array((range(nnz), (row.numpy(), graph.col.numpy())), (outputs, inputs)).tocsc()
    assert graph.ccol.tolist() == numbered.indptr.tolist()
    assert graph.row.tolist() == numbered.indices.tolist()
    assert graph.permutation.tolist() == numbered.data.tolist()


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
    assert gradcheck(lambda v, x, b: spmm(v, x, b, *graph), (values, x, bias))
    assert gradcheck(lambda v, x: spmm(v, x, None, *graph), (values, x))
    opcheck(spmm, (values, x, bias, *graph))
    opcheck(spmm, (values, x, None, *graph))
    opcheck(input_grad, (values.detach(), grad, graph.ccol, graph.row, graph.permutation))
    opcheck(sddmm, (grad, x.detach(), graph.crow, graph.col))
    opcheck(grads, (values.detach(), x.detach(), grad, graph.ccol, graph.row, graph.permutation))


def test_gradients_that_nobody_needs_are_not_made(backend, monkeypatch):
    _, graph = structure(7, 6, 20)
    values, x = torch.randn(20, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    both = torch.autograd.grad(spmm(values, x, None, *graph).sum(), (values, x))
    for name in ("grads", "input_grad"):
        monkeypatch.setattr(sparse_product, name, None)
    torch.testing.assert_close(*torch.autograd.grad(spmm(values, x.detach(), None, *graph).sum(), values), both[0])
    monkeypatch.undo()
    for name in ("grads", "sddmm"):
        monkeypatch.setattr(sparse_product, name, None)
    torch.testing.assert_close(*torch.autograd.grad(spmm(values.detach(), x, None, *graph).sum(), x), both[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype):
    """Rows of very different length, of which one thread gets few."""
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    row = torch.cat((torch.full((300,), 5), torch.arange(8, 90).repeat_interleave(3)))
    col = torch.cat((torch.arange(300), torch.arange(82 * 3) % 300))
    col = torch.stack((row, col)).T.tolist()
    row, col = torch.tensor(sorted(col)).unbind(1)
    graph = structure_of(sparse_product.compressed(row, 100), col, 300)
    values, x, grad = torch.randn(len(col), dtype=dtype), torch.randn(300, 150, dtype=dtype), torch.randn(100, 150)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        by_x = input_grad(values, grad.to(dtype), graph.ccol, graph.row, graph.permutation)
        both = grads(values, x, grad.to(dtype), graph.ccol, graph.row, graph.permutation)
        results.append([spmm(values, x, None, *graph), by_x, sddmm(grad.to(dtype), x, graph.crow, graph.col), *both])
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_a_sum_of_zeros_keeps_what_is_not_finite_apart(backend):
    """What one example has must not reach another, though vectors overlap."""
    row, graph = structure(6, 5, 30)
    for batch in (9, 17, 35, 150):
        x, grad, values = torch.randn(5, batch), torch.randn(6, batch), torch.randn(30)
        expected = spmm(values, x, None, *graph)
        x[:, 3] = torch.inf
        y = spmm(values, x, None, *graph)
        assert torch.equal(torch.isfinite(y).all(0), torch.arange(batch) != 3)
        assert torch.equal(y[:, 4:], expected[:, 4:])
        by_x = grads(values, torch.randn(5, batch), grad.where(torch.arange(batch) != 3, torch.inf), *graph[2:])[1]
        assert torch.equal(torch.isfinite(by_x).all(0), torch.arange(batch) != 3)
        x[:, 3] = 1e30
        grad[:, 3] = 0  # an example without a gradient
        torch.testing.assert_close(
            sddmm(grad, x, graph.crow, graph.col), (grad @ x.T)[row, graph.col.long()], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            grads(values, x, grad, *graph[2:])[0], (grad @ x.T)[row, graph.col.long()], rtol=1e-4, atol=1e-4
        )


def test_layouts_and_leading_axes_do_not_matter(backend):
    row, graph = structure(7, 6, 20)
    values, bias = torch.randn(20), torch.randn(7)
    x = torch.randn(2, 3, 4, 6)
    expected = x @ dense(row, graph, values, (7, 6)).T + bias
    batch_last = x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    apart = torch.stack((x, x), -1)[..., 0]
    for given_x in (x, batch_last, apart, x.transpose(0, 2).contiguous().transpose(0, 2)):
        y = sparse_linear(given_x, values, bias, graph)
        torch.testing.assert_close(y, expected)
    assert sparse_linear(x[0, 0, 0], values, bias, graph).shape == (7,)
    assert sparse_linear(x[:, :0], values, bias, graph).shape == (2, 0, 4, 7)


def test_layers_in_a_row_never_transpose(monkeypatch):
    graph = structure(40, 40, 300)[1]
    values = torch.randn(300)
    y = torch.relu(sparse_linear(torch.randn(64, 40), values, None, graph))
    seen = []
    monkeypatch.setattr(sparse_product, "spmm", lambda values, x, *rest: seen.append(x) or spmm(values, x, *rest))
    sparse_linear(y, values, None, graph)
    assert seen[0].data_ptr() == y.data_ptr()


def test_compiled_and_exported_programs_give_the_same_bits(backend):
    graph = structure(7, 6, 20)[1]

    class Net(torch.nn.Module):
        def forward(self, x, values):
            return sparse_linear(torch.relu(sparse_linear(x, values, None, graph))[:, :6], values, None, graph)

    x, values = torch.randn(20, 6, requires_grad=True), torch.randn(20, requires_grad=True)
    y = Net()(x, values)
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, values), y)
    exported = torch.export.export(Net(), (x.detach(), values.detach()))
    assert torch.equal(exported.module()(x, values), y)
    for mine, theirs in zip(
        torch.autograd.grad(compiled(x, values).sum(), (x, values)),
        torch.autograd.grad(y.sum(), (x, values)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_narrow_floats_and_autocast():
    _, graph = structure(7, 6, 20)
    values, x = torch.randn(20, requires_grad=True), torch.randn(4, 6)
    narrow = sparse_linear(x.bfloat16(), values.bfloat16(), None, graph)
    assert narrow.dtype == torch.bfloat16
    plain = sparse_linear(x.bfloat16().float(), values, None, graph)
    torch.testing.assert_close(narrow.float(), plain, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sparse_linear(x.bfloat16(), values, None, graph)
    assert torch.equal(mixed, plain)
    mixed.sum().backward()
    assert values.grad.dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"x is torch\.bfloat16 and the values are torch\.float32"):
        sparse_linear(x.bfloat16(), values, None, graph)


def test_what_does_not_fit_is_refused():
    _, graph = structure(7, 6, 20)
    with pytest.raises(ConfigurationError, match=r"takes x \[\.\.\., 6\]; given x \[2, 5\]"):
        sparse_linear(torch.randn(2, 5), torch.randn(20), None, graph)
    with pytest.raises(ConfigurationError, match=r"20 connections, each with a value; given values \[19\]"):
        sparse_linear(torch.randn(2, 6), torch.randn(19), None, graph)


def test_the_reference_gathers_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(sparse_product, "GATHERED_ELEMENTS", 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    row, graph = structure(30, 40, 600)
    values, x, grad = torch.randn(600), torch.randn(40, 8), torch.randn(30, 8)
    with Watch():
        y = sparse_product._spmm(values, x, None, graph.crow, graph.col)
        sparse_product._input_grad(values, grad, graph.ccol, graph.row, graph.permutation)
        sparse_product._sddmm(grad, x, graph.crow, graph.col)
    torch.testing.assert_close(y, dense(row, graph, values, (30, 40)) @ x)
    assert largest <= 600 < 30 * 40


def test_a_step_of_a_wide_layer_takes_memory_for_its_connections_only():
    """n = 16 000 and 500 000 connections: a dense weight would be 1 GB, a gathered batch 64 MB."""
    script = """
import resource, torch
from synaptome.kernels.sparse_product import compressed, sparse_linear, structure_of
torch.set_num_threads(1)
def step(n, nnz):
    place = torch.randint(n * n, (nnz,)).unique()
    graph = structure_of(compressed(place // n, n).int(), (place % n).int(), n)
    values = torch.randn(len(place), requires_grad=True)
    x = torch.randn(32, n, requires_grad=True)
    sparse_linear(x, values, None, graph).square().sum().backward()
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
