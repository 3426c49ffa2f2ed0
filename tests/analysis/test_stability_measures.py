"""What a run keeps of a stable network: against the functions it is made of, and within its bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synaptome.analysis.stability import energy_drift, gradient_norms, states
from synaptome.analysis.stability_measures import Stability, decision_regions, spread, trajectories
from synaptome.data import load
from synaptome.data.dataset import Dataset, Split
from synaptome.errors import ConfigurationError, NumericError
from synaptome.networks.dynamics import DYNAMICS
from synaptome.networks.stable import StableNetwork
from synaptome.training.measures import measured


@pytest.fixture(scope="module")
def points():
    return load("swiss-roll", seed=0, train=64, test=300)


def network_of(dynamics="verlet", width=4, depth=6, **options):
    torch.manual_seed(2)
    network = StableNetwork(2, 2, dynamics=dynamics, width=width, depth=depth, **options)
    with torch.no_grad():
        network.weight += 0.3 * torch.randn_like(network.weight)
    return network


def images(shape=(1, 4, 4), examples=30):
    torch.manual_seed(0)
    split = Split(torch.randn(examples, *shape), torch.arange(examples) % 3)
    return Dataset("drawn", split, None, split, ("a", "b", "c"))


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_everything_is_measured_and_finite(points, dynamics):
    network = network_of(dynamics)
    found = measured("stability", Stability(points).final, network)
    n = network.opening(points.test.inputs[:1]).numel()
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    energy = {f"energy/{name}": (7,) for name in ("time", "total", "steps")}
    assert shapes == {
        "gradient/time": (7,),
        "gradient/norms": (7,),
        "jacobian/time": (6,),
        "jacobian/eigenvalues": (6, 8 * n, 2),
        "jacobian/abscissa": (6, 8),
        "trajectory/time": (7,),
        "trajectory/points": (7, 200, 2),
        "trajectory/labels": (200,),
        "trajectory/variance": (2,),
        "trajectory/width": (),
        "regions/classes": (128, 128),
        "regions/extent": (2, 2),
        "regions/examples": (300, 2),
        "regions/labels": (300,),
    } | (energy if dynamics == "hamiltonian" else {})
    assert found["gradient/time"].tolist() == pytest.approx([10.0 * layer / 6 for layer in range(7)])
    assert found["trajectory/labels"].bincount().tolist() == [100, 100]  # of test examples that are sorted by class


def test_what_is_kept_is_what_the_functions_give(points):
    network = network_of("hamiltonian")
    found = Stability(points).final(network)
    chosen = torch.linspace(0, 299, 64, dtype=torch.float64).round().long()
    inputs, targets = points.test.inputs[chosen].double(), points.test.targets[chosen]
    exact = network_of("hamiltonian").double()
    assert torch.equal(found["gradient/norms"], gradient_norms(exact, inputs, targets, range(7)))
    assert torch.equal(found["energy/steps"], energy_drift(exact, inputs).steps.mean(1))
    assert torch.equal(found["energy/total"], energy_drift(exact, inputs).total.mean(1))
    real, imaginary = found["jacobian/eigenvalues"].double().unbind(-1)
    # Symplectic steps keep volumes: the product of a state's eigenvalues is 1.
    product = torch.complex(real, imaginary).view(6, 8, 4).prod(-1)
    torch.testing.assert_close(product, torch.ones_like(product), rtol=0, atol=1e-5)
    assert found["jacobian/abscissa"].abs().max() < 1e-7
    assert next(network.parameters()).dtype == torch.float32


def test_deep_networks_are_sampled_and_what_is_kept_is_small(points):
    found = Stability(points).final(network_of(depth=100, width=32))
    assert found["jacobian/time"].tolist() == pytest.approx([layer / 10 for layer in spread(100, 9)])
    assert found["jacobian/eigenvalues"].shape == (9, 8 * 64, 2)
    assert len(found["gradient/norms"]) == 65
    assert len(found["trajectory/points"]) == 41
    assert found["trajectory/time"][-1] == 10
    assert sum(tensor.nbytes for tensor in found.values()) < 500_000


def test_wide_states_have_fewer_examples_and_the_widest_no_eigenvalues(points):
    assert Stability(points).final(network_of(width=128, depth=2))["jacobian/abscissa"].shape == (2, 2)
    found = Stability(points).final(network_of("euler", width=257, depth=2))
    assert "jacobian/abscissa" not in found
    assert "gradient/norms" in found


def test_images_have_paths_of_channel_means_and_no_regions():
    network = StableNetwork((1, 4, 4), 3, dynamics="leapfrog", width=3, depth=4)
    data = images()
    found = Stability(data).final(network)
    assert {name.partition("/")[0] for name in found} == {"gradient", "jacobian", "trajectory"}
    path = network.features(data.test.inputs).mean((-2, -1)).detach().double()
    centred = (path - path.mean((0, 1))).flatten(0, 1)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    projected = (centred @ axes[:2].T).view(5, 30, 2).abs()
    torch.testing.assert_close(found["trajectory/points"].abs().double(), projected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["trajectory/variance"], (sizes**2 / (sizes**2).sum())[:2], rtol=1e-5, atol=0)


def test_paths_of_two_features_are_the_features():
    network, inputs = network_of("euler", width=2), torch.randn(9, 2)
    found, variance = trajectories(network, inputs, [0, 3, 6])
    path = network.features(inputs)[[0, 3, 6]].detach()
    torch.testing.assert_close(found, path, rtol=1e-6, atol=1e-6)
    rows = path.flatten(0, 1).double()
    torch.testing.assert_close(variance, rows.var(0) / rows.var(0).sum(), rtol=1e-5, atol=0)


def test_paths_do_not_depend_on_how_many_are_taken_at_once(monkeypatch):
    network, inputs = network_of(), torch.randn(9, 2)
    whole = trajectories(network, inputs, [0, 6])
    monkeypatch.setattr("synaptome.analysis.stability_measures.MOST_NUMBERS", 40)
    for one, other in zip(whole, trajectories(network, inputs, [0, 6]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_components_have_a_sign_of_their_own():
    network, inputs = network_of(), torch.randn(9, 2)
    points, _ = trajectories(network, inputs, [0, 6])
    carried = states(network, inputs, [0, 6])[..., :4].double().flatten(0, 1)
    # The axes, by least squares from the features to the points: their largest entry is positive.
    axes = torch.linalg.lstsq(carried - carried.mean(0), points.double().flatten(0, 1)).solution
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_regions_are_classes_at_the_centres_of_squares():
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        model.bias.zero_()
    extent = ((-2.0, 2.0), (-1.0, 1.0))
    found = decision_regions(model, extent, 8)
    assert (found.shape, found.dtype) == ((4, 8), torch.uint8)
    for row in range(4):
        for column in range(8):
            x, y = -2 + 0.5 * (column + 0.5), -1 + 0.5 * (row + 0.5)
            scores = [x, y, -x - y]
            assert scores[found[row, column]] == max(scores)
    assert found.unique().tolist() == [0, 1, 2]


def test_numbers_are_spread_from_end_to_end():
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(9, 3) == [0, 4, 8]
    assert spread(1, 3) == [0]
    for count in range(1, 200):
        chosen = spread(count, 65)
        assert len(set(chosen)) == len(chosen) == min(count, 65)
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_what_does_not_fit_is_refused(points):
    with pytest.raises(ConfigurationError, match="that of a StableNetwork; given a Linear"):
        Stability(points).final(nn.Linear(2, 2))
    real = Split(torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(ConfigurationError, match="class indices"):
        Stability(Dataset("linear", real, None, real))
    narrow = StableNetwork(2, 2, dynamics="euler", width=1, depth=2, opening="learned")
    with pytest.raises(ConfigurationError, match="at least 2 features"):
        trajectories(narrow, torch.randn(3, 2), [0])
    assert "trajectory/points" not in Stability(points).final(narrow)
    with pytest.raises(ConfigurationError, match="at least 1; given 0"):
        decision_regions(nn.Linear(2, 2), ((0.0, 1.0), (0.0, 1.0)), 0)
    broken = network_of("euler")
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(NumericError, match="feature of the network is not finite"):
        trajectories(broken, torch.randn(3, 2), [0, 6])
    with pytest.raises(NumericError, match="Jacobian of layer 0"):
        Stability(points).final(broken)
