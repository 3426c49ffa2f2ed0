"""Blocks of consecutive layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import depth_of, even, split
from synaptome.networks.stable import StableNetwork

MODELS = {
    "sequential": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)),
    "feed-forward": lambda: FeedForward([4, 6, 6, 6, 6, 3], output="softmax"),
    "stable": lambda: StableNetwork(4, 3, dynamics="verlet", width=4, depth=5),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("balance", [(5,), (1, 4), (2, 1, 2), (1, 1, 1, 1, 1)])
def test_blocks_in_a_row_are_the_model(model, balance):
    network = MODELS[model]()
    blocks = split(network, balance)
    assert len(blocks) == len(balance)
    x = torch.randn(7, 4)
    assert torch.equal(nn.Sequential(*blocks)(x), network(x))
    assert sum(p.numel() for p in blocks.parameters()) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("model", ["sequential", "feed-forward"])
def test_blocks_hold_the_very_parameters(model):
    network = MODELS[model]()
    assert {id(p) for p in split(network, (2, 3)).parameters()} == {id(p) for p in network.parameters()}


@given(st.integers(1, 100), st.data())
def test_even_blocks_differ_by_one_layer_at_most(depth, data):
    blocks = data.draw(st.integers(1, depth))
    balance = even(depth, blocks)
    assert len(balance) == blocks
    assert sum(balance) == depth
    assert max(balance) - min(balance) <= 1


@pytest.mark.parametrize("balance", [(), (3, 3), (0, 5), (6, -1)])
@pytest.mark.parametrize("model", MODELS)
def test_a_balance_sums_to_the_depth(model, balance):
    with pytest.raises(ConfigurationError, match="sum to the depth, 5"):
        split(MODELS[model](), balance)


def test_only_the_last_block_of_a_stable_network_may_be_without_layers():
    """It is the classifier then."""
    network = MODELS["stable"]()
    blocks = split(network, (5, 0))
    x = torch.randn(7, 4)
    assert torch.equal(nn.Sequential(*blocks)(x), network(x))
    learned = [name for name, parameter in blocks[1].named_parameters() if parameter.requires_grad]
    assert learned == ["classifier.weight", "classifier.bias"]
    assert all(parameter.requires_grad for parameter in blocks[0].parameters())
    for model in ("sequential", "feed-forward"):
        with pytest.raises(ConfigurationError, match="whole numbers from 1 on"):
            split(MODELS[model](), (5, 0))


def test_what_is_no_sequence_cannot_be_split():
    with pytest.raises(ConfigurationError, match="given a Bilinear"):
        depth_of(nn.Bilinear(2, 2, 2))
    with pytest.raises(ConfigurationError, match="from 1 to 3 blocks; given 4"):
        even(3, 4)
