"""The operations of `graph` on the CPU, by Numba: each in one pass, or a few, and none by comparing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from synaptome.kernels.compiled import compiled

DIGIT = 11  # bits by which numbers are sorted at a time: the counts fit into the first-level cache


def transposed(crow: Tensor, col: Tensor, in_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed structure, by a counting sort."""
    ccol, row, permutation = col.new_zeros(in_features + 1), torch.empty_like(col), torch.empty_like(col)
    _transposed(crow.numpy(), col.numpy(), ccol.numpy(), row.numpy(), permutation.numpy())
    return ccol, row, permutation


def merged(
    crow: Tensor, col: Tensor, dropped: Tensor, places: Tensor, in_features: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """A merge of two sorted lists."""
    size = len(col) - int(dropped.count_nonzero()) + len(places)
    new_crow = torch.empty(len(crow), dtype=torch.int64)
    new_col, source = col.new_empty(size), torch.empty(size, dtype=torch.int64)
    operands = (crow.numpy(), col.numpy(), dropped.numpy(), places.numpy())
    doubled = _merged(*operands, in_features, new_crow.numpy(), new_col.numpy(), source.numpy())
    return new_crow, new_col, source, int(doubled)


def rearranged(numbers: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    """One pass over what is written."""
    out = numbers.new_empty(len(source))
    _rearranged(*(part.detach().contiguous().numpy() for part in (numbers, source, fresh)), out.numpy())
    return out


def union(places: Tensor, others: Tensor) -> Tensor:
    """A merge of two sorted lists."""
    out = torch.empty(len(places) + len(others), dtype=torch.int64)
    size = _union(places.numpy(), others.numpy(), out.numpy())
    return out[:size].clone() if size < len(out) else out


def empty_places(occupied: Tensor, ranks: Tensor) -> Tensor:
    """One pass over both."""
    out = torch.empty_like(ranks)
    _empty_places(occupied.numpy(), ranks.numpy(), out.numpy())
    return out


def ascending(numbers: Tensor, below: int) -> Tensor:
    """A radix sort, from the last digit on."""
    out, spare = numbers.numpy(), torch.empty_like(numbers).numpy()
    for shift in range(0, max(below - 1, 0).bit_length(), DIGIT):
        _by_digit(out, shift, spare)
        out, spare = spare, out
    return torch.from_numpy(out)


@compiled
def _transposed(crow, col, ccol, row, permutation):  # type: ignore[no-untyped-def]
    for k in range(len(col)):
        ccol[col[k] + 1] += 1
    for c in range(len(ccol) - 1):
        ccol[c + 1] += ccol[c]
    for r in range(len(crow) - 1):
        for k in range(crow[r], crow[r + 1]):
            at = ccol[col[k]]
            row[at] = r
            permutation[at] = k
            ccol[col[k]] = at + 1
    # Each column's start has moved to its end, which is the start of the next.
    for c in range(len(ccol) - 1, 0, -1):
        ccol[c] = ccol[c - 1]
    ccol[0] = 0


@compiled
def _merged(crow, col, dropped, places, in_features, new_crow, new_col, source):  # type: ignore[no-untyped-def]
    n, j, m = 0, 0, len(places)
    for r in range(len(crow) - 1):
        new_crow[r] = n
        start = r * in_features
        for k in range(crow[r], crow[r + 1] + 1):
            last = k == crow[r + 1]  # nothing old comes after the new ones of this row
            if not last and dropped[k]:
                continue
            place = start + (in_features if last else np.int64(col[k]))
            while j < m and places[j] < place:
                if j and places[j] == places[j - 1]:
                    return places[j]
                new_col[n] = places[j] - start
                source[n] = -1
                n += 1
                j += 1
            if last:
                break
            if j < m and places[j] == place:
                return place
            new_col[n] = col[k]
            source[n] = k
            n += 1
    new_crow[len(crow) - 1] = n
    return -1


@compiled
def _rearranged(numbers, source, fresh, out):  # type: ignore[no-untyped-def]
    j = 0
    for k in range(len(source)):
        if source[k] < 0:
            out[k] = fresh[j]
            j += 1
        else:
            out[k] = numbers[source[k]]


@compiled
def _union(places, others, out):  # type: ignore[no-untyped-def]
    n, i = 0, 0
    for j in range(len(others)):
        other = others[j]
        while i < len(places) and places[i] <= other:
            out[n] = places[i]
            n += 1
            i += 1
        if n == 0 or out[n - 1] != other:
            out[n] = other
            n += 1
    for k in range(i, len(places)):
        out[n] = places[k]
        n += 1
    return n


@compiled
def _empty_places(occupied, ranks, out):  # type: ignore[no-untyped-def]
    j = 0
    for i in range(len(ranks)):
        # Before the j-th occupied place stand occupied[j] - j empty ones.
        while j < len(occupied) and occupied[j] - j <= ranks[i]:
            j += 1
        out[i] = ranks[i] + j


@compiled
def _by_digit(numbers, shift, out):  # type: ignore[no-untyped-def]
    """A stable sort by the digit that begins at a bit."""
    most = (1 << DIGIT) - 1
    starts = np.zeros(most + 2, np.int64)
    for i in range(len(numbers)):
        starts[((numbers[i] >> shift) & most) + 1] += 1
    for digit in range(most):
        starts[digit + 1] += starts[digit]
    for i in range(len(numbers)):
        digit = (numbers[i] >> shift) & most
        out[starts[digit]] = numbers[i]
        starts[digit] += 1
