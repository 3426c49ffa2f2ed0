"""What is kept of trained networks, against the networks themselves."""

import numpy as np
import pytest
import torch

from synaptome.analysis import equilibria
from synaptome.analysis.decision_map import decision_map
from synaptome.analysis.equilibria import network_equilibria, population_equilibria
from synaptome.analysis.populations import final
from synaptome.data.dataset import Split
from synaptome.data.logic import logic
from synaptome.networks.complete import Sizes
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.sparse_directed import SparseDirectedNetwork


@pytest.fixture(autouse=True)
def _small_maps(monkeypatch):
    monkeypatch.setattr(equilibria, "SIDE", 5)


def population(task="xor", one_hot=False, networks=7, **options):
    split = logic(task, one_hot=one_hot, constant=False).test
    sizes = Sizes(split.inputs.shape[1], 4, split.targets.shape[1])
    options = {"leak": "one", "bias": True, "std": 0.8, "dt": 0.1, "steps": 400} | options
    model = Population(range(20, 20 + networks), sizes, **options)
    if model.bias is not None:
        torch.nn.init.normal_(model.bias, mean=0.2, std=0.3)
    return model, split


@pytest.mark.parametrize("one_hot", [False, True])
def test_maps_are_of_the_first_finite_networks(one_hot):
    model, split = population(one_hot=one_hot)
    model.success.diverged[1] = 3
    found = population_equilibria(model, split, one_hot)
    assert found["decision/seeds"].tolist() == [20, 22, 23, 24, 25]
    outputs = decision_map(model, split.inputs, 5)[[0, 2, 3, 4, 5, 6]]
    decided = outputs[..., 1] - outputs[..., 0] if one_hot else outputs[..., 0]
    # The measure stops relaxing at a residual of 1e-6.
    torch.testing.assert_close(found["decision/maps"], decided[:5].float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found["decision/mean"], decided.mean(0).float(), rtol=0, atol=1e-4)
    assert found["decision/networks"] == 6
    assert found["decision/threshold"] == (0 if one_hot else 0.5)
    assert found["decision/labels"].tolist() == [0, 1, 1, 0]
    assert torch.equal(found["decision/patterns"], split.inputs)


def test_what_is_beyond_the_threshold_is_what_is_predicted():
    for one_hot in (False, True):
        model, split = population(one_hot=one_hot)
        found = population_equilibria(model, split, one_hot)
        corners = found["decision/maps"][:, [0, 0, 4, 4], [0, 4, 0, 4]]
        predicted = corners > 0 if one_hot else corners >= found["decision/threshold"]
        outputs = decision_map(model, split.inputs, 2).flatten(1, 2)[:5]
        assert torch.equal(predicted.int(), (outputs.argmax(2) == 1 if one_hot else outputs[..., 0] >= 0.5).int())


def test_tasks_of_one_input_and_large_networks_have_no_map(monkeypatch):
    assert not any(key.startswith("decision") for key in population_equilibria(*population("not"), False))
    monkeypatch.setattr(equilibria, "MOST_PRODUCTS", 5**2 * 400 * 7**2 * 3.5)
    assert population_equilibria(*population(), False)["decision/networks"] == 3
    monkeypatch.setattr(equilibria, "MOST_PRODUCTS", 1.0)
    found = population_equilibria(*population(), False)
    assert not any(key.startswith("decision") for key in found)
    assert "network/matrix" in found


def test_a_network_that_diverges_on_the_square_has_no_map(monkeypatch):
    model, split = population("and", networks=3)

    def diverging(*given):
        outputs = decision_map(*given)
        outputs[0, 3, 2] = torch.nan
        return outputs

    monkeypatch.setattr(equilibria, "decision_map", diverging)
    found = population_equilibria(model, split, False)
    assert found["decision/seeds"].tolist() == [21, 22]
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_weights_are_those_of_the_networks():
    model, split = population()
    found = population_equilibria(model, split, False)
    assert torch.equal(found["network/matrix"], model.weight[:3])
    assert torch.equal(found["network/bias"], model.bias[:3])
    assert found["network/sizes"].tolist() == [2, 4, 1]
    assert found["network/seeds"].tolist() == [20, 21, 22]
    assert found["network/allowed"].sum() == model.values.shape[1]
    assert (model.weight.ne(0).any(0) <= found["network/allowed"].bool()).all()
    unbiased, split = population(bias=False)
    assert "network/bias" not in population_equilibria(unbiased, split, False)


def test_spectra_and_residuals_are_those_of_the_free_phases():
    model, split = population()
    found = population_equilibria(model, split, False)
    relaxed = model.relax(model.initial(split.inputs))
    resting = relaxed.residual <= 1e-6
    assert resting.any()
    places = set(zip(found["jacobian/seed"].tolist(), found["jacobian/pattern"].tolist(), strict=True))
    assert places == {(p + 20, m + 1) for p, m in resting.nonzero().tolist()}
    free = (relaxed.state[..., 2:] > 0) & (relaxed.state[..., 2:] < 1)
    assert len(found["jacobian/lambda"]) == len(found["jacobian/seed"]) == free[resting].sum()
    assert found["jacobian/dt"] == 0.1
    steps = found["residual/steps"].tolist()
    assert (steps[0], steps[-1]) == (1, 400)
    torch.testing.assert_close(found["residual/values"][-1], relaxed.residual.flatten().float(), rtol=1e-3, atol=1e-12)


def test_a_network_is_stable_if_all_its_spectra_are():
    model, split = population(std=1.5)
    told, found = final(model, split, False), population_equilibria(model, split, False)
    values = torch.view_as_complex(found["jacobian/lambda"].double())
    grows = (1 + model.dt * values).abs() >= 1
    relaxed = model.relax(model.initial(split.inputs))
    for p in range(7):
        resting = (relaxed.residual[p] <= 1e-6).all()
        assert told["resting"][p] == resting
        assert told["stable"][p] == (resting and not grows[found["jacobian/seed"] == 20 + p].any())


def test_an_equilibrium_that_is_left_by_small_disturbances_is_not_stable():
    """States 0 are at rest by symmetry, but a positive loop drives them away."""
    model, split = population("id", std=0.0, spread=0.0, networks=2, activity="tanh", bias=False)
    model.values.data[1, (model.source == 1) & (model.target == 2)] = 2.0
    model.values.data[1, (model.source == 2) & (model.target == 1)] = 2.0
    told = final(model, split, False)
    assert told["resting"].tolist() == [1, 1]
    assert told["stable"].tolist() == [1, 0]
    found = population_equilibria(model, split, False)
    assert found["jacobian/lambda"][found["jacobian/seed"] == 21].max() == pytest.approx(1.0)


def test_a_population_without_a_finite_network_keeps_nothing():
    model, split = population(networks=2)
    model.success.diverged[:] = 1
    assert population_equilibria(model, split, False) == {}


def layered(symmetric=True, dt=0.3, steps=15, widths=(3, 8, 2)):
    network = LayeredNetwork(list(widths), symmetric=symmetric, relaxation=Relaxation(steps, dt))
    for layer in network.layers:
        torch.nn.init.normal_(layer.bias, mean=0.2, std=0.2)
    return network, Split(torch.rand(120, 3), torch.zeros(120, dtype=torch.int64))


def test_a_layered_network_is_followed_at_some_examples():
    network, split = layered()
    before = [parameter.clone() for parameter in network.parameters()]
    found = network_equilibria(network, split)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    assert found["residual/values"].shape == (15, 50)
    assert found["energy/values"].shape == (16, 50)
    inputs = split.inputs[[0, 119]]
    outcome = network.relax(network.drive(inputs), network.rest(2))
    np.testing.assert_allclose(found["residual/values"][-1, [0, -1]], outcome.residual.detach(), rtol=1e-2, atol=1e-7)
    energy = network.energy(inputs, outcome.states).detach()
    np.testing.assert_allclose(found["energy/values"][-1, [0, -1]], energy, rtol=1e-5)
    assert (found["energy/rise"] <= 1e-14).all()
    assert (found["energy/lowest"] <= found["energy/values"].amin(0)).all()
    longer = network.relax(network.drive(inputs), network.rest(2), Relaxation(3000, 0.3))
    lowest = network.energy(inputs, longer.states).detach()
    np.testing.assert_allclose(found["energy/lowest"][[0, -1]], lowest, rtol=1e-5)
    assert set(found["jacobian/example"].tolist()) == {1, 40, 81, 120}
    assert found["jacobian/dt"] == 0.3
    # Symmetric weights: real eigenvalues; at rest in a minimum of the energy they are not positive.
    assert found["jacobian/lambda"][:, 1].abs().max() < 1e-6
    assert found["jacobian/lambda"][:, 0].max() < 0


def test_energy_that_rises_is_told():
    network, split = layered(dt=1.0)
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.copy_(-3 * torch.rand_like(layer.weight))
            layer.bias.fill_(2.0)
    found = network_equilibria(network, split)
    np.testing.assert_allclose(found["energy/rise"], np.diff(found["energy/values"], axis=0).max(0))
    assert found["energy/rise"].max() > 0.1


def test_separate_feedback_has_residuals_and_spectra_but_no_energy():
    found = network_equilibria(*layered(symmetric=False))
    assert {key.partition("/")[0] for key in found} == {"residual", "jacobian"}


def test_wide_networks_have_no_spectrum():
    found = network_equilibria(*layered(widths=(3, 640, 2), steps=2))
    assert {key.partition("/")[0] for key in found} == {"residual", "energy"}


def test_a_sparse_network_has_residuals_and_spectra():
    network = SparseDirectedNetwork.random(3, 20, 2, 0.4, relaxation=Relaxation(30, 0.5))
    found = network_equilibria(network, Split(torch.rand(9, 3), torch.zeros(9, dtype=torch.int64)))
    assert {key.partition("/")[0] for key in found} == {"residual", "jacobian"}
    assert found["residual/values"].shape == (30, 9)
    assert set(found["jacobian/example"].tolist()) == {1, 4, 6, 9}
