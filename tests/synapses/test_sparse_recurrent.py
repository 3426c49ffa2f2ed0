"""SparseRecurrent: the promises of a synapse, its graph without loops, and where its eigenvalues are."""

import pytest
import torch
from torch import nn

from synaptome.analysis.size import count_synapses
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.synapses.sparse_recurrent import SparseRecurrent
from synaptome.topology.evolution import Evolution

EDGES = ([0, 2, 2, 4], [4, 0, 3, 1])  # targets and sources; neurons 1 and 3 get nothing


def edges_of(layer):
    return list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))


@pytest.mark.parametrize("options", [{"density": 0.3}, {"edges": EDGES}, {"nnz": 0}, {"density": 1.0}], ids=str)
def test_conformance(options):
    check_synapse(lambda: SparseRecurrent(6, **options))


@pytest.mark.parametrize(("options", "nnz"), [({"density": 0.05}, 495), ({"nnz": 77}, 77), ({"density": 1.0}, 9900)])
def test_the_number_of_connections_is_exact_and_no_neuron_is_its_own(options, nnz):
    torch.manual_seed(0)
    layer = SparseRecurrent(100, **options)
    assert layer.nnz == len(set(edges_of(layer))) == nnz
    assert layer.density == nnz / 9900
    assert edges_of(layer) == sorted(edges_of(layer))
    assert all(target != source for target, source in edges_of(layer))
    assert count_synapses(layer) == (nnz, nnz, nnz)


def test_every_place_but_those_of_loops_is_as_likely():
    torch.manual_seed(0)
    count = torch.zeros(6, 6)
    for _ in range(900):
        layer = SparseRecurrent(6, nnz=10)
        count[layer.row_of, layer.col] += 1
    assert (count.diagonal() == 0).all()
    others = count[~torch.eye(6, dtype=torch.bool)]
    assert (others - 300).abs().max() < 5 * (900 * 1 / 3 * 2 / 3) ** 0.5  # five standard deviations


@pytest.mark.parametrize("radius", [0.5, 2.0])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_the_eigenvalues_fill_a_disc_of_the_radius(radius, density):
    torch.manual_seed(1)
    layer = SparseRecurrent(1000, density=density, radius=radius)
    sizes = torch.linalg.eigvals(layer.to_dense().weight.detach()).abs() / radius
    assert sizes.max().item() == pytest.approx(1, abs=0.1)
    # Uniform over the disc: half of them are within 1/sqrt(2) of its radius.
    assert sizes.median().item() == pytest.approx(0.5**0.5, abs=0.05)


def test_new_connections_are_drawn_as_those_that_it_started_with():
    layer = SparseRecurrent(500, density=0.1, radius=0.7)
    drawn = layer.initial_values(torch.zeros(20_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert drawn.std().item() == pytest.approx(0.7 / (0.1 * 499) ** 0.5, rel=0.02)


def test_there_and_back_through_a_dense_layer():
    layer = SparseRecurrent(6, density=0.4)
    dense = layer.to_dense()
    again = SparseRecurrent.from_dense(dense)
    assert edges_of(again) == edges_of(layer)
    assert torch.equal(again.values, layer.values)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[3, 2] = True
    assert edges_of(SparseRecurrent.from_dense(dense, mask)) == [(3, 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseRecurrent(1, density=0.5), "connected with others are at least 2, a whole number; given 1"),
        (lambda: SparseRecurrent(5), "takes exactly one of density, nnz, edges; given none"),
        (lambda: SparseRecurrent(5, density=1.5), r"share of all places in \(0, 1\]; given 1.5"),
        (lambda: SparseRecurrent(5, nnz=21), "from 0 to out_features \\* in_features = 20; given 21"),
        (lambda: SparseRecurrent(5, density=0.1, radius=0.0), "a number above 0; given 0.0"),
        (lambda: SparseRecurrent(5, edges=([1, 2], [0, 2])), "from a neuron to itself; given 2 to 2"),
        (lambda: SparseRecurrent(5, edges=([1, 5], [0, 2])), "edge 1 has output 5; outputs go from 0 to 4"),
        (lambda: SparseRecurrent.from_dense(nn.Linear(3, 4, bias=False)), "a square weight without a bias; given Line"),
        (lambda: SparseRecurrent.from_dense(nn.Linear(3, 3)), "a square weight without a bias"),
        (lambda: SparseRecurrent.from_dense(nn.Linear(3, 3, bias=False)), "a neuron to itself; given 0 to 0"),
    ],
)
def test_what_is_no_layer(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_loop_is_refused_when_connections_are_replaced_or_loaded():
    layer = SparseRecurrent(5, edges=EDGES)
    before, nothing = layer.to_dense().weight, torch.zeros(4, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match="from a neuron to itself; given 3 to 3"):
        layer.replace(nothing, torch.tensor([1, 3]), torch.tensor([0, 3]), torch.zeros(2))
    assert torch.equal(layer.to_dense().weight, before)
    layer.replace(nothing, torch.tensor([1, 3]), torch.tensor([0, 2]), torch.ones(2))
    assert edges_of(layer) == [(0, 4), (1, 0), (2, 0), (2, 3), (3, 2), (4, 1)]
    state = layer.state_dict()
    state["col"] = torch.tensor([4, 1, 0, 3, 2, 1], dtype=torch.int32)
    with pytest.raises(ConfigurationError, match="from a neuron to itself; given 1 to 1"):
        SparseRecurrent(5, edges=EDGES).load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"drop": "set"},
        {"grow": "random-unfired", "initial": "distribution"},
        {"grow": "gradient"},
        {"drop": "taylor", "grow": "momentum"},
    ],
    ids=str,
)
def test_it_evolves_until_it_is_nearly_full_and_never_grows_a_loop(options):
    torch.manual_seed(0)
    layer = SparseRecurrent(8, nnz=52)  # of 56 places
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    evolution = Evolution(layer, optimizer, fraction=0.5, track_visited=True, **options)
    replaced = 0
    for _ in range(12):
        optimizer.zero_grad()
        layer(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        replaced += evolution.step()  # a loop would be refused
    assert replaced >= 12
    assert layer.nnz == len(set(edges_of(layer))) == 52
    assert evolution.itop_rate() == 1  # every place was visited, and those of loops do not count
