"""The choice `Sparse`: numbers of connections, random starts, and what contradicts itself."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.errors import ConfigurationError
from synaptome.topology import graphs

SHAPES = [(1000, 784), (1000, 1000), (10, 1000), (3, 4)]


def perceptron():
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))


def layers(model):
    return [layer for layer in model if isinstance(layer, syn.SparseLinear)]


def edges_of(layer):
    return list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))


def test_epsilon_counts_both_sides_of_each_layer_and_fills_small_ones():
    # Of the SET-MLP 784-1000-1000-10 with epsilon 20: equation 2 of Mocanu et al. 2018, written out.
    assert syn.Sparse(epsilon=20).counts(SHAPES) == [20 * 1784, 20 * 2000, 10_000, 12]
    assert syn.Sparse(epsilon=0.5).counts([(3, 4), (2, 2)]) == [4, 2]  # 3.5 to the even number, as round() does
    assert syn.Sparse(epsilon=2).counts([(8, 4, 3, 3)]) == [36]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.003, 0.05, 0.77, 1.0])
def test_a_density_is_exact_to_the_connection_and_no_layer_is_more_than_full(distribution, density):
    shapes = SHAPES if density * 12 > 0.5 else SHAPES[:3]  # of 12 places such a share is no connection
    counts = syn.Sparse(density, distribution).counts(shapes)
    places = [o * i for o, i in shapes]
    assert sum(counts) == round(density * sum(places))
    assert all(0 <= count <= most for count, most in zip(counts, places, strict=True))
    if distribution == "uniform":
        assert all(abs(count - density * most) <= 1 for count, most in zip(counts, places, strict=True))
    else:
        # Those that are not full stand in the proportions of ERK, n_in + n_out.
        levels = [
            count / (o + i) for count, most, (o, i) in zip(counts, places, shapes, strict=True) if 5 < count < most
        ]
        assert max(levels, default=1) - min(levels, default=1) < 0.01 * max(levels, default=1) + 0.5


@pytest.mark.parametrize("kind", [syn.Sparse(0.3, start="random"), syn.Sparse(epsilon=2, start="random")], ids=str)
@pytest.mark.parametrize("convert", [None, syn.Failing(0.2), syn.Sparse(0.1)], ids=str)
def test_a_random_start_draws_new_graphs_and_values_and_keeps_all_else(kind, convert):
    model = perceptron().double()
    if convert is not None:
        syn.rewire(model, convert)
    model.eval()
    calls = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    biases = [model[index].bias for index in (0, 2, 4)]
    before = [edges_of(layer) for layer in layers(model)]
    torch.manual_seed(7)
    assert syn.rewire(model, kind) is model
    sparse = layers(model)
    assert [layer.nnz for layer in sparse] == kind.counts([(30, 40), (20, 30), (4, 20)])
    assert all(layer.bias is bias for layer, bias in zip(sparse, biases, strict=True))
    assert all(layer.values.dtype == torch.float64 and not layer.training for layer in sparse)
    assert [edges_of(layer) for layer in sparse] != before
    # They are those that three new layers draw from the same seed.
    torch.manual_seed(7)
    for layer in sparse:
        twin = syn.SparseLinear(layer.in_features, layer.out_features, False, nnz=layer.nnz, dtype=torch.float64)
        assert edges_of(layer) == edges_of(twin)
        assert torch.equal(layer.values, twin.values)
    model(torch.randn(2, 40, dtype=torch.float64))
    assert calls == [1]
    assert model.train()[0].training
    syn.rewire(model, syn.Dense())
    assert [type(model[index]) for index in (0, 2, 4)] == [nn.Linear] * 3
    assert all(model[index].bias is bias for index, bias in zip((0, 2, 4), biases, strict=True))


def test_a_random_start_takes_layers_without_a_bias_frozen_ones_and_any_topology():
    layer = nn.Linear(30, 20, bias=False)
    layer.weight.requires_grad_(False)
    sparse = syn.rewire(layer, syn.Sparse(0.2, start="random", topology="small-world(0)"))
    assert sparse.bias is None
    assert not sparse.values.requires_grad
    row, col = graphs.small_world(20, 30, 120, 0.0)
    assert edges_of(sparse) == list(zip(row.tolist(), col.tolist(), strict=True))
    # More connections than it has are no obstacle to a new graph.
    assert syn.rewire(sparse, syn.Sparse(0.5, start="random")).nnz == 300


def test_epsilon_keeps_the_largest_weights_by_default():
    model = perceptron()
    weight = model[0].weight.detach().clone()
    syn.rewire(model, syn.Sparse(epsilon=1))
    assert [layer.nnz for layer in layers(model)] == [70, 50, 24]
    cut = weight.abs().flatten().sort(descending=True).values[:70]
    assert torch.equal(model[0].values.detach().abs().sort(descending=True).values, cut)


@pytest.mark.parametrize("start", ["magnitude", "random"])
def test_dense_above_goes_to_the_layers_whatever_they_were(start):
    model = perceptron()
    syn.rewire(model, syn.Sparse(0.6, dense_above=0.25, start=start))
    assert [layer.dense_above for layer in layers(model)] == [0.25] * 3
    syn.rewire(model, syn.Sparse(0.3, dense_above=0.5, start=start))
    assert [layer.dense_above for layer in layers(model)] == [0.5] * 3
    assert layers(model)[0].pruned(5).dense_above == 0.5
    syn.rewire(model, syn.Sparse(0.2, start=start))
    assert [layer.dense_above for layer in layers(model)] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of density and epsilon; given none"),
        ({"density": 0.1, "epsilon": 5}, "exactly one of density and epsilon; given both"),
        ({"density": 0}, r"\(0, 1\]; given 0"),
        ({"density": "0.1"}, r"\(0, 1\]; given '0.1'"),
        ({"density": True}, r"\(0, 1\]; given True"),
        ({"epsilon": "20"}, "epsilon is a positive number; given '20'"),
        ({"density": 0.1, "dense_above": "0.4"}, r"dense_above is a density in \[0, 1\], .* given '0.4'"),
        ({"density": 1.5}, r"\(0, 1\]; given 1.5"),
        ({"density": math.nan}, r"\(0, 1\]; given nan"),
        ({"epsilon": 0}, "epsilon is a positive number; given 0"),
        ({"epsilon": math.inf}, "epsilon is a positive number; given inf"),
        ({"epsilon": 5, "distribution": "erk"}, "distribution='erk' shares a density, .* give a density with it"),
        ({"epsilon": 5, "distribution": "ERK"}, "unknown distribution 'ERK'"),
        ({"density": 0.1, "start": "randm"}, "unknown start 'randm' .did you mean 'random'"),
        ({"density": 0.1, "topology": "small-world"}, "'small-world' is drawn at random, .* give start='random'"),
        ({"density": 0.1, "start": "random", "topology": "ring"}, "unknown topology 'ring'"),
        ({"density": 0.1, "start": "random", "topology": "small-world(2)"}, r"in \[0, 1\]; given 2"),
        ({"density": 0.1, "dense_above": 1.2}, r"dense_above is a density in \[0, 1\], .* given 1.2"),
        ({"density": 0.1, "dense_above": math.nan}, "given nan"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        syn.Sparse(**options)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (syn.Sparse(1e-9), r"'0' \[30, 40\]"),
        (syn.Sparse(0.004), r"'4' \[4, 20\]"),
        (syn.Sparse(1e-3, "erk"), r"'4' \[4, 20\]"),
        (syn.Sparse(epsilon=0.015), r"'4' \[4, 20\]"),
        (syn.Sparse(epsilon=1e-3, start="random"), r"'0' \[30, 40\]"),
    ],
    ids=str,
)
def test_no_layer_is_left_without_connections(kind, layer):
    model = perceptron()
    before = list(model)
    with pytest.raises(ConfigurationError, match=f"leaves layer {layer} without any connection; take ") as refused:
        syn.rewire(model, kind)
    assert list(model) == before
    # What it advises is enough.
    size = "density" if kind.density is not None else "epsilon"
    enough = float(str(refused.value).split(f"{size} at least ")[1].split(",")[0])
    counts = replace(kind, **{size: enough}).counts([(30, 40), (20, 30), (4, 20)])
    assert 1 == min(counts) < max(counts)
    with pytest.raises(ConfigurationError, match=r"leaves a layer \[30, 40\] without any connection"):
        replace(kind, **{size: 1e-9}).counts([(30, 40)])


def test_shapes_that_are_none_are_refused():
    for kind in (syn.Sparse(0.1), syn.Sparse(epsilon=3)):
        with pytest.raises(ConfigurationError, match="at least one layer"):
            kind.counts([])
        with pytest.raises(ConfigurationError, match="the shape of a weight"):
            kind.counts([(3, 0)])


def test_a_refused_wiring_leaves_every_layer_as_it_was():
    model = syn.rewire(perceptron(), syn.Sparse(0.1), where="0")
    before = list(model)
    with pytest.raises(ConfigurationError, match="120 connections cannot keep 140 of them"):
        syn.rewire(model, syn.Sparse(epsilon=2))  # the first layer would need more than it has; the others could
    assert list(model) == before
