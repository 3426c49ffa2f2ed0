"""The smallest of many numbers, against sorting in Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.kernels.selection import smallest

# Few different numbers, so that ties are the rule, and some that differ in their last bits.
ODD = [-math.inf, -2.0, -1.0, -0.0, 0.0, 5e-324, -5e-324, 1.0, 1.0 + 2**-23, 1.0 + 2**-52, 1.0 - 2**-53, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@given(st.lists(st.sampled_from(ODD) | st.floats(allow_nan=False, width=32), min_size=1, max_size=30), st.data())
@settings(max_examples=150, deadline=None)
def test_the_smallest_and_of_equal_ones_the_first(dtype, backend, numbers, data):
    scores = torch.tensor(numbers, dtype=dtype)
    count = data.draw(st.integers(0, len(numbers)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTOME_BACKEND", backend)
        chosen = smallest(scores, count)
    expected = sorted(range(len(numbers)), key=lambda i: (scores[i].item(), i))[:count]
    assert chosen.dtype == torch.bool
    assert chosen.nonzero().view(-1).tolist() == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_of_many_numbers_it_is_what_a_stable_sort_says(dtype, zeros):
    scores = torch.randn(100_000, dtype=dtype)
    scores[torch.rand(100_000) < zeros] = 0
    order = scores.argsort(stable=True)
    before = scores.clone()
    for count in (1, 30_000, 55_000, 99_999, 100_000):
        assert torch.equal(smallest(scores, count).nonzero().view(-1), order[:count].sort().values)
    assert torch.equal(scores, before)
