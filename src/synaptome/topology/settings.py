"""How connections evolve: the options of an `Evolution`, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from synaptome.errors import ConfigurationError, unknown
from synaptome.topology.drop import DROPS
from synaptome.topology.ranges import is_real, is_whole
from synaptome.topology.schedule import SCHEDULES

GROWS = ("random", "random-unfired", "gradient", "momentum")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of an `Evolution`, whose docstring says what each of them means.

    Raises:
        ConfigurationError: a name is unknown, or a number is out of range.
    """

    drop: str
    grow: str
    fraction: float
    every: int
    until: int | None
    schedule: str
    accumulate: int | None
    redistribute: Literal["momentum"] | None
    initial: float | Literal["distribution"]
    track_visited: bool
    seed: int

    def __post_init__(self) -> None:
        for what, name, allowed in (
            ("drop rule", self.drop, tuple(DROPS)),
            ("growth rule", self.grow, GROWS),
            ("schedule", self.schedule, tuple(SCHEDULES)),
            ("redistribution", self.redistribute, (None, "momentum")),
        ):
            if name not in allowed:
                raise unknown(what, name, allowed)
        if not (is_real(self.fraction) and 0 < self.fraction <= 1):  # also refuses NaN
            raise ConfigurationError(f"fraction is a share of the connections in (0, 1]; given {self.fraction!r}")
        for what, number in (("every", self.every), ("until", self.until), ("accumulate", self.accumulate)):
            optional = what != "every" and number is None
            if not optional and not (is_whole(number) and number >= 1):  # type: ignore[operator]
                raise ConfigurationError(f"{what} is a whole number of at least 1; given {number!r}")
        if self.schedule != "constant" and self.until is None:
            raise ConfigurationError(f"schedule={self.schedule!r} falls over the steps up to `until`; give until=...")
        if self.initial != "distribution" and not (is_real(self.initial) and math.isfinite(self.initial)):
            raise ConfigurationError(f"initial is a finite number or 'distribution'; given {self.initial!r}")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**63):
            raise ConfigurationError(f"seed is a whole number from 0 to 2**63 - 1; given {self.seed!r}")

    def as_state(self) -> dict[str, Any]:
        """All of them by name, in Python's own types."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.as_state().items())


def differences(state: Any, settings: Settings) -> str | None:
    """In which options those of a state differ from these, in words; None if in none.

    Args:
        state: what `Settings.as_state` gave, or something corrupt.
        settings: of the evolution that is to take the state.
    """
    own = settings.as_state()
    if not isinstance(state, dict) or state.keys() != own.keys():
        return f"its settings are not {', '.join(own)}"
    differing = [name for name in own if state[name] != own[name]]
    if not differing:
        return None
    theirs, ours = (", ".join(f"{name}={given[name]!r}" for name in differing) for given in (state, own))
    return f"it was made with {theirs}, and this evolution has {ours}"


def _plain(value: Any) -> Any:
    if is_whole(value):
        return int(value)
    return float(value) if is_real(value) else value
