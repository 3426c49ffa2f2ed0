"""How a free phase goes on, step by step: residuals, and the energy where there is one.

Layered networks have an energy where their weights are symmetric (`LayeredNetwork.energy`). Directed networks, whose
weights are not, have none, and in general no other Lyapunov function of theirs is known.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from synaptome.networks.equilibrium import EquilibriumNetwork
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import Relaxation, States

MOST_STEPS = 200  # that are kept of a relaxation


def chosen_steps(steps: int, most: int = MOST_STEPS) -> list[int]:
    """Numbers of steps from 1 to `steps`: all, or at most so many (2 or more), evenly on a logarithmic scale."""
    if steps <= most:
        return list(range(1, steps + 1))
    ratio = steps ** (1 / (most - 1))
    return sorted({round(ratio**place) for place in range(most)})


@torch.no_grad()
def population_residuals(model: Population, state: Tensor, at: list[int]) -> Tensor:
    """The projected residual of some steps of a free phase.

    Args:
        model: with tolerance 0. With another one a pattern would stop at rest, and take one more step each time that
            it is looked at.
        state: where it starts, `[P, M, N]`.
        at: numbers of steps, from 1, increasing.

    Returns:
        `[len(at), P, M]`: 0 once a state repeats itself to the bit, infinite where it is not finite.
    """
    residuals = []
    for before, after in pairwise([0, *at]):
        relaxed = model.relax(state, steps=after - before)
        state = relaxed.state
        residuals.append(relaxed.residual)
    return torch.stack(residuals)


@torch.no_grad()
def network_relaxation(
    network: EquilibriumNetwork, x: Tensor, states: States, steps: int
) -> tuple[Tensor, Tensor | None]:
    """The residual of each step of a free phase, and the energy before and after each if the network has one.

    Args:
        network: whose dt is taken.
        x: inputs `[patterns, ...]`.
        states: where it starts, each `[patterns, width]`.
        steps: how many, at least 1.

    Returns:
        Residuals `[steps, patterns]`, infinite where a state is not finite; and energies `[steps + 1, patterns]`, None
        unless the network is layered and its weights are symmetric.
    """
    drive, one = network.drive(x), Relaxation(1, network.relaxation.dt)
    described = network if isinstance(network, LayeredNetwork) and network.symmetric else None
    energies = [described.energy(x, states)] if described else []
    residuals = []
    for _ in range(steps):
        outcome = network.relax(drive, states, one)
        states = outcome.states
        residuals.append(outcome.residual)
        if described:
            energies.append(described.energy(x, states))
    return torch.stack(residuals), torch.stack(energies) if described else None
