"""Snapshots of networks against NumPy, against closed forms, and without a trace on the network."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.spectra import BINS, Spectra, weight_histogram
from synaptome.data.linear import linear_teacher
from synaptome.errors import ConfigurationError, NumericError
from synaptome.networks.feedforward import FeedForward


def svd(weight):
    u, s, vt = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    return u, s, vt.T


def test_a_snapshot_is_numpys():
    network = FeedForward([9, 7, 8, 4], activation="relu", wiring=syn.Failing(0.3)).double()
    probe = torch.randn(20, 9, dtype=torch.float64)
    found = Spectra(probe, modes=3, full=True).snapshot(network)
    weights = [layer.weight for layer in network.layers]
    modes = [svd(weight) for weight in weights]
    h = probe.numpy()
    for number, (weight, (u, s, _)) in enumerate(zip(weights, modes, strict=True), 1):
        w = weight.detach().numpy()
        key = f"layer{number}/"
        np.testing.assert_allclose(found[key + "norm"], np.sqrt((w**2).sum()))
        np.testing.assert_allclose(found[key + "singular_values"], s)
        np.testing.assert_allclose(found[key + "participation_ratio"], s.sum() ** 2 / (len(s) * (s**2).sum()))
        edge = np.abs(w).max()
        assert found[key + "histogram_edge"] == edge
        assert found[key + "histogram"].tolist() == np.histogram(w, BINS, (-edge, edge))[0].tolist()
        if number < 3:
            np.testing.assert_allclose(found[key + "overlap"], np.abs(modes[number][2][:, :3].T @ u[:, :3]), atol=1e-10)
            h = np.maximum(h @ w.T + network.layers[number - 1].bias.detach().numpy(), 0)
            np.testing.assert_allclose(found[key + "activity_mean"], h.mean())
            np.testing.assert_allclose(found[key + "activity_std"], h.std())
            assert found[key + "activity_silent"] == (h == 0).mean() > 0
    per_layer = ("norm", "singular_values", "participation_ratio", "histogram", "histogram_edge")
    hidden = ("overlap", "activity_mean", "activity_std", "activity_silent")
    expected = {f"layer{number}/{name}" for number in (1, 2, 3) for name in per_layer}
    assert set(found) == expected | {f"layer{number}/{name}" for number in (1, 2) for name in hidden}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("widths", [[9, 2, 8, 4], [300, 250, 2], [5, 1]])
def test_shapes_are_those_that_are_promised(full, widths):
    network = FeedForward(widths, activation="linear", bias=False)
    teacher = torch.randn(widths[-1], 1) @ torch.randn(1, widths[0])
    if widths[-1] > 1:
        teacher = teacher + torch.randn(widths[-1], 1) @ torch.randn(1, widths[0])
    rank = min(2, widths[-1])
    found = Spectra(torch.randn(5, widths[0]), teacher, modes=3, full=full, linear=True).snapshot(network)
    sizes = [min(pair) for pair in pairwise(widths)]
    leading = [min(3, size) for size in sizes]
    for number, size in enumerate(sizes, 1):
        values = found[f"layer{number}/singular_values"]
        assert values.shape == (size if full else leading[number - 1],)
        expected = svd(network.layers[number - 1].weight)[1][: len(values)]
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        every = svd(network.layers[number - 1].weight)[1]
        ratio = every.sum() ** 2 / (size * (every**2).sum())
        np.testing.assert_allclose(found[f"layer{number}/participation_ratio"], ratio, rtol=1e-4)
        if number < len(sizes):
            assert found[f"layer{number}/overlap"].shape == (leading[number], leading[number - 1])
        for name in ("norm", "histogram_edge"):
            assert found[f"layer{number}/{name}"].shape == ()
        assert found[f"layer{number}/histogram"].dtype == torch.int64
    assert found["teacher/left"].shape == (leading[-1], rank)
    assert found["teacher/right"].shape == (leading[0], rank)
    product = min(3, widths[0], widths[-1])
    assert found["product/singular_values"].shape == (product,)
    assert found["product/left"].shape == found["product/right"].shape == (product, rank)
    assert all(tensor.device.type == "cpu" for tensor in found.values())


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_has_learned_its_teacher_overlaps_with_it_fully(d, dtype):
    """Balanced layers W_l = Q_l S^(1/L) Q_{l-1}', whose product is the teacher: every overlap is the identity."""
    teacher = torch.from_numpy(linear_teacher(200, d))
    u, s, v = svd(teacher)
    frames = [v, *(np.linalg.qr(np.random.default_rng(n).normal(size=(n, d)))[0] for n in (150, 180)), u]
    network = FeedForward([200, 150, 180, d], activation="linear", bias=False)
    for layer, below, above in zip(network.layers, frames, frames[1:], strict=False):
        layer.weight.data = torch.from_numpy(above * s ** (1 / 3) @ below.T)
    found = Spectra(torch.randn(3, 200, dtype=dtype), teacher.float(), modes=4, linear=True).snapshot(network.to(dtype))
    np.testing.assert_allclose(found["teacher/left"], np.eye(d), atol=1e-5)
    for key in ("teacher/right", "layer2/overlap"):
        np.testing.assert_allclose(found[key][:d, :d], np.eye(d), atol=1e-5)
    np.testing.assert_allclose(found["layer1/overlap"][:d, :d], np.eye(d), atol=1e-5)
    np.testing.assert_allclose(found["product/singular_values"], [1, 0.2][:d], rtol=1e-5)
    np.testing.assert_allclose(found["product/left"], np.eye(d), atol=1e-5)
    np.testing.assert_allclose(found["product/right"], np.eye(d), atol=1e-5)
    assert found["layer1/singular_values"][d:].max() < 200 * torch.finfo(dtype).eps  # the rounding of an SVD


def test_the_left_overlap_is_right_for_two_outputs():
    """Upstream's `U U*'` mixes rows of different meaning where d > 1: U here is a rotation by a known angle from U*."""
    angle = 0.4
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    teacher = torch.from_numpy(linear_teacher(10, 2))
    u, s, v = svd(teacher)
    network = FeedForward([10, 2], activation="linear", bias=False).double()
    network.layers[0].weight.data = torch.from_numpy(rotation @ u * s @ v.T)
    found = Spectra(torch.randn(3, 10).double(), teacher, linear=True).snapshot(network)
    np.testing.assert_allclose(found["teacher/left"], np.abs(u.T @ rotation.T @ u), atol=1e-12)
    np.testing.assert_allclose(found["teacher/right"], np.eye(2), atol=1e-12)


def test_final_measures_are_numpys():
    network = FeedForward([200, 150, 12], activation="relu")
    probe, teacher = torch.randn(30, 200), torch.from_numpy(linear_teacher(200, 2))
    found = Spectra(probe, None, modes=2).final(network)
    (u1, s1, _), (_, s2, v2) = (svd(layer.weight) for layer in network.layers)
    np.testing.assert_allclose(found["layer1/singular_values"], s1, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["layer2/singular_values"], s2, rtol=1e-4)
    assert found["layer1/overlap"].shape == (12, 150)
    np.testing.assert_allclose(found["layer1/overlap"][:, :20], np.abs(v2.T @ u1)[:, :20], atol=1e-3)
    h = np.maximum(probe.numpy() @ network.layers[0].weight.detach().numpy().T, 0)
    np.testing.assert_allclose(found["layer1/activity"], np.sqrt((h**2).mean(0)), rtol=1e-4)
    X = probe.double().numpy()
    np.testing.assert_allclose(found["input/covariance"], X.T @ X / 30, atol=1e-5)
    np.testing.assert_allclose(found["input/spectrum"], np.linalg.eigvalsh(X.T @ X / 30)[::-1], atol=1e-5)
    assert found["layer2/histogram"].sum() == 150 * 12
    assert "teacher/singular_values" not in found
    linear = FeedForward([200, 2])
    np.testing.assert_allclose(Spectra(probe, teacher).final(linear)["teacher/singular_values"], [1, 0.2], rtol=1e-6)
    wide = Spectra(torch.randn(2, 1025)).final(nn.Linear(1025, 2))
    assert "input/covariance" not in wide
    assert wide["input/spectrum"].shape == (1025,)


@pytest.mark.parametrize("inference", ["expected", "noisy", "mc(4)"])
def test_measuring_leaves_no_trace(inference):
    network = FeedForward([150, 140, 3], wiring=syn.Failing(0.5, inference))
    network(torch.randn(2, 150))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random, numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    spectra = Spectra(torch.randn(4, 150, generator=torch.Generator()), modes=2)
    first, again = spectra.snapshot(network), spectra.snapshot(network)
    spectra.final(network)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert np.random.get_state()[1].tolist() == numpy


def test_histogram_counts_every_weight_once():
    weight = torch.randn(30, 20)
    counts, edge = weight_histogram(weight)
    assert counts.sum() == 600
    assert counts.shape == (BINS,)
    assert edge == weight.abs().max()
    assert weight_histogram(-weight)[0].tolist() == counts.flip(0).tolist()
    assert weight_histogram(torch.tensor([[1.0, 0.0, 0.0, -1.0]]))[0].nonzero().flatten().tolist() == [0, 20, 40]
    counts, edge = weight_histogram(torch.zeros(3, 4))
    assert (counts[20], counts.sum(), edge) == (12, 12, 0)


def test_what_cannot_be_measured_is_refused():
    probe = torch.randn(2, 4)
    with pytest.raises(ConfigurationError, match="at least 1 mode and 1 probe; given 0 and 2"):
        Spectra(probe, modes=0)
    with pytest.raises(ConfigurationError, match="given 8 and 0"):
        Spectra(probe[:0])
    with pytest.raises(ConfigurationError, match="the teacher is zero"):
        Spectra(probe, torch.zeros(2, 4))
    with pytest.raises(ConfigurationError, match=r"teacher of this network is \[3, 4\].*given \[2, 4\]"):
        Spectra(probe, torch.ones(2, 4)).snapshot(nn.Linear(4, 3))
    with pytest.raises(ConfigurationError, match=r"given \[3, 4\], \[2, 6\]"):
        Spectra(probe).snapshot(nn.Sequential(nn.Linear(4, 3), nn.Linear(6, 2)))
    with pytest.raises(ConfigurationError, match="given none"):
        Spectra(probe).snapshot(nn.ReLU())
    broken = FeedForward([4, 3, 2])
    broken.layers[1].weight.data[0, 0] = torch.inf
    with pytest.raises(NumericError, match="weights of layer 2 are not finite"):
        Spectra(probe).snapshot(broken)
