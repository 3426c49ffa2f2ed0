"""Stability of deep networks as dynamical systems: what disturbances, gradients and the energy do over depth.

The layers of a `StableNetwork` are steps of a differential equation dx/dt = f(x, t) (Haber & Ruthotto 2017, arXiv
1705.03341, section 3). Its state x is Y; Y and Z for `verlet`; p and q for `hamiltonian`; Y and Y' for `leapfrog`,
which carries Y and the Y before it, whose difference over h is Y'. All other dynamics carry x itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, NumericError
from synaptome.networks.blocks import classified
from synaptome.networks.dynamics import energy, join
from synaptome.networks.forces import FORCES
from synaptome.networks.stable import StableNetwork


class EnergyDrift(NamedTuple):
    """What the energy of the Hamiltonian dynamics has gained along paths, in parts of the mean energy at the start.

    Attributes:
        total: `[depth + 1, batch]`, of the energy with the weights of the layer to come, and at the end of the last.
        steps: `[depth + 1, batch]`, the part of the total that is an error of the steps: each layer changes the energy
            with its own weights, which the differential equation would keep, and these changes are summed. The rest is
            the work of weights that change in time.
    """

    total: Tensor
    steps: Tensor


@torch.no_grad()
def states(network: StableNetwork, inputs: Tensor, layers: Sequence[int]) -> Tensor:
    """The carried states before some layers.

    Args:
        network: any.
        inputs: what it takes, `[batch, ...]`.
        layers: numbers of layers from 0 on, ascending; the depth stands for the state after the last one.

    Returns:
        `[layers, batch, n]`, or `[layers, batch, n, height, width]`.

    Raises:
        ConfigurationError: there are no such layers.
    """
    _check(layers, network.depth)
    run = _runner(network)
    carried, reached, found = network.opening(inputs), 0, []
    for layer in layers:
        carried, reached = run(carried, reached, layer), layer
        found.append(carried)
    return torch.stack(found)


def step_eigenvalues(network: StableNetwork, carried: Tensor, layers: Sequence[int]) -> Tensor:
    """The eigenvalues of the Jacobian of a layer's step, by the carried state.

    A disturbance along the eigenvector of one outside the unit circle grows in that step.

    Args:
        network: any, but the cost goes with the cube of the numbers in a state: a few hundred at most.
        carried: states before these layers, `[layers, batch, ...]`, as `states` gives them.
        layers: numbers of layers from 0 on, ascending.

    Returns:
        Complex, `[layers, batch, n]`, n being all numbers in a state; in no order.

    Raises:
        ConfigurationError: there are no such layers, or another number of them than of states.
        NumericError: a Jacobian is not finite.
    """
    return _eigenvalues(network, carried, layers, _step)


def flow_eigenvalues(network: StableNetwork, carried: Tensor, layers: Sequence[int]) -> Tensor:
    """The eigenvalues of the Jacobian of f by x, per unit of time; for a step of Euler's `(step's - 1) / h`.

    Arguments, result and errors are those of `step_eigenvalues`.
    """
    return _eigenvalues(network, _equation_state(network, carried.flatten(0, 1)).view_as(carried), layers, _rate)


def spectral_abscissa(network: StableNetwork, carried: Tensor, layers: Sequence[int]) -> Tensor:
    """The largest real part among the `flow_eigenvalues`, per unit of time, `[layers, batch]`.

    Where f changes slowly in time, some disturbance grows if it is above 0, and all decay if it is below 0 (Haber &
    Ruthotto 2017, section 3.1). Arguments and errors are those of `step_eigenvalues`.
    """
    return flow_eigenvalues(network, carried, layers).real.amax(-1)


def gradient_norms(network: StableNetwork, inputs: Tensor, targets: Tensor, layers: Sequence[int]) -> Tensor:
    """The Frobenius norm of the gradient of the loss by the states x of the batch before some layers.

    The loss is the mean cross-entropy of the batch. The norm at the last layer over that at the first is below 1 where
    gradients grow on their way back, and above 1 where they shrink.

    Args:
        network: a classifier.
        inputs: what it takes, `[batch, ...]`.
        targets: class indices, int64 `[batch]`.
        layers: numbers of layers from 0 on, ascending; the depth stands for the state after the last one.

    Returns:
        `[layers]`.

    Raises:
        ConfigurationError: there are no such layers.
    """
    _check(layers, network.depth)
    with torch.enable_grad():
        run = _runner(network)
        carried, reached, met = network.opening(inputs).detach(), 0, []
        for layer in layers:
            x = _equation_state(network, run(carried, reached, layer))
            met.append(x if x.requires_grad else x.requires_grad_())
            carried, reached = _carried_state(network, x), layer
        outputs = classified(network.flow, network.classifier, run(carried, reached, network.depth))
        gradients = torch.autograd.grad(F.cross_entropy(outputs, targets), met)
    return torch.stack([gradient.norm() for gradient in gradients])


@torch.no_grad()
def energy_drift(network: StableNetwork, inputs: Tensor) -> EnergyDrift:
    """How far the energy `1' log cosh(K q + b) + 1' log cosh(K p + b)` goes from where it started.

    The differential equation of H-DNN keeps it as long as K and b are constant in time (Galimberti et al. 2021, arXiv
    2105.13205).

    Args:
        network: with the `hamiltonian` dynamics and the activation tanh, whose energy this is.
        inputs: what it takes, `[batch, ...]`.

    Raises:
        ConfigurationError: the network has other dynamics or another activation.
    """
    if network.dynamics != "hamiltonian" or network.flow.activation != "tanh":
        raise ConfigurationError(
            f"this energy is that of the hamiltonian dynamics with the activation tanh; the network has the "
            f"{network.dynamics} dynamics with {network.flow.activation}"
        )
    layers = list(zip(*network.layers(), strict=True))
    path = network.features(inputs)  # p and q, which are all that is carried
    before = torch.stack([energy(carried, K, b) for carried, (K, b) in zip(path[:-1], layers, strict=True)])
    after = torch.stack([energy(carried, K, b) for carried, (K, b) in zip(path[1:], layers, strict=True)])
    total = torch.cat((before, after[-1:])) - before[0]
    steps = torch.cat((torch.zeros_like(before[:1]), (after - before).cumsum(0)))
    start = before[0].mean().clamp_min(torch.finfo(before.dtype).tiny)  # where all energies are 0, so are the gains
    return EnergyDrift(total / start, steps / start)


def _eigenvalues(network: StableNetwork, carried: Tensor, layers: Sequence[int], of: Callable[..., Tensor]) -> Tensor:
    _check(layers, network.depth - 1)
    if len(carried) != len(layers):
        raise ConfigurationError(f"{len(layers)} layers take as many batches of states; given {len(carried)}")
    from threadpoolctl import threadpool_limits

    weight, bias = (each.detach() for each in network.layers())
    jacobians = []
    for batch, layer in zip(carried.detach(), layers, strict=True):
        K, b = network.flow.matrices(weight[layer]), bias[layer]
        jacobians.append(_jacobians(partial(of, network=network, K=K, b=b, layer=layer), batch))
        if not jacobians[-1].isfinite().all():
            raise NumericError(f"the Jacobian of layer {layer}, counted from 0, is not finite: it has no eigenvalues")
    # NumPy's routine balances the matrix, without which LAPACK's may not converge where whole rows are 0, as of a relu
    # that is silent. On one thread, since bits would depend on their number.
    stacked = torch.stack(jacobians)
    with threadpool_limits(limits=1, user_api="blas"):
        found = np.linalg.eigvals(stacked.cpu().numpy())
    return torch.from_numpy(found).to(stacked.dtype.to_complex()).to(stacked.device)


def _jacobians(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`[batch, n, n]`, of a function of batches that treats each example by itself."""

    def flat(x: Tensor) -> Tensor:
        return function(x.view(1, *batch.shape[1:])).flatten()

    found: Tensor = vmap(jacrev(flat))(batch.flatten(1))
    return found


def _step(carried: Tensor, network: StableNetwork, K: Tensor, b: Tensor, layer: int) -> Tensor:
    """The carried state after a layer."""
    flow, method = network.flow, network.flow.method
    return join(method.step(method.split(carried), K, b, flow.step, flow.function, flow.kick(layer)))


def _rate(x: Tensor, network: StableNetwork, K: Tensor, b: Tensor, layer: int) -> Tensor:
    """f."""
    flow, method = network.flow, network.flow.method
    fields = method.split(x)
    if method.shears is None:
        return FORCES["outward"](K, fields[0], b, flow.function)
    rates = [torch.zeros_like(field) for field in fields]
    for shear in method.shears(1.0, 1.0):  # a step of 1: their scales are what the equation has
        force = shear.scale * FORCES[shear.force](K, fields[1 - shear.target], b, flow.function)
        if shear.mirrored:
            return join((fields[1], force))  # the rate of Y is Y', that of Y' the force
        rates[shear.target] = rates[shear.target] + force
    return join(tuple(rates))


def _equation_state(network: StableNetwork, carried: Tensor) -> Tensor:
    """x, of the carried state."""
    if network.dynamics != "leapfrog":
        return carried
    y, before = network.flow.method.split(carried)
    return join((y, (y - before) / network.step))


def _carried_state(network: StableNetwork, x: Tensor) -> Tensor:
    """The carried state, of x."""
    if network.dynamics != "leapfrog":
        return x
    y, velocity = network.flow.method.split(x)
    return join((y, y - network.step * velocity))


def _runner(network: StableNetwork) -> Callable[[Tensor, int, int], Tensor]:
    """The map from a carried state, by the layers from one up to, and without, another."""
    weight, bias = network.layers()

    def run(carried: Tensor, start: int, stop: int) -> Tensor:
        return carried if start == stop else network.flow.run(carried, weight[start:stop], bias[start:stop], start)

    return run


def _check(layers: Sequence[int], last: int) -> None:
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > last:
        raise ConfigurationError(
            f"layers are given by numbers from 0 to {last}, each once and ascending; given {list(layers)}"
        )
