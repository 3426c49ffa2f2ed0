"""What a run keeps of its trained networks and their equilibria: weights, maps, spectra, and the way to rest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from synaptome.analysis.decision_map import SIDE, decision_map, mapped_inputs
from synaptome.analysis.jacobian import eigenvalues, network_jacobian, population_spectra
from synaptome.analysis.populations import REST, part
from synaptome.analysis.relaxation_curves import chosen_steps, network_relaxation, population_residuals
from synaptome.analysis.stability_measures import spread
from synaptome.data.dataset import Split
from synaptome.kernels.relax import CONVERGED
from synaptome.networks.equilibrium import EquilibriumNetwork
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.population import Population
from synaptome.networks.relaxation import Outcome, Relaxation

NAME = "equilibria"  # of these measures in a run
ANALYSED = 20  # networks of a population
MOST_PRODUCTS = 2e10  # of an activity and a weight, in all maps: a few seconds
SHOWN = 5  # maps kept, besides their mean
DRAWN = 3  # networks kept with all their weights
MOST_NEURONS = 36  # of a network that can be drawn
EXAMPLES = 50  # whose relaxation is followed
SPECTRA = 4  # of these, with eigenvalues
MOST_UNITS = 640  # of a network, whose eigenvalues take a second
LONGEST = 2000  # steps until a network is given up as not coming to rest


@torch.no_grad()
def population_equilibria(model: nn.Module, split: Split, one_hot: bool) -> dict[str, Tensor]:
    """Of a trained population, the first 20 networks that are finite; nothing if there are none.

    Args:
        model: a population.
        split: all patterns, with targets of 0 and 1.
        one_hot: whether the largest output is the prediction.

    Returns:
        - `decision/maps` float32 `[K, side, side]`, what speaks for the value 1 over the square of the inputs: the
          first output, or with one-hot coding the second one less the first; `decision/seeds` int64 `[K]`;
          `decision/mean` float32 `[side, side]`, over the first `decision/networks` networks; the `decision/threshold`
          from which on 1 is predicted; `decision/patterns` `[M, 2]`, and their `decision/labels` int64 `[M]`. Where two
          inputs vary, of networks whose maps are finite, and as many as can be mapped in a few seconds;
        - `network/matrix`, the weights float64 `[K, N, N]`; `network/allowed` uint8 `[N, N]`; `network/bias`
          `[K, N - inputs]`, if they have biases; `network/sizes` int64 `[3]`; `network/seeds` int64 `[K]`. Of at most
          36 neurons;
        - `jacobian/lambda` float32 `[n, 2]`, real and imaginary parts of the eigenvalues of the unclipped units at all
          equilibria together; `jacobian/seed` and `jacobian/pattern`, from 1, int64 `[n]`; `jacobian/dt`;
        - `residual/steps` int64 `[T]`, and `residual/values` float32 `[T, n]`, of the patterns of all networks.
    """
    assert isinstance(model, Population)
    finite = model.success.finite.nonzero().flatten()[:ANALYSED]
    if not len(finite):
        return {}
    chosen = part(model, finite, max(model.tolerance, REST))
    found = _decisions(chosen, split, one_hot) | _population_spectra(chosen, split.inputs)
    if model.sizes.neurons <= MOST_NEURONS:
        found |= _weights(chosen)
    moving = part(model, finite, tolerance=0.0)
    at = chosen_steps(model.steps)
    return found | _residuals(at, population_residuals(moving, moving.initial(split.inputs), at).flatten(1))


@torch.no_grad()
def network_equilibria(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """Of a trained network, at some examples, in float64 and from states 0.

    Args:
        model: an `EquilibriumNetwork`.
        split: the examples.

    Returns:
        - `residual/steps` int64 `[T]`, and `residual/values` float32 `[T, n]`, of the steps of the free phase;
        - of layered networks of symmetric weights, `energy/steps` int64 `[T + 1]`, from 0, `energy/values` float64
          `[T + 1, n]`, `energy/rise` `[n]`, the largest increase in a step, and `energy/lowest` `[n]`, of these steps
          and of the end of a phase that goes on to rest, or for 2000 steps;
        - of at most 640 units, `jacobian/lambda` float32 `[n, 2]`, `jacobian/example`, the number in the split from 1
          on, int64 `[n]`, and `jacobian/dt`, as in `population_equilibria`, of examples that come to rest to 1e-6.

        Examples whose states are not finite are left out, and what is left of none at all.
    """
    assert isinstance(model, EquilibriumNetwork)
    network = copy.deepcopy(model).to("cpu", torch.float64)
    places = spread(len(split), EXAMPLES)
    inputs = split.inputs[places].to("cpu", torch.float64)
    at = chosen_steps(network.relaxation.steps)
    residuals, energies = network_relaxation(network, inputs, network.rest(len(inputs)), at[-1])
    found = _residuals(at, residuals[[step - 1 for step in at]])
    small = sum(network.widths) <= MOST_UNITS
    if energies is None and not small:
        return found
    longest = Relaxation(LONGEST, network.relaxation.dt, REST)
    rested = network.relax(network.drive(inputs), network.rest(len(inputs)), longest)
    if energies is not None and isinstance(network, LayeredNetwork):
        last = network.energy(inputs, rested.states)
        whole = energies.isfinite().all(0) & last.isfinite()
        found |= _energies(at, energies[:, whole], last[whole])
    return found | _network_spectra(network, inputs, rested, places) if small else found


def _decisions(model: Population, split: Split, one_hot: bool) -> dict[str, Tensor]:
    varying = mapped_inputs(split.inputs)
    count = int(MOST_PRODUCTS / (SIDE**2 * model.steps * model.sizes.neurons**2))
    if len(varying) != 2 or count == 0:
        return {}
    some = part(model, torch.arange(min(count, len(model)), device=model.values.device))
    outputs = decision_map(some, split.inputs, SIDE)
    whole = outputs.isfinite().all((1, 2, 3))
    if not whole.any():
        return {}
    outputs, seeds = outputs[whole], some.seeds[whole]
    decided = outputs[..., 1] - outputs[..., 0] if one_hot else outputs[..., 0]
    return {
        "decision/maps": decided[:SHOWN].float(),
        "decision/seeds": seeds[:SHOWN],
        "decision/mean": decided.mean(0).float(),
        "decision/networks": torch.tensor(len(decided)),
        "decision/threshold": torch.tensor(0.0 if one_hot else 0.5, dtype=torch.float64),
        "decision/patterns": split.inputs[:, varying],
        "decision/labels": split.targets.argmax(1) if one_hot else (split.targets[:, 0] > 0.5).long(),
    }


def _weights(model: Population) -> dict[str, Tensor]:
    weight = model.weight[:DRAWN]
    allowed = torch.zeros_like(weight[0], dtype=torch.uint8)
    allowed[model.source, model.target] = 1
    biases = {} if model.bias is None else {"network/bias": model.bias[:DRAWN]}
    return biases | {
        "network/matrix": weight,
        "network/allowed": allowed,
        "network/sizes": torch.tensor(model.sizes),
        "network/seeds": model.seeds[:DRAWN],
    }


def _population_spectra(model: Population, inputs: Tensor) -> dict[str, Tensor]:
    relaxed = model.relax(model.initial(inputs))
    spectra = population_spectra(model, relaxed.state, relaxed.outcome == CONVERGED)
    if not any(map(len, spectra.values())):
        return {}
    counts = torch.tensor([len(values) for values in spectra.values()])
    networks, patterns = torch.tensor(list(spectra)).T
    return _eigenvalues(list(spectra.values()), model.dt) | {
        "jacobian/seed": model.seeds.cpu()[networks].repeat_interleave(counts),
        "jacobian/pattern": (patterns + 1).repeat_interleave(counts),
    }


def _energies(at: list[int], energies: Tensor, last: Tensor) -> dict[str, Tensor]:
    if not len(last):
        return {}
    return {
        "energy/steps": torch.tensor([0, *at]),
        "energy/values": energies[[0, *at]],
        "energy/rise": energies.diff(dim=0).amax(0),
        "energy/lowest": torch.minimum(energies.amin(0), last),
    }


def _network_spectra(
    network: EquilibriumNetwork, inputs: Tensor, rested: Outcome, places: list[int]
) -> dict[str, Tensor]:
    resting = [at for at in spread(len(inputs), SPECTRA) if rested.outcome[at] == CONVERGED]
    spectra = [
        eigenvalues(*network_jacobian(network, inputs[[at]], [state[[at]] for state in rested.states]))
        for at in resting
    ]
    if not any(map(len, spectra)):
        return {}
    examples = torch.tensor([places[at] + 1 for at in resting])
    counts = torch.tensor([len(values) for values in spectra])
    return _eigenvalues(spectra, network.relaxation.dt) | {"jacobian/example": examples.repeat_interleave(counts)}


def _eigenvalues(spectra: list[Tensor], dt: float) -> dict[str, Tensor]:
    return {
        "jacobian/lambda": torch.view_as_real(torch.cat(spectra)).float(),
        "jacobian/dt": torch.tensor(dt, dtype=torch.float64),
    }


def _residuals(at: list[int], residuals: Tensor) -> dict[str, Tensor]:
    """Of steps `[T]` and patterns, `[T, n]`, those that stay finite."""
    whole = residuals.isfinite().all(0)
    if not whole.any():
        return {}
    return {"residual/steps": torch.tensor(at), "residual/values": residuals[:, whole].float()}
