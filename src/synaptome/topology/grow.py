"""Where connections are born: rules that choose among the empty places of a layer.

A place of an `[out, in]` layer is the number `row * in + column`. The rules take the places that are occupied, sorted,
and return exactly as many others as are asked for, sorted, int64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from synaptome.errors import NumericError
from synaptome.kernels.graph import empty_places, union
from synaptome.kernels.selection import smallest
from synaptome.topology.sampling import distinct, members


def random(occupied: Tensor, places: int, count: int, generator: torch.Generator) -> Tensor:
    """Drawn uniformly from all sets of `count` empty places (Mocanu et al. 2018, SET).

    Args:
        occupied: sorted places.
        places: of the whole layer; at least `count` are empty.
        count: how many to draw.
        generator: of the CPU.
    """
    ranks = distinct(torch.tensor([places - len(occupied)]), torch.tensor([count]), generator)
    return empty_places(occupied, ranks.to(occupied.device))


def random_unfired(occupied: Tensor, visited: Tensor, places: int, count: int, generator: torch.Generator) -> Tensor:
    """Drawn uniformly from the places that were never occupied; when these run out, also from the other empty ones.

    Source: the authors' code for Liu et al. 2021 (ITOP), `random_unfired_growth`.

    Args:
        occupied: sorted places.
        visited: sorted places that are or were occupied, `occupied` among them.
        places: of the whole layer; at least `count` are empty.
        count: how many to draw.
        generator: of the CPU.
    """
    never = min(count, places - len(visited))
    grown = random(visited, places, never, generator)
    if never == count:
        return grown
    left = visited[~members(occupied, visited)]
    chosen = distinct(torch.tensor([len(left)]), torch.tensor([count - never]), generator)
    return union(grown, left[chosen.to(left.device)])


def largest(blocks: Iterable[tuple[int, Tensor]], occupied: Tensor, count: int) -> Tensor:
    """The empty places with the largest scores, of equal ones the first (Evci et al. 2020, RigL: of the gradient).

    Holds one block, and at most `3 count` candidates.

    Args:
        blocks: consecutive places with their scores by magnitude, in order: (first place, scores `[n]`); overwritten.
        occupied: sorted places.
        count: how many to choose; at least as many are empty.

    Raises:
        NumericError: a score is not finite.
    """
    scores, places = [], []
    held, limit = 0, -1.0
    for start, block in blocks:
        block.abs_()
        if not torch.isfinite(block.max()):  # NaN is the maximum of what it is among
            raise NumericError("the gradient by which connections grow is not finite; nothing was changed")
        ends = torch.tensor([start, start + len(block)], device=occupied.device)
        first, last = torch.searchsorted(occupied, ends).tolist()
        block[occupied[first:last] - start] = -1.0
        better = block > limit
        if int(better.count_nonzero()) > count:
            better = smallest(block.neg(), count)
        candidates = better.nonzero().view(-1)
        scores.append(block[candidates])
        places.append(candidates + start)
        held += len(candidates)
        if held > 2 * count:
            score, place = _best(scores, places, count)
            scores, places, held = [score], [place], count
            # Later places of the same score come after those that are held.
            limit = float(score.min()) if count else torch.inf
    return _best(scores, places, count)[1]


def _best(scores: list[Tensor], places: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    score, place = torch.cat(scores), torch.cat(places)
    best = smallest(score.neg(), count)
    return score[best], place[best]
