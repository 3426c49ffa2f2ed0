"""Accuracy without the weakest connections: against networks pruned by hand, for sparse and dense layers alike."""

import copy

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.pruning import accuracy_when_pruned
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import FeedForward
from synaptome.synapses.learned_rules import METHODS


def by_hand(weights, share):
    """Sort each sign on its own, in plain Python, and let the first of them go."""
    flat = weights.flatten().tolist()
    for sign in (1, -1):
        of_sign = sorted((abs(w), i) for i, w in enumerate(flat) if (w >= 0) == (sign > 0))
        for _, i in of_sign[: round(share * len(of_sign))]:
            flat[i] = 0.0
    return torch.tensor(flat).view(weights.shape)


def task(inputs=12, classes=4, count=400):
    x = torch.randn(count, inputs)
    return Split(x, x[:, :classes].argmax(1))


def share_right(weights, biases, split):
    h = split.inputs
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = h @ weight.T + bias
        if index < len(weights) - 1:
            h = h.relu()
    return (h.argmax(1) == split.targets).double().mean().item()


@pytest.mark.parametrize("sparse", [True, False])
def test_accuracy_is_that_of_a_network_pruned_by_hand(sparse):
    torch.manual_seed(1)
    split, shares = task(), [0.0, 0.3, 0.55, 0.9]
    model = FeedForward([12, 30, 4], wiring=syn.Sparse(0.5) if sparse else None)
    torch.nn.init.normal_(model.layers[0].bias)
    dense = [layer.to_dense() if sparse else layer for layer in model.layers]
    expected = []
    for share in shares:
        weights = []
        for layer in dense:
            weight = layer.weight.detach()
            there = weight != 0  # a connection that does not exist is none of the weakest
            pruned = torch.zeros_like(weight)
            pruned[there] = by_hand(weight[there], share)
            weights.append(pruned)
        expected.append(share_right(weights, [layer.bias.detach() for layer in dense], split))
    found = accuracy_when_pruned(model, split, shares)
    assert found["rate"].tolist() == shares
    assert found["accuracy"].shape == (4, 1)
    assert found["accuracy"].flatten().tolist() == expected
    assert len(set(expected)) > 2  # the shares matter


def test_each_sign_loses_its_own_share():
    """Weak negative weights and strong positive ones: by magnitude alone, all the negative ones would be the half."""
    model = syn.SparseLinear(8, 2, edges=(torch.zeros(8, dtype=torch.int64), torch.arange(8)))
    model.values.data = torch.tensor([-0.1, -0.2, -0.3, -0.4, 1.0, 2.0, 3.0, 4.0])
    model.bias.data = torch.tensor([0.0, -0.01])
    inputs = torch.eye(8)
    inputs[4:, 3] = 1.0  # where the positive weight is gone, the negative one that stays decides
    split = Split(inputs, torch.tensor([0, 0, 1, 1, 1, 1, 0, 0]))
    assert accuracy_when_pruned(model, split, [0.5])["accuracy"].item() == 1.0
    assert accuracy_when_pruned(model, split, [0.25, 0.75])["accuracy"].flatten().tolist() == [6 / 8, 6 / 8]


@pytest.mark.parametrize(
    "learned",
    [
        *(syn.Learned(method) for method in METHODS),
        syn.Learned("supermask", inference="expected"),
        syn.Learned("flip", train_weights=True),
    ],
    ids=syn.Learned.options,
)
def test_of_learned_layers_the_effective_weights_that_are_left_are_pruned(learned):
    """As of plain layers with the effective weights, of which those that are masked are none of the weakest."""
    torch.manual_seed(3)
    split, shares = task(count=2000), [0.0, 0.3, 0.55, 0.9]
    model = FeedForward([12, 30, 4], wiring=learned)
    for layer in model.layers:
        torch.nn.init.normal_(layer.scores)
    effective = [layer.to_dense().weight.detach() for layer in model.layers]
    expected = []
    for share in shares:
        weights = []
        for weight in effective:
            pruned = weight.clone()
            pruned[weight != 0] = by_hand(weight[weight != 0], share)
            weights.append(pruned)
        expected.append(share_right(weights, [layer.bias.detach() for layer in model.layers], split))
    assert accuracy_when_pruned(model, split, shares)["accuracy"].flatten().tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize(
    "wiring",
    [syn.Sparse(0.3), None, syn.Failing(0.4, "noisy"), syn.Learned("flip") + syn.Failing(0.4, "noisy")],
)
def test_the_model_is_not_touched(wiring):
    torch.manual_seed(2)
    model, split = FeedForward([12, 20, 4], wiring=wiring), task(count=1500)
    twin, random = copy.deepcopy(model), torch.get_rng_state()
    accuracy_when_pruned(model, split, [0.2, 0.8])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_out_of_range_is_refused():
    model, split = FeedForward([12, 4]), task()
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigurationError, match=rf"in \[0, 1\); given {share}"):
            accuracy_when_pruned(model, split, [0.5, share])
    with pytest.raises(ConfigurationError, match="at least one share"):
        accuracy_when_pruned(model, split, [])
    with pytest.raises(ConfigurationError, match="class indices"):
        accuracy_when_pruned(model, Split(split.inputs, torch.zeros(400, 2)), [0.5])
    with pytest.raises(ConfigurationError, match="no weights"):
        accuracy_when_pruned(nn.Identity(), split, [0.5])
