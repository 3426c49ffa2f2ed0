"""Sparse convolutions: against a Python loop, torch's dense ones in float64, and finite differences."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.kernels import sparse_conv2d as conv
from synaptome.kernels.sparse_conv2d import input_grad, product, sparse_conv2d, values_grad
from synaptome.kernels.sparse_product import compressed


def graph_of(outputs, inputs, nnz, index=torch.int32):
    """Rows of nnz places drawn uniformly, and the graph in compressed rows."""
    place = torch.randperm(outputs * inputs)[:nnz].sort().values
    row, col = place // inputs, place % inputs
    return row, compressed(row, outputs).to(index), col.to(index)


def dense(row, col, values, shape):
    weight = values.new_zeros(shape)
    weight.view(shape[0], -1)[row, col.long()] = values
    return weight


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


@st.composite
def convolutions(draw):
    """Channels in and out, image, kernel, stride, padding, dilation, groups."""

    def pair(least, most):
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    groups = draw(st.integers(1, 3))
    kernel, stride, padding, dilation = pair(1, 4), pair(1, 4), pair(0, 5), pair(1, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    image = tuple(size + more for size, more in zip(least, pair(0, 8), strict=True))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    return *channels, image, kernel, stride, padding, dilation, groups


@pytest.mark.parametrize("name", ["reference", "cpu"])
@given(convolutions(), st.integers(0, 6), st.integers(0, 2**32), st.booleans(), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_products_and_gradients_are_those_of_torch(name, shape, batch, seed, wide, share):
    inputs, outputs, image, kernel, *rest = shape
    torch.manual_seed(seed)
    columns = inputs // rest[-1] * kernel[0] * kernel[1]
    index = torch.int64 if wide else torch.int32
    row, crow, col = graph_of(outputs, columns, int(share * outputs * columns), index)
    values, bias = torch.randn(len(col), dtype=torch.float64), torch.randn(outputs, dtype=torch.float64)
    x = torch.randn(batch, inputs, *image, dtype=torch.float64, requires_grad=True)
    weight = dense(row, col, values, (outputs, inputs // rest[-1], *kernel)).requires_grad_()
    expected = F.conv2d(x, weight, bias, *rest)
    grad = torch.randn_like(expected)
    by_x, by_weight = torch.autograd.grad(expected, (x, weight), grad)
    x, how = x.detach(), (kernel, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", name)
        torch.testing.assert_close(product(values, x, bias, crow, col, *how), expected.detach())
        torch.testing.assert_close(product(values, x, None, crow, col, *how) + bias.view(-1, 1, 1), expected.detach())
        torch.testing.assert_close(input_grad(values, grad, crow, col, x.shape[1:], *how), by_x)
        by_values = values_grad(grad, x, crow, col, *how)
        torch.testing.assert_close(by_values, by_weight.view(outputs, -1)[row, col.long()])


def test_a_connection_is_a_kernel_entry_of_a_python_loop(backend):
    """Each output is the sum over connections that the definition of a convolution names, one number at a time."""
    inputs, outputs, (height, width), (tall, wide) = 4, 4, (5, 6), (3, 2)
    stride, padding, dilation, groups = (2, 1), (1, 2), (1, 2), 2
    row, crow, col = graph_of(outputs, inputs // groups * tall * wide, 17)
    values, x = torch.randn(17, dtype=torch.float64), torch.randn(2, inputs, height, width, dtype=torch.float64)
    y = sparse_conv2d(x, values, None, crow, col, inputs, (tall, wide), stride, padding, dilation, groups)
    expected = torch.zeros_like(y)
    for value, o, place in zip(values, row.tolist(), col.tolist(), strict=True):
        channel, ky, kx = place // (tall * wide), place // wide % tall, place % wide
        channel += o // (outputs // groups) * (inputs // groups)
        for i, j in itertools.product(range(y.shape[2]), range(y.shape[3])):
            at_y, at_x = i * stride[0] + ky * dilation[0] - padding[0], j * stride[1] + kx * dilation[1] - padding[1]
            if 0 <= at_y < height and 0 <= at_x < width:
                expected[:, o, i, j] += value * x[:, channel, at_y, at_x]
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("side", [1, 4, 8, 13, 32])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_single_precision_is_as_close_as_a_dense_convolution(backend, batch, side):
    inputs, outputs = 16, 24
    row, crow, col = graph_of(outputs, inputs * 9, 200)
    values, x = torch.randn(200), torch.randn(batch, inputs, side, side)
    grad = torch.randn(batch, outputs, side, side)
    how = (3, 3), (1, 1), (1, 1), (1, 1), 1
    exact_x = x.double().requires_grad_()
    weight = dense(row, col, values.double(), (outputs, inputs, 3, 3)).requires_grad_()
    expected = F.conv2d(exact_x, weight, None, padding=1)
    by_x, by_weight = torch.autograd.grad(expected, (exact_x, weight), grad.double())
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(product(values, x, None, crow, col, *how).double(), expected, **close)
    torch.testing.assert_close(input_grad(values, grad, crow, col, x.shape[1:], *how).double(), by_x, **close)
    by_values = values_grad(grad, x, crow, col, *how).double()
    tolerance = 1e-4 * (batch * side**2) ** 0.5  # a sum over all positions grows with their root
    torch.testing.assert_close(by_values, by_weight.view(outputs, -1)[row, col.long()], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(
    ("batch", "nnz", "geometry"),
    [
        (3, 20, ((3, 2), (1, 1), (1, 1), (1, 1), 1)),
        (2, 12, ((3, 2), (2, 3), (1, 2), (1, 2), 2)),
        (1, 1, ((1, 1), (1, 1), (0, 0), (1, 1), 1)),
        (2, 0, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
        (0, 20, ((3, 2), (1, 1), (1, 1), (1, 1), 1)),
    ],
)
def test_gradcheck_and_opcheck(backend, batch, nnz, geometry):
    inputs, outputs, kernel = 4, 6, geometry[0]
    _, crow, col = graph_of(outputs, inputs // geometry[-1] * kernel[0] * kernel[1], nnz)
    values = torch.randn(nnz, dtype=torch.float64, requires_grad=True)
    x = torch.randn(batch, inputs, 5, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v, x, b: product(v, x, b, crow, col, *geometry), (values, x, bias))
    assert gradcheck(lambda v, x: product(v, x, None, crow, col, *geometry), (values, x))
    opcheck(product, (values, x, bias, crow, col, *geometry))
    opcheck(product, (values, x, None, crow, col, *geometry))
    values, x = values.detach(), x.detach()
    grad = torch.randn_like(product(values, x, None, crow, col, *geometry))
    opcheck(input_grad, (values, grad, crow, col, x.shape[1:], *geometry))
    opcheck(values_grad, (grad, x, crow, col, *geometry))


@pytest.mark.parametrize(("stride", "image"), [(1, (9, 8)), (2, (9, 8)), (1, (1, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype, stride, image):
    """Rows of very different length, and images that no number of threads divides, or that are less than a vector."""
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    monkeypatch.setenv("SYNAPTOME_BACKEND", "cpu")
    row = torch.cat((torch.full((40,), 3), torch.arange(4, 12).repeat_interleave(5)))
    col = torch.cat((torch.arange(40), torch.arange(5).repeat(8) * 7))
    crow, how = compressed(row, 12), ((3, 3), (stride, stride), (1, 1), (1, 1), 1)
    values, x = torch.randn(len(col), dtype=dtype), torch.randn(11, 5, *image, dtype=dtype)
    grad = torch.randn_like(product(values, x, None, crow, col, *how))
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        by_x = input_grad(values, grad, crow, col, x.shape[1:], *how)
        results.append([product(values, x, None, crow, col, *how), by_x, values_grad(grad, x, crow, col, *how)])
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_images_do_not_reach_each_other(backend):
    """What is not finite stays in its own image, though images lie side by side; padding sees nothing of neighbours."""
    _, crow, col = graph_of(6, 4 * 9, 100)
    values, x = torch.randn(100), torch.randn(9, 4, 5, 7)
    how = (3, 3), (1, 1), (1, 1), (1, 1), 1
    expected = product(values, x, None, crow, col, *how)
    grad = torch.randn_like(expected)
    by_x = input_grad(values, grad, crow, col, x.shape[1:], *how)
    x[4], grad[4] = torch.inf, torch.inf
    others = torch.arange(9) != 4
    assert torch.equal(product(values, x, None, crow, col, *how)[others], expected[others])
    assert torch.equal(input_grad(values, grad, crow, col, x.shape[1:], *how)[others], by_x[others])


def test_layouts_and_a_missing_batch_axis_do_not_matter(backend):
    row, crow, col = graph_of(6, 4 * 9, 40)
    values, bias, x = torch.randn(40), torch.randn(6), torch.randn(3, 4, 8, 7)
    expected = F.conv2d(x, dense(row, col, values, (6, 4, 3, 3)), bias, padding=(0, 2), dilation=2)
    apart = torch.stack((x, x), -1)[..., 0]
    for given_x in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        apart,
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        y = sparse_conv2d(given_x, values, bias, crow, col, 4, 3, 1, (0, 2), 2)
        torch.testing.assert_close(y, expected)
    single = sparse_conv2d(x[0], values, bias, crow, col, 4, 3, 1, (0, 2), 2)
    torch.testing.assert_close(single, expected[0])
    loss = sparse_conv2d(x.requires_grad_(), values.requires_grad_(), bias, crow, col, 4, 3).sum()
    loss.backward()  # by a gradient whose strides are 0
    (by_x,) = torch.autograd.grad(F.conv2d(x, dense(row, col, values.detach(), (6, 4, 3, 3))).sum(), x)
    torch.testing.assert_close(x.grad, by_x)


def test_compiled_and_exported_programs_give_the_same_bits(backend):
    _, crow, col = graph_of(4, 4 * 9, 40)

    class Net(torch.nn.Module):
        def forward(self, x, values):
            hidden = torch.relu(sparse_conv2d(x, values, None, crow, col, 4, 3, 2, 1))
            return sparse_conv2d(hidden, values, None, crow, col, 4, 3, 1, 1)

    x, values = torch.randn(3, 4, 9, 8, requires_grad=True), torch.randn(40, requires_grad=True)
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
    _, crow, col = graph_of(4, 4 * 9, 40)
    values, x = torch.randn(40, requires_grad=True), torch.randn(3, 4, 6, 6)
    narrow = sparse_conv2d(x.bfloat16(), values.bfloat16(), None, crow, col, 4, 3)
    assert narrow.dtype == torch.bfloat16
    plain = sparse_conv2d(x.bfloat16().float(), values, None, crow, col, 4, 3)
    torch.testing.assert_close(narrow.float(), plain, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sparse_conv2d(x.bfloat16(), values, None, crow, col, 4, 3)
    assert torch.equal(mixed, plain)
    mixed.sum().backward()
    assert values.grad.dtype == torch.float32
    with pytest.raises(ConfigurationError, match=r"x is torch\.bfloat16 and the values are torch\.float32"):
        sparse_conv2d(x.bfloat16(), values, None, crow, col, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 5, 6, 6)}, r"x \[batch, 4, height, width\] .* given x \[2, 5, 6, 6\]"),
        ({"x": torch.randn(4, 6)}, r"given x \[4, 6\]"),
        ({"values": torch.randn(39)}, r"40 connections, each with a value; given values \[39\]"),
        ({"kernel_size": 0}, "kernel_size is an integer of at least 1, or a pair of them; given 0"),
        ({"stride": (1, 0)}, r"stride is an integer of at least 1, or a pair of them; given \(1, 0\)"),
        ({"padding": -1}, "padding is an integer of at least 0"),
        ({"dilation": (1, 2, 3)}, "dilation is an integer of at least 1, or a pair"),
        ({"groups": 3}, "divisor of the channels, 4 in and 6 out; given 3"),
        ({"groups": 0}, "divisor of the channels"),
        ({"dilation": 4}, r"kernel \[3, 3\] with dilation=4 does not fit into an image \[6, 6\] with padding=0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    _, crow, col = graph_of(6, 4 * 9, 40)
    fitting = {"x": torch.randn(2, 4, 6, 6), "values": torch.randn(40), "bias": None, "crow": crow, "col": col}
    with pytest.raises(ConfigurationError, match=message):
        sparse_conv2d(**(fitting | {"in_channels": 4, "kernel_size": 3} | change))


def test_the_reference_makes_the_dense_kernels():
    row, crow, col = graph_of(6, 4 * 6, 40)
    values = torch.randn(40)
    assert torch.equal(conv.dense_kernels(values, crow, col, 4, (3, 2)), dense(row, col, values, (6, 4, 3, 2)))
