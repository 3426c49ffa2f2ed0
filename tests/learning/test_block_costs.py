"""Costs of blocks, and the balance that they ask for."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError
from synaptome.learning.block_costs import BlockCost, balanced, measured_costs, predicted_speedup
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import split
from synaptome.networks.synthesisers import Synthesiser


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_no_other_balance_has_a_faster_slowest_block(costs, data):
    blocks = data.draw(st.integers(1, len(costs)))
    synthesis = data.draw(st.integers(0, 5))

    def slowest(balance):
        cuts = [sum(balance[:number]) for number in range(blocks + 1)]
        sums = [sum(costs[start:stop]) for start, stop in pairwise(cuts)]
        return max(total + synthesis * (number < blocks - 1) for number, total in enumerate(sums))

    every = [
        tuple(stop - start for start, stop in pairwise((0, *cuts, len(costs))))
        for cuts in combinations(range(1, len(costs)), blocks - 1)
    ]
    found = balanced([float(cost) for cost in costs], blocks, float(synthesis))
    assert found in every
    assert slowest(found) == min(map(slowest, every))


def test_equal_blocks_gain_what_the_formula_says():
    blocks, learning, synthesis = 4, 3.0, 0.5
    costs = [BlockCost(learning, synthesis)] * (blocks - 1) + [BlockCost(learning)]
    assert predicted_speedup(costs) == pytest.approx(blocks / (1 + blocks * synthesis / (blocks * learning)))


def test_measuring_leaves_the_rule_as_it_is():
    torch.manual_seed(0)
    parts = split(FeedForward([8, 8, 8, 3]), (1, 1, 1))
    rule = SyntheticGradients(
        parts, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), [Synthesiser((8,), 3)] * 2, how=Decoupling(delay=2)
    )
    rule.step(Batch(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])))
    for parameter in rule.model.parameters():
        parameter.grad = None
    before = {name: tensor.clone() for name, tensor in rule.model.state_dict().items()}
    costs = measured_costs(rule, Batch(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])))
    assert all(torch.equal(tensor, before[name]) for name, tensor in rule.model.state_dict().items())
    assert all(parameter.grad is None for parameter in rule.model.parameters())
    assert [learner.done for learner in rule.learners] == [1, 1, 1]
    assert all(cost.learning > 0 for cost in costs)
    assert costs[2].synthesis == 0
    assert min(costs[0].synthesis, costs[1].synthesis) >= 0


def test_there_are_as_many_blocks_as_layers_at_most():
    with pytest.raises(ConfigurationError, match="from 1 to 2 blocks; given 3"):
        balanced([1.0, 1.0], 3)
