"""Removal of weak connections: probabilities by hand, frequencies, and masks that stay."""

import math

import pytest
import torch

from synaptome.data.logic import logic
from synaptome.errors import ConfigurationError
from synaptome.learning.deep import PopulationLearning
from synaptome.learning.plasticity import Plasticity
from synaptome.learning.sparsification import Sparsification, removal_probabilities
from synaptome.networks.complete import Sizes, layered_connections
from synaptome.networks.population import Population

SIZES = Sizes(3, 5, 1)


def test_probabilities_are_a_softmax_over_the_connections_into_a_neuron():
    values = torch.tensor([[0.3, -0.05, 0.0, 0.2, -0.1], [0.0, 0.1, 0.1, 0.1, 0.9]]).double()
    present = torch.tensor([[True, True, True, True, True], [False, True, True, True, True]])
    target = torch.tensor([3, 3, 3, 4, 4])
    sparsification = Sparsification(tol=0.1, temp=0.5)
    found = removal_probabilities(values, present, target, 5, sparsification)
    for p in range(2):
        for c in range(5):
            into = [k for k in range(5) if target[k] == target[c] and present[p, k]]
            term = math.exp(-abs(values[p, c].item()) / 0.5)
            sums = sum(math.exp(-abs(values[p, k].item()) / 0.5) for k in into)
            weak = abs(values[p, c].item()) <= 0.1 and present[p, c]
            assert found[p, c].item() == pytest.approx(term / sums if weak else 0.0, abs=1e-15)


def test_connections_go_as_often_as_their_probabilities_say():
    population = Population(range(3000), SIZES, std=0.05)
    values, sparsification = population.values.detach(), Sparsification(tol=0.03, temp=0.02)
    p = removal_probabilities(values, population.present, population.target, SIZES.neurons, sparsification)
    removed = sparsification.removed(population, values, epoch=4).double()
    spread = (p * (1 - p)).sum(0).sqrt()
    assert ((removed.sum(0) - p.sum(0)).abs() < 5 * spread).all()
    assert (removed[p == 0] == 0).all()
    assert not torch.equal(removed, sparsification.removed(population, values, epoch=5).double())


@pytest.mark.parametrize("leak", ["deep", "certified"])
@pytest.mark.parametrize("regrow", [False, True])
def test_removed_connections_stay_removed_unless_they_may_grow_back(leak, regrow):
    population = Population(range(4), SIZES, layered_connections(SIZES), leak=leak, steps=100)
    plasticity = Plasticity(steps=100, rate=100.0, l1=1e-3, sparsification=Sparsification(tol=0.05, regrow=regrow))
    rule, batch = PopulationLearning(population, plasticity), logic("xor").train[:]
    zero = torch.zeros_like(population.present)
    came_back = 0
    for _ in range(20):
        rule.step(batch)
        now = population.values.detach() == 0
        came_back += int((zero & ~now).sum())
        zero = now
        assert torch.equal(population.present, torch.ones_like(zero) if regrow else ~zero)
    assert (came_back > 0) == regrow
    assert zero.any(1).all()


def test_what_is_out_of_range_is_refused():
    for options in ({"tol": -1.0}, {"temp": 0.0}, {"temp": math.inf}):
        with pytest.raises(ConfigurationError, match="tol is a finite number"):
            Sparsification(**options)
