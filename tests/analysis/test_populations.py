"""What is counted over the networks of a population."""

import math

import pytest
import torch

from synaptome.analysis.populations import final, overview, part, snapshot
from synaptome.data.logic import logic
from synaptome.learning.deep import PopulationLearning
from synaptome.learning.plasticity import Plasticity
from synaptome.networks.complete import Sizes, gershgorin, layered_connections
from synaptome.networks.population import Population

SPLIT = logic("and").test


@pytest.fixture(scope="module")
def trained():
    rule = PopulationLearning(Population(range(6), Sizes(3, 5, 1), steps=300), Plasticity(steps=300))
    for _ in range(20):
        rule.step(SPLIT[:])
    return rule


def test_each_network_is_told_as_it_is(trained):
    population = trained.population
    measured = final(population, SPLIT, one_hot=False)
    outputs = population(SPLIT.inputs)
    for p in range(6):
        right = ((outputs[p] >= 0.5) == (SPLIT.targets == 1)).all()
        assert measured["solved"][p] == right
        assert measured["held"][p] == (right and population.success.streak[p] >= 10)
        torch.testing.assert_close(measured["error"][p], (outputs[p] - SPLIT.targets).square().mean())
        weight = population.weight[p : p + 1]
        rows, columns = gershgorin(weight, weight.sum(2)[:, 3:], 3)
        assert (measured["gershgorin_rows"][p], measured["gershgorin_columns"][p]) == (rows, columns)
    assert measured["solved"].sum() > 0
    assert torch.equal(measured["solved_epoch"], population.success.solved)
    assert torch.equal(
        measured["settled"], (population.relax(population.initial(SPLIT.inputs)).outcome == 0).all(1) + 0.0
    )


def test_a_network_that_diverged_counts_as_neither_solved_nor_finite(trained):
    population = trained.population
    before = final(population, SPLIT, one_hot=False)
    lost = int(before["solved"].argmax())
    population.success.diverged[lost] = 7
    measured = final(population, SPLIT, one_hot=False)
    population.success.diverged[lost] = 0
    assert measured["solved"][lost] == measured["finite"][lost] == measured["error"][lost] == 0
    told, expected = overview(measured), overview(before)
    assert told["not_finite"] == pytest.approx(1 / 6)
    assert told["solved"] == pytest.approx(expected["solved"] - 1 / 6)
    assert torch.isfinite(torch.stack(list(measured.values()))).all()


def test_shares_and_medians():
    yes, no = torch.ones(4).double(), torch.zeros(4).double()
    measured = {
        "solved": torch.tensor([1.0, 1.0, 0.0, 0.0]),
        "held": torch.tensor([1.0, 0.0, 0.0, 0.0]),
        "settled": yes,
        "resting": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "stable": torch.tensor([0.0, 1.0, 1.0, 0.0]),
        "gershgorin_rows": no,
        "gershgorin_columns": yes,
        "solved_epoch": torch.tensor([10, 4, 0, 30]),
        "finite": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "error": torch.tensor([0.1, 0.3, 0.2, 0.0]),
        "sparsity": torch.tensor([0.0, 0.5, 0.0, 0.5]),
    }
    told = overview(measured)
    assert (told["networks"], told["solved"], told["held"], told["ever_solved"]) == (4, 0.5, 0.25, 0.75)
    assert (told["median_epoch"], told["not_finite"], told["sparsity"]) == (10, 0.25, 0.25)
    assert told["median_error"] == pytest.approx(0.2)
    assert (told["settled"], told["gershgorin_rows"], told["gershgorin_columns"]) == (1, 0, 1)
    assert (told["resting"], told["stable"]) == (0.75, 0.5)
    none = overview(measured | {"solved_epoch": torch.zeros(4, dtype=torch.int64), "finite": no})
    assert math.isnan(none["median_epoch"])
    assert math.isnan(none["median_error"])


def test_a_snapshot_is_of_the_last_epoch(trained):
    found = snapshot(trained.population)
    assert torch.equal(found["error"], trained.population.success.error)
    assert torch.equal(found["right"], trained.population.success.right)
    assert found["sparsity"].tolist() == [0.0] * 6


def test_a_part_behaves_as_it_does_in_the_whole(trained):
    population = trained.population
    chosen = part(population, torch.tensor([4, 1]))
    assert torch.equal(chosen.weight, population.weight[[4, 1]])
    assert torch.equal(chosen(SPLIT.inputs), population(SPLIT.inputs)[[4, 1]])
    chosen.values.data.zero_()
    assert population.values[4].count_nonzero() > 0


def test_a_part_has_the_settings_of_the_whole_and_a_tolerance_of_its_own():
    allowed = layered_connections(Sizes(2, 3, 1), constant=False)
    options = {"leak": "certified", "bias": True, "activity": "tanh", "dt": 0.1, "steps": 70, "spread": 0.4}
    whole = Population(range(3), Sizes(2, 3, 1), allowed, **options)
    torch.nn.init.normal_(whole.bias)
    whole.present[1, 2] = False
    chosen = part(whole, torch.tensor([1]), tolerance=1e-3)
    assert (chosen.tolerance, whole.tolerance, chosen.steps) == (1e-3, 0.0, 70)
    assert torch.equal(chosen.source, whole.source)
    assert torch.equal(chosen.target, whole.target)
    assert torch.equal(chosen.present, whole.present[1:2])
    inputs = torch.rand(4, 2).double()
    assert torch.equal(part(whole, torch.tensor([1]))(inputs), whole(inputs)[1:2])
