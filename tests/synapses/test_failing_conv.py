"""FailingConv2d: a drop-in Conv2d, its padding modes, and its moments in each mode and form of noise."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.kernels import randomness

LEADING = ((), (0,), (1,), (5,))


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2, "bias": False},
        {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    ],
)
def test_conformance(options, noise):
    check_synapse(
        lambda: syn.FailingConv2d(2, 4, **options, failure=0.4, noise=noise),
        make_inputs=lambda leading: torch.randn(*leading, 2, 5, 6),
        leading=LEADING,
    )


def test_weights_are_those_of_conv2d_from_the_same_seed():
    torch.manual_seed(3)
    dense = nn.Conv2d(4, 6, 3, 1, 0, 1, 2)
    torch.manual_seed(3)
    failing = syn.FailingConv2d(4, 6, 3, 1, 0, 1, 2, failure=0.5)
    assert torch.equal(dense.weight, failing.weight)
    assert torch.equal(dense.bias, failing.bias)
    assert failing.extra_repr() == dense.extra_repr()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 0), "same", "valid"])
def test_every_padding_is_that_of_conv2d_with_the_mask_of_each_example(padding, mode):
    layer = syn.FailingConv2d(2, 3, 3, padding=padding, padding_mode=mode, failure=0.5)
    x = torch.randn(4, 2, 5, 6)
    key = torch.stack((layer.failures.stream, layer.failures.counter))
    masks = randomness.surviving(key, range(4), 3, 2 * 3 * 3, 0.5).view(4, 3, 2, 3, 3)
    dense = nn.Conv2d(2, 3, 3, padding=padding, padding_mode=mode)
    expected = []
    for image, mask in zip(x, masks, strict=True):
        dense.load_state_dict({"weight": layer.weight.detach() * mask / 0.5, "bias": layer.bias.detach()})
        expected.append(dense(image))
    torch.testing.assert_close(layer(x), torch.stack(expected))
    dense.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    assert torch.equal(layer.eval()(x), dense(x))


@pytest.mark.parametrize(
    ("mode", "noise"),
    [*itertools.product(["training", "noisy", "mc(4)"], ["bernoulli", "gaussian"]), ("gaussian", "bernoulli")],
)
def test_mean_and_variance_at_each_position_are_those_of_theory(mode, noise):
    failure, examples = 0.3, 4000
    layer = syn.FailingConv2d(2, 3, 3, padding=1, failure=failure, noise=noise).double()
    if mode != "training":
        layer.failures.inference = mode
        layer.eval()
    image = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        y = layer(image.expand(examples, -1, -1, -1))  # every example has failures of its own
    expected = F.conv2d(image, layer.weight, layer.bias, padding=1)[0]
    spread = failure / (1 - failure) * F.conv2d(image**2, layer.weight**2, padding=1)[0]
    spread /= 4 if mode == "mc(4)" else 1
    assert ((y.mean(0) - expected).abs() < 5 * (spread / examples).sqrt()).all()
    # The variance of a sample variance is at most 3 sigma^4 / n for sums with kurtosis up to 4.
    assert ((y.var(0) / spread - 1).abs() < 5 * math.sqrt(3 / examples)).all()


def test_positions_share_failures_but_not_gaussian_noise():
    layer = syn.FailingConv2d(1, 1, 2, failure=0.5, bias=False)
    x = torch.ones(3, 1, 4, 4)
    y = layer(x)
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y))
    layer.failures.noise = "gaussian"
    assert len(layer(x).unique()) == y.numel()


def test_predict_sees_it():
    model = nn.Sequential(syn.FailingConv2d(1, 2, 3, failure=0.3, inference="mc(6)"), nn.Flatten())
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    prediction = syn.predict(model, torch.randn(2, 1, 5, 5))
    assert len(calls) == 6
    assert (prediction.std > 0).all()
