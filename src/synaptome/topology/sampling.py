"""Random sets of places, without repetition, in time and memory of the places drawn.

A place of an `[out, in]` matrix is the number `row * in + column`, int64. Sets of places are sorted tensors. Random
numbers come from a generator on the CPU, so the same seed gives the same places on every device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
        drawn = union(drawn, ascending(numbers))
        missing = few - torch.searchsorted(drawn, bounds).diff()
    inverted = (few < counts).nonzero().view(-1)
    if len(inverted) == 0:
        return drawn
    everything = _everything(bounds[inverted], sizes[inverted])
    left_out = members(drawn, everything)
    kept = drawn[(few == counts)[torch.searchsorted(bounds, drawn, right=True) - 1]]
    return union(kept, everything[~left_out])


def empty_places(occupied: Tensor, ranks: Tensor) -> Tensor:
    """The places that have these ranks, counted from 0, among the places that are not occupied.

    Args:
        occupied: sorted places, without repetition.
        ranks: int64, any shape, on the same device.
    """
    # Before the j-th occupied place stand occupied[j] - j empty ones.
    empties_before = occupied - torch.arange(len(occupied), device=occupied.device)
    return ranks + torch.searchsorted(empties_before, ranks, right=True)


def union(places: Tensor, others: Tensor) -> Tensor:
    """All members of two sorted tensors, sorted; `others` may repeat itself and `places`."""
    if len(others) == 0:
        return places
    first = torch.ones_like(others, dtype=torch.bool)
    torch.ne(others[1:], others[:-1], out=first[1:])
    others = others[first]
    if len(places) == 0:
        return others
    position = torch.searchsorted(places, others)
    new = places[position.clamp(max=len(places) - 1)] != others
    others, position = others[new], position[new]
    position += torch.arange(len(others), device=others.device)
    merged = places.new_empty(len(places) + len(others))
    old = torch.ones_like(merged, dtype=torch.bool)
    old[position] = False
    merged[position] = others
    return merged.masked_scatter_(old, places)


def members(places: Tensor, others: Tensor) -> Tensor:
    """Which of `others` are members of the sorted `places`: bool `[len(others)]`."""
    if len(places) == 0:
        return torch.zeros_like(others, dtype=torch.bool)
    return places[torch.searchsorted(places, others).clamp_(max=len(places) - 1)] == others


def _everything(starts: Tensor, sizes: Tensor) -> Tensor:
    """The numbers from each start on, as many as its size."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + torch.repeat_interleave(starts - before, sizes)


def ascending(numbers: Tensor) -> Tensor:
    """Sorted integers, on the CPU."""
    # NumPy's sort of integers is vectorised, torch's is not.
    return torch.from_numpy(np.sort(numbers.numpy()))
