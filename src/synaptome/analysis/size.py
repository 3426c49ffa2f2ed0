"""How much of a network is there, and how much of it is at work."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from synaptome.networks.population import Population
from synaptome.synapses.failing import Failures
from synaptome.synapses.learned_weight import LearnedWeight
from synaptome.topology.layers import sparse_layers


class SynapseCount(NamedTuple):
    """Sizes of a network.

    Attributes:
        parameters: trainable numbers, biases and all.
        synapses: weights of its layers: parameters with at least two axes that are no biases, the connections of sparse
            layers and of populations, and the weights of learned layers, frozen or not.
        active: of these, the number expected to be at work for an example while training: without those that fail,
            those that a learned layer masks, and those that a population has removed.
    """

    parameters: int
    synapses: int
    active: int


def count_synapses(model: nn.Module) -> SynapseCount:
    """Count parameters and synapses of any model; a shared parameter counts once."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    synapses, active = 0, 0.0
    connections = {id(layer.values) for layer in sparse_layers(model).values()}
    seen: set[int] = set()
    for module in model.modules():
        failures = getattr(module, "failures", None)
        survive = 1 - failures.rate if isinstance(failures, Failures) else 1.0
        failing = getattr(module, "failing_weights", None)  # the names of those that may fail; without it, all may
        if isinstance(module, LearnedWeight):
            # A synapse is a weight and its score, of which either may be the trained one.
            synapses += module.scores.numel()
            active += survive * int(module.mask().count_nonzero())
            seen |= {id(module.scores), id(module.weight)}
        elif isinstance(module, Population):
            synapses += module.values.numel()
            active += int(module.present.count_nonzero())
            seen.add(id(module.values))
        for name, parameter in module.named_parameters(recurse=False):
            # The biases of many layers may be one parameter of two axes.
            weights = (parameter.dim() > 1 and name != "bias") or id(parameter) in connections
            if weights and id(parameter) not in seen:
                seen.add(id(parameter))
                synapses += parameter.numel()
                active += parameter.numel() * (survive if failing is None or name in failing else 1.0)
    return SynapseCount(parameters, synapses, round(active))
