"""Complete directed networks of few neurons: which connections they may have, how neurons leak, what is certified.

W[i, j] goes from neuron i to neuron j; inputs come first, then hidden neurons, then outputs. Nothing goes into inputs
or from a neuron to itself (Farinha et al. 2020, "Equilibrium Propagation for Complete Directed Neural Networks").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError

CERTIFIED_LEAK = 1e-3  # ε, by which a certified leak exceeds what a neuron sends


class Sizes(NamedTuple):
    """How many neurons of each kind a network has; inputs come first and outputs last."""

    inputs: int
    hidden: int
    outputs: int

    @property
    def neurons(self) -> int:
        """All of them."""
        return sum(self)

    @property
    def free(self) -> int:
        """Those that are not clamped."""
        return self.hidden + self.outputs


def complete_connections(sizes: Sizes) -> Tensor:
    """Every connection that there may be: bool `[N, N]`, from row to column."""
    allowed = ~torch.eye(sizes.neurons, dtype=torch.bool)
    allowed[:, : sizes.inputs] = False
    return allowed


def layered_connections(sizes: Sizes, constant: bool = True) -> Tensor:
    """Connections between neighbouring layers, in both directions but for inputs: bool `[N, N]`, from row to column.

    Args:
        sizes: of the layers; without hidden neurons, inputs and outputs are neighbours.
        constant: whether the last input is the constant 1, which goes to every neuron, as a bias would.
    """
    widths = torch.tensor([width for width in sizes if width])
    numbers = torch.arange(len(widths)).repeat_interleave(widths)
    allowed = complete_connections(sizes) & ((numbers.unsqueeze(1) - numbers).abs() == 1)
    if constant:
        allowed[sizes.inputs - 1, sizes.inputs :] = True
    return allowed


def check_connections(allowed: Tensor, sizes: Sizes) -> None:
    """Refuse connections `[N, N]` into inputs or from a neuron to itself, and outputs that no input reaches.

    Raises:
        ConfigurationError: the first neuron that is wrong, by its number from 0.
    """
    if min(sizes.inputs, sizes.outputs) < 1 or sizes.hidden < 0:
        raise ConfigurationError(f"a network has at least one input and one output; given {sizes}")
    if allowed.shape != (sizes.neurons, sizes.neurons) or allowed.dtype != torch.bool:
        raise ConfigurationError(
            f"connections are bool of shape {[sizes.neurons] * 2}; given {allowed.dtype} {list(allowed.shape)}"
        )
    wrong = allowed & ~complete_connections(sizes)
    if wrong.any():
        i, j = wrong.nonzero()[0].tolist()
        what = "an input" if j < sizes.inputs else "the neuron itself"
        raise ConfigurationError(f"no connection goes into an input or back to its neuron; given {i} to {j}, {what}")
    reached = torch.arange(sizes.neurons) < sizes.inputs
    for _ in range(sizes.free):
        reached = reached | (allowed & reached.unsqueeze(1)).any(0)
    lost = (~reached[-sizes.outputs :]).nonzero().flatten() + sizes.neurons - sizes.outputs
    if len(lost):
        told = ", ".join(map(str, lost.tolist()))
        raise ConfigurationError(
            f"every output is reached from an input; no path of connections leads to neuron {told}"
        )


# What a neuron leaks, `[P, N]`, of the weights `[P, N, N]`.
LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    "deep": lambda weight: weight.sum(2),
    "one": lambda weight: torch.ones_like(weight[:, 0]),
    "certified": lambda weight: weight.abs().sum(2) + CERTIFIED_LEAK,
}


def gershgorin(weight: Tensor, leak: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Whether Gershgorin's discs certify that the unclipped network is stable, by row and by column: bool `[P]` each.

    The Jacobian of `ds_j = Σ_i s_i W_ij - leak_j s_j` over the free neurons is `J_ji = W_ij - δ_ij leak_j`. All its
    eigenvalues have a negative real part if `Σ_i |W_ij| < leak_j` for every j (its rows), or if `Σ_k |W_jk| < leak_j`
    for every j (its columns). Both are sufficient only: a network that passes neither may well be stable. With the leak
    `deep`, which is Σ_k W_jk, the second can never hold; with `certified` it always does.

    Args:
        weight: `[P, N, N]`.
        leak: of the free neurons, `[P, N - inputs]`.
        inputs: how many neurons are clamped.
    """
    size = weight[:, inputs:, inputs:].abs()
    return (size.sum(1) < leak).all(1), (size.sum(2) < leak).all(1)


def largest_dt(leak: Tensor, beta: float) -> float:
    """The dt above which a nudged step expands, whatever the connections: `2 / max_j (leak_j + |beta|)`.

    By itself an output moves by `s_j <- s_j + dt (beta (y_j - s_j) - leak_j s_j)`, which overshoots by more than it was
    off where `dt (leak_j + beta) > 2`.

    Args:
        leak: of free neurons, of any shape.
        beta: strength of nudging.

    Returns:
        Infinity where nothing leaks and nothing is nudged.
    """
    rate = float(leak.max()) + abs(beta)
    return 2 / rate if rate > 0 else float("inf")
