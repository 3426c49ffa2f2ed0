"""Statistics of connections against dense masks, sets of places, and maps that were planted."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import synaptome as syn
from synaptome.analysis.wiring import (
    Connections,
    centred_means,
    degree_bins,
    degree_distribution,
    degree_edges,
    in_degrees,
    initial_present,
    out_degrees,
    pixel_map,
    signs,
)
from synaptome.errors import ConfigurationError
from synaptome.topology.layers import occupied


def layer_of(mask):
    """A sparse layer with the connections of a bool matrix `[out, in]`."""
    row, col = np.nonzero(mask)
    edges = torch.from_numpy(row), torch.from_numpy(col)
    return syn.SparseLinear(mask.shape[1], mask.shape[0], edges=edges)


@st.composite
def masks(draw):
    out, inputs = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 99))).random((out, inputs)) < density


@given(masks())
@settings(max_examples=60, deadline=None)
def test_degrees_are_the_sums_of_the_mask(mask):
    layer = layer_of(mask)
    np.testing.assert_array_equal(out_degrees(layer), mask.sum(0))
    np.testing.assert_array_equal(in_degrees(layer), mask.sum(1))
    for degrees, largest in ((mask.sum(0), mask.shape[0]), (mask.sum(1), mask.shape[1])):
        found = degree_distribution(torch.from_numpy(degrees), largest)
        edges = degree_edges(len(found)).numpy()
        np.testing.assert_array_equal(found, np.histogram(degrees, np.append(edges[:-1], edges[-1] - 0.5))[0])
        assert edges[-2] <= largest < edges[-1]


def test_every_degree_has_one_bin_of_its_own_or_of_a_sixteenth_of_its_size():
    edges = degree_edges(degree_bins(2**40))
    assert edges[:36].tolist() == [*range(33), 34, 36, 38]
    widths = edges.diff()
    assert (widths > 0).all()
    assert (widths <= torch.maximum(edges[:-1] // 16, torch.ones_like(widths))).all()
    for degree in [*range(3000), *(2**k + off for k in range(12, 40) for off in (-1, 0, 1))]:
        place = degree_bins(degree) - 1
        assert edges[place] <= degree < edges[place + 1]
    assert degree_bins(1_000_000) == 271


def test_a_planted_map_is_found_and_its_profile_falls_with_the_side():
    mask = np.zeros((6, 10, 8), dtype=bool)
    mask[:, 3:7, 2:6] = True  # the centred square of side 4
    layer = layer_of(mask.reshape(6, 80))
    pixels = pixel_map(layer, (10, 8))
    np.testing.assert_array_equal(pixels, mask.sum(0)[None])
    sides, means = centred_means(pixels)
    assert sides.tolist() == [2, 4, 6, 8]
    assert means.tolist() == pytest.approx([6, 6, 6 * 16 / 36, 6 * 16 / 64])


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_centred_means_are_those_over_pixels_near_the_middle(channels, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 50, (channels, height, width))
    sides, means = centred_means(torch.from_numpy(pixels))
    shorter = min(height, width)
    assert sides.tolist() == list(range(1 if shorter % 2 else 2, shorter + 1, 2))
    for side, mean in zip(sides.tolist(), means.tolist(), strict=True):
        # A pixel's middle is less than half a side from the square's, which is up to half a pixel before the image's.
        centre_y, centre_x = ((size - (size - side) % 2) / 2 for size in (height, width))
        y, x = np.mgrid[:height, :width] + 0.5
        inside = (abs(y - centre_y) < side / 2) & (abs(x - centre_x) < side / 2)
        assert inside.sum() == side**2
        assert mean == pytest.approx(pixels[:, inside].mean())
    if not channels - 1:
        torch.testing.assert_close(means, centred_means(torch.from_numpy(pixels[0]))[1])


@pytest.mark.parametrize("shape", [(80,), (8, 9), (1, 1, 8, 10), (3, 8, 10)])
def test_shapes_that_are_no_map_of_the_layer_are_refused(shape):
    with pytest.raises(ConfigurationError, match=r"each of the layer's 80 inputs; given \["):
        pixel_map(syn.SparseLinear(80, 3, nnz=9), shape)


def test_a_connection_that_grew_back_counts_as_present_and_others_do_not():
    layer = syn.SparseLinear(4, 3, edges=torch.tensor([[0, 0, 1, 2], [0, 3, 1, 2]]))
    initial = occupied(layer)
    none = torch.empty(0, dtype=torch.int64)
    layer.replace(torch.tensor([True, True, False, False]), none, none, torch.empty(0))
    assert initial_present(layer, initial) == 0.5
    layer.replace(torch.tensor([False, False]), torch.tensor([0, 1]), torch.tensor([3, 3]), torch.zeros(2))
    assert initial_present(layer, initial) == 0.75  # (0, 3) is there again; (1, 3) was not
    assert initial_present(layer, none) == 1


def test_signs_are_counted_with_zeros_apart():
    assert signs(torch.tensor([0.5, -0.0, 0.0, -2.0, 1e-30, 3.0])).tolist() == [1, 2, 3]
    assert signs(torch.empty(0)).tolist() == [0, 0, 0]


def evolving():
    model = nn.Sequential(
        nn.Flatten(), syn.SparseLinear(36, 20, nnz=200), nn.ReLU(), nn.Linear(20, 20), syn.SparseLinear(20, 5, nnz=30)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, syn.Evolution(model, optimizer, track_visited=True, seed=3)


def places(layer):
    return set(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))


def test_snapshots_follow_an_evolution_as_sets_of_places_do():
    model, optimizer, evolution = evolving()
    connections = Connections(model, (6, 6), evolution)
    layers = {1: model[1], 3: model[4]}  # the dense layer between them is number 2
    initial = {number: places(layer) for number, layer in layers.items()}
    visited = {number: set(found) for number, found in initial.items()}
    first = connections.snapshot(model)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 6, 6)).square().mean().backward()
        optimizer.step()
        evolution.step()
        for number, layer in layers.items():
            visited[number] |= places(layer)
    found = connections.snapshot(model)
    for number, layer in layers.items():
        size = layer.in_features, layer.out_features
        dense = layer.to_dense().weight.detach()
        mask = torch.zeros(size[::-1], dtype=torch.bool)
        mask[tuple(zip(*places(layer), strict=True))] = True
        assert torch.equal(found[f"layer{number}/in_degree"], degree_distribution(mask.sum(1), size[0]))
        assert torch.equal(found[f"layer{number}/out_degree"], degree_distribution(mask.sum(0), size[1]))
        present = len(places(layer) & initial[number]) / len(initial[number])
        assert 0 < present < 1
        assert found[f"layer{number}/initial_present"] == present
        positive, negative = int((dense > 0).sum()), int((dense < 0).sum())
        assert found[f"layer{number}/signs"].tolist() == [negative, layer.nnz - positive - negative, positive]
    assert found["input/connections"].shape == (1, 6, 6)
    assert found["input/connections"].flatten().tolist() == out_degrees(model[1]).tolist()
    rate = sum(map(len, visited.values())) / (36 * 20 + 20 * 5)
    assert found["itop_rate"] == pytest.approx(rate)
    final = connections.final(model)
    assert set(final) == {*found, *(f"start/{name}" for name in found)}
    for name, tensor in found.items():
        assert torch.equal(final[name], tensor)
        assert torch.equal(final[f"start/{name}"], first[name])
    assert not torch.equal(final["start/input/connections"], final["input/connections"])


@pytest.mark.parametrize(
    ("layers", "shape", "mapped"),
    [
        ([syn.SparseLinear(48, 5, nnz=9)], (3, 4, 4), True),
        ([nn.BatchNorm1d(48), syn.SparseLinear(48, 5, nnz=9)], (6, 8), True),
        ([syn.SparseLinear(48, 5, nnz=9)], (48,), False),
        ([syn.SparseLinear(48, 5, nnz=9)], (7, 7), False),
        ([nn.Linear(48, 48), syn.SparseLinear(48, 5, nnz=9)], (6, 8), False),  # its inputs are no pixels
        ([syn.SparseLinear(129 * 128, 5, nnz=9)], (129, 128), False),  # too large to keep
    ],
)
def test_pixels_are_mapped_where_a_sparse_layer_sits_on_them(layers, shape, mapped):
    model = nn.Sequential(*layers)
    assert ("input/connections" in Connections(model, shape).snapshot(model)) is mapped


def test_nothing_is_measured_of_dense_layers():
    model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    connections = Connections(model, (3, 3))
    assert connections.snapshot(model) == connections.final(model) == {}


def test_another_model_and_an_evolution_without_memory_are_refused():
    model, optimizer, _ = evolving()
    with pytest.raises(ConfigurationError, match="track_visited=True"):
        Connections(model, (6, 6), syn.Evolution(model, optimizer))
    other = nn.Sequential(nn.Linear(4, 4), syn.SparseLinear(4, 2, nnz=3))
    with pytest.raises(ConfigurationError, match="layer 1 of 20 x 36, layer 3 of 5 x 20; it now has layer 2 of 2 x 4"):
        Connections(model, (6, 6)).snapshot(other)


def test_a_layer_of_a_million_neurons_takes_kilobytes_and_no_matrix():
    model = nn.Sequential(syn.SparseLinear(1_000_000, 1_000_000, nnz=300_000))
    connections = Connections(model, (1000, 1000))
    started = time.perf_counter()
    found = connections.snapshot(model)
    assert time.perf_counter() - started < 5
    assert sum(tensor.nbytes for tensor in found.values()) < 10_000
    counts = found["layer1/in_degree"]
    assert counts.sum() == 1_000_000
    expected = [1_000_000 * math.exp(-0.3) * 0.3**k / math.factorial(k) for k in range(4)]  # Poisson, the mean is 0.3
    assert counts[:4].tolist() == pytest.approx(expected, rel=0.05)
