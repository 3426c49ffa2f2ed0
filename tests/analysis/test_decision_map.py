"""Maps of decisions, against a plain loop over networks, points, steps and neurons."""

import math

import pytest
import torch

from synaptome.analysis import decision_map as maps
from synaptome.analysis.decision_map import decision_map, input_grid, mapped_inputs
from synaptome.data.logic import logic
from synaptome.errors import ConfigurationError
from synaptome.networks.complete import Sizes
from synaptome.networks.population import Population

RHO = {"hard-sigmoid": lambda s: s, "sigmoid": lambda s: 1 / (1 + math.exp(-s)), "tanh": math.tanh}


def population(sizes, activity="hard-sigmoid", leak="one", bias=True, **options):
    model = Population(
        [3, 8], sizes, leak=leak, bias=bias, activity=activity, dt=0.2, steps=40, std=1.0, spread=0.5, **options
    )
    if bias:
        torch.nn.init.normal_(model.bias, std=0.3)
    return model


def relaxed(model, p, inputs, start, steps):
    """A network's outputs after a free phase, neuron by neuron."""
    rho, weight = RHO[model.activity], model.weight[p].tolist()
    clamped, free = model.sizes.inputs, model.sizes.free
    bias = [0.0] * free if model.bias is None else model.bias[p].tolist()
    leaks = [sum(row) if model.leak_kind == "deep" else 1.0 for row in weight[clamped:]]
    s = list(start)
    for _ in range(steps):
        a = [*inputs, *map(rho, s)]
        ds = [
            sum(a[i] * weight[i][clamped + j] for i in range(clamped + free)) + bias[j] - leaks[j] * s[j]
            for j in range(free)
        ]
        s = [old + model.dt * change for old, change in zip(s, ds, strict=True)]
        if model.activity == "hard-sigmoid":
            s = [min(max(value, 0.0), 1.0) for value in s]
    return [rho(value) for value in s[free - model.sizes.outputs :]]


@pytest.mark.parametrize(
    ("sizes", "activity", "leak", "constant"),
    [
        (Sizes(2, 3, 1), "hard-sigmoid", "one", False),
        (Sizes(3, 2, 2), "hard-sigmoid", "deep", True),
        (Sizes(2, 2, 1), "sigmoid", "one", False),
        (Sizes(2, 2, 1), "tanh", "one", False),
    ],
)
def test_it_is_what_a_loop_gives(sizes, activity, leak, constant, monkeypatch):
    monkeypatch.setattr(maps, "MOST_NUMBERS", 2 * sizes.neurons * 4)  # 4 points a call
    patterns = logic("xor", constant=constant).test.inputs
    model = population(sizes, activity, leak, bias=not constant)
    found = decision_map(model, patterns, side=3)
    assert found.shape == (2, 3, 3, sizes.outputs)
    start = model.initial(patterns)[:, 0, sizes.inputs :]
    for p in range(2):
        for row in range(3):
            for column in range(3):
                inputs = [column / 2, row / 2, *([1.0] if constant else [])]
                expected = relaxed(model, p, inputs, start[p].tolist(), model.steps)
                assert found[p, row, column].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.std() > 0.05  # or agreement would mean nothing


def test_its_first_corner_is_what_the_first_pattern_is_tested_by():
    patterns = logic("xor", constant=False).test.inputs
    model = population(Sizes(2, 4, 1))
    assert torch.equal(decision_map(model, patterns, side=5)[:, 0, 0], model(patterns)[:, 0])


def test_the_grid_goes_over_the_two_inputs_that_vary():
    patterns = torch.tensor([[0.0, 0.3, 0.0], [1.0, 0.3, 0.5]])
    assert mapped_inputs(patterns) == [0, 2]
    grid = input_grid(patterns, 3)
    assert grid.dtype == torch.float64
    assert grid[:, 1].tolist() == pytest.approx([0.3] * 9)
    assert grid[:, 0].tolist() == [0, 0.5, 1] * 3
    assert grid[:, 2].tolist() == [0] * 3 + [0.5] * 3 + [1] * 3


@pytest.mark.parametrize(
    ("patterns", "side", "message"),
    [
        (logic("not").test.inputs, 5, "over two inputs that vary; in these patterns 1 do"),
        (torch.eye(3), 5, "3 do"),
        (logic("xor").test.inputs, 1, "at least 2; given 1"),
    ],
)
def test_what_cannot_be_mapped_is_refused(patterns, side, message):
    with pytest.raises(ConfigurationError, match=message):
        input_grid(patterns, side)
