"""Accuracy under failures, against the probability that theory gives, and on equal terms for all networks."""

import copy
import math

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.robustness import accuracy_under_failures
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import FeedForward


def voters(n, count):
    """A layer whose class 1 gets n votes and class 0 a bias of half of them: right while most synapses work."""
    model = nn.Linear(n, 2)
    model.weight.data = torch.stack((torch.zeros(n), torch.ones(n)))
    model.bias.data = torch.tensor([n / 2, 0.0])
    return model, Split(torch.ones(count, n), torch.ones(count, dtype=torch.int64))


def test_accuracy_is_the_binomial_probability():
    """Class 1 gets K / (1 - p) votes with K ~ Binomial(n, 1 - p), and wins if that is more than n / 2."""
    n, count, passes = 9, 2000, 4
    model, split = voters(n, count)
    rates = [0.0, 0.2, 0.5, 0.8]
    found = accuracy_under_failures(model, split, rates, passes)
    assert found["rate"].tolist() == rates
    assert found["accuracy"].shape == (4, passes)
    assert found["accuracy"][0].tolist() == [1.0] * passes
    for rate, row in zip(rates[1:], found["accuracy"][1:], strict=True):
        wins = [k for k in range(n + 1) if k / (1 - rate) > n / 2]
        expected = sum(math.comb(n, k) * (1 - rate) ** k * rate ** (n - k) for k in wins)
        spread = math.sqrt(expected * (1 - expected) / (count * passes))
        assert abs(row.mean().item() - expected) < 4 * spread
        assert len(set(row.tolist())) > 1  # fresh failures in each pass


def test_failures_are_nested_in_those_of_higher_rates():
    """One input that must get through: whoever survives a rate survives every lower one."""
    model = nn.Linear(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.1, 0.0])
    rates = [0.1, 0.3, 0.6]
    survived = []
    for example in range(200):  # split by split, so that each example's fate is seen: one at a time, other seeds
        split = Split(torch.ones(1, 1), torch.ones(1, dtype=torch.int64))
        survived.append(accuracy_under_failures(model, split, rates, 1, seed=example)["accuracy"].flatten())
    fates = torch.stack(survived)
    assert (fates.diff(dim=1) <= 0).all()
    for rate, share in zip(rates, fates.mean(0).tolist(), strict=True):
        assert abs(share - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / 200)


def test_sparse_networks_fail_as_the_same_dense_ones_do():
    """Only connections can fail, and each fails where the synapse in its place of a dense weight would."""
    torch.manual_seed(5)
    sparse = FeedForward([12, 30, 4], wiring=syn.Sparse(0.3))
    dense = syn.rewire(copy.deepcopy(sparse), syn.Dense())
    split = Split(torch.randn(500, 12), torch.randint(4, (500,)))
    rates = [0.0, 0.2, 0.6]
    found = [accuracy_under_failures(model, split, rates, 3)["accuracy"] for model in (sparse, dense)]
    assert torch.equal(*found)
    assert len(found[0].unique()) > 5
    failing = syn.rewire(copy.deepcopy(sparse), syn.Failing(0.9))
    assert torch.equal(accuracy_under_failures(failing, split, rates, 3)["accuracy"], found[0])
    assert [type(layer) for layer in sparse.layers] == [syn.SparseLinear] * 2


@pytest.mark.parametrize("wiring", [None, syn.Failing(0.3), syn.Failing(0.9, "mc(3)")])
def test_the_model_is_not_touched(wiring):
    torch.manual_seed(3)
    model = FeedForward([6, 20, 3], wiring=wiring)
    model(torch.randn(2, 6))
    split = Split(torch.randn(1500, 6), torch.randint(3, (1500,)))
    twin, random, kinds = copy.deepcopy(model), torch.get_rng_state(), [type(m) for m in model.modules()]
    found = accuracy_under_failures(model, split, [0.0, 0.4], 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(module) for module in model.modules()] == kinds
    assert model.training
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    assert repr(model) == repr(twin)
    model.eval()
    plain = FeedForward([6, 20, 3])
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "failures" not in name})
    expected = (plain(split.inputs).argmax(1) == split.targets).double().mean()
    assert found["accuracy"][0].tolist() == [expected] * 2
    again = accuracy_under_failures(plain, split, [0.0, 0.4], 2)  # the same weights, trained with or without failures
    assert torch.equal(found["accuracy"], again["accuracy"])


def test_what_is_out_of_range_is_refused():
    model, split = voters(3, 5)
    with pytest.raises(ConfigurationError, match=r"in \[0, 1\); given 1"):
        accuracy_under_failures(model, split, [1.0])
    with pytest.raises(ConfigurationError, match=r"given \[\] and 5"):
        accuracy_under_failures(model, split, [])
    with pytest.raises(ConfigurationError, match="and 0"):
        accuracy_under_failures(model, split, [0.5], 0)
    with pytest.raises(ConfigurationError, match="class indices"):
        accuracy_under_failures(model, Split(split.inputs, torch.zeros(5, 2)), [0.5])
