"""The convolution with failures: against explicit masks, finite differences, and a bound on its memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.kernels import failing_conv2d as module
from synaptome.kernels import masked_weight, randomness
from synaptome.kernels.failing_conv2d import failing_conv2d

KEY = torch.tensor([123456789, 42])
P = 0.375  # a multiple of 1/65536


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


def explicit(x, weight, bias, failure, key, *geometry):
    """One example after the other, each with a mask in memory."""
    masks = randomness.surviving(key, range(len(x)), len(weight), weight[0].numel(), failure)
    images = [
        F.conv2d(image.unsqueeze(0), mask.view_as(weight) * weight / (1 - failure), bias, *geometry)
        for image, mask in zip(x, masks, strict=True)
    ]
    return torch.cat(images) if images else F.conv2d(x, weight, bias, *geometry)


def agree(x, weight, bias, *geometry):
    operands = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = failing_conv2d(*operands, P, KEY, *geometry)
    expected = explicit(*operands, P, KEY, *geometry)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, operands, grad), torch.autograd.grad(expected, operands, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    batch=st.integers(0, 4),
    groups=st.integers(1, 3),
    channels=pairs,
    kernel=pairs,
    image=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    stride=pairs,
    padding=st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
    dilation=st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 2), st.integers(1, 2))),
    chunk=st.sampled_from([1, 60, 2**17]),
    name=st.sampled_from(["reference", "cpu"]),
)
@settings(max_examples=80, deadline=None)
def test_product_and_gradients_are_those_of_explicit_masks(
    batch, groups, channels, kernel, image, stride, padding, dilation, chunk, name
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", name)
        patch.setattr(masked_weight, "MASKED_ELEMENTS", chunk)
        x = torch.randn(batch, groups * channels[0], *image, dtype=torch.float64)
        weight = torch.randn(groups * channels[1], channels[0], *kernel, dtype=torch.float64)
        bias = torch.randn(len(weight), dtype=torch.float64)
        agree(x, weight, bias, stride, padding, dilation, groups)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of the oracle: torch copies where sides differ
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (4, 1), (1, 2)])
def test_same_padding_keeps_the_size(backend, kernel, dilation):
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    weight = torch.randn(4, 2, *kernel, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    assert failing_conv2d(x, weight, bias, P, KEY, padding="same").shape[-2:] == x.shape[-2:]
    agree(x, weight, bias, 1, "same", dilation)


def test_an_example_without_a_batch_is_the_first_of_a_batch(backend):
    x, weight, bias = torch.randn(3, 2, 6, 7), torch.randn(4, 2, 3, 2), torch.randn(4)
    batch = failing_conv2d(x, weight, bias, P, KEY, padding=1)
    torch.testing.assert_close(failing_conv2d(x[0], weight, bias, P, KEY, padding=1), batch[0])


def test_no_failures_is_the_plain_convolution(backend):
    x, weight = torch.randn(3, 2, 6, 7), torch.randn(4, 2, 3, 2)
    torch.testing.assert_close(failing_conv2d(x, weight, None, 0.0, KEY, 2, 1), F.conv2d(x, weight, None, 2, 1))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("geometry", [((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 1), (1, 2), 2)])
def test_gradcheck_and_opcheck(backend, batch, geometry):
    x = torch.randn(batch, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4 // geometry[-1], 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w: module.product(x, w, *geometry, 0.3, KEY), (x, weight))
    rest = (*geometry, 0.3, KEY)
    grad = torch.randn_like(module.product(x, weight, *rest))
    opcheck(module.product, (x, weight, *rest))
    opcheck(module.input_grad, (grad, weight.detach(), x.shape[1:], *rest))
    opcheck(module.weight_grad, (grad, x.detach(), weight.shape[2:], *rest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_threads_and_chunks_agree_to_rounding(monkeypatch, dtype):
    x, weight = torch.randn(30, 8, 12, 12, dtype=dtype), torch.randn(16, 8, 3, 3, dtype=dtype)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    results = []
    for name, threads, chunk in (("reference", 1, 2**17), ("cpu", 1, 2**17), ("cpu", 2, 2**17), ("cpu", 3, 5000)):
        monkeypatch.setenv("SYNAPTOME_BACKEND", name)
        monkeypatch.setattr(masked_weight, "MASKED_ELEMENTS", chunk)
        torch.set_num_threads(threads)
        y = module.product(x, weight, *geometry, 0.4, KEY)
        by_x = module.input_grad(y, weight, x.shape[1:], *geometry, 0.4, KEY)
        results.append((y, by_x, module.weight_grad(y, x, weight.shape[2:], *geometry, 0.4, KEY)))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * mine.abs().max().item())


def test_failures_are_shared_by_all_positions():
    y = failing_conv2d(torch.ones(2, 3, 9, 9), torch.randn(4, 3, 3, 3), None, 0.5, KEY)
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y))
    assert not torch.allclose(y[0, :, 0, 0], y[1, :, 0, 0])


def test_narrow_floats_and_autocast():
    x, weight = torch.randn(4, 3, 6, 6), torch.randn(2, 3, 3, 3, requires_grad=True)
    wide = failing_conv2d(x, weight, None, 0.5, KEY)
    narrow = failing_conv2d(x.bfloat16(), weight.bfloat16(), None, 0.5, KEY)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = failing_conv2d(x.bfloat16(), weight, None, 0.5, KEY)
    torch.testing.assert_close(mixed, failing_conv2d(x.bfloat16().float(), weight, None, 0.5, KEY))
    mixed.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"failure": 1.0}, r"in \[0, 1\); given 1\.0"),
        ({"failure": math.nan}, r"in \[0, 1\); given nan"),
        ({"x": torch.randn(2, 3, 6, 6)}, r"x \[2, 3, 6, 6\], weight \[4, 2, 3, 3\] and groups=1"),
        ({"x": torch.randn(6, 6)}, r"given x \[6, 6\]"),
        ({"groups": 3, "x": torch.randn(2, 6, 6, 6)}, "groups=3"),
        ({"x": torch.randn(2, 2, 2, 6)}, r"a kernel \[3, 3\] with dilation=1 does not fit into an image \[2, 6\]"),
        ({"x": torch.randn(2, 2, 6, 6).double()}, r"x is torch\.float64 and weight is torch\.float32"),
        ({"stride": 0}, "stride is an integer of at least 1, or a pair of them; given 0"),
        ({"dilation": (1, 2, 3)}, r"dilation is an integer .* given \(1, 2, 3\)"),
        ({"padding": -1}, "padding is an integer of at least 0"),
        ({"padding": "same", "stride": 2}, r"where stride is 1, 'same'; given padding='same' with stride=\(2, 2\)"),
        ({"padding": "full"}, "given padding='full'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"x": torch.randn(2, 2, 6, 6), "weight": torch.randn(4, 2, 3, 3), "bias": None, "failure": 0.1}
    with pytest.raises(ConfigurationError, match=message):
        failing_conv2d(**(arguments | {"key": KEY} | change))


def test_masked_weights_of_the_whole_batch_never_exist(backend):
    """No single allocation, forward and backward, is larger than a chunk of masked weights or the activations."""
    x = torch.randn(64, 64, 3, 3, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        failing_conv2d(x, weight, None, 0.5, KEY, padding=1).square().sum().backward()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    bound = 4 * masked_weight.MASKED_ELEMENTS
    assert 4 * x.numel() <= max(sizes)  # the result at least was seen
    assert max(sizes) <= bound < 4 * len(x) * weight.numel() / 10
