"""Growth rules: exact counts among the empty places, uniform where random, the largest where not."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from synaptome.errors import NumericError
from synaptome.topology import grow


def places(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def check_uniform(draw, outcomes, draws):
    """Chi-square at a level of one in a million, with a fixed seed."""
    counts = dict.fromkeys(outcomes, 0)
    for _ in range(draws):
        counts[draw()] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_growth_is_uniform_over_the_empty_places(count):
    occupied = places(1, 2, 6)
    generator = torch.Generator().manual_seed(count)
    outcomes = list(itertools.combinations([0, 3, 4, 5, 7], count))
    check_uniform(lambda: tuple(grow.random(occupied, 8, count, generator).tolist()), outcomes, 200 * len(outcomes))


def test_unfired_growth_is_uniform_over_the_places_never_occupied_and_then_over_the_others():
    occupied, visited = places(1, 2, 6), places(1, 2, 4, 5, 6)
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return tuple(grow.random_unfired(occupied, visited, 8, count, generator).tolist())

    check_uniform(lambda: draw(2), list(itertools.combinations([0, 3, 7], 2)), 600)
    check_uniform(lambda: draw(4), [(0, 3, 4, 7), (0, 3, 5, 7)], 400)
    assert draw(3) == (0, 3, 7)
    assert draw(5) == (0, 3, 4, 5, 7)
    assert draw(0) == ()


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0]), min_size=1, max_size=40),
    st.sets(st.integers(0, 39)),
    st.integers(1, 9),
    st.data(),
)
def test_the_largest_of_all_blocks_are_chosen_and_of_equal_ones_the_first(scores, occupied, block, data):
    occupied = sorted(p for p in occupied if p < len(scores))
    empty = [p for p in range(len(scores)) if p not in occupied]
    count = data.draw(st.integers(0, len(empty)))
    gradient = torch.tensor(scores)
    blocks = ((start, gradient[start : start + block].clone()) for start in range(0, len(scores), block))
    chosen = grow.largest(blocks, places(*occupied), count)
    assert chosen.tolist() == sorted(sorted(empty, key=lambda p: (-abs(scores[p]), p))[:count])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_are_refused(bad):
    with pytest.raises(NumericError, match="not finite"):
        grow.largest([(0, torch.tensor([1.0, bad]))], places(), 1)
