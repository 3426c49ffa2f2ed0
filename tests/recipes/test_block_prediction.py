"""The balance that the recipe `decoupled` proposes, and what its blocks cost."""

import pytest

from synaptome.errors import ConfigurationError
from synaptome.learning.block_costs import BlockCost
from synaptome.recipes import block_prediction
from synaptome.recipes.block_prediction import predicted, proposal
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.evolution import EvolvingSparsity
from synaptome.recipes.recipe import RunSettings


def costs(learning, overheads):
    return [BlockCost(each, 0.0, 0.0, overhead) for each, overhead in zip(learning, overheads, strict=True)]


def settings(device="cpu", **fields):
    return RunSettings(Decoupled(**{"data": "digits", "width": 8, "depth": 4} | fields), 0, device, 1)


def test_layers_move_from_a_block_that_has_more_to_do():
    # By hand: the slower block of 4 + 4 takes 4 + 2, that of 3 + 5 takes 5.
    assert proposal([1.0] * 8, costs([4.0, 4.0], [2.0, 0.0]), (4, 4)) == ((3, 5), 6 / 5)
    assert proposal([2.0] * 8, costs([4.0, 4.0], [2.0, 0.0]), (4, 4)) == ((3, 5), 6 / 5)  # of which only shares count
    assert proposal([5.0, 1.0, 1.0, 1.0], costs([6.0, 2.0], [0.0, 0.0]), (2, 2)) == ((1, 3), 6 / 5)
    assert proposal([1.0] * 4, costs([4.0, 0.0], [0.0, 0.0]), (4, 0)) == ((2, 2), 2.0)


def test_a_balance_that_none_beats_clearly_is_proposed_itself():
    assert proposal([1.0] * 8, costs([3.0, 5.0], [2.0, 0.0]), (3, 5)) == ((3, 5), 1.0)
    assert proposal([1.0] * 200, costs([100.0, 100.0], [1.5, 0.0]), (100, 100)) == ((100, 100), 1.0)  # 1 per cent


@pytest.mark.parametrize(
    "fields",
    [
        {"balance": (1, 3)},
        {"data": "ellipses", "balance": (4, 0)},
        {"convolutional": True, "width": 2, "balance": (2, 2)},
        {"network": "feed-forward", "blocks": 3, "balance": (1, 2, 1), "synthetic_inputs": "linear"},
    ],
    ids=str,
)
def test_it_is_of_the_blocks_of_the_recipe(fields, monkeypatch):
    monkeypatch.setattr(block_prediction, "measured_transfers", lambda shapes, batch: [0.25 for _ in shapes])
    found = predicted(settings(**fields))
    assert found["balance"] == fields["balance"]
    assert sum(found["proposed"]) == 4
    assert found["speed"] > 0
    between = len(fields["balance"]) - 2
    assert [block["transfer"] for block in found["blocks"]] == [0.25, *[0.5] * between, 0.25]
    guesses = [block["synthesis"] > 0 for block in found["blocks"]]
    assert guesses == [True, *[True] * between, "synthetic_inputs" in fields]


def test_speeds_are_those_of_the_costs(monkeypatch):
    monkeypatch.setattr(block_prediction, "measured_transfers", lambda shapes, batch: [1.0])
    measured = {2: costs([6.0, 2.0], [2.0, 0.0]), 4: costs([1.0] * 4, [0.0] * 4)}
    monkeypatch.setattr(block_prediction, "measured_costs", lambda rule, *given: measured[len(rule.learners)])
    found = predicted(settings(balance=(3, 1)))
    assert found["speed"] == 8 / 8  # 8 in one process, and 6 + 2 in the first of two
    # By layers of 2 each, 3 + 1 takes 6 + 2 and 1 + 3 takes 6.
    assert (found["proposed"], found["proposed_speed"]) in (((1, 3), 8 / 6), ((2, 2), 8 / 6))


@pytest.mark.parametrize(
    "refused",
    [
        settings(method="stale"),
        settings(levels=2),
        settings(replicas=2),
        RunSettings(EvolvingSparsity(), 0, "cpu", 1),
        settings(device="cuda"),
    ],
    ids=["method", "levels", "replicas", "recipe", "device"],
)
def test_what_is_not_modelled_is_refused(refused):
    with pytest.raises(ConfigurationError, match="speed is predicted"):
        predicted(refused)
