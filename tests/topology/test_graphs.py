"""Graphs to start from: exact counts, uniform over all graphs (by enumeration), cheap for millions of neurons."""

import itertools
import math
import subprocess
import sys

import networkx
import pytest
import torch
from scipy import stats

from synaptome.errors import ConfigurationError
from synaptome.topology import graphs

LEVEL = 1e-6  # of every chi-square test: a right sampler fails one in a million seeds, and the seeds are fixed


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def edges(graph):
    return frozenset(zip(graph[0].tolist(), graph[1].tolist(), strict=True))


def check_graph(graph, out_features, in_features, nnz):
    row, col = graph
    assert row.dtype == col.dtype == torch.int64
    assert row.shape == col.shape == (nnz,)
    listed = list(zip(row.tolist(), col.tolist(), strict=True))
    assert listed == sorted(set(listed))
    assert all(0 <= o < out_features and 0 <= i < in_features for o, i in listed)


def check_uniform(draw, outcomes, draws):
    """Chi-square of how often each of the possible outcomes is drawn."""
    counts = dict.fromkeys(outcomes, 0)
    for _ in range(draws):
        counts[draw()] += 1  # a KeyError is an outcome that cannot be
    assert len(counts) == 1 or stats.chisquare(list(counts.values())).pvalue > LEVEL


def all_graphs(out_features, in_features, nnz):
    places = list(itertools.product(range(out_features), range(in_features)))
    return [frozenset(chosen) for chosen in itertools.combinations(places, nnz)]


@pytest.mark.parametrize("nnz", [0, 1, 3, 5, 6])
def test_erdos_renyi_is_uniform_over_all_graphs(nnz):
    generator = seeded(nnz)
    outcomes = all_graphs(2, 3, nnz)
    check_uniform(lambda: edges(graphs.erdos_renyi(2, 3, nnz, generator)), outcomes, 100 * len(outcomes))


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 1, 1), (7, 5, 0), (7, 5, 17), (7, 5, 18), (7, 5, 35), (1, 90, 40)])
def test_erdos_renyi_has_exactly_so_many_connections(shape):
    for seed in range(5):
        check_graph(graphs.erdos_renyi(*shape, seeded(seed)), *shape)


def test_erdos_renyi_reaches_places_beyond_32_bits():
    row, col = graphs.erdos_renyi(10**6, 10**7, 4000, seeded())
    places = (row * 10**7 + col).double() / 1e13
    assert stats.kstest(places.numpy(), "uniform").pvalue > LEVEL
    assert stats.kstest((col.double() / 1e7).numpy(), "uniform").pvalue > LEVEL


@pytest.mark.parametrize("fan_in", [0, 1, 2, 3])
def test_fixed_fan_in_is_uniform_and_independent_by_output(fan_in):
    generator = seeded(fan_in)
    of_one = list(itertools.combinations(range(3), fan_in))
    outcomes = [
        frozenset((o, i) for o, chosen in enumerate(both) for i in chosen)
        for both in itertools.product(of_one, repeat=2)
    ]
    check_uniform(lambda: edges(graphs.fixed_fan_in(2, 3, fan_in, generator)), outcomes, 200 * len(outcomes))


@pytest.mark.parametrize("fan_in", [0, 1, 4, 8, 9])
def test_fixed_fan_in_has_exactly_so_many_inputs(fan_in):
    graph = graphs.fixed_fan_in(50, 9, fan_in, seeded())
    check_graph(graph, 50, 9, 50 * fan_in)
    assert (torch.bincount(graph[0], minlength=50) == fan_in).all()


@pytest.mark.parametrize(("out_features", "in_features", "nnz"), [(6, 6, 12), (5, 12, 17), (12, 5, 17), (4, 3, 12)])
def test_a_small_world_without_rewiring_connects_the_nearest_on_the_ring(out_features, in_features, nnz):
    graph = graphs.small_world(out_features, in_features, nnz, 0.0, seeded())
    check_graph(graph, out_features, in_features, nnz)
    fan_in = torch.bincount(graph[0], minlength=out_features)
    assert fan_in.max() - fan_in.min() <= 1
    connected = edges(graph)
    for o in range(out_features):
        # In units in which all distances on the ring are whole numbers.
        ring = 2 * out_features * in_features
        distance = []
        for i in range(in_features):
            apart = abs((2 * o + 1) * in_features - (2 * i + 1) * out_features) % ring
            distance.append(min(apart, ring - apart))
        chosen = [distance[i] for i in range(in_features) if (o, i) in connected]
        assert sorted(chosen) == sorted(distance)[: len(chosen)]


def test_a_wholly_rewired_small_world_is_uniform_given_its_fan_ins():
    generator = seeded(4)
    fan_in = torch.bincount(graphs.small_world(2, 4, 3, 0.0)[0], minlength=2).tolist()
    outcomes = [
        frozenset([*((0, i) for i in first), *((1, i) for i in second)])
        for first in itertools.combinations(range(4), fan_in[0])
        for second in itertools.combinations(range(4), fan_in[1])
    ]
    check_uniform(lambda: edges(graphs.small_world(2, 4, 3, 1.0, generator)), outcomes, 100 * len(outcomes))


def test_a_small_world_rewires_the_share_that_is_asked_for():
    lattice = edges(graphs.small_world(400, 300, 8000, 0.0))
    rewired = graphs.small_world(400, 300, 8000, 0.25, seeded(1))
    check_graph(rewired, 400, 300, 8000)
    assert (torch.bincount(rewired[0], minlength=400) == 20).all()
    # A rewired connection is back in a place of the lattice with probability about 5 / 285.
    moved = 8000 - len(lattice & edges(rewired))
    expected = 8000 * 0.25 * (1 - 5 / 285)
    assert abs(moved - expected) < 5 * math.sqrt(expected * 0.75)


def test_a_small_world_is_clustered_and_yet_short():
    """Watts & Strogatz 1998, figure 2: a little rewiring shortens the paths and leaves the clusters."""

    def measures(rewiring):
        row, col = graphs.small_world(200, 200, 1600, rewiring, seeded(3))
        graph = networkx.Graph([(("out", o), ("in", i)) for o, i in zip(row.tolist(), col.tolist(), strict=True)])
        clustering = networkx.bipartite.robins_alexander_clustering(graph)
        return clustering, networkx.average_shortest_path_length(graph)

    (lattice, far), (small, near), (random, nearest) = map(measures, (0.0, 0.03, 1.0))
    assert small > 0.75 * lattice > 4 * random
    assert near < 0.5 * far
    assert nearest < near


def test_edges_are_sorted_and_kept():
    row, col = graphs.from_edges(3, 4, torch.tensor([2, 0, 2, 0]), torch.tensor([0, 3, 3, 1], dtype=torch.int32))
    assert (row.tolist(), col.tolist()) == ([0, 0, 2, 2], [1, 3, 0, 3])
    assert row.dtype == col.dtype == torch.int64
    none = torch.empty(0, dtype=torch.int64)
    check_graph(graphs.from_edges(3, 4, none, none), 3, 4, 0)


@pytest.mark.parametrize(
    ("row", "col", "message"),
    [
        ([0, 3], [0, 0], "edge 1 has output 3; outputs go from 0 to 2"),
        ([0, 1], [-1, 0], "edge 0 has input -1; inputs go from 0 to 3"),
        ([0, 1, 0], [2, 2, 2], "edge from input 2 to output 0 is given more than once"),
        ([0, 1], [2], r"same length.*\[2\] and \[1\]"),
        ([0.0], [1], "outputs of edges are integers; given torch.float32"),
    ],
)
def test_edges_that_cannot_be_are_refused(row, col, message):
    with pytest.raises(ConfigurationError, match=message):
        graphs.from_edges(3, 4, torch.tensor(row), torch.tensor(col))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graphs.erdos_renyi(2, 3, 7), "from 0 to out_features [*] in_features = 6; given 7"),
        (lambda: graphs.erdos_renyi(2, 3, -1), "given -1"),
        (lambda: graphs.erdos_renyi(0, 3, 0), "at least 1; given 3 and 0"),
        (lambda: graphs.erdos_renyi(2**31, 2**31, 5), r"at most 2\*\*53"),
        (lambda: graphs.fixed_fan_in(2, 3, 4), "from 0 to in_features = 3; given 4"),
        (lambda: graphs.small_world(2, 3, 7, 0.1), "given 7"),
        (lambda: graphs.small_world(2, 3, 4, 1.1), "rewiring is a probability"),
        (lambda: graphs.small_world(2, 3, 4, math.nan), "rewiring is a probability"),
        (lambda: graphs.nnz_of_density(2, 3, 0.0), r"density is a share .* in \(0, 1\]; given 0.0"),
        (lambda: graphs.nnz_of_density(2, 3, 1.5), "given 1.5"),
        (lambda: graphs.nnz_of_density(2, 3, math.nan), "given nan"),
        (lambda: graphs.nnz_of_epsilon((2, 3), 0.0), "epsilon is a positive number"),
        (lambda: graphs.nnz_of_epsilon((2, 3), math.inf), "epsilon is a positive number"),
        (lambda: graphs.nnz_of_epsilon((10, 1000), 20), "20200 connections.* has 10000 places; .* at most 9.90"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_numbers_of_connections():
    assert graphs.nnz_of_density(1024, 1024, 0.05) == 52429
    assert graphs.nnz_of_density(3, 4, 1.0) == 12
    assert graphs.nnz_of_epsilon((1000, 784), 20) == 35680  # the first layer of SET-MLP (Mocanu et al. 2018)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: graphs.erdos_renyi(900, 1100, 400_000, g),
        lambda g: graphs.fixed_fan_in(900, 1100, 400, g),
        lambda g: graphs.small_world(900, 1100, 400_000, 0.3, g),
    ],
)
def test_same_seed_same_bits_on_any_number_of_threads(make):
    first = make(seeded(5))
    torch.set_num_threads(2)
    second = make(seeded(5))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[1], make(seeded(6))[1])


MILLION = """
import sys, time, torch
from synaptome.topology import graphs
torch.set_num_threads(1)
start = time.perf_counter()
row, col = eval("graphs." + sys.argv[1])
seconds = time.perf_counter() - start
# Not getrusage, whose peak is also that of the process that started this one.
(peak,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
assert len(row) == len(col) == 10**7 and bool(((row[1:] > row[:-1]) | (col[1:] > col[:-1])).all())
print(seconds, peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    ["erdos_renyi(10**6, 10**6, 10**7)", "fixed_fan_in(10**6, 10**6, 10)", "small_world(10**6, 10**6, 10**7, 0.1)"],
)
def test_ten_million_connections_in_seconds_and_under_a_gigabyte(call):
    done = subprocess.run([sys.executable, "-c", MILLION, call], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 20  # 1 to 3 on an idle core
    assert peak < 1e9  # the interpreter and torch included
