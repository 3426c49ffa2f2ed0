"""Populations: random numbers of each network's own, weights at allowed places only, dynamics as asked for."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.networks.complete import Sizes, complete_connections, layered_connections
from synaptome.networks.population import EVALUATION, STARTS, Population
from synaptome.networks.success import Success, predicted_right, squared_error

SIZES = Sizes(3, 5, 1)
INPUTS = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).double()


def test_a_network_is_the_same_in_any_company():
    together, alone = Population(range(10), SIZES), Population([7], SIZES)
    assert torch.equal(together.values[7:8], alone.values)
    assert torch.equal(together.initial(INPUTS, STARTS, 5)[7:8], alone.initial(INPUTS, STARTS, 5))
    assert torch.equal(together(INPUTS)[7:8], alone(INPUTS))


def test_initial_weights_and_states_have_their_distributions():
    population = Population(range(2000), SIZES, std=0.05)
    values = population.values.detach()
    assert abs(values.mean()) < 5 * 0.05 / values.numel() ** 0.5
    assert abs(values.std() / 0.05 - 1) < 5 / (2 * values.numel()) ** 0.5
    state = population.initial(INPUTS, STARTS, 1)
    assert (state[..., :3] == INPUTS).all()
    drawn = state[..., 3:]
    assert drawn.min() >= 0
    assert drawn.max() < 0.1
    assert abs(drawn.mean() - 0.05) < 5 * 0.1 / 12**0.5 / drawn.numel() ** 0.5
    # Neither epochs nor purposes nor networks share numbers.
    other = [population.initial(INPUTS, STARTS, 2), population.initial(INPUTS), state.roll(1, 0)]
    for draw in other:
        correlation = torch.corrcoef(torch.stack((drawn.flatten(), draw[..., 3:].flatten())))[0, 1]
        assert abs(correlation) < 5 / drawn.numel() ** 0.5


def test_weights_are_at_allowed_places_only():
    for allowed in (complete_connections(SIZES), layered_connections(SIZES)):
        population = Population([0, 1], SIZES, allowed)
        weight = population.weight
        assert ((weight != 0) == allowed).all()
        assert torch.equal(population.at_connections(weight), population.values)
        assert population.values.shape[1] == allowed.sum()


def test_sparsity_is_among_allowed_connections():
    population = Population([0, 1], SIZES, layered_connections(SIZES))
    with torch.no_grad():
        population.values[1, :5] = 0
    assert population.sparsity.tolist() == [0, 5 / population.values.shape[1]]


def test_evaluation_starts_from_the_same_states_each_time():
    population = Population([3], SIZES)
    assert torch.equal(population(INPUTS), population(INPUTS))
    assert torch.equal(population.initial(INPUTS), population.initial(INPUTS, EVALUATION, 0))


@pytest.mark.parametrize("activity", ["hard-sigmoid", "sigmoid", "tanh"])
@pytest.mark.parametrize("leak", ["one", "certified"])
def test_at_rest_every_free_neuron_solves_its_equation(activity, leak):
    rho = {"hard-sigmoid": lambda s: s, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[activity]
    population = Population([1, 2], SIZES, leak=leak, bias=True, activity=activity, steps=3000, std=0.2)
    torch.nn.init.normal_(population.bias, std=0.3)
    relaxed = population.relax(population.initial(INPUTS))
    assert (relaxed.residual < 1e-12).all()
    W, free = population.weight, relaxed.state[..., 3:]
    leaks = 1 if leak == "one" else (W.abs().sum(2)[:, 3:] + 1e-3).unsqueeze(1)
    a = torch.cat((relaxed.state[..., :3], rho(free)), 2)
    drive = (a @ W)[..., 3:] + population.bias.unsqueeze(1)
    expected = (drive / leaks).clamp(0, 1) if activity == "hard-sigmoid" else drive / leaks
    torch.testing.assert_close(free, expected, rtol=0, atol=1e-9)
    assert torch.equal(population.outputs(relaxed.state), a[..., -1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": "none"}, "unknown leak"),
        ({"activity": "relu"}, "unknown activity"),
        ({"dt": 0.0}, "dt is a finite number above 0"),
        ({"steps": 0}, "steps is a finite number above 0"),
        ({"std": -0.1}, "std is a finite number at least 0"),
        ({"tolerance": float("nan")}, "tolerance is a finite number at least 0"),
        ({"connections": torch.zeros(9, 9, dtype=torch.bool)}, "leads to neuron 8"),
        ({"seeds": []}, "at least one network"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Population(**{"seeds": [0], "sizes": SIZES} | options)


def test_inputs_of_another_width_are_refused():
    with pytest.raises(ConfigurationError, match=r"\[patterns, 3\]; given \[4, 2\]"):
        Population([0], SIZES)(INPUTS[:, :2])


def test_records_of_success():
    success = Success(3)
    rights = [(1.0, 0.5, 1.0), (1.0, 1.0, 0.5), (0.5, 1.0, 1.0), (1.0, 1.0, 1.0)]
    for epoch, right in enumerate(rights, 1):
        if epoch == 4:
            success.record_diverged(4, torch.tensor([True, True, False]))
        success.record(epoch, torch.full((3,), 1.0 / epoch).double(), torch.tensor(right).double())
    success.record_diverged(5, torch.tensor([True, True, True]))
    assert success.streak.tolist() == [1, 3, 0]
    assert success.solved.tolist() == [1, 2, 1]
    assert success.diverged.tolist() == [0, 0, 4]
    assert success.finite.tolist() == [True, True, False]
    torch.testing.assert_close(success.error, torch.tensor([1 / 4, 1 / 4, 1 / 3]).double())


def test_predictions():
    targets = torch.tensor([[0.0], [1.0]])
    outputs = torch.tensor([[[0.49], [0.5]], [[0.5], [0.9]], [[0.1], [0.7]]])
    assert predicted_right(outputs, targets, False).tolist() == [[True, True], [False, True], [True, True]]
    assert predicted_right(outputs, targets, False, 0.3).tolist() == [[False, False], [False, True], [True, False]]
    torch.testing.assert_close(squared_error(outputs, targets)[2], torch.tensor((0.01 + 0.09) / 2))
    one_hot, two = torch.eye(2), torch.tensor([[[0.4, 0.3], [0.2, 0.9]], [[0.5, 0.5], [0.5, 0.5]]])
    assert predicted_right(two, one_hot, True).tolist() == [[True, True], [True, False]]
    assert predicted_right(two, one_hot, True, 0.2).tolist() == [[False, True], [False, False]]
