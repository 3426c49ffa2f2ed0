"""Feed-forward networks: the equation, the initial scalings, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import synaptome as syn
from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import ACTIVATIONS, OUTPUTS, FeedForward, layer_numbers

FORMULAS = {
    "linear": lambda h: h,
    "relu": lambda h: h.clamp_min(0),
    "swish": lambda h: h / (1 + (-h).exp()),
    "sigmoid": lambda h: 1 / (1 + (-h).exp()),
    "elu": lambda h: torch.where(h > 0, h, h.exp() - 1),
    # The constants of Klambauer et al. 2017, with which numbers of mean 0 and variance 1 keep both.
    "tanh": lambda h: (h.exp() - (-h).exp()) / (h.exp() + (-h).exp()),
    "selu": lambda h: 1.0507009873554805 * torch.where(h > 0, h, 1.6732632423543772 * (h.exp() - 1)),
}


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(sorted(OUTPUTS)),
    st.booleans(),
    st.integers(0, 4),
)
@settings(max_examples=30, deadline=None)
def test_output_is_that_of_the_equation(widths, activation, output, bias, batch):
    network = FeedForward(widths, activation=activation, output=output, bias=bias)
    h = x = torch.randn(batch, widths[0])
    for number, layer in enumerate(network.layers, 1):
        h = h @ layer.weight.T + (layer.bias if bias else 0)
        if number < len(network.layers):  # the activation is not applied to the output
            h = FORMULAS[activation](h)
    torch.testing.assert_close(network(x), h.exp() / h.exp().sum(1, keepdim=True) if output == "softmax" else h)


@pytest.mark.parametrize(("scaling", "std"), [("sqrt", 0.05), ("lin", 1 / 400), ("const", 0.001), ("0.75", 400**-0.75)])
def test_initial_weights_have_the_scalings_deviation(scaling, std):
    layer = FeedForward([400, 300, 1], scaling=scaling).layers[0]
    # The sample deviation of n normal numbers has relative standard error 1 / sqrt(2 n).
    assert abs(layer.weight.std().item() / std - 1) < 5 / math.sqrt(2 * 400 * 300)
    assert abs(layer.weight.mean().item()) < 5 * std / math.sqrt(400 * 300)
    assert not layer.bias.any()


def test_wiring_goes_to_the_chosen_layers():
    network = FeedForward([4, 5, 6, 3], wiring=syn.Failing(0.2), layers="1,3")
    assert [isinstance(layer, syn.FailingLinear) for layer in network.layers] == [True, False, True]


def test_kinds_of_synapse_start_from_the_same_weights():
    torch.manual_seed(1)
    dense = FeedForward([4, 5, 3])
    torch.manual_seed(1)
    failing = FeedForward([4, 5, 3], wiring=syn.Failing(0.2))
    for mine, theirs in zip(dense.parameters(), failing.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_sparse_layers_have_the_connections_of_their_kind():
    kind = syn.Sparse(epsilon=3, start="random")
    network = FeedForward([20, 30, 40, 5], wiring=kind, layers="1,3")
    assert [type(layer) for layer in network.layers] == [syn.SparseLinear, torch.nn.Linear, syn.SparseLinear]
    assert [network.layers[index].nnz for index in (0, 2)] == [3 * (20 + 30), 3 * (40 + 5)]
    shared = FeedForward([20, 30, 4], wiring=syn.Sparse(0.2, distribution="erk", start="random"))
    assert sum(layer.nnz for layer in shared.layers) == round(0.2 * (20 * 30 + 30 * 4))
    assert shared.layers[1].density > shared.layers[0].density
    assert not FeedForward([4, 3], bias=False, wiring=kind).layers[0].bias


def test_sparse_layers_compute_the_equation():
    network = FeedForward([6, 9, 4], wiring=syn.Sparse(0.4, start="random"))
    x = torch.randn(5, 6)
    first, second = (layer.to_dense().weight for layer in network.layers)
    torch.testing.assert_close(network(x), (x @ first.T).relu() @ second.T)  # biases start from 0


@pytest.mark.parametrize(("scaling", "std"), [("sqrt", 0.2), ("lin", 1 / 25), ("const", 0.001), ("0.75", 25**-0.75)])
def test_initial_values_have_the_scalings_deviation_for_the_connections_there_are(scaling, std):
    layer = FeedForward([500, 400, 1], scaling=scaling, wiring=syn.Sparse(0.05, start="random")).layers[0]
    assert layer.nnz == 25 * 400
    assert abs(layer.values.std().item() / std - 1) < 5 / math.sqrt(2 * layer.nnz)
    assert abs(layer.values.mean().item()) < 5 * std / math.sqrt(layer.nnz)
    assert not layer.bias.any()


def test_connections_that_are_born_later_are_drawn_as_the_network_was():
    layer = FeedForward([500, 400, 1], scaling="0.7", wiring=syn.Sparse(0.05, start="random")).layers[0]
    born = layer.initial_values(torch.zeros(40_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert born.std().item() == pytest.approx((0.05 * 500) ** -0.7, rel=0.02)  # a standard error of 0.4 %
    assert (born.abs() > 3 * born.std()).any()  # which no uniform number is
    layer.reset_parameters()
    uniform = layer.initial_values(torch.zeros(40_000, dtype=torch.int64))
    assert uniform.abs().max() <= (0.05 * 500) ** -0.5


def test_sparse_networks_are_drawn_from_torchs_seed():
    def network(seed):
        torch.manual_seed(seed)
        return FeedForward([30, 20, 4], wiring=syn.Sparse(0.2, start="random"))

    one, same, other = network(1).state_dict(), network(1).state_dict(), network(2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.col"], other["layers.0.col"])


def test_the_largest_of_many_weights_stay_when_asked_for():
    torch.manual_seed(1)
    dense = FeedForward([8, 6, 3])
    torch.manual_seed(1)
    sparse = FeedForward([8, 6, 3], wiring=syn.Sparse(0.25))
    for mine, whole in zip(sparse.layers, dense.layers, strict=True):
        smallest_kept = mine.values.abs().min()
        assert torch.equal(mine.to_dense().weight, whole.weight * (whole.weight.abs() >= smallest_kept))


def test_a_million_hidden_neurons():
    """Dense, the second layer alone would be 4 TB."""
    network = FeedForward([100, 10**6, 10**6, 10], wiring=syn.Sparse(epsilon=1, start="random"))
    assert [layer.nnz for layer in network.layers] == [10**6 + 100, 2 * 10**6, 10**6 + 10]
    y = network(torch.randn(2, 100))
    y.sum().backward()
    assert y.shape == (2, 10)
    assert network.layers[0].values.grad.any()


@pytest.mark.parametrize("start", ["random", "magnitude"])
def test_sparse_synapses_that_fail(start):
    network = FeedForward([8, 6, 3], wiring=syn.Sparse(0.5, start=start) + syn.Failing(0.1))
    assert [type(layer) for layer in network.layers] == [syn.FailingSparseLinear] * 2
    assert [layer.nnz for layer in network.layers] == [24, 9]
    assert [layer.failures.rate for layer in network.layers] == [0.1, 0.1]


def test_layer_numbers():
    assert layer_numbers("all", 3) == [1, 2, 3]
    assert layer_numbers("none", 3) == []
    assert layer_numbers("3,1,3", 3) == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [3]}, "at least two widths"),
        ({"widths": [3, 0]}, "at least 1"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"output": "sotfmax"}, "did you mean 'softmax'"),
        ({"scaling": "sqr"}, "did you mean 'sqrt'"),
        ({"scaling": "nan"}, "finite number; given nan"),
        ({"scaling": "-inf"}, "finite number; given -inf"),
        ({"layers": "4"}, "layer 4 does not exist; this network has layers 1 to 2"),
        ({"layers": "one"}, "numbers such as '1,3'"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FeedForward(**{"widths": [3, 4, 2], "wiring": syn.Failing(0.1), **arguments})
