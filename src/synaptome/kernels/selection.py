"""The smallest of many numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from synaptome.kernels.backends import implementation, implements


def smallest(scores: Tensor, count: int) -> Tensor:
    """Which are the `count` smallest of the scores `[n]`, none of them NaN: bool `[n]`; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    return implementation("smallest", scores)(scores, count)  # type: ignore[no-any-return]


@implements("smallest", "reference")
def _smallest(scores: Tensor, count: int) -> Tensor:
    threshold = scores.kthvalue(count).values
    chosen = scores <= threshold
    excess = int(chosen.sum()) - count
    if excess:
        chosen[(scores == threshold).nonzero().view(-1)[-excess:]] = False
    return chosen


@implements("smallest", "cpu")
def _smallest_cpu(scores: Tensor, count: int) -> Tensor:
    from synaptome.kernels import selection_cpu

    return selection_cpu.smallest(scores, count)
