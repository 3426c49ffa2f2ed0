"""Convolutional networks: their equations, published numbers of weights, synapses by layer, and what is refused."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

import synaptome as syn
from synaptome.data import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.backprop import Backprop
from synaptome.networks.convolutional import ConvNet, ResNet20
from synaptome.networks.initialisation import frozen_weight, weight_layers

SMALL = {"blocks": ((4, 5), (6,)), "hidden": (7,)}


def small_convnet(**options):
    return ConvNet((1, 8, 8), 3, blocks=((8, 9), (16,)), hidden=(30,), **options)


def small_resnet(**options):
    return ResNet20((1, 8, 8), 3, **options)


def test_convolutional_networks_compute_their_equation():
    network = ConvNet((2, 9, 6), 3, **SMALL, activation="swish")
    for layer in weight_layers(network).values():
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 2, 9, 6)
    state = network.state_dict()

    def conv(h, name):
        return F.silu(F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], padding="same"))

    h = F.max_pool2d(conv(conv(x, "blocks.0.0"), "blocks.0.1"), 2)
    h = F.max_pool2d(conv(h, "blocks.1.0"), 2)
    assert h.shape == (4, 6, 2, 1)
    h = F.silu(h.flatten(1) @ state["head.layers.0.weight"].T + state["head.layers.0.bias"])
    torch.testing.assert_close(
        network(x), h @ state["head.layers.1.weight"].T + state["head.layers.1.bias"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("training", [True, False])
def test_residual_networks_compute_their_equation(training):
    network = ResNet20((3, 11, 8), 5, activation="elu").double()
    for name, tensor in network.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    network.train(training)
    x = torch.randn(4, 3, 11, 8, dtype=torch.float64)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def norm(h, name):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
        shape = (1, -1, 1, 1)
        h = (h - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return h * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)

    h = F.elu(norm(F.conv2d(x, state["conv.weight"], padding=1), "norm"))
    channels = 16
    for number in range(9):
        wide = (16, 32, 64)[number // 3]
        stride = 1 if wide == channels else 2
        name = f"blocks.{number}"
        inner = F.elu(norm(F.conv2d(h, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.norm1"))
        inner = norm(F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1), f"{name}.norm2")
        shortcut = torch.zeros_like(inner)
        shortcut[:, :channels] = h[:, :, ::stride, ::stride]
        h, channels = F.elu(inner + shortcut), wide
    assert h.shape == (4, 64, 3, 2)
    torch.testing.assert_close(network(x), h.mean((2, 3)) @ state["output.weight"].T + state["output.bias"])


def test_residual_networks_without_scale_and_shift_learn_nothing_but_weights():
    affine, plain = ResNet20((3, 32, 32), 10), ResNet20((3, 32, 32), 10, affine=False, bias=False)
    weights = sum(parameter.numel() for parameter in plain.parameters())
    assert {parameter.dim() for parameter in plain.parameters()} == {2, 4}
    # Three stages: 3·16·9 + 6·16·16·9, then 16·32·9 + 5·32·32·9, then 32·64·9 + 5·64·64·9; and 64·10.
    assert weights == 14_256 + 50_688 + 202_752 + 640 == 268_336
    # A scale and a shift for 7·16 + 6·32 + 6·64 channels, and ten biases: the 0.27 M of He et al. 2016, table 6.
    assert sum(parameter.numel() for parameter in affine.parameters()) == weights + 2 * 688 + 10 == 269_722


def test_gates_over_frozen_weights_leave_batch_normalisation_untrained():
    @dataclass(frozen=True)
    class Gate(syn.Kind):
        axis: ClassVar = "gate"

    def trained(**options):
        network = ResNet20((1, 8, 8), 2, layers="none", **options)
        return {module.affine for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}

    assert trained() == trained(wiring=syn.Failing(0.1)) == trained(wiring=Gate(), affine=True) == {True}
    assert trained(wiring=Gate()) == trained(wiring=Gate() + syn.Failing(0.1)) == trained(affine=False) == {False}


@pytest.mark.parametrize("make", [small_convnet, small_resnet])
def test_a_seed_decides_the_weights(make):
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    for number, (name, layer) in enumerate(weight_layers(one).items(), 1):
        assert torch.equal(layer.weight, frozen_weight(layer.weight.shape, "he", seed=1, layer=number))
        assert torch.equal(layer.weight, same.get_submodule(name).weight)
        assert not torch.equal(layer.weight, other.get_submodule(name).weight)
    torch.manual_seed(3)
    first = make(initialiser="binary", p1=0.7)
    torch.manual_seed(3)
    second = make(initialiser="binary", p1=0.7)
    for mine, theirs in zip(weight_layers(first).values(), weight_layers(second).values(), strict=True):
        assert torch.equal(mine.weight, theirs.weight)
        assert set(mine.weight.unique().tolist()) == {-1.0, 1.0}


def test_wiring_goes_to_the_chosen_layers_whose_weights_stay():
    dense = small_convnet(seed=1)
    network = small_convnet(seed=1, wiring=syn.Failing(0.2), layers="1,3,5")
    kinds = [type(network.get_submodule(name)) for name in weight_layers(network)]
    linear, conv = torch.nn.Linear, torch.nn.Conv2d
    assert kinds == [syn.FailingConv2d, conv, syn.FailingConv2d, linear, syn.FailingLinear]
    for mine, theirs in zip(network.parameters(), dense.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not any(isinstance(module, syn.Failures) for module in small_convnet(layers="none").modules())


@pytest.mark.parametrize("make", [small_convnet, small_resnet])
@pytest.mark.parametrize("wiring", [None, syn.Failing(0.1), syn.Sparse(0.5), syn.Sparse(0.5, start="random")])
def test_every_kind_of_synapse_learns(make, wiring):
    torch.manual_seed(0)
    network = make(wiring=wiring)
    rule = Backprop(network, torch.optim.Adam(network.parameters(), 1e-2))
    batch = Batch(torch.randn(12, 1, 8, 8), torch.arange(12) % 3)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    losses = [rule.step(batch)["loss"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    if isinstance(wiring, syn.Sparse):
        counts = [layer.nnz for layer in network.modules() if isinstance(layer, (syn.SparseConv2d, syn.SparseLinear))]
        weights = [layer.weight.numel() for layer in weight_layers(make()).values()]
        assert sum(counts) == round(0.5 * sum(weights))
        assert all(abs(count - 0.5 * number) < 1 for count, number in zip(counts, weights, strict=True))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ConvNet, {"input_shape": (784,)}, r"\(channels, height, width\); given \(784,\)"),
        (ConvNet, {"input_shape": (0, 8, 8)}, r"given \(0, 8, 8\)"),
        (ConvNet, {"input_shape": (1, 3, 8)}, "pooled 2 times: .* at least 4 x 4 pixels; given 3 x 8"),
        (ConvNet, {"blocks": ((4,), ())}, r"at least one convolution.* given \[\[4\], \[\]\]"),
        (ConvNet, {"blocks": ((4, 0),)}, "at least 1 channel"),
        (ConvNet, {"hidden": (0,)}, "each at least 1"),
        (ConvNet, {"layers": "6"}, "layer 6 does not exist; this network has layers 1 to 5"),
        (ConvNet, {"activation": "swich"}, "did you mean 'swish'"),
        (ConvNet, {"initialiser": "binray"}, "did you mean 'binary'"),
        (ResNet20, {"input_shape": (1, 4, 8)}, "at least 5 x 5 pixels; given 4 x 8"),
        (ResNet20, {"classes": 0}, "at least one class; given 0"),
        (ResNet20, {"activation": "rleu"}, "did you mean 'relu'"),
        (ResNet20, {"layers": "21"}, "layers 1 to 20"),
        (ResNet20, {"p1": 0.5}, "p1 is the share of positive weights"),
    ],
)
def test_what_does_not_exist_is_refused(make, arguments, message):
    options = {**(SMALL if make is ConvNet else {}), "input_shape": (1, 8, 8), "classes": 3, **arguments}
    with pytest.raises(ConfigurationError, match=message):
        make(**options)
