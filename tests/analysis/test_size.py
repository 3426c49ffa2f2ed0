"""Counts of parameters, synapses, and synapses at work."""

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.size import count_synapses
from synaptome.networks.complete import Sizes
from synaptome.networks.population import Population
from synaptome.networks.stable import StableNetwork


@pytest.mark.parametrize(
    ("layer", "synapses", "active"),
    [
        (nn.Linear(6, 4), 24, 24),
        (syn.FailingLinear(6, 4, failure=0.25), 24, 18),
        (syn.FailingConv2d(4, 6, (3, 2), groups=2, failure=0.5), 6 * 2 * 6, 36),
        (syn.FailingRNNCell(5, 4, failure=0.25), 20 + 16, 20 + 12),  # those from the input do not fail
        (syn.FailingRNN(5, 4, bias=False, failure=0.25), 20 + 16, 20 + 12),
    ],
)
def test_active_synapses_are_those_that_do_not_fail(layer, synapses, active):
    biases = sum(p.numel() for p in layer.parameters() if p.dim() == 1)
    assert count_synapses(layer) == (synapses + biases, synapses, active)


def test_sparse_layers_count_by_their_connections():
    model = nn.Sequential(syn.SparseLinear(30, 20, nnz=77), nn.ReLU(), syn.SparseLinear(20, 4, nnz=0, bias=False))
    assert count_synapses(model) == (77 + 20, 77, 77)
    failing = syn.FailingSparseLinear(30, 20, failure=0.25, nnz=80)
    assert count_synapses(failing) == (80 + 20, 80, 60)
    full = syn.SparseLinear(6, 4, density=1.0)
    assert count_synapses(full) == count_synapses(full.to_dense()) == (28, 24, 24)


def test_a_shared_layer_counts_once_and_the_frozen_are_synapses_too():
    layer = syn.FailingLinear(6, 4, failure=0.25)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 6), layer)
    model[2].weight.requires_grad_(False)
    assert count_synapses(model) == (24 + 4 + 6, 48, 42)
    assert count_synapses(nn.Sequential(nn.Flatten(), nn.PReLU())) == (1, 0, 0)


def test_a_learned_synapse_is_a_weight_and_its_score_and_counts_once():
    pruned = syn.LearnedLinear(6, 5, method="free-pruning")
    pruned.set_mask(torch.arange(30).view(5, 6) % 3 > 0)
    trained = syn.LearnedLinear(5, 4, False, method="free-flipping", train_weights=True)
    count = count_synapses(nn.Sequential(pruned, trained))
    assert count == (30 + 5 + 2 * 20, 30 + 20, 20 + 20)  # scores, biases, and weights that are trained as well
    failing = syn.rewire(nn.Sequential(pruned), syn.Failing(0.25))
    assert count_synapses(failing).active == 15


def test_biases_of_many_layers_are_no_synapses():
    network = StableNetwork(4, 3, dynamics="verlet", width=4, depth=5, opening="pad")
    count = count_synapses(network)
    assert count.parameters == 5 * (16 + 4) + 12 + 3
    assert count.synapses == count.active == 5 * 16 + 12


def test_connections_that_a_population_has_removed_are_not_at_work():
    population = Population([0, 1], Sizes(3, 5, 1), bias=True)
    population.present[0, :7] = False
    count = count_synapses(population)
    connections = 2 * (9 * 8 - 3 * 8)  # into the six free neurons, from all others
    assert count == (connections + 2 * 6, connections, connections - 7)
