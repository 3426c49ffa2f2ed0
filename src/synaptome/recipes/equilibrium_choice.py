"""What equilibrium propagation takes where nothing else is asked for, in layered and in complete networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from synaptome.errors import ConfigurationError


@dataclass(frozen=True)
class EquilibriumChoice:
    """Values of those fields of the recipe `equilibrium-classifier` that have these names."""

    free_steps: int
    nudged_steps: int
    beta: float
    rates: tuple[float, ...]
    weights: str = "symmetric"
    corrected: bool = False
    nudging: str = "random-sign"
    dt: float = 0.5
    persistent: bool = True
    batch: int = 20
    momentum: float = 0.0


# Scellier & Bengio 2017, table 1, by the number of hidden layers, of 500 neurons each.
PUBLISHED: Mapping[int, EquilibriumChoice] = MappingProxyType(
    {
        1: EquilibriumChoice(20, 4, 0.5, (0.1, 0.05)),
        2: EquilibriumChoice(150, 6, 1.0, (0.4, 0.1, 0.01)),
        3: EquilibriumChoice(500, 8, 1.0, (0.128, 0.032, 0.008, 0.002)),
    }
)

# Found on digits and MNIST; nothing is published. As weights grow the free phase takes longer to come to rest: with 10
# steps in place of 20, gradients went wrong after some epochs on MNIST, and learning ran away. States that are kept
# would take fewer steps, but 1.2 GB for 5000 neurons and 60 000 examples.
COMPLETE = EquilibriumChoice(
    20,
    5,
    0.5,
    (0.1, 0.1),
    weights="asymmetric",
    corrected=True,
    nudging="centered",
    dt=0.7,
    persistent=False,
    batch=32,
    momentum=0.9,
)


def choice(network: str, hidden: int, given: Mapping[str, Any]) -> EquilibriumChoice:
    """What is given, and the usual settings in place of what is not.

    Args:
        network: layered or complete.
        hidden: how many hidden layers there are.
        given: values by name; those that are None, and rates of no number, are not given.

    Raises:
        ConfigurationError: settings are missing that are not published for so many hidden layers.
    """
    given = {name: value for name, value in given.items() if value is not None and value != ()}
    if network == "complete":
        return replace(COMPLETE, **given)
    missing = [name for name in ("free_steps", "nudged_steps", "beta", "rates") if name not in given]
    if hidden not in PUBLISHED and missing:
        raise ConfigurationError(
            f"settings are published for {min(PUBLISHED)} to {max(PUBLISHED)} hidden layers; for {hidden} also give "
            f"{', '.join(missing)}"
        )
    return replace(PUBLISHED.get(hidden, PUBLISHED[max(PUBLISHED)]), **given)
