"""Draws with the same bits everywhere: against Python's integers, the theory of what is drawn, and other hardware."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from synaptome.kernels import randomness
from synaptome.kernels.exact_draws import TRUNCATED_STD, positive, truncated_normal

KEY = torch.tensor([123456789, 42])


def python_bits(key, n):
    """Number n of a key's sequence, in Python integers: shares no code with the kernels."""
    m64 = 2**64 - 1

    def mix64(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    base = mix64((mix64(int(key[0]) & m64) + golden * int(key[1])) & m64)
    return mix64((base + golden * (1 + n)) & m64)


def signed(bits, width):
    return bits - 2**width if bits >= 2 ** (width - 1) else bits


def test_truncated_normal_numbers_are_those_of_the_specification():
    count = 500
    for number, drawn in enumerate(truncated_normal(KEY, count).tolist()):
        draw = number
        while True:
            bits = python_bits(KEY, draw)
            x = (2 * signed(bits >> 32, 32) + 1) * 2.0**-31
            if ((bits & 0xFFFFFFFF) + 0.5) * 2.0**-32 < math.exp(-x * x / 2):
                break
            draw += count
        assert drawn == x


def test_signs_are_those_of_the_specification():
    for probability in (0.3, 0.5):
        expected = [(signed(python_bits(KEY, n), 64) >> 11) + 2**52 < probability * 2**53 for n in range(300)]
        assert positive(KEY, 300, probability).tolist() == expected


def test_truncated_normal_numbers_have_their_distribution():
    n = 300_000
    numbers = truncated_normal(KEY, n).numpy()
    exact = truncnorm(-2, 2)
    assert abs(TRUNCATED_STD / exact.std() - 1) < 1e-12
    assert np.abs(numbers).max() < 2
    assert (numbers != 0).all()
    variance, fourth = exact.var(), exact.moment(4)
    assert abs(numbers.mean()) < 4 * math.sqrt(variance / n)
    assert abs(numbers.var() - variance) < 4 * math.sqrt((fourth - variance**2) / n)
    assert kstest(numbers, exact.cdf).pvalue > 0.01
    # Neighbours, and numbers of neighbouring keys, are independent.
    other = truncated_normal(KEY + 1, n).numpy()
    for first, second in ((numbers[1:], numbers[:-1]), (numbers, other)):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_signs_have_their_probability(probability):
    n = 200_000
    share = positive(KEY, n, probability).double().mean().item()
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / n)


def test_chunks_leave_no_trace():
    count = randomness.NORMALS + 3
    numbers = truncated_normal(KEY, count)
    for number in (randomness.NORMALS - 1, randomness.NORMALS, count - 1):
        draws = [signed(python_bits(KEY, number + k * count) >> 32, 32) * 2 + 1 for k in range(20)]
        assert numbers[number].item() * 2**31 in draws
        sign = (signed(python_bits(KEY, number), 64) >> 11) + 2**52 < 2**52
        assert positive(KEY, count, 0.5)[number].item() is sign
    assert len(truncated_normal(KEY, 0)) == len(positive(KEY, 0, 0.5)) == 0


def test_bits_do_not_depend_on_threads_or_on_vector_instructions():
    count = 2 * randomness.NORMALS
    here = hashlib.sha256(truncated_normal(KEY, count).numpy().tobytes()).hexdigest()
    script = (
        "import hashlib, torch; from synaptome.kernels.exact_draws import truncated_normal; torch.set_num_threads(2);"
        f"numbers = truncated_normal(torch.tensor({KEY.tolist()}), {count});"
        "print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(numbers.numpy().tobytes()).hexdigest())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["DEFAULT", here]
