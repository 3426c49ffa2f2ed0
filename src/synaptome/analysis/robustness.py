"""How well a trained network does its task when its synapses fail, whether or not they failed while it learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError
from synaptome.synapses.failing import Failing
from synaptome.synapses.rewire import rewire

BATCH = 1000  # examples evaluated at once


@torch.no_grad()
def accuracy_under_failures(
    model: nn.Module, split: Split, rates: Sequence[float], passes: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """The accuracy of a classifier at each rate of failure, all of its synapses failing in every pass.

    Whatever synapses it was trained with, every linear layer of a copy is given failures at the rate, so that networks
    are compared on equal terms. The model itself, its counters and torch's random state are not touched. Rates share
    their random numbers: a synapse that fails at one rate also fails at every higher one.

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
            the model has no linear layer.
    """
    if not rates or passes < 1:
        raise ConfigurationError(f"at least one rate and one pass are needed; given {list(rates)} and {passes}")
    if split.targets.dtype != torch.int64 or split.targets.dim() != 1:
        raise ConfigurationError(
            f"accuracy is of class indices, int64 [n]; given {split.targets.dtype} targets {list(split.targets.shape)}"
        )
    accuracy = torch.empty(len(rates), passes, dtype=torch.float64)
    for row, rate in zip(accuracy, rates, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # rewiring draws the streams of failures, on the CPU
            failing = rewire(copy.deepcopy(model), Failing(rate, "noisy")).eval()
        if rate == 0:
            row.fill_(_accuracy(failing, split))
            continue
        for index in range(passes):
            row[index] = _accuracy(failing, split)
    return {"rate": torch.tensor(list(rates), dtype=torch.float64), "accuracy": accuracy}


def _accuracy(model: nn.Module, split: Split) -> float:
    correct = sum(int((model(batch.inputs).argmax(1) == batch.targets).sum()) for batch in split.batches(BATCH))
    return correct / len(split)
