"""What the cost model says of the recipe `decoupled` on this machine: how fast its blocks are apart, and a balance."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast

from synaptome.learning.block_costs import BlockCost, balanced, measured_costs, predicted_speedup
from synaptome.learning.parallel.transfers import measured_transfers
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import border_shapes, bounds
from synaptome.recipes import running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings


def predicted(settings: RunSettings) -> dict[str, Any]:
    """The speed of synthetic gradients with these settings against backpropagation in one process, from their costs.

    Args:
        settings: of the recipe `decoupled` with the method synthetic, one level and one replica.

    Returns:
        The `speed`, how many times as many steps a second; the `balance` of the settings, and `blocks` with what each
        takes (`BlockCost`, in seconds). The `proposed` balance and its `proposed_speed` are the same where no other
        balance promises more.

    Raises:
        ConfigurationError, DataError: see `Recipe.experiment`.
        WorkerLostError: transfers could not be measured.
    """
    recipe = cast(Decoupled, settings.recipe)
    experiment = running.build(settings)
    rule = cast(SyntheticGradients, experiment.rule)
    batch = experiment.data.train[slice(experiment.batch)]
    shapes = border_shapes([learner.block for learner in rule.learners], experiment.data.input_shape)
    costs = measured_costs(rule, batch, measured_transfers(shapes, len(batch.targets)))
    balance, speed = recipe.layers_of_blocks, predicted_speedup(costs)
    single = replace(recipe.with_method("locked"), blocks=2, balance=(1,) * sum(balance))
    layers = cast(SyntheticGradients, running.build(replace(settings, recipe=single)).rule)
    proposed, promised = proposal([cost.learning for cost in measured_costs(layers, batch)], costs)
    if promised <= speed:
        proposed, promised = balance, speed
    return {
        "speed": speed,
        "balance": balance,
        "blocks": [asdict(cost) for cost in costs],
        "proposed": proposed,
        "proposed_speed": promised,
    }


def proposal(layers: list[float], costs: list[BlockCost]) -> tuple[tuple[int, ...], float]:
    """The balance that suits the layers, and its speed.

    Args:
        layers: what each layer costs by itself. In a block it costs less, since a block is begun and ended once: only
            its share of all layers counts.
        costs: of the blocks of another balance of the same layers.
    """
    whole = sum(cost.learning for cost in costs)
    shares = [layer / sum(layers) * whole for layer in layers]
    apart = [cost.apart for cost in costs]
    balance = balanced(shares, apart)
    slowest = max(sum(shares[start:stop]) + extra for (start, stop), extra in zip(bounds(balance), apart, strict=True))
    return balance, whole / slowest
