"""The balance that the recipe `decoupled` proposes, and what its blocks cost."""

import pytest

from synaptome.learning.block_costs import BlockCost
from synaptome.recipes import block_prediction
from synaptome.recipes.block_prediction import predicted, proposal
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings


def costs(learning, apart):
    return [BlockCost(each, 0.0, 0.0, extra) for each, extra in zip(learning, apart, strict=True)]


def test_layers_move_from_a_block_that_has_more_to_do():
    balance, speed = proposal([1.0] * 8, costs([4.0, 4.0], [2.0, 0.0]))
    assert balance == (3, 5)
    assert speed == 8 / 5  # of the formula by hand: 8 in one process, 3 + 2 and 5 apart
    balance, speed = proposal([2.0] * 8, costs([4.0, 4.0], [2.0, 0.0]))  # by themselves they take twice as long
    assert (balance, speed) == ((3, 5), 8 / 5)
    balance, speed = proposal([5.0, 1.0, 1.0, 1.0], costs([6.0, 2.0], [0.0, 0.0]))
    assert (balance, speed) == ((1, 3), 8 / 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": "digits", "balance": (1, 3)},
        {"data": "ellipses", "balance": (4, 0)},
        {"data": "digits", "network": "feed-forward", "blocks": 3, "balance": (1, 2, 1), "synthetic_inputs": "linear"},
    ],
    ids=str,
)
def test_it_is_of_the_blocks_of_the_recipe(fields, monkeypatch):
    monkeypatch.setattr(block_prediction, "measured_transfers", lambda shapes, batch: [0.25 for _ in shapes])
    found = predicted(RunSettings(Decoupled(width=8, depth=4, **fields), 0, "cpu", 1))
    assert found["balance"] == fields["balance"]
    assert sum(found["proposed"]) == 4
    assert found["proposed_speed"] >= found["speed"] > 0
    between = len(fields["balance"]) - 2
    assert [block["transfer"] for block in found["blocks"]] == [0.25, *[0.5] * between, 0.25]
    guesses = [block["synthesis"] > 0 for block in found["blocks"]]
    assert guesses == [True, *[True] * between, "synthetic_inputs" in fields]


def test_a_balance_that_promises_most_is_proposed_itself(monkeypatch):
    monkeypatch.setattr(block_prediction, "measured_transfers", lambda shapes, batch: [0.0 for _ in shapes])
    monkeypatch.setattr(block_prediction, "proposal", lambda layers, costs: ((3, 1), 0.0))
    found = predicted(RunSettings(Decoupled(data="digits", width=8, depth=4), 0, "cpu", 1))
    assert found["proposed"] == found["balance"] == (2, 2)
    assert found["proposed_speed"] == found["speed"]
