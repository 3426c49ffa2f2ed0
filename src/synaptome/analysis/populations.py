"""How many networks of a population learned their task, how soon, and what can be said of their stability."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synaptome.analysis.jacobian import population_spectra, stable
from synaptome.data.dataset import Split
from synaptome.kernels.relax import CONVERGED
from synaptome.networks.complete import gershgorin
from synaptome.networks.population import Population
from synaptome.networks.success import HELD_EPOCHS, predicted_right, squared_error

NAME = "networks"  # of these measures in a run
REST = 1e-6  # a residual with which a state counts as one at rest, for the analysis of its equilibrium


def part(model: Population, networks: Tensor, tolerance: float | None = None) -> Population:
    """Some networks of a population, as one of their own that shares nothing with it; `success` starts afresh.

    Args:
        model: the population.
        networks: their places in it, int64 `[n]`, at least one.
        tolerance: the residual with which a state of theirs counts as one at rest; that of the population if None.
    """
    sizes = model.sizes
    allowed = torch.zeros(sizes.neurons, sizes.neurons, dtype=torch.bool)
    allowed[model.source.cpu(), model.target.cpu()] = True
    chosen = Population(
        model.seeds[networks].tolist(),
        sizes,
        allowed,
        leak=model.leak_kind,
        bias=model.bias is not None,
        activity=model.activity,
        dt=model.dt,
        steps=model.steps,
        tolerance=model.tolerance if tolerance is None else tolerance,
        stop=model.stop,
        std=0.0,
        spread=model.spread,
    ).to(model.values.device)
    with torch.no_grad():
        chosen.values.copy_(model.values[networks])
        chosen.present.copy_(model.present[networks])
        if chosen.bias is not None and model.bias is not None:
            chosen.bias.copy_(model.bias[networks])
    return chosen


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Of each network in the last epoch, `[P]`: mean squared `error`, share of `right` predictions, `sparsity`.

    And whether it is `finite`, as 1 and 0. Before the first epoch errors and shares are 0.
    """
    assert isinstance(model, Population)
    success = model.success
    told = {"error": success.error, "right": success.right, "sparsity": model.sparsity}
    return told | {"finite": success.finite.double()}


def final(model: nn.Module, split: Split, one_hot: bool) -> dict[str, Tensor]:
    """Of each trained network, `[P]` each; what is a yes or no, as 1 and 0.

    Args:
        model: a population.
        split: all patterns.
        one_hot: whether the largest output is the prediction.

    Returns:
        `solved`: it predicts every pattern right; `held`: and did in each of the last 10 epochs; `solved_epoch`: the
        first epoch without a mistake, 0 for never; `error`: mean squared, 0 where it is not finite; `finite`;
        `settled`: its free phase came to rest, within the population's tolerance, on every pattern; `resting`: the
        last residual was at most 1e-6, or that tolerance, on every pattern; `stable`: so it was, and the spectrum of
        the Jacobian is stable at each of these equilibria (see `synaptome.analysis.jacobian`); `sparsity` among the
        allowed connections; `gershgorin_rows` and `gershgorin_columns`: its discs certify stability.
    """
    assert isinstance(model, Population)
    success = model.success
    relaxed = model.relax(model.initial(split.inputs))
    outputs = model.outputs(relaxed.state)
    error = squared_error(outputs, split.targets)
    finite = success.finite & error.isfinite()
    solved = finite & predicted_right(outputs, split.targets, one_hot).all(1)
    resting = relaxed.residual <= max(model.tolerance, REST)
    spectra = population_spectra(model, relaxed.state, resting)
    stays = resting.clone()
    for place, values in spectra.items():
        stays[place] = stable(values, model.dt)
    weight = model.weight
    rows, columns = gershgorin(weight, model.leak(weight), model.sizes.inputs)
    yes = {
        "solved": solved,
        "held": solved & (success.streak >= HELD_EPOCHS),
        "finite": finite,
        "settled": (relaxed.outcome == CONVERGED).all(1),
        "resting": resting.all(1),
        "stable": stays.all(1),
        "gershgorin_rows": rows,
        "gershgorin_columns": columns,
    }
    return {name: flag.double() for name, flag in yes.items()} | {
        "solved_epoch": success.solved,
        "error": torch.where(finite, error, 0.0),
        "sparsity": model.sparsity,
    }


def overview(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of `final` over all networks: shares in [0, 1], medians over those for which there is a number.

    Returns:
        `networks`; the shares `solved`, `held`, `ever_solved`, `not_finite`, `settled`, `resting`, `stable`,
        `gershgorin_rows` and `gershgorin_columns`; `median_epoch` of those ever solved, and `median_error` of finite
        ones, NaN if there are none; the mean `sparsity`.
    """
    epochs, finite = measured["solved_epoch"], measured["finite"] == 1
    shares = ("solved", "held", "settled", "resting", "stable", "gershgorin_rows", "gershgorin_columns")
    return {name: measured[name].mean().item() for name in shares} | {
        "networks": float(len(finite)),
        # What counts in an epoch is the free phase before its changes; a network may get it right by the last of them.
        "ever_solved": ((epochs > 0) | (measured["solved"] == 1)).double().mean().item(),
        "median_epoch": _median(epochs[epochs > 0].double()),
        "median_error": _median(measured["error"][finite]),
        "not_finite": 1 - finite.double().mean().item(),
        "sparsity": measured["sparsity"].mean().item(),
    }


def _median(values: Tensor) -> float:
    """The mean of the two in the middle, of an even number of values."""
    return values.quantile(0.5).item() if len(values) else math.nan
