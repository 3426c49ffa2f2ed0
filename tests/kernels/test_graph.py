"""Operations on graphs: by Numba and in plain torch, both against sets and lists in Python."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.errors import ConfigurationError
from synaptome.kernels import graph, graph_cpu, graph_reference
from synaptome.kernels.sparse_product import compressed, row_indices

OUTPUTS, INPUTS = 5, 7
BOTH = pytest.mark.parametrize("module", [graph_cpu, graph_reference], ids=["cpu", "reference"])
SETTINGS = settings(max_examples=150, deadline=None)
edge_sets = st.sets(st.tuples(st.integers(0, OUTPUTS - 1), st.integers(0, INPUTS - 1)))
index_dtypes = st.sampled_from([torch.int32, torch.int64])


def rows_of(edges, dtype):
    row, col = torch.tensor(sorted(edges), dtype=torch.int64).view(-1, 2).unbind(1)
    return compressed(row, OUTPUTS).to(dtype), col.to(dtype)


def edges_of(crow, col):
    return list(zip(row_indices(crow, len(col)).tolist(), col.tolist(), strict=True))


def places(numbers):
    return torch.tensor(sorted(numbers), dtype=torch.int64)


@BOTH
@given(edge_sets, index_dtypes)
@SETTINGS
def test_the_transposed_graph_lists_the_same_edges_by_columns(module, edges, dtype):
    ccol, row, permutation = module.transposed(*rows_of(edges, dtype), INPUTS)
    by_column = sorted(edges, key=lambda edge: (edge[1], edge[0]))
    assert [(r, c) for c, r in edges_of(ccol, row)] == by_column
    assert permutation.tolist() == [sorted(edges).index(edge) for edge in by_column]
    assert ccol.dtype == row.dtype == permutation.dtype == dtype
    assert len(ccol) == INPUTS + 1


@BOTH
@given(edge_sets, edge_sets, edge_sets, index_dtypes)
@SETTINGS
def test_a_merge_is_that_of_sets(module, edges, gone, wanted, dtype):
    old = sorted(edges)
    dropped = torch.tensor([edge in gone for edge in old], dtype=torch.bool)
    kept, new = edges - gone, wanted - (edges - gone)
    crow, col, source, doubled = module.merged(
        *rows_of(edges, dtype), dropped, places(o * INPUTS + i for o, i in new), INPUTS
    )
    assert doubled == -1
    assert edges_of(crow, col) == sorted(kept | new)
    assert source.tolist() == [-1 if edge in new else old.index(edge) for edge in sorted(kept | new)]
    assert (crow.dtype, col.dtype, source.dtype) == (torch.int64, dtype, torch.int64)
    assert len(crow) == OUTPUTS + 1


@BOTH
@given(edge_sets, st.lists(st.tuples(st.integers(0, OUTPUTS - 1), st.integers(0, INPUTS - 1)), max_size=12))
@SETTINGS
def test_the_first_doubled_place_is_found(module, edges, new):
    kept = {edge for edge in edges if sum(edge) % 3}
    dropped = torch.tensor([edge not in kept for edge in sorted(edges)], dtype=torch.bool)
    doubled = sorted(edge for edge in new if edge in kept or new.count(edge) > 1)
    result = module.merged(*rows_of(edges, torch.int32), dropped, places(o * INPUTS + i for o, i in new), INPUTS)
    assert result[-1] == (doubled[0][0] * INPUTS + doubled[0][1] if doubled else -1)


def test_a_doubled_connection_is_named():
    crow, col = rows_of({(0, 1), (3, 4)}, torch.int32)
    with pytest.raises(ConfigurationError, match="from input 4 to output 3 already; each exists once"):
        graph.merged(crow, col, torch.tensor([True, False]), places([3, 25]), INPUTS)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@given(st.lists(st.integers(-1, 5), max_size=12))
@SETTINGS
def test_numbers_follow_their_connections(backend, dtype, source):
    numbers = torch.arange(10, 16).to(dtype)
    new = source.count(-1)
    expected, fresh = [], iter(range(new))
    for index in source:
        expected.append(next(fresh) if index < 0 else 10 + index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", backend)
        order = torch.tensor(source, dtype=torch.int64)
        moved = graph.rearranged(numbers, order, torch.arange(new))
        broadcast = graph.rearranged(numbers, order, torch.tensor(7.0).expand(new))
    assert moved.tolist() == expected
    assert moved.dtype == broadcast.dtype == dtype
    assert broadcast.tolist() == [7 if index < 0 else 10 + index for index in source]


@BOTH
@given(st.sets(st.integers(0, 50)), st.lists(st.integers(0, 50)))
@SETTINGS
def test_a_union_is_that_of_sets(module, members, others):
    assert module.union(places(members), places(others)).tolist() == sorted(members | set(others))


@BOTH
@given(st.sets(st.integers(0, 50)), st.lists(st.integers(0, 40)))
@SETTINGS
def test_empty_places_are_those_that_are_left_when_the_others_are_taken_out(module, occupied, ranks):
    empty = [place for place in range(120) if place not in occupied]
    assert module.empty_places(places(occupied), places(ranks)).tolist() == [empty[rank] for rank in sorted(ranks)]


@BOTH
@given(st.lists(st.integers(0, 2**53 - 1), max_size=30), st.integers(0, 53))
@SETTINGS
def test_numbers_ascend(module, numbers, shift):
    numbers = [number >> shift for number in numbers]
    result = module.ascending(torch.tensor(numbers, dtype=torch.int64), (2**53 - 1 >> shift) + 1)
    assert result.tolist() == sorted(numbers)


def test_large_graphs_are_the_same_by_both():
    torch.manual_seed(1)
    size = 3000
    place = graph.ascending(torch.randint(size**2, (200_000,)), size**2).unique()
    crow, col = compressed(place // size, size).int(), (place % size).int()
    dropped = torch.rand(len(place)) < 0.3
    grown = graph_reference.empty_places(place, torch.arange(0, size**2 - len(place), 137))
    for name, operands in {
        "transposed": (crow, col, size),
        "merged": (crow, col, dropped, grown, size),
        "union": (place, grown),
        "empty_places": (place, torch.arange(0, size**2 - len(place), 11)),
        "ascending": (torch.randint(size**2, (100_000,)), size**2),
    }.items():
        ours, theirs = (getattr(module, name)(*copy.deepcopy(operands)) for module in (graph_cpu, graph_reference))
        for mine, other in zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]:
            assert mine == other if isinstance(mine, int) else torch.equal(mine, other), name


def test_the_backend_is_chosen_by_the_variable(monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", "reference")
    monkeypatch.delattr(graph_cpu, "union")
    assert graph.union(places([1]), places([0])).tolist() == [0, 1]


def test_without_a_folder_for_machine_code_it_is_compiled_in_memory(tmp_path):
    """A package and a home that cannot be written: numba finds no place for its cache."""
    script = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, file: None)
import torch
from synaptome.kernels import graph
print(graph.union(torch.tensor([1, 3]), torch.tensor([2, 3])).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[1, 2, 3]"
