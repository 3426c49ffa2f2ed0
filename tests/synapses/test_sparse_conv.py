"""SparseConv2d: a drop-in Conv2d of few connections, its state and conversions, and its evolution."""

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.synapses.sparse_conv import SparseConv2d
from synaptome.topology.evolution import Evolution
from synaptome.topology.layers import sparse_layers

# torch's own word on dense convolutions by kernels of even size
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

LEADING = ((), (0,), (1,), (5,))
EDGES = (torch.tensor([0, 2, 2, 3]), torch.tensor([17, 0, 9, 3]))  # of 2 to 4 channels by 3 x 3; channel 1 has none


def edges_of(layer):
    return list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))


def weights_of(layer):
    return dict(zip(edges_of(layer), layer.values.tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1, "density": 0.3},
        {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2, "bias": False, "nnz": 9},
        {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "fan_in": 4},
        {"kernel_size": (2, 3), "padding": "same", "edges": (EDGES[0], torch.tensor([11, 0, 9, 3]))},
        {"kernel_size": 3, "nnz": 0},
        {"kernel_size": 3, "padding": 1, "density": 0.5, "dense_above": 0.2},
        {"kernel_size": 1, "density": 1.0},
    ],
    ids=str,
)
def test_conformance(options):
    check_synapse(
        lambda: SparseConv2d(2, 4, **options),
        make_inputs=lambda leading: torch.randn(*leading, 2, 5, 6),
        leading=LEADING,
    )


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same", "valid"])
def test_every_padding_is_that_of_conv2d(padding, mode):
    dense = nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode)
    mask = torch.rand(dense.weight.shape) < 0.4
    layer = SparseConv2d.from_dense(dense, mask)
    x = torch.randn(4, 2, 5, 6)
    with torch.no_grad():
        dense.weight *= mask
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer(x[0]), dense(x[0]))
    x.requires_grad_()
    grad = torch.randn_like(dense(x))
    mine = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), grad)
    by_x, by_weight, by_bias = torch.autograd.grad(dense(x), (x, dense.weight, dense.bias), grad)
    for own, theirs in zip(mine, (by_x, by_weight[mask], by_bias), strict=True):
        torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(layer.weight_gradient(x.detach(), grad), by_weight.flatten(1))


@pytest.mark.parametrize(
    ("options", "nnz"),
    [({"density": 0.05}, 216), ({"nnz": 77}, 77), ({"epsilon": 2.5}, 125), ({"fan_in": 4}, 96), ({"nnz": 0}, 0)],
)
def test_the_number_of_connections_is_exact(options, nnz):
    layer = SparseConv2d(40, 24, (3, 3), groups=2, padding=1, **options)
    assert (layer.in_features, layer.out_features) == (180, 24)
    assert layer.nnz == len(layer.values) == len(set(edges_of(layer))) == nnz
    assert layer.density == nnz / 4320
    assert edges_of(layer) == sorted(edges_of(layer))
    if "fan_in" in options:
        assert layer.crow.diff().tolist() == [4] * 24


def test_a_column_is_a_channel_and_a_place_in_its_kernel():
    layer = SparseConv2d(2, 4, 3, edges=EDGES, bias=False)
    weight = layer.to_dense().weight
    assert weight.nonzero().tolist() == [[0, 1, 2, 2], [2, 0, 0, 0], [2, 1, 0, 0], [3, 0, 1, 0]]
    assert weight[0, 1, 2, 2] == layer.values[0]


def test_values_are_drawn_as_those_of_conv2d_with_the_mean_fan_in():
    torch.manual_seed(1)
    layer = SparseConv2d(64, 100, 3, nnz=20_000)
    bound = 1 / math.sqrt(20_000 / 100)
    for numbers in (layer.values, layer.initial_values(torch.zeros(20_000)), layer.bias):
        assert -bound <= numbers.min() < numbers.max() < bound
        # Uniform numbers have variance bound² / 3, and that of their squares is bound⁴ 4 / 45.
        error = bound**2 * math.sqrt(4 / 45 / len(numbers))
        assert abs(numbers.square().mean().item() - bound**2 / 3) < 5 * error
        assert abs(numbers.mean().item()) < 5 * bound / math.sqrt(3 * len(numbers))
    bound = 1 / math.sqrt(6 * 9)  # that of nn.Conv2d
    assert 0.95 * bound < SparseConv2d(6, 5, 3, density=1.0).values.abs().max() <= bound


def test_the_same_seed_gives_the_same_layer():
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(SparseConv2d(6, 5, 3, density=0.2))
    assert weights_of(layers[0]) == weights_of(layers[1])
    assert torch.equal(layers[0].bias, layers[1].bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "SparseConv2d takes exactly one of density, epsilon, nnz, fan_in, edges; given none"),
        ({"density": 0.1, "nnz": 5}, "given density and nnz"),
        ({"density": 0.0}, r"\(0, 1\]; given 0"),
        ({"nnz": 73}, "from 0 to .* = 72; given 73"),
        ({"epsilon": -1}, "epsilon is a positive number; given -1"),
        ({"epsilon": 9}, r"108 connections, but a weight \[4, 2, 3, 3\] has 72 places"),
        ({"fan_in": 19}, "in_features = 18; given 19"),
        ({"edges": (torch.tensor([4]), torch.tensor([1]))}, "output 4; outputs go from 0 to 3"),
        ({"nnz": 5, "groups": 3}, "does not take this geometry: in_channels must be divisible by groups"),
        ({"nnz": 5, "padding_mode": "mirror"}, "does not take this geometry: .*padding_mode"),
        ({"nnz": 5, "padding": "same", "stride": 2}, "does not take this geometry: padding='same'"),
        ({"nnz": 5, "topology": "ring"}, "unknown topology 'ring'"),
        ({"nnz": 5, "dense_above": 2}, "dense_above is a density"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        SparseConv2d(2, 4, 3, **options)


def test_from_dense_and_back_keeps_the_weights_of_the_mask():
    dense = nn.Conv2d(4, 6, (3, 2), 2, 1, 2, 2, padding_mode="reflect").double().eval()
    dense.weight.requires_grad_(False)
    mask = torch.rand(6, 2, 3, 2) < 0.4
    layer = SparseConv2d.from_dense(dense, mask)
    assert torch.equal(layer.values, dense.weight[mask])
    assert layer.bias is dense.bias
    assert not layer.training
    assert not layer.values.requires_grad
    back = layer.to_dense()
    assert type(back) is nn.Conv2d
    assert repr(back) == repr(dense)
    assert torch.equal(back.weight, dense.weight * mask)
    assert back.bias is dense.bias
    assert not back.training
    assert not back.weight.requires_grad
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), back(x))
    again = SparseConv2d.from_dense(back)  # where it is not 0
    assert weights_of(again) == weights_of(layer)
    assert SparseConv2d.from_dense(nn.Conv2d(2, 4, 3, bias=False)).to_dense().bias is None
    for wrong in (mask.flatten(1), mask.float()):
        with pytest.raises(ConfigurationError, match=r"mask is bool \[6, 2, 3, 2\]"):
            SparseConv2d.from_dense(dense, wrong)


def test_pruned_keeps_the_largest_and_the_geometry():
    layer = SparseConv2d(2, 4, 3, 2, "valid", 2, nnz=30, dense_above=0.9).eval()
    pruned = layer.pruned(12)
    assert weights_of(pruned).items() <= weights_of(layer).items()
    cut = layer.values.detach().abs().sort(descending=True).values
    assert torch.equal(pruned.values.detach().abs().sort(descending=True).values, cut[:12])
    assert pruned.bias is layer.bias
    assert not pruned.training
    assert repr(pruned).replace("nnz=12, density=0.167", "") == repr(layer).replace("nnz=30, density=0.417", "")
    with pytest.raises(ConfigurationError, match="30 connections cannot keep 31 of them"):
        layer.pruned(31)


def test_a_state_brings_its_graph_whatever_its_size():
    layer = SparseConv2d(2, 4, 3, padding=1, density=0.4)
    state = layer.state_dict()
    assert set(state) == {"values", "bias", "crow", "col", "shape"}
    read = safetensors.torch.load(safetensors.torch.save(state))
    x = torch.randn(4, 2, 5, 5)
    for nnz in (3, 0, layer.nnz):
        other = SparseConv2d(2, 4, 3, padding=1, nnz=nnz)
        values = other.values
        other.load_state_dict(read)
        assert other.values is values
        assert weights_of(other) == weights_of(layer)
        assert torch.equal(other(x), layer(x))
    with pytest.raises(ConfigurationError, match="connections of this layer are corrupt: col leaves the range"):
        layer.load_state_dict(read | {"col": read["col"] + 1})


def test_the_state_of_other_kernels_is_refused_as_such():
    state = SparseConv2d(4, 3, 3, nnz=9).state_dict()
    for other in (SparseConv2d(9, 3, 2, nnz=9), SparseConv2d(36, 3, 1, nnz=9)):  # 36 inputs as well
        with pytest.raises(ConfigurationError, match=r"is that of a weight \[3, 4, 3, 3\], and its own is \[3, "):
            other.load_state_dict(state)


def test_a_density_that_rounds_to_no_connection_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"SparseConv2d \[4, 2, 3, 3\] without any .* density at least 0.0139,"
    ):
        SparseConv2d(2, 4, 3, density=0.001)
    assert SparseConv2d(2, 4, 3, density=0.0139).nnz == 1


def test_a_copy_in_scipy_is_the_matrix_of_the_kernels():
    layer = SparseConv2d(2, 4, 3, edges=EDGES)
    matrix = layer.to_scipy()
    assert matrix.shape == (4, 18)
    assert torch.equal(torch.from_numpy(matrix.toarray()), layer.to_dense().weight.detach().flatten(1))


def test_a_convolution_without_numbers_takes_them_from_a_state():
    full = SparseConv2d(2, 4, 3, density=0.4)
    layer = SparseConv2d(2, 4, 3, density=0.2, device="meta")
    layer.to_empty(device="cpu").load_state_dict(full.state_dict())
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(layer(x), full(x))


def test_dense_above_gives_the_numbers_of_the_sparse_product():
    layer = SparseConv2d(3, 4, 3, 2, 1, density=0.5)
    dense = copy.deepcopy(layer)
    dense.dense_above = 0.4
    x = torch.randn(5, 3, 7, 8, requires_grad=True)
    torch.testing.assert_close(dense(x), layer(x))
    grad = torch.randn_like(layer(x))
    for mine, theirs in zip(
        torch.autograd.grad(dense(x), (x, *dense.parameters()), grad),
        torch.autograd.grad(layer(x), (x, *layer.parameters()), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_text_of_a_layer_says_what_is_not_usual():
    layer = SparseConv2d(2, 4, 3, nnz=18, bias=False)
    assert layer.extra_repr() == "2, 4, kernel_size=(3, 3), stride=(1, 1), bias=False, nnz=18, density=0.25"
    layer = SparseConv2d(2, 4, 3, 2, 1, 2, 2, padding_mode="circular", nnz=18, dense_above=0.5)
    assert layer.extra_repr() == (
        "2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, padding_mode=circular, "
        "dense_above=0.5, bias=True, nnz=18, density=0.5"
    )


def network():
    layers = SparseConv2d(2, 6, 3, padding=1, nnz=30), nn.ReLU(), SparseConv2d(6, 8, 3, 2, 1, groups=2, nnz=60)
    return nn.Sequential(*layers)


def learn(model, optimizer, batch):
    x = torch.randn(8, 2, 7, 6, generator=torch.Generator().manual_seed(batch))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def dense_gradients(model, batch):
    """The gradients by all entries of the kernels, from dense copies of the layers."""
    dense = nn.Sequential(*(m.to_dense() if isinstance(m, SparseConv2d) else m for m in model))
    x = torch.randn(8, 2, 7, 6, generator=torch.Generator().manual_seed(batch))
    dense(x).square().mean().backward()
    return [m.weight.grad.flatten(1) for m in dense if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("drop", "grow"),
    [("set", "random"), ("magnitude", "gradient"), ("magnitude", "momentum"), ("set", "random-unfired")],
)
def test_evolution_keeps_counts_survivors_and_their_momentum(drop, grow):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = Evolution(model, optimizer, drop=drop, grow=grow)
    layers = list(sparse_layers(model).values())
    assert [type(layer) for layer in layers] == [SparseConv2d] * 2
    for batch in range(6):
        learn(model, optimizer, batch)
        before = [weights_of(layer) for layer in layers]
        momenta = [
            dict(zip(before[i], optimizer.state[m.values]["momentum_buffer"].tolist(), strict=True))
            for i, m in enumerate(layers)
        ]
        replaced = evolution.step()
        for layer, was, momentum, nnz in zip(layers, before, momenta, (30, 60), strict=True):
            now, follows = weights_of(layer), optimizer.state[layer.values]["momentum_buffer"].tolist()
            new = now.keys() - was.keys()
            assert len(now) == nnz
            assert all(now[place] == was[place] for place in now.keys() & was.keys())
            assert {now[place] for place in new} == {0.0}
            for place, moved in zip(now, follows, strict=True):
                assert moved == (0.0 if place in new else momentum[place])
            replaced -= len(new)
        assert replaced == 0


def test_gradient_growth_is_that_of_the_dense_gradient():
    """RigL: the largest of the gradients by the entries of the kernels that have no connection."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = Evolution(model, optimizer, drop="magnitude", grow="gradient", every=2)
    for batch in range(4):
        gradients = dense_gradients(model, batch)
        learn(model, optimizer, batch)
        before = [set(edges_of(layer)) for layer in sparse_layers(model).values()]
        if not evolution.step():
            assert batch % 2 == 0
            continue
        for layer, was, gradient in zip(sparse_layers(model).values(), before, gradients, strict=True):
            gradient = gradient.abs()
            gradient[tuple(zip(*was, strict=True))] = -1
            best = gradient.view(-1).topk(round(0.3 * len(was))).indices.tolist()
            assert set(edges_of(layer)) - was == {divmod(place, gradient.shape[1]) for place in best}


def test_an_image_without_a_batch_axis_has_the_gradient_of_a_batch_of_one():
    layer = SparseConv2d(2, 4, 3, 2, 1, nnz=20)
    x, grad = torch.randn(2, 7, 6), torch.randn(4, 4, 3)
    weight = layer.to_dense().weight.detach().requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, None, 2, 1), weight, grad)
    torch.testing.assert_close(layer.weight_gradient(x, grad), expected.flatten(1))


def images():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(108, 5),
    )


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_rewire_shares_a_density_over_convolutions_and_linear_layers(distribution):
    model = images()
    weights = {
        name: layer.weight.detach().clone() for name, layer in model.named_children() if hasattr(layer, "weight")
    }
    biases = [model[i].bias for i in (0, 2, 4)]
    x = torch.randn(2, 3, 8, 8)
    syn.rewire(model, syn.Sparse(0.3, distribution))
    assert [type(model[i]) for i in (0, 2, 4)] == [syn.SparseConv2d, syn.SparseConv2d, syn.SparseLinear]
    assert [model[i].bias for i in (0, 2, 4)] == biases
    places = [weights[str(i)].numel() for i in (0, 2, 4)]
    assert sum(model[i].nnz for i in (0, 2, 4)) == round(0.3 * sum(places))
    if distribution == "erk":  # in proportion to the sums of the sides (Evci et al. 2020)
        sums = [sum(weights[str(i)].shape) for i in (0, 2, 4)]
        levels = [model[i].nnz / total for i, total in zip((0, 2, 4), sums, strict=True)]
        assert max(levels) - min(levels) < 0.1
    for i in (0, 2, 4):
        weight = weights[str(i)]
        least = weight.abs().flatten().sort(descending=True).values[model[i].nnz - 1]
        weights[str(i)] = weight.where(weight.abs() >= least, 0)
    y = model(x)
    syn.rewire(model, syn.Dense())
    assert [type(model[i]) for i in (0, 2, 4)] == [nn.Conv2d, nn.Conv2d, nn.Linear]
    for i in (0, 2, 4):
        assert torch.equal(model[i].weight, weights[str(i)])
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_rewire_draws_prunes_and_thresholds_convolutions():
    model = images().double().eval()
    bias = model[0].bias
    syn.rewire(model, syn.Sparse(epsilon=1, start="random", dense_above=0.9), where="0")
    assert (model[0].nnz, model[0].dense_above, model[0].values.dtype) == (8 + 3 + 3 + 3, 0.9, torch.float64)
    assert model[0].bias is bias
    assert not model[0].training
    values = model[0].values.detach().clone()
    syn.rewire(model, syn.Sparse(density=0.05), where="0")
    assert (model[0].nnz, model[0].dense_above) == (round(0.05 * 216), None)
    assert torch.equal(model[0].values.detach(), values[values.abs() >= model[0].values.abs().min()])
    syn.rewire(model, syn.Dense() + syn.Failing(0.2), where="0")
    assert type(model[0]) is syn.FailingConv2d
    with pytest.raises(ConfigurationError, match="cannot keep"):
        syn.rewire(syn.rewire(model, syn.Sparse(0.1), where="0"), syn.Sparse(0.5), where="0")
