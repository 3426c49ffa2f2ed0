"""Stochastic sparsification: weak connections of small networks are removed at random while they learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.networks.population import REMOVALS, Population


@dataclass(frozen=True)
class Sparsification:
    """After each epoch a weak connection is removed with probability p (Farinha et al. 2020, section 3).

    Over the connections into neuron j that are there, `p_ij = exp(-|W_ij| / temp) / Σ_k exp(-|W_kj| / temp)` where
    `|W_ij| <= tol`, and 0 elsewhere. A temperature far above the weights' sizes makes it one removal for each neuron on
    average, whichever of its connections are weak.

    Args:
        tol: weights of at most this size may go, at least 0.
        temp: temperature, above 0.
        regrow: whether a removed weight learns on from 0 in the next epoch, as in the authors' code. Otherwise a
            connection that is removed stays so.

    Raises:
        ConfigurationError: a number is out of range.
    """

    tol: float = 0.01
    temp: float = 5.0
    regrow: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.tol < math.inf and 0 < self.temp < math.inf):
            raise ConfigurationError(
                f"tol is a finite number of at least 0 and temp one above 0; given tol {self.tol}, temp {self.temp}"
            )

    def removed(self, population: Population, values: Tensor, epoch: int) -> Tensor:
        """Which connections go after an epoch, bool `[P, connections]`, given their weights `[P, connections]`."""
        p = removal_probabilities(values, population.present, population.target, population.sizes.neurons, self)
        return population.uniform(REMOVALS, epoch, values.shape[1]) < p


def removal_probabilities(
    values: Tensor, present: Tensor, target: Tensor, neurons: int, sparsification: Sparsification
) -> Tensor:
    """p of every connection, `[P, connections]`; 0 for those that are strong, or not there.

    Args:
        values: weights, float64 `[P, connections]`.
        present: whether connections are there, bool `[P, connections]`.
        target: the neuron into which each goes, int64 `[connections]`.
        neurons: how many there are.
        sparsification: its tolerance and temperature.
    """
    terms = torch.exp(-values.abs() / sparsification.temp) * present
    sums = values.new_zeros(len(values), neurons).index_add_(1, target, terms)
    return torch.where(present & (values.abs() <= sparsification.tol), terms / sums[:, target], 0.0)
