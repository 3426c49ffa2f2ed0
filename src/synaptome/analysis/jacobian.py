"""The Jacobian of relaxing networks on the units that are not clipped, and whether its spectrum is stable.

Near an equilibrium a unit that is clipped, and pushed on outwards, stays where it is. The others follow
`ds = J ds` to first order, with J the part of the Jacobian that is theirs. An Euler step multiplies a mode of
eigenvalue λ by 1 + dt λ, so that disturbances decay where `|1 + dt λ| < 1` for all λ; for the flow, which is the limit
of small dt, where the real parts are below 0. This is necessary and sufficient for small disturbances that clip or
release no unit, up to equality; Gershgorin's discs (`synaptome.networks.complete`) are sufficient only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synaptome.networks.equilibrium import EquilibriumNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import States


class Linearisation(NamedTuple):
    """Dynamics `ds/dt` of F free units about states.

    Attributes:
        jacobian: J[j, k] = d(ds_j/dt) / ds_k, as if no unit were clipped, `[..., F, F]`.
        unclipped: the units that are not at a bound that their own change pushes them against, bool `[..., F]`.
    """

    jacobian: Tensor
    unclipped: Tensor


def population_jacobian(model: Population, state: Tensor) -> Linearisation:
    """Of the free phase of a population: `J_jk = W_kj ρ'(s_k) - δ_jk leak_j`.

    Args:
        model: P networks.
        state: of M patterns, `[P, M, N]`.

    Returns:
        `[P, M, F, F]` and `[P, M, F]`, F counting hidden neurons and outputs.
    """
    inputs = model.sizes.inputs
    with torch.enable_grad():
        moving = state.detach().requires_grad_()
        sent = model.activities(moving)
        (slope,) = torch.autograd.grad(sent.sum(), moving)
    weight, free = model.weight, state[..., inputs:]
    leak = model.leak(weight).unsqueeze(1)
    coupling = weight[:, inputs:, inputs:].mT.unsqueeze(1) * slope[..., None, inputs:]
    unclipped = torch.ones_like(free, dtype=torch.bool)
    if model.activity == "hard-sigmoid":
        change = (sent.detach() @ weight)[..., inputs:] - leak * free
        if model.bias is not None:
            change = change + model.bias.detach().unsqueeze(1)
        unclipped = _unclipped(free, change)
    return Linearisation(coupling - torch.diag_embed(leak), unclipped)


@torch.no_grad()
def network_jacobian(network: EquilibriumNetwork, x: Tensor, states: States) -> Linearisation:
    """Of the free phase of a network, the units of all layers one after the other: `J = d target / ds - I`.

    The target is the drive, or where the state function is no projection, that function of the drive.

    Args:
        network: F units.
        x: one input `[1, ...]`.
        states: each `[1, width]`.

    Returns:
        `[F, F]` and `[F]`.
    """
    drive, widths = network.drive(x), [state.shape[1] for state in states]

    def driven(flat: Tensor) -> Tensor:
        return torch.cat(drive(torch.split(flat, widths, 1)), 1)

    flat = torch.cat(list(states), 1)
    # The drive is affine, and its derivative the same everywhere: what each unit adds to it.
    one = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
    coupling = (driven(one) - driven(torch.zeros_like(flat))).T
    target = driven(flat)
    unclipped = torch.ones_like(flat, dtype=torch.bool)
    if network.state.projects:
        unclipped = _unclipped(flat, target - flat)
    else:
        with torch.enable_grad():
            target.requires_grad_()
            (slope,) = torch.autograd.grad(network.state.function(target).sum(), target)
        coupling = slope.T * coupling
    return Linearisation(coupling - one, unclipped.squeeze(0))


def eigenvalues(jacobian: Tensor, unclipped: Tensor) -> Tensor:
    """Of the part of a Jacobian `[F, F]` whose units `[F]` are not clipped; complex, as many as there are of them."""
    found: Tensor = torch.linalg.eigvals(jacobian[unclipped][:, unclipped])
    return found


def stable(values: Tensor, dt: float) -> bool:
    """Whether an Euler step of dt makes every mode of these eigenvalues decay; so it is where all units are clipped."""
    return bool(((1 + dt * values).abs() < 1).all())


@torch.no_grad()
def population_spectra(model: Population, state: Tensor, resting: Tensor) -> dict[tuple[int, int], Tensor]:
    """The eigenvalues at each equilibrium, by the numbers of network and pattern.

    Args:
        model: P networks.
        state: of M patterns, `[P, M, N]`.
        resting: which of them are at rest, bool `[P, M]`; of others there are none, for they are at no equilibrium.
    """
    jacobian, unclipped = (found.cpu() for found in population_jacobian(model, state))
    return {(p, m): eigenvalues(jacobian[p, m], unclipped[p, m]) for p, m in resting.nonzero().tolist()}


def _unclipped(state: Tensor, change: Tensor) -> Tensor:
    return ~(((state <= 0) & (change < 0)) | ((state >= 1) & (change > 0)))
