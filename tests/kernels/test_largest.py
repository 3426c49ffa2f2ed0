"""The threshold of the largest scores: against a sort, for scores of all kinds."""

import math

import numpy as np
import pytest
import torch

from synaptome.kernels.largest_cpu import threshold_of

SIZE = 60_000
KINDS = {
    "new scores": lambda: torch.empty(SIZE).uniform_(0.01, 0.1),
    "normal": lambda: torch.randn(SIZE),
    "all equal": lambda: torch.full((SIZE,), -0.055),
    "a mask": lambda: (torch.rand(SIZE) < 0.05) * 0.055,
    "few": lambda: torch.randint(-3, 4, (SIZE,)) / 4,
    "neighbours": lambda: 1 + torch.randint(0, 3, (SIZE,)) * 2.0**-23,
    "spread": lambda: torch.randn(SIZE) * torch.exp(20 * torch.randn(SIZE)),
    "tiny": lambda: torch.rand(SIZE) * 1e-40,
    "sorted": lambda: torch.rand(SIZE).sort().values,
    "descending": lambda: torch.rand(SIZE).sort(descending=True).values,
    "periodic": lambda: (torch.arange(SIZE) % 16).float(),
    "outliers": lambda: torch.cat((torch.rand(SIZE - 9), torch.full((9,), 1e30))),
    "decayed": lambda: torch.randn(SIZE) * torch.exp(-30 * torch.rand(SIZE)),
    "zeros": lambda: torch.rand(SIZE) * (torch.rand(SIZE) < 0.3),
    "infinite": lambda: torch.where(torch.rand(SIZE) < 0.2, math.inf, torch.rand(SIZE)),
}
COUNTS = [1, 2, 60, 3000, 12_000, 30_000, 42_000, 57_000, SIZE - 1, SIZE]


def threshold(scores, count, guess=0.0):
    return threshold_of(scores.data_ptr(), len(scores), count, scores.numpy().dtype.type(guess))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_a_sort(kind, dtype):
    scores = KINDS[kind]().to(dtype)
    sizes = np.sort(scores.abs().numpy())[::-1]
    for count in COUNTS:
        found, excess = threshold(scores, count)
        assert found == sizes[count - 1]
        assert excess == (sizes >= found).sum() - count
        for guess in (found, 1.003 * found, 0.9 * found, 1.5 * found, 1e-30, 1e30, math.inf, math.nan, -1.0):
            assert threshold(scores, count, guess) == (found, excess)


@pytest.mark.parametrize("size", [1, 2, 15, 127, 128, 129, 257, 1000])
def test_small_layers(size):
    for scores in (torch.randn(size), torch.randint(-2, 3, (size,)).float()):
        sizes = np.sort(scores.abs().numpy())[::-1]
        for count in range(1, size + 1, max(1, size // 50)):
            found, excess = threshold(scores, count)
            assert (found, excess) == (sizes[count - 1], (sizes >= sizes[count - 1]).sum() - count)


@pytest.mark.parametrize("size", [100, SIZE])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_scores_that_are_no_numbers_are_below_all_others(size, share):
    scores = torch.rand(size) + 0.5
    scores[torch.rand(size) < share] = math.nan
    sizes = np.sort(scores[~scores.isnan()].numpy())[::-1]
    for count in {1, size // 20, size // 3, size - 1, size}:
        found, excess = threshold(scores, count)
        if count <= len(sizes):
            assert (found, excess) == (sizes[count - 1], 0)
        else:  # all numbers, which are too few
            assert found <= (sizes[-1] if len(sizes) else 0)
            assert excess == 0


def test_none_are_asked_for():
    found, excess = threshold(torch.rand(SIZE), 0)
    assert math.isnan(found)
    assert excess == 0
