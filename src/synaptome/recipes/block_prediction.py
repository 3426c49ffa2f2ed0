"""What the cost model says of the recipe `decoupled` on this machine: how fast its blocks are apart, and a balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from synaptome.errors import ConfigurationError
from synaptome.learning.block_costs import BlockCost, balanced, measured_costs, predicted_speedup
from synaptome.learning.parallel.transfers import measured_transfers
from synaptome.learning.synthetic import SyntheticGradients
from synaptome.networks.partition import border_shapes, bounds
from synaptome.recipes import running
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import RunSettings

WORTH_WHILE = 1.02  # times the speed that another balance must promise to be proposed: measurements differ as much


def predicted(settings: RunSettings) -> dict[str, Any]:
    """The speed of synthetic gradients with these settings against backpropagation in one process, from their costs.

    Args:
        settings: of the recipe `decoupled` with the method synthetic, one level and one replica, on the CPU.

    Returns:
        The `speed`, how many times as many steps a second; the `balance` of the settings, and `blocks` with what each
        takes (`BlockCost`, in seconds); and of all balances with a layer in each block the `proposed` one, with its
        `proposed_speed`: those of the settings if none promises clearly more.

    Raises:
        ConfigurationError, DataError: the settings are others, or see `Recipe.experiment`.
        WorkerLostError: transfers could not be measured.
    """
    recipe = settings.recipe
    if not isinstance(recipe, Decoupled) or recipe.method != "synthetic" or recipe.levels * recipe.replicas > 1:
        raise ConfigurationError(
            f"speed is predicted of the recipe decoupled with the method synthetic, one level and one replica; given "
            f"{recipe}"
        )
    if settings.device != "cpu":
        raise ConfigurationError(f"speed is predicted on the CPU; given the device {settings.device}")
    experiment = running.build(settings)
    rule = cast(SyntheticGradients, experiment.rule)
    batch = experiment.data.train[slice(experiment.batch)]
    shapes = border_shapes([learner.block for learner in rule.learners], experiment.data.input_shape)
    costs = measured_costs(rule, batch, measured_transfers(shapes, len(batch.targets)))
    balance, speed = recipe.layers_of_blocks, predicted_speedup(costs)
    single = replace(recipe.with_method("locked"), blocks=2, balance=(1,) * sum(balance))
    layers = cast(SyntheticGradients, running.build(replace(settings, recipe=single)).rule)
    proposed, gain = proposal([cost.learning for cost in measured_costs(layers, batch)], costs, balance)
    return {
        "speed": speed,
        "balance": balance,
        "blocks": [asdict(cost) for cost in costs],
        "proposed": proposed,
        "proposed_speed": speed * gain,
    }


def proposal(
    layers: Sequence[float], costs: Sequence[BlockCost], balance: tuple[int, ...]
) -> tuple[tuple[int, ...], float]:
    """The balance that suits the layers, and how many times as fast as the given one it is.

    Args:
        layers: what each layer costs by itself. In a block it costs less, since a block is begun and ended once: only
            its share of all layers counts.
        costs: of the blocks of the given balance.
        balance: of the same layers. It is the proposed one too if none is faster by more than measurements differ.
    """
    whole = sum(cost.learning for cost in costs)
    shares = [layer / sum(layers) * whole for layer in layers]
    overheads = [cost.overhead for cost in costs]

    def slowest(sizes: Sequence[int]) -> float:
        both = zip(bounds(sizes), overheads, strict=True)
        return max(sum(shares[start:stop]) + overhead for (start, stop), overhead in both)

    best = balanced(shares, overheads)
    gain = slowest(balance) / slowest(best)
    return (best, gain) if gain > WORTH_WHILE else (balance, 1.0)
