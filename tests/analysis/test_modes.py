"""Singular modes against NumPy and against matrices made with known modes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.modes import (
    linear_layers,
    overlap,
    participation_ratio,
    product_modes,
    rank,
    singular_modes,
)
from synaptome.errors import ConfigurationError


def orthonormal(n, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, k)))[0]


def made(out, inputs, strengths):
    """A matrix with known modes."""
    U, V = orthonormal(out, len(strengths), 1), orthonormal(inputs, len(strengths), 2)
    return U, np.array(strengths), V, torch.from_numpy(U * strengths @ V.T)


def test_layers_come_in_the_order_of_their_numbers():
    layers = {f"layer{n}": nn.Linear(n, n) for n in (10, 2, 1, 11, 3)}  # as a listing of a folder gives them
    model = nn.ModuleDict({**layers, "head": nn.Linear(12, 1)})
    assert [layer.in_features for layer in linear_layers(model)] == [1, 2, 3, 10, 11, 12]
    nested = nn.ModuleDict({"b": nn.Sequential(*[nn.Linear(1, n) for n in range(1, 13)]), "a": nn.Linear(1, 13)})
    assert [layer.out_features for layer in linear_layers(nested)] == list(range(1, 14))  # b before a, as held
    assert linear_layers(syn.rewire(nested, syn.Failing(0.5)))[3].out_features == 4
    assert linear_layers(nn.Conv2d(1, 1, 3)) == []


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6), (200, 150), (150, 200), (170, 170)])
@pytest.mark.parametrize("k", [None, 3])
def test_modes_are_numpys(shape, k):
    W = torch.randn(shape, dtype=torch.float64)
    U, s, V = singular_modes(W, k)
    u, strengths, vt = np.linalg.svd(W.numpy(), full_matrices=False)
    count = min(shape) if k is None else min(k, *shape)
    assert (U.shape, s.shape, V.shape) == ((shape[0], count), (count,), (shape[1], count))
    np.testing.assert_allclose(s, strengths[:count], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(U.numpy() * u[:, :count], 0)), 1, atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(V.numpy() * vt[:count].T, 0)), 1, atol=1e-10)
    np.testing.assert_allclose((W @ V).numpy(), (U * s).numpy(), atol=1e-12)  # U and V agree in sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_leading_modes_of_a_large_matrix_of_low_rank(dtype, shape):
    """By the Gram matrix, where squares lose half of the digits: strengths of 1e-3 of the first keep theirs."""
    U, strengths, V, W = made(*shape, [10.0, 2.0, 0.01])
    modes = singular_modes(W.to(dtype), 8)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    np.testing.assert_allclose(modes.s[:3], strengths, rtol=tolerance)
    assert modes.s[3:].max() < 1e-6
    np.testing.assert_allclose(overlap(modes.U.double(), torch.from_numpy(U))[:3], np.eye(3), atol=tolerance)
    np.testing.assert_allclose(overlap(modes.V.double(), torch.from_numpy(V))[:3], np.eye(3), atol=tolerance)
    for vectors in (modes.U, modes.V):  # the modes of strength 0 included
        np.testing.assert_allclose(vectors.mT @ vectors, np.eye(8), atol=1e-5)


def test_modes_take_no_random_number_and_are_the_same_each_time():
    W = torch.randn(200, 200)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = singular_modes(W, 8)
    for other in (singular_modes(W, 8), singular_modes(torch.cat((torch.zeros(3, 200), W))[3:], 8)):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("size", [5, 200])
def test_a_zero_matrix_has_modes_of_strength_zero(size):
    modes = singular_modes(torch.zeros(size, size), 4)
    assert modes.s.tolist() == [0.0] * 4
    np.testing.assert_allclose(modes.U.mT @ modes.U, np.eye(4), atol=1e-6)
    assert rank(modes) == 0


def test_narrow_dtypes_are_widened():
    W = torch.randn(6, 4).bfloat16()
    modes = singular_modes(W)
    assert modes.s.dtype == torch.float32
    np.testing.assert_allclose(modes.s, np.linalg.svd(W.float().numpy(), compute_uv=False), rtol=1e-5)


def test_what_has_no_modes_is_refused():
    with pytest.raises(ConfigurationError, match=r"given \[3\] and None"):
        singular_modes(torch.ones(3))
    with pytest.raises(ConfigurationError, match=r"at least 1; given .* and 0"):
        singular_modes(torch.ones(3, 3), 0)


def test_overlap_is_the_cosine_whatever_the_sign():
    angle = 0.3
    first = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    second = torch.tensor([[np.cos(angle)], [np.sin(angle)], [0.0]], dtype=torch.float64)
    np.testing.assert_allclose(overlap(first, second), [[np.cos(angle)], [np.sin(angle)]], rtol=1e-6)


@pytest.mark.parametrize("widths", [[7, 5, 3], [200, 150, 180, 160], [4, 6]])
def test_modes_of_a_product_are_those_of_the_matrix(widths):
    weights = [torch.randn(out, into, dtype=torch.float64) for into, out in pairwise(widths)]
    product = np.eye(widths[0])
    for weight in weights:
        product = weight.numpy() @ product
    modes = product_modes(weights, 2)
    u, s, vt = np.linalg.svd(product)
    np.testing.assert_allclose(modes.s, s[:2], rtol=1e-10)
    np.testing.assert_allclose(overlap(modes.U, torch.from_numpy(u[:, :2])), np.eye(2), atol=1e-7)
    np.testing.assert_allclose(overlap(modes.V, torch.from_numpy(vt[:2].T)), np.eye(2), atol=1e-7)


def test_rank_counts_modes_above_rounding():
    for strengths in ([1.0], [1.0, 0.2], [3.0, 2.0, 1e-4]):
        W = made(20, 30, strengths)[3]
        assert rank(singular_modes(W.float())) == len(strengths) == np.linalg.matrix_rank(W.numpy())


def test_participation_ratio_counts_the_modes_that_take_part():
    ratio = lambda *values: participation_ratio(torch.tensor(values)).item()  # noqa: E731
    assert ratio(2.0, 2.0, 2.0, 2.0) == pytest.approx(1)
    assert ratio(5.0, 0.0, 0.0, 0.0) == pytest.approx(1 / 4)
    assert ratio(3.0, 3.0, 0.0, 0.0) == pytest.approx(2 / 4)
    assert ratio(3.0, 1.0) == pytest.approx(16 / (2 * 10))
    assert ratio(0.0, 0.0) == 0
    assert ratio(1e-30, 1e-30) == pytest.approx(1)  # whose squares are 0 in float32
