"""What networks say all over the square of their two inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.networks.population import Population

SIDE = 101  # points along an edge of the square
MOST_NUMBERS = 2**22  # of a state in one call: 32 MiB


def mapped_inputs(patterns: Tensor) -> list[int]:
    """The inputs, of patterns `[M, inputs]`, that are not the same in all of them: those that a map is over."""
    return (patterns != patterns[:1]).any(0).nonzero().flatten().tolist()


def input_grid(patterns: Tensor, side: int = SIDE) -> Tensor:
    """A grid over [0, 1]² of the two inputs that vary; the others keep the value that they have in all patterns.

    Args:
        patterns: `[M, inputs]`.
        side: points along an edge, both ends included, at least 2.

    Returns:
        float64 `[side * side, inputs]`, row by row; the first row has the second input at 0.

    Raises:
        ConfigurationError: not exactly two inputs vary, or side is below 2.
    """
    varying = mapped_inputs(patterns)
    if len(varying) != 2:
        raise ConfigurationError(
            f"a decision map is over two inputs that vary; in these patterns {len(varying)} do: {varying}"
        )
    if side < 2:
        raise ConfigurationError(f"side is a number of points along an edge of the square, at least 2; given {side}")
    ticks = torch.linspace(0, 1, side, dtype=torch.float64, device=patterns.device)
    grid = patterns[:1].double().repeat(side * side, 1)
    grid[:, varying] = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).flatten(0, 1)
    return grid


@torch.no_grad()
def decision_map(model: Population, patterns: Tensor, side: int = SIDE) -> Tensor:
    """The outputs of every network after a free phase on each point of a grid over its two inputs.

    All points start from the state from which the first pattern is tested, so that what differs between them is the
    input alone. With several equilibria, another start may lead to another map.

    Args:
        model: the networks.
        patterns: `[M, inputs]`, of which exactly two inputs vary; see `input_grid`.
        side: points along an edge of the square [0, 1]².

    Returns:
        Activities, float64 `[P, side, side, outputs]`: rows by the second input, columns by the first, both from 0 on.

    Raises:
        ConfigurationError: as `input_grid`.
    """
    grid = input_grid(patterns, side)
    start = model.initial(patterns[:1])
    inputs, neurons = model.sizes.inputs, model.sizes.neurons
    parts = []
    for points in torch.split(grid, max(1, MOST_NUMBERS // (len(model) * neurons))):
        state = start.repeat(1, len(points), 1)
        state[..., :inputs] = points
        parts.append(model.outputs(model.relax(state).state))
    return torch.cat(parts, 1).view(len(model), side, side, model.sizes.outputs)
