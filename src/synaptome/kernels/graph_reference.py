"""The operations of `graph` in plain torch, on any device, for any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from synaptome.kernels.sparse_product import compressed, row_indices


def transposed(crow: Tensor, col: Tensor, in_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """By a stable sort of the columns."""
    permutation = torch.argsort(col, stable=True)
    row = row_indices(crow, len(col))[permutation]
    return compressed(col, in_features), row, permutation.to(col.dtype)


def merged(
    crow: Tensor, col: Tensor, dropped: Tensor, places: Tensor, in_features: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """By binary search of each new place among those that stay; the last number is a place that is doubled, or -1."""
    kept = (~dropped).nonzero().view(-1)
    old = (row_indices(crow, len(col)).long() * in_features + col).index_select(0, kept)
    before = torch.searchsorted(old, places)
    doubled = torch.zeros_like(places, dtype=torch.bool)
    doubled[1:] = places[1:] == places[:-1]
    if len(old):
        doubled |= old[before.clamp_max(len(old) - 1)] == places
    if doubled.any():
        return crow, col, kept, int(places[doubled][0])
    is_new = torch.zeros(len(old) + len(places), dtype=torch.bool, device=col.device)
    is_new[before + torch.arange(len(places), device=col.device)] = True
    new_places = places.new_empty(len(is_new)).masked_scatter_(is_new, places).masked_scatter_(~is_new, old)
    source = torch.full_like(new_places, -1).masked_scatter_(~is_new, kept)
    row = new_places // in_features
    return compressed(row, len(crow) - 1), (new_places - row * in_features).to(col.dtype), source, -1


def rearranged(numbers: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    """By a gather and a scatter."""
    out = numbers.new_empty(len(source))
    out[source >= 0] = numbers.detach()[source[source >= 0]]
    out[source < 0] = fresh.detach()
    return out


def union(places: Tensor, others: Tensor) -> Tensor:
    """By a sort."""
    return torch.cat((places, others)).unique()  # type: ignore[no-any-return, no-untyped-call]


def empty_places(occupied: Tensor, ranks: Tensor) -> Tensor:
    """By binary search: before the j-th occupied place stand `occupied[j] - j` empty ones."""
    empties_before = occupied - torch.arange(len(occupied), device=occupied.device)
    return ranks + torch.searchsorted(empties_before, ranks, right=True)


def ascending(numbers: Tensor, below: int) -> Tensor:
    """By a sort."""
    return numbers.sort().values
