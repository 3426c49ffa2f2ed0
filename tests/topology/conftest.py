"""Compiled kernels, before the first test that has a deadline."""

import pytest
import torch

from synaptome.kernels.selection import smallest


@pytest.fixture(scope="session", autouse=True)
def _compiled():
    for dtype in (torch.float32, torch.float64):
        smallest(torch.zeros(2, dtype=dtype), 1)
