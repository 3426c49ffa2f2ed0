"""Layers of stable networks as kicks: in each, one field of the state changes by a force that a field makes.

`target <- kept target + taken source + added force(source)`, where the force is `s(A y + b)` with A = K or K', or it is
`K' s(K y + b)`. See `synaptome.kernels.flow` for the equations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


class Kick(NamedTuple):
    """`target <- target + factor h^power force(source)`, of fields by number; `transposed` is for A = K'."""

    target: int
    source: int
    factor: float
    power: int = 1
    transposed: bool = False


class Splitting(NamedTuple):
    """A layer of a dynamics.

    Attributes:
        fields: of the state.
        kicks: in their order.
        pulled: whether the force is `K' s(K y + b)`.
        two_step: whether a kick starts from `2 source - target`, and the fields then change places.
    """

    fields: int
    kicks: tuple[Kick, ...]
    pulled: bool = False
    two_step: bool = False

    @property
    def reversible(self) -> bool:
        """Whether kicks can be undone, because no field kicks itself."""
        return all(kick.target != kick.source for kick in self.kicks)


SPLITTINGS = {
    "euler": Splitting(1, (Kick(0, 0, 1.0),)),
    "leapfrog": Splitting(2, (Kick(1, 0, -1.0, power=2),), pulled=True, two_step=True),
    "verlet": Splitting(2, (Kick(1, 0, -1.0, transposed=True), Kick(0, 1, 1.0))),
    "hamiltonian": Splitting(2, (Kick(0, 1, -0.5), Kick(1, 0, 1.0), Kick(0, 1, -0.5)), pulled=True),
}


class Plan(NamedTuple):
    """All kicks of all layers, in their order, as arrays.

    Attributes:
        places: int64 `[kicks, 4]`: target, source, layer, whether A = K'.
        factors: `[kicks, 3]`: kept, taken, added.
        order: int64 `[fields]`: which field of the arrays each field of the state is in the end.
        pulled: see `Splitting`.
    """

    places: Any
    factors: Any
    order: Any
    pulled: bool


@lru_cache(maxsize=64)  # asked at every call, for the same few networks
def plan(dynamics: str, depth: int, step: float, half_kick: bool, dtype: str) -> Plan:
    """The kicks of so many layers; half_kick halves the very first; factors are of the dtype of that name."""
    splitting = SPLITTINGS[dynamics]
    kept, taken = (-1.0, 2.0) if splitting.two_step else (1.0, 0.0)
    order = list(range(splitting.fields))
    places: list[tuple[int, int, int, bool]] = []
    factors: list[tuple[float, float, float]] = []
    for layer in range(depth):
        for kick in splitting.kicks:
            share = 0.5 if half_kick and not places else 1.0
            places.append((order[kick.target], order[kick.source], layer, kick.transposed))
            factors.append((kept, taken, share * kick.factor * step**kick.power))
        if splitting.two_step:
            order.reverse()
    return Plan(
        np.array(places, np.int64).reshape(-1, 4),
        np.array(factors, dtype).reshape(-1, 3),
        np.array(order, np.int64),
        splitting.pulled,
    )
