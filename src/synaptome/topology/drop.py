"""Which connections die: rules that choose among those of a layer.

A rule is given the values `[nnz]` in the order of (row, col), their gradient, the fraction to drop and the most that
may be dropped, and returns which ones: bool `[nnz]`. Numbers of connections are rounded to the nearest whole number.
Where scores are equal the connection that is first in the order of (row, col) is dropped first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels.selection import smallest

Drop = Callable[[Tensor, Tensor | None, float, int], Tensor]


def magnitude(values: Tensor, gradient: Tensor | None, fraction: float, most: int) -> Tensor:
    """The weights nearest to zero (Evci et al. 2020, RigL; Dettmers & Zettlemoyer 2019; Liu et al. 2021, ITOP)."""
    return smallest(values.abs(), min(round(fraction * len(values)), most))


def nearest_of_each_sign(values: Tensor, gradient: Tensor | None, fraction: float, most: int) -> Tensor:
    """That fraction of the positive weights, and of the negative ones, nearest to zero (Mocanu et al. 2018, SET).

    A weight of exactly 0 counts as positive: it is among the first to go.
    """
    negatives = int((values < 0).count_nonzero())
    positives = len(values) - negatives
    of_positive = min(round(fraction * positives), most)
    of_negative = min(round(fraction * negatives), most - of_positive)
    # In ascending order they stand side by side: not above the last of the one kind, nor below the first of the other.
    return smallest(values, negatives + of_positive) & smallest(-values, positives + of_negative)


def taylor(values: Tensor, gradient: Tensor | None, fraction: float, most: int) -> Tensor:
    """The connections without which the loss changes least to first order, by |weight * gradient|.

    Source: Molchanov et al. 2019, equation 8, `(g w)²`; an option of the authors' code for ITOP (Liu et al. 2021).
    """
    if gradient is None:
        raise ConfigurationError(
            "drop='taylor' needs the gradient of the last optimizer step, and a layer has none; call step() after "
            "backward() and the optimizer's step, and before zero_grad()"
        )
    return smallest((values * gradient).abs(), min(round(fraction * len(values)), most))


DROPS: dict[str, Drop] = {"magnitude": magnitude, "set": nearest_of_each_sign, "taylor": taylor}
