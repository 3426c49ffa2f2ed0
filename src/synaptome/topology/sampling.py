"""Random sets of places, without repetition, in time and memory of the places drawn.

A place of an `[out, in]` matrix is the number `row * in + column`, int64. Sets of places are sorted tensors. Random
numbers come from a generator on the CPU, so the same seed gives the same places on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synaptome.kernels.graph import ascending, union


def distinct(sizes: Tensor, counts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """From each group of numbers, a random subset of a given size, all subsets of that size being as likely.

    Group g holds the `sizes[g]` numbers that follow those of the groups before it, counted from 0. Numbers are drawn
    with repetition, and what repeated is drawn again, never more than is missing. Relabelling the numbers of a group
    does not change this procedure, so no subset is preferred. Where more than half of a group is asked for, the rest
    is drawn instead. Probabilities are equal to within a relative `size / 2**62`.

    Args:
        sizes: int64 `[groups]` on the CPU.
        counts: int64 `[groups]`, from 0 to the size of the group.
        generator: of the CPU; torch's own if None.

    Returns:
        The numbers drawn, int64 `[counts.sum()]` on the CPU, ascending.
    """
    few = torch.minimum(counts, sizes - counts)
    bounds = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
    drawn = torch.empty(0, dtype=torch.int64)
    missing = few
    while (count := int(missing.sum())) > 0:
        numbers = torch.randint(2**62, (count,), generator=generator)
        if len(sizes) == 1:
            numbers.remainder_(sizes)
        else:
            group = torch.repeat_interleave(missing)
            numbers.remainder_(sizes[group]).add_(bounds[group])
        drawn = union(drawn, ascending(numbers, int(bounds[-1])))
        missing = few - torch.searchsorted(drawn, bounds).diff()
    inverted = (few < counts).nonzero().view(-1)
    if len(inverted) == 0:
        return drawn
    everything = _everything(bounds[inverted], sizes[inverted])
    left_out = members(drawn, everything)
    kept = drawn[(few == counts)[torch.searchsorted(bounds, drawn, right=True) - 1]]
    return union(kept, everything[~left_out])


def members(places: Tensor, others: Tensor) -> Tensor:
    """Which of `others` are members of the sorted `places`: bool `[len(others)]`."""
    if len(places) == 0:
        return torch.zeros_like(others, dtype=torch.bool)
    return places[torch.searchsorted(places, others).clamp_(max=len(places) - 1)] == others


def _everything(starts: Tensor, sizes: Tensor) -> Tensor:
    """The numbers from each start on, as many as its size."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + torch.repeat_interleave(starts - before, sizes)
