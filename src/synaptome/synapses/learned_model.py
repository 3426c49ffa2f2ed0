"""What a model's learned layers cost, what became of their synapses, and whether an optimizer trains them."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.learned_weight import mask_sum
from synaptome.synapses.learned_weight import Connectivity, LearnedWeight


def learned_layers(model: nn.Module) -> dict[str, LearnedWeight]:
    """The learned layers of a model by name; one that stands in several places once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LearnedWeight)}


def penalty(model: nn.Module) -> Tensor:
    """What the minimal methods add to a loss: `Σ alpha mean f(s)` over their layers, 0-d, differentiable.

    Its straight-through gradient is `alpha / size` for each score of a layer. With alpha below 0 it rewards synapses
    that stay as they are (Ivan & Florian 2020). The sum over no layers is 0.

    A layer's term is a part of its last pass in training, if the scores are still the same: to differentiate it before
    a loss of that pass, and not together with it, retain the graph.
    """
    terms: list[Tensor] = []
    rest: list[LearnedWeight] = []
    for module in model.modules():
        if isinstance(module, LearnedWeight) and module.learned.alpha is not None:
            total = module.counted()
            if total is None:
                rest.append(module)
            else:
                terms.append(total)
    if rest:
        factors = [layer.penalty_factor for layer in rest]
        terms.append(mask_sum([layer.scores for layer in rest], [layer.learned.rule for layer in rest], factors))
    return reduce(torch.add, terms) if terms else torch.zeros(())


def connectivity(model: nn.Module) -> dict[str, Connectivity]:
    """How many masks and effective weights of each learned layer are negative, zero and positive; the share changed."""
    return {name: layer.connectivity() for name, layer in learned_layers(model).items()}


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that cannot train the learned layers of a model.

    Raises:
        ConfigurationError: it holds a weight that is to stay as it was drawn, or lacks scores that are to be trained,
            as one does that was made before the layers were rewired.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    storages = {parameter.untyped_storage().data_ptr() for parameter in held}
    known = {id(parameter) for parameter in held}
    advice = "make it over model.parameters() after the layers were rewired"
    for name, layer in learned_layers(model).items():
        what = f"of {name}" if name else "of the layer"
        if not layer.learned.train_weights and layer.weight.untyped_storage().data_ptr() in storages:
            raise ConfigurationError(
                f"the optimizer holds the weight {what}, which {layer.learned.method} leaves as it was drawn; "
                f"{advice}, or set train_weights to train it"
            )
        if layer.scores.requires_grad and id(layer.scores) not in known:
            raise ConfigurationError(f"the optimizer does not hold the scores {what}, so nothing trains them; {advice}")
