"""The compiled sequence against its specification in torch."""

import numpy as np
import torch

from synaptome.kernels import randomness
from synaptome.kernels.splitmix import uniform


def test_uniform_numbers_are_the_high_bits_of_each_streams_sequence():
    streams, counter = torch.tensor([0, 1, 2**40 + 3, 2**63 - 1]), 2**33 + 5
    numbers = np.empty((len(streams), 7))
    uniform(streams.numpy(), counter, numbers)
    for stream, row in zip(streams, numbers, strict=True):
        bits = randomness.sequence(torch.stack((stream, torch.tensor(counter))), 0, 7)
        assert row.tolist() == [((b % 2**64) >> 11) / 2**53 for b in bits.tolist()]


def test_uniform_numbers_have_the_moments_of_their_distribution():
    numbers = np.empty((1, 100_000))
    uniform(np.array([7]), 0, numbers)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    error = 5 / np.sqrt(12 * numbers.size)  # five standard errors of the mean
    assert abs(numbers.mean() - 0.5) < error
    assert abs(numbers.var() - 1 / 12) < error
