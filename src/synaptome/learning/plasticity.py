"""How synapses change between a free phase and a nudged one: asymmetric EP, and DEEP's plasticity over time.

With M patterns, activities a and states s (see `synaptome.kernels.relax`), free ones marked 0, the changes are

| rule | ΔW_ij |
|---|---|
| `deep` (Farinha et al. 2020) | `rate / (M T) Σ_m Σ_t a_i(t) [beta_0 a_j(t) + beta_1 (a_j(t) - a_j(t-1))]` |
| `asymmetric` (Scellier et al. 2018) | `rate / (beta M) Σ_m a_i⁰ (s_j^β - s_j⁰)` |

where t = 1 .. T counts the steps of the nudged phase.
A bias changes as the weight of an input that is always 1 would, without beta_0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from synaptome.errors import ConfigurationError, unknown
from synaptome.learning.sparsification import Sparsification

# The nudged phases of an epoch, as signs of beta.
NUDGINGS: Mapping[str, tuple[float, ...]] = {"one-sided": (1.0,), "random-sign": (1.0,), "centered": (1.0, -1.0)}
RULES = ("deep", "asymmetric")


@dataclass(frozen=True)
class Plasticity:
    """How the networks of a population learn; see the equations above.

    Args:
        rule: `deep` or `asymmetric`.
        beta: strength of nudging, a finite number other than 0. Outputs that are nudged away from their targets run
            to the limits of their range where it exceeds their leak.
        nudging: `one-sided`; `random-sign` of beta, drawn for each network and epoch; or `centered`, half the
            difference of the changes with beta and with -beta. With a negative sign those of `deep` change theirs.
        steps: T, of a nudged phase, at most.
        rate: dt_W, above 0.
        decay: the rate of epoch e, from 0 on, is `rate / (1 + decay e)`; at least 0.
        beta_0, beta_1: of `deep`.
        sign: whether a weight changes by `rate sign ΔW` instead.
        l1: of the regularisation `W <- W - l1 sign W`, with the signs before the epoch's change; at least 0.
        margin: None learns from all patterns. Otherwise a pattern is left out as long as each of its outputs is on the
            right side of the threshold by at least this margin, in [0, 0.5].
        sparsification: how weak connections are removed, if they are.

    Raises:
        ConfigurationError: a name or a number is none of these.
    """

    rule: str = "deep"
    beta: float = 10.0
    nudging: str = "one-sided"
    steps: int = 1000
    rate: float = 100.0
    decay: float = 0.0
    beta_0: float = 0.0
    beta_1: float = 1.0
    sign: bool = False
    l1: float = 0.0
    margin: float | None = None
    sparsification: Sparsification | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if self.nudging not in NUDGINGS:
            raise unknown("nudging", self.nudging, NUDGINGS)
        if self.beta == 0 or not math.isfinite(self.beta):
            raise ConfigurationError(
                f"beta is how strongly outputs are nudged towards their targets: a finite number other than 0, with "
                f"which nothing would be learned; given {self.beta}"
            )
        if not (0 < self.rate < math.inf and self.steps >= 1):
            raise ConfigurationError(
                f"rate is a finite number above 0 and steps at least 1; given rate {self.rate}, steps {self.steps}"
            )
        if not (0 <= self.decay < math.inf and 0 <= self.l1 < math.inf):
            raise ConfigurationError(
                f"decay and l1 are finite numbers of at least 0; given decay {self.decay}, l1 {self.l1}"
            )
        if self.beta_0 and self.nudging != "one-sided":
            raise ConfigurationError(
                f"beta_0 acts whatever the sign of beta, and so goes with one-sided nudging only; given beta_0 "
                f"{self.beta_0} with {self.nudging}"
            )
        if self.margin is not None and not 0 <= self.margin <= 0.5:
            raise ConfigurationError(
                f"margin is a distance from the threshold in [0, 0.5], or None; given {self.margin}"
            )

    def rate_of(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0."""
        return self.rate / (1 + self.decay * epoch)


def contrasted_changes(sent: Tensor, free: Tensor, nudged: Tensor, beta: float) -> Tensor:
    """ΔW that `asymmetric` learns from each pattern at rate 1, `[P, M, N, N]`.

    Args:
        sent: free activities a⁰, `[P, M, N]`.
        free, nudged: states s⁰ and s^β, `[P, M, N]`.
        beta: without its sign.
    """
    return sent.unsqueeze(3) * ((nudged - free) / beta).unsqueeze(2)


def telescoped_changes(start: Tensor, end: Tensor, steps: int, beta_1: float) -> Tensor:
    """Δb that `deep` learns from each pattern at rate 1, `[P, M, N]`: the sum over time is `a^β - a⁰`.

    Args:
        start, end: activities before and after the nudged phase, `[P, M, N]`.
        steps: T.
        beta_1: of the plasticity.
    """
    return (end - start) * (beta_1 / steps)
