"""Networks by name: their numbers of weights, the shapes they take, and what is refused."""

import pytest
import torch

import synaptome as syn
from synaptome.errors import ConfigurationError
from synaptome.networks.initialisation import weight_layers
from synaptome.networks.registry import NETWORKS, build

# Weights of each layer, by hand: 9 for each pair of channels of a convolution, all pairs of a fully connected layer.
HEAD = [256 * 256, 256 * 10]
CONV2 = [9 * 3 * 64, 9 * 64 * 64]
CONV4 = [*CONV2, 9 * 64 * 128, 9 * 128 * 128]
CONV6 = [*CONV4, 9 * 128 * 256, 9 * 256 * 256]
WEIGHTS = {
    "lenet": ((1, 28, 28), [784 * 300, 300 * 100, 100 * 10], 266_200),
    "conv2": ((3, 32, 32), [*CONV2, 64 * 16 * 16 * 256, *HEAD], 4_300_992),
    "conv4": ((3, 32, 32), [*CONV4, 128 * 8 * 8 * 256, *HEAD], 2_425_024),
    "conv6": ((3, 32, 32), [*CONV6, 256 * 4 * 4 * 256, *HEAD], 2_261_184),
    "resnet20": (
        (3, 32, 32),
        [9 * 3 * 16, *[9 * 16**2] * 6, 9 * 16 * 32, *[9 * 32**2] * 5, 9 * 32 * 64, *[9 * 64**2] * 5, 640],
        268_336,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_of_weights(name):
    shape, weights, total = WEIGHTS[name]
    network = build(name, shape, 10, bias=False, affine=False if name == "resnet20" else None)
    assert [layer.weight.numel() for layer in weight_layers(network).values()] == weights
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(weights) == total


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_images_of_every_size(name, shape):
    network = build(name, shape, 7, activation="selu", initialiser="glorot", seed=3, wiring=syn.Failing(0.1))
    outputs = network(torch.randn(2, *shape))
    assert outputs.shape == (2, 7)
    assert torch.isfinite(outputs).all()
    failing = [module for module in network.modules() if isinstance(module, (syn.FailingLinear, syn.FailingConv2d))]
    assert len(failing) == len(weight_layers(network)) == len(WEIGHTS[name][1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenett", {}, "unknown network 'lenett'.*did you mean 'lenet'"),
        ("conv4", {"affine": True}, "batch normalisation, which conv4 has none of"),
        ("lenet", {"layers": "4"}, "layer 4 does not exist; this network has layers 1 to 3"),
        ("lenet", {"activation": "rleu"}, "did you mean 'relu'"),
        ("lenet", {"p1": 0.5}, "he is symmetric"),
    ],
)
def test_what_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(name, (1, 28, 28), 10, **options)
