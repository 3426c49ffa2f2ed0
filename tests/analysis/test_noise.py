"""Sensitivity to noise: against what is known of linear maps, and that nothing is touched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.noise import noise_sensitivity
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError


def sides(examples=4000, distance=0.5):
    """A linear classifier by the sign of the first feature, and points at a distance from its border."""
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
    targets = torch.arange(examples) % 2
    inputs = torch.zeros(examples, 3)
    inputs[:, 0] = distance * (2.0 * targets - 1)
    return model, Split(inputs, targets)


def test_without_noise_nothing_changes():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    split = Split(torch.randn(2500, 3), torch.randint(4, (2500,)))
    found = noise_sensitivity(model, split, [0.0, 0.3], 3)
    assert not found["change"][0].any()
    assert (found["change"][1] > 0).all()
    expected = (model(split.inputs).argmax(1) == split.targets).double().mean().item()
    assert found["accuracy"][0].tolist() == [expected] * 3
    assert found["std"].tolist() == [0.0, 0.3]


def test_accuracy_of_a_linear_classifier_is_the_normal_distribution_of_the_distance():
    model, split = sides()
    stds = [0.1, 0.5, 2.0]
    found = noise_sensitivity(model, split, stds, 10)
    for std, accuracies in zip(stds, found["accuracy"], strict=True):
        expected = 0.5 * (1 + math.erf(0.5 / std / math.sqrt(2)))
        assert accuracies.mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 40000))


def test_change_of_a_linear_classifier_is_its_answer_to_the_noise():
    model, split = sides()
    found = noise_sensitivity(model, split, [0.1, 0.2], 5)
    # The outputs are ± the first feature: their change is the noise of that feature over the distance.
    assert found["change"][0].mean().item() == pytest.approx(0.1 / 0.5, rel=0.02)
    torch.testing.assert_close(found["change"][1], 2 * found["change"][0], rtol=1e-5, atol=0)  # the same noise, scaled
    assert found["change"].unique().numel() == 10  # fresh in each pass


def test_seeds_give_their_noise_again():
    model, split = sides(100)
    first, again, other = (noise_sensitivity(model, split, [0.5], 2, seed)["change"] for seed in (3, 3, 30))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_model_and_the_random_state_are_left_alone():
    model = nn.Sequential(syn.FailingLinear(3, 4, failure=0.5), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    split = Split(torch.randn(20, 3), torch.arange(20) % 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    noise_sensitivity(model, split, [0.1])
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_outputs_that_are_all_0_do_not_change():
    model, split = sides(10)
    nn.init.zeros_(model.weight)
    assert not noise_sensitivity(model, split, [1.0])["change"].any()


def test_what_is_out_of_range_is_refused():
    model, split = sides(10)
    for std in (-0.1, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match=f"at least 0; given {std}"):
            noise_sensitivity(model, split, [0.1, std])
    with pytest.raises(ConfigurationError, match=r"given \[\] and 5"):
        noise_sensitivity(model, split, [])
    with pytest.raises(ConfigurationError, match="and 0"):
        noise_sensitivity(model, split, [0.1], 0)
    with pytest.raises(ConfigurationError, match="class indices"):
        noise_sensitivity(model, Split(split.inputs, torch.zeros(10, 2)), [0.1])
