"""How well a trained network does its task when its synapses fail, whether or not they failed while it learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.analysis.accuracy import accuracy, check_classes
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError
from synaptome.synapses.failing import Failing
from synaptome.synapses.rewire import rewire


@torch.no_grad()
def accuracy_under_failures(
    model: nn.Module, split: Split, rates: Sequence[float], passes: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """The accuracy of a classifier at each rate of failure, all of its synapses failing in every pass.

    Whatever synapses it was trained with, every layer of a copy that can fail is given failures at the rate, so that
    networks are compared on equal terms; of sparse layers the connections that there are fail. The model itself, its
    counters and torch's random state are not touched. Rates share their random numbers: a synapse that fails at one
    rate also fails at every higher one.

    Args:
        model: a classifier from inputs `[n, ...]` to one score a class `[n, classes]`.
        split: examples with class indices as targets, on the device of the model.
        rates: probabilities of failure, each in [0, 1); 0 gives the accuracy without failures.
        passes: over the split at each rate, with fresh failures in each, at least 1.
        seed: of the failures.

    Returns:
        `rate` float64 `[R]`, and `accuracy` float64 `[R, passes]`, the share of examples classified correctly.

    Raises:
        ConfigurationError: there are no rates, one is out of range, passes is below 1, the targets are no classes, or
            the model has no layer that can fail, or a sparse convolution, which cannot yet.
    """
    if not rates or passes < 1:
        raise ConfigurationError(f"at least one rate and one pass are needed; given {list(rates)} and {passes}")
    check_classes(split)
    found = torch.empty(len(rates), passes, dtype=torch.float64)
    for row, rate in zip(found, rates, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # rewiring draws the streams of failures, on the CPU
            failing = rewire(copy.deepcopy(model), Failing(rate, "noisy")).eval()
        if rate == 0:
            row.fill_(accuracy(failing, split))
            continue
        for index in range(passes):
            row[index] = accuracy(failing, split)
    return {"rate": torch.tensor(list(rates), dtype=torch.float64), "accuracy": found}
