"""Weights of which some failed, for the products that torch computes itself: a chunk of examples at a time.

Masks are those of `randomness.surviving`; surviving weights are scaled by 1 / (1 - p).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from synaptome.kernels import randomness
from synaptome.kernels.backends import implementation, implements

MASKED_ELEMENTS = 2**17  # masked weights are made this many at a time, or those of one example where they are more


def chunks(examples: int, weight_elements: int) -> Iterator[range]:
    """Consecutive ranges of examples, whose masked weights are few enough to exist at once."""
    chunk = max(1, MASKED_ELEMENTS // max(1, weight_elements))
    for start in range(0, examples, chunk):
        yield range(start, min(start + chunk, examples))


def masked_weight(weight: Tensor, examples: range, failure: float, key: Tensor) -> Tensor:
    """`m[b, o, i] W[o, i] / (1 - p)` for a range of examples: `[out, ...]` to `[len(examples), out, ...]`."""
    masked: Tensor = implementation("masked_weight", weight)(weight.flatten(1), examples, failure, key)
    return masked.view(len(examples), *weight.shape)


def add_masked(total: Tensor, by_example: Tensor, examples: range, failure: float, key: Tensor) -> None:
    """`total[o, i] += Σ_b m[b, o, i] g[b, o, i] / (1 - p)` in place, the transpose of `masked_weight`.

    Args:
        total: `[out, ...]`, contiguous.
        by_example: `[len(examples), out, ...]`, g above.
        examples, failure, key: as for `masked_weight`.
    """
    add = implementation("masked_weight_grad", total)
    add(total.view(len(total), -1), by_example.flatten(2), examples, failure, key)


def _mask(like: Tensor, examples: range, failure: float, key: Tensor) -> Tensor:
    """The masks `[len(examples), out, in]` of weights like `[out, in]`, scaled."""
    scale = 1 / (1 - randomness.threshold(failure) / randomness.DRAWS)
    out_features, in_features = like.shape
    return randomness.surviving(key, examples, out_features, in_features, failure).to(like.dtype).mul_(scale)


@implements("masked_weight", "reference")
def _masked_weight(weight: Tensor, examples: range, failure: float, key: Tensor) -> Tensor:
    return _mask(weight, examples, failure, key).mul_(weight)


@implements("masked_weight_grad", "reference")
def _add_masked(total: Tensor, by_example: Tensor, examples: range, failure: float, key: Tensor) -> None:
    total += _mask(total, examples, failure, key).mul_(by_example).sum(0)


@implements("masked_weight", "cpu")
def _masked_weight_cpu(weight: Tensor, examples: range, failure: float, key: Tensor) -> Tensor:
    from synaptome.kernels import failing_linear_cpu

    return failing_linear_cpu.masked_weight(weight, examples, failure, key)


@implements("masked_weight_grad", "cpu")
def _add_masked_cpu(total: Tensor, by_example: Tensor, examples: range, failure: float, key: Tensor) -> None:
    from synaptome.kernels import failing_linear_cpu

    failing_linear_cpu.add_masked(total, by_example, examples, failure, key)
