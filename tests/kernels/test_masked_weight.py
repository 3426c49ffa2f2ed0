"""Masked weights of a chunk of examples and their transpose: against the specified masks, on both backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.kernels import masked_weight, randomness
from synaptome.kernels.masked_weight import add_masked, chunks

KEY = torch.tensor([123456789, 42])
P = 0.375  # a multiple of 1/65536


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("examples", [range(3), range(5, 7), range(2**20, 2**20 + 2), range(4, 4)])
@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 3, 3), (1, 1), (5, 45)])
def test_masks_are_those_of_the_specification_wherever_the_chunk_begins(backend, dtype, examples, shape):
    weight = torch.randn(shape, dtype=dtype)
    mask = randomness.surviving(KEY, examples, shape[0], weight[0].numel(), P).view(len(examples), *shape)
    expected = torch.where(mask, weight / (1 - P), 0)
    torch.testing.assert_close(masked_weight.masked_weight(weight, examples, P, KEY), expected)
    by_example = torch.randn(len(examples), *shape, dtype=dtype)
    start = torch.randn(shape, dtype=dtype)
    total = start.clone()
    add_masked(total, by_example, examples, P, KEY)
    torch.testing.assert_close(total, start + torch.where(mask, by_example / (1 - P), 0).sum(0))


def test_strides_do_not_matter(backend):
    weight = torch.randn(4, 3, 2, 5)
    by_example = torch.randn(6, 4, 3, 2, 5)
    total = torch.zeros(4, 3, 2, 5)
    add_masked(total, by_example.transpose(1, 3).contiguous().transpose(1, 3), range(6), P, KEY)
    expected = torch.zeros(4, 3, 2, 5)
    add_masked(expected, by_example, range(6), P, KEY)
    assert torch.equal(total, expected)
    last = weight.to(memory_format=torch.channels_last)
    masked = masked_weight.masked_weight(last, range(6), P, KEY)
    assert torch.equal(masked, masked_weight.masked_weight(weight, range(6), P, KEY))


def test_both_backends_give_the_same_masked_weights_to_the_bit(monkeypatch):
    weight, results = torch.randn(8, 30), []
    for backend in ("reference", "cpu"):
        monkeypatch.setenv("SYNAPTOME_BACKEND", backend)
        results.append(masked_weight.masked_weight(weight, range(3, 9), 0.3, KEY))
    assert torch.equal(*results)


def test_the_number_of_threads_changes_no_bit(backend):
    weight, by_example = torch.randn(64, 300), torch.randn(40, 64, 300)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        total = torch.zeros(64, 300)
        add_masked(total, by_example, range(7, 47), 0.4, KEY)
        results.append((masked_weight.masked_weight(weight, range(7, 47), 0.4, KEY), total))
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


@given(st.integers(0, 500), st.integers(0, 2**19))
@settings(max_examples=50, deadline=None)
def test_chunks_cover_the_examples_once_and_stay_small(examples, elements):
    ranges = list(chunks(examples, elements))
    assert [example for part in ranges for example in part] == list(range(examples))
    assert all(len(part) == 1 or len(part) * elements <= masked_weight.MASKED_ELEMENTS for part in ranges)
