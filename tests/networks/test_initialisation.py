"""Initial weights: exact variances and values, the same bits for the same seed, and what is refused."""

import hashlib
import math

import pytest
import torch
from scipy.stats import truncnorm
from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.networks.convolutional import ConvNet
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.initialisation import INITIALISERS, frozen_weight, initialise, weight_layers

# Shapes with their fan_in and fan_out, by hand: linear, convolutions, and a weight of 16 inputs to each of its groups.
SHAPES = {(300, 784): (784, 300), (64, 32, 3, 3): (288, 576), (128, 16, 5, 5): (400, 3200), (96, 40, 7): (280, 672)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("initialiser", ["glorot", "he"])
def test_truncated_normals_have_the_exact_variance_that_they_promise(initialiser, shape):
    fan_in, fan_out = SHAPES[shape]
    variance = 2 / (fan_in + fan_out) if initialiser == "glorot" else 2 / fan_in
    weight = frozen_weight(shape, initialiser, seed=3, layer=2)
    assert weight.dtype == torch.float32
    assert weight.shape == shape
    n = weight.numel()
    wide = truncnorm(-2, 2)
    # Of n numbers, the variance has relative standard error sqrt((kurtosis - 1) / n).
    error = math.sqrt((wide.moment(4) / wide.var() ** 2 - 1) / n)
    assert abs(weight.double().square().mean().item() / variance - 1) < 4 * error
    assert abs(weight.double().mean().item()) < 4 * math.sqrt(variance / n)
    bound = 2 * math.sqrt(variance / wide.var())
    assert 0.99 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p1", [None, 0.0, 0.2, 1.0])
def test_two_valued_weights_are_exact(shape, p1):
    n = math.prod(shape)
    signed = frozen_weight(shape, "signed-constant", seed=3, layer=2, p1=p1)
    binary = frozen_weight(shape, "binary", seed=3, layer=2, p1=p1)
    assert set(binary.unique().tolist()) <= {-1.0, 1.0}
    constant = torch.tensor(math.sqrt(2 / SHAPES[shape][0]), dtype=torch.float32)
    assert torch.equal(signed, binary * constant)
    share = 0.5 if p1 is None else p1
    assert abs((binary == 1).double().mean().item() - share) <= 4 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("network", ["fully connected", "convolutional"])
def test_binary_weights_are_signed_constants_up_to_the_scale_of_the_input(network):
    """For ReLU without biases: f(x) = Π c_l g(x) = g(Π c_l x), with ±c_l and ±1 for the weights of layer l."""

    def make(initialiser):
        if network == "fully connected":
            made = FeedForward([20, 30, 40, 5], bias=False)
            initialise(made, initialiser, seed=4, p1=0.6)
            return made.double()
        options = {"bias": False, "hidden": (12,), "initialiser": initialiser, "p1": 0.6, "seed": 4}
        return ConvNet((2, 9, 8), 5, blocks=((6, 7), (8,)), **options).double()

    signed, binary = make("signed-constant"), make("binary")
    constants = [layer.weight.abs().max().item() for layer in weight_layers(signed).values()]
    x = torch.randn(7, *((20,) if network == "fully connected" else (2, 9, 8)), dtype=torch.float64)
    scale = math.prod(constants)
    assert binary(x).abs().max() > 1  # of what is compared, not all is 0
    torch.testing.assert_close(signed(x), scale * binary(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(signed(x), binary(scale * x), rtol=1e-10, atol=0)


# Saved networks are a seed and bits: whoever changes these numbers makes them unreadable.
BITS = {
    "glorot": "8a0776875d6ac0dc",
    "he": "4b8b3a252ff5abe3",
    "signed-constant": "3287659c066aaa18",
    "binary": "9e537d062b361f0b",
}


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_bits_never_change(initialiser):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weight = frozen_weight((300, 784), initialiser, seed=2**40 + 7, layer=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert hashlib.sha256(weight.numpy().astype("<f4").tobytes()).hexdigest()[:16] == BITS[initialiser]


def test_layers_and_seeds_are_independent():
    n = 100 * 200
    weights = [frozen_weight((100, 200), "he", seed=s, layer=k).flatten() for s, k in ((0, 1), (0, 2), (1, 1), (1, 2))]
    correlations = torch.corrcoef(torch.stack(weights)) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(n)


def test_a_model_is_drawn_layer_by_layer():
    conv, linear, norm = nn.Conv2d(4, 6, (3, 2), groups=2), nn.Linear(6, 3), nn.LayerNorm(3)
    model = nn.Sequential(nn.ModuleList([nn.Conv1d(2, 3, 5), conv]), nn.ReLU(), linear, norm, linear)
    parameters = list(model.parameters())
    initialise(model, "glorot", seed=9)
    assert list(weight_layers(model)) == ["0.0", "0.1", "2"]
    assert torch.equal(conv.weight, frozen_weight((6, 2, 3, 2), "glorot", seed=9, layer=2))
    assert torch.equal(linear.weight, frozen_weight((3, 6), "glorot", seed=9, layer=3))
    assert not conv.bias.any()
    assert torch.equal(norm.weight, torch.ones(3))
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initialiser": "hee"}, "did you mean 'he'"),
        ({"p1": 0.4}, "glorot is symmetric; given p1=0.4"),
        ({"initialiser": "binary", "p1": 1.1}, r"in \[0, 1\]; given 1.1"),
        ({"initialiser": "binary", "p1": math.nan}, r"in \[0, 1\]; given nan"),
        ({"shape": (3,)}, r"shape \(out, in, \*kernel\)"),
        ({"shape": (3, 0)}, r"numbers from 1 on; given \[3, 0\]"),
        ({"seed": -1}, "a seed is a whole number .* given -1"),
        ({"layer": 2**63}, "a layer is a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    options = {"shape": (3, 4), "initialiser": "glorot", "seed": 0, "layer": 1, **arguments}
    with pytest.raises(ConfigurationError, match=message):
        frozen_weight(options.pop("shape"), options.pop("initialiser"), **options)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ConfigurationError, match="a ReLU has no linear layer"):
        initialise(nn.ReLU(), "he", seed=0)
