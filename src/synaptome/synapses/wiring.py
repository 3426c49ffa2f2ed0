"""How kinds of synapse combine: they answer different questions about `y = noise(tie(gate(storage))) x + b`.

| axis | answers |
|---|---|
| storage | a dense matrix, or values on a graph of connections |
| gate | nothing, or learned presence or sign over frozen storage |
| tie | nothing, or antisymmetric, ... |
| noise | nothing, or failures for each example |

A `Kind` sits on one axis. Kinds of different axes add up: `Dense() + Failing(0.3)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from synaptome.errors import ConfigurationError

Axis = Literal["storage", "gate", "tie", "noise"]


class Kind:
    """One choice on one axis; subclasses are frozen dataclasses that hold what is to be chosen."""

    axis: ClassVar[Axis]

    def __add__(self, other: Kind | Wiring) -> Wiring:
        return Wiring((self,)) + other


_K = TypeVar("_K", bound=Kind)


@dataclass(frozen=True)
class Wiring:
    """Kinds that together say what a synapse is, at most one on each axis.

    Raises:
        ConfigurationError: two kinds sit on the same axis.
    """

    kinds: tuple[Kind, ...]

    def __post_init__(self) -> None:
        for index, kind in enumerate(self.kinds):
            for earlier in self.kinds[:index]:
                if earlier.axis == kind.axis:
                    raise ConfigurationError(
                        f"{earlier} and {kind} both choose the {kind.axis} of a synapse; keep one of them"
                    )

    def __add__(self, other: Kind | Wiring) -> Wiring:
        if not isinstance(other, Kind | Wiring):  # said by Python: unsupported operand
            return NotImplemented
        return Wiring(self.kinds + (other.kinds if isinstance(other, Wiring) else (other,)))

    def __iter__(self) -> Iterator[Kind]:
        return iter(self.kinds)

    def get(self, kind: type[_K]) -> _K | None:
        """The kind of this class, if it was chosen."""
        return next((k for k in self.kinds if isinstance(k, kind)), None)


@dataclass(frozen=True)
class Dense(Kind):
    """A plain dense matrix, as in `torch.nn.Linear`: the way back from every other kind."""

    axis: ClassVar[Axis] = "storage"
