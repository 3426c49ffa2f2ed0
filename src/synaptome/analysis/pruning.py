"""How well a trained network does its task when its weakest connections are removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.analysis.accuracy import accuracy, check_classes
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError
from synaptome.synapses.learned_model import learned_layers
from synaptome.topology.drop import nearest_of_each_sign
from synaptome.topology.layers import sparse_layers


@torch.no_grad()
def accuracy_when_pruned(model: nn.Module, split: Split, shares: Sequence[float]) -> dict[str, Tensor]:
    """The accuracy of a classifier without its weakest connections, each share of them on its own.

    In each layer that share of the positive weights nearest to zero and of the negative ones nearest to zero is
    removed, as in evolution by SET (Mocanu et al. 2018, algorithm 1, whose last epoch removes and does not regrow).
    A layer is the values of a sparse layer, the effective weights of a learned one that are not masked, or a parameter
    of at least two axes; biases stay. Nothing is trained again. The model itself is not touched.

    Args:
        model: a classifier from inputs `[n, ...]` to one score a class `[n, classes]`.
        split: examples with class indices as targets, on the device of the model.
        shares: of the connections, each in [0, 1); 0 gives the accuracy of the whole network.

    Returns:
        `rate` float64 `[R]`, the shares, and `accuracy` float64 `[R, 1]`, the share of examples classified correctly.

    Raises:
        ConfigurationError: there are no shares, one is out of range, the targets are no classes, or the model has no
            weights.
    """
    if not shares:
        raise ConfigurationError("at least one share of connections to remove is needed; given none")
    for share in shares:
        check_share(share)
    check_classes(split)
    if not _weights(model) and not learned_layers(model):
        raise ConfigurationError("the model has no weights, so there is nothing to remove")
    found = [accuracy(_pruned(model, share), split) for share in shares]
    return {
        "rate": torch.tensor(list(shares), dtype=torch.float64),
        "accuracy": torch.tensor(found, dtype=torch.float64).view(-1, 1),
    }


def check_share(share: float) -> None:
    """Refuse a share of connections to remove that is outside [0, 1): a ConfigurationError."""
    if not 0 <= share < 1:  # also refuses NaN
        raise ConfigurationError(f"a share of connections to remove is in [0, 1); given {share}")


def _pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy in inference whose weakest weights are 0, which is to the output as if they were not there."""
    pruned = copy.deepcopy(model).eval()
    for weight in _weights(pruned):
        weight.masked_fill_(_weakest(weight.detach().reshape(-1), share).view(weight.shape), 0.0)
    for layer in learned_layers(pruned).values():
        effective = layer.inference_weight()
        there = effective != 0
        gone = torch.zeros_like(there)
        gone[there] = _weakest(effective[there], share)
        layer.weight.masked_fill_(gone, 0.0)  # no mask depends on the weights
    return pruned


def _weakest(weights: Tensor, share: float) -> Tensor:
    """Which of these weights `[n]` go."""
    return nearest_of_each_sign(weights, None, share, len(weights))


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are at work as they are stored."""
    values = {layer.values for layer in sparse_layers(model).values()}
    learned = {p for layer in learned_layers(model).values() for p in (layer.weight, layer.scores)}
    return [p for p in model.parameters() if p not in learned and (p.dim() > 1 or p in values)]
