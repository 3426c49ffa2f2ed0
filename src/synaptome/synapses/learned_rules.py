"""The choice of learned presence or sign, for `rewire`: by what method it is learned, and with which options.

The effective weight of a synapse is `W f(s)`, W its weight, which stays as it was drawn, and s its score, which is
trained with the straight-through gradient `df/ds = 1` (see `synaptome.kernels.learned_weight`).

| method | f(s) | source |
|---|---|---|
| `free-pruning`, in short `prune` | 1 where s > 0, else 0 | Ivan & Florian 2020 |
| `minimal-pruning` | the same; `alpha` times its mean is added to the loss | Ivan & Florian 2020 |
| `free-flipping`, in short `flip` | -1 where s < 0, else 1 | Ivan & Florian 2020 |
| `minimal-flipping` | the same; `alpha` times its mean is added to the loss | Ivan & Florian 2020 |
| `rescaled-pruning` | as `free-pruning`, times size / (1 + number of synapses that are kept) | Ivan & Florian 2020 |
| `edge-popup` | 1 for the share `density` of largest abs(s), else 0; `d abs(s)/ds` counts | Ramanujan et al. 2020 |
| `supermask` | drawn from Bernoulli(σ(s)) at each pass; `dσ/ds` counts | Zhou et al. 2019, section 5 |
| `ternary` | 1 where s > threshold, -1 where s < -threshold, else 0 | Koster, Grothe & Rettinger 2022 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.wiring import Axis, Kind

INFERENCES = ("thresholded", "expected")


class Method(NamedTuple):
    """One method of the table.

    Attributes:
        rule: of `synaptome.kernels.learned_weight`.
        values: of the mask, up to a factor, in ascending order.
        option: the one option of `Learned` that is this method's own, if there is one.
        default: of that option.
    """

    rule: str
    values: tuple[int, ...]
    option: str | None = None
    default: float | str | None = None


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "free-pruning": Method("positive", (0, 1)),
        "minimal-pruning": Method("positive", (0, 1), "alpha", -1.0),
        "free-flipping": Method("sign", (-1, 1)),
        "minimal-flipping": Method("sign", (-1, 1), "alpha", -1.0),
        "rescaled-pruning": Method("rescaled", (0, 1)),
        "edge-popup": Method("top", (0, 1), "density", 0.5),
        "supermask": Method("bernoulli", (0, 1), "inference", "thresholded"),
        "ternary": Method("ternary", (-1, 0, 1), "threshold", 0.01),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType({"prune": "free-pruning", "flip": "free-flipping"})


@dataclass(frozen=True)
class Learned(Kind):
    """The choice of learned presence or sign, for `rewire`. Options that are None take the method's default.

    Args:
        method: a name in the table of `synaptome.synapses.learned_rules`; `prune` and `flip` stand for the free ones.
        alpha: of the minimal methods: `alpha * mean f(s)` of each layer is what `synaptome.penalty` adds to the loss.
            By default -1, which rewards synapses that stay as they are.
        density: of `edge-popup`: the share of synapses that are kept, in (0, 1]; by default 0.5.
        threshold: of `ternary`: the score above which a synapse is kept, and below whose negative it is inverted; at
            least 0, by default 0.01.
        inference: of `supermask`, at inference: `thresholded`, the synapses that are more likely there than not
            (default), or `expected`, weights times their probabilities, the mean over masks.
        train_weights: whether the weights are trained as well, by the gradient `dL/dW = dL/d(W f(s)) f(s)`.

    Raises:
        ConfigurationError: there is no such method, an option is another method's, or out of range.
    """

    method: str
    _: KW_ONLY
    alpha: float | None = None
    density: float | None = None
    threshold: float | None = None
    inference: str | None = None
    train_weights: bool = False
    axis: ClassVar[Axis] = "gate"

    def __post_init__(self) -> None:
        name = ALIASES.get(self.method, self.method)
        if name not in METHODS:
            raise unknown("method", self.method, (*METHODS, *ALIASES))
        object.__setattr__(self, "method", name)
        own = METHODS[name].option
        for option in ("alpha", "density", "threshold", "inference"):
            given = getattr(self, option)
            if given is not None and option != own:
                takers = [method for method, row in METHODS.items() if row.option == option]
                raise ConfigurationError(
                    f"{option} is an option of {' and '.join(takers)}; {name} has none of that name: given "
                    f"{option}={given!r}, leave it out or choose another method"
                )
        if own is not None:
            if getattr(self, own) is None:
                object.__setattr__(self, own, METHODS[name].default)
            _check(own, getattr(self, own))

    @property
    def rule(self) -> str:
        """The rule of `synaptome.kernels.learned_weight` by which this method learns."""
        return METHODS[self.method].rule

    @property
    def values(self) -> tuple[int, ...]:
        """The values of the mask, up to a factor, in ascending order."""
        return METHODS[self.method].values

    @property
    def amount(self) -> float:
        """The number that the rule takes: a density or a threshold."""
        return self.density or self.threshold or 0.0

    def options(self) -> str:
        """The method and its own option, as `extra_repr` shows them."""
        own = METHODS[self.method].option
        told = "" if own is None else f", {own}={getattr(self, own)!r}"
        return f"method={self.method!r}{told}{', train_weights=True' if self.train_weights else ''}"


def _check(option: str, given: Any) -> None:
    """Refuse an option that is out of range."""
    if option == "alpha" and not math.isfinite(given):
        raise ConfigurationError(f"alpha is a finite number, negative to reward synapses that stay; given {given}")
    if option == "density" and not 0 < given <= 1:  # also refuses NaN
        raise ConfigurationError(f"density is the share of synapses that are kept, in (0, 1]; given {given}")
    if option == "threshold" and not 0 <= given < math.inf:
        raise ConfigurationError(f"threshold is a finite number of at least 0; given {given}")
    if option == "inference" and given not in INFERENCES:
        raise unknown("inference", given, INFERENCES)
