"""How connections evolve, as a choice: the settings of published methods, and what replaces them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.topology.evolution import Evolution


@dataclass(frozen=True)
class EvolutionChoice:
    """What replaces a setting of the preset; what is not given is the preset's.

    Args:
        drop: which connections go: set (of each sign those nearest to zero), magnitude or taylor.
        grow: where connections come: random, random-unfired (where none ever was), gradient or momentum.
        fraction: share of the connections that is replaced at a time, in (0, 1], before the schedule.
        every_epochs: epochs from one change to the next.
        every_steps: the same in steps; give one of the two.
        until: share of the training after which nothing changes, in (0, 1].
        schedule: how the fraction falls until then.
        accumulate: steps over which the gradient to grow by is summed.
        redistribute: share what was dropped among the layers by their momentum; off: each keeps its number.
        initial: value of a new connection, or distribution: drawn as those that the network started with.
    """

    drop: Literal["set", "magnitude", "taylor"] | None = None
    grow: Literal["random", "random-unfired", "gradient", "momentum"] | None = None
    fraction: float | None = None
    every_epochs: int | None = None
    every_steps: int | None = None
    until: float | None = None
    schedule: Literal["constant", "cosine", "linear", "inverse-power"] | None = None
    accumulate: int | None = None
    redistribute: Literal["off", "momentum"] | None = None
    initial: float | Literal["distribution"] | None = None

    def __post_init__(self) -> None:
        if self.every_epochs is not None and self.every_steps is not None:
            raise ConfigurationError(
                f"every_epochs and every_steps both say when connections change; given {self.every_epochs} and "
                f"{self.every_steps}: keep one of them"
            )
        for name, every in (("every_epochs", self.every_epochs), ("every_steps", self.every_steps)):
            if every is not None and every < 1:
                raise ConfigurationError(f"{name} is a whole number of at least 1; given {every}")
        if self.until is not None and not 0 < self.until <= 1:  # also refuses NaN
            raise ConfigurationError(f"until is a share of the training in (0, 1]; given {self.until}")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, preset: EvolutionChoice) -> EvolutionChoice:
        """The preset with what is given here in place of its own."""
        if self.every_epochs is not None or self.every_steps is not None:
            preset = replace(preset, every_epochs=None, every_steps=None)
        return replace(preset, **self.given)

    def make(
        self,
        preset: EvolutionChoice,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epoch_steps: int,
        steps: int,
        seed: int,
    ) -> Evolution:
        """The evolution of a model over a training: by the preset, with what is given here in place of its own.

        Args:
            preset: of those below, where every setting is given that a method has.
            model: with sparse layers.
            optimizer: of its parameters.
            epoch_steps: steps of an epoch.
            steps: of the whole training.
            seed: of the random choices.

        Raises:
            ConfigurationError: no connection would ever change, or from `Evolution`.
        """
        options = self.over(preset).given
        every = options.pop("every_steps", None) or options.pop("every_epochs") * epoch_steps
        until = round(options.pop("until") * steps)
        if every >= until:
            raise ConfigurationError(
                f"no connection would ever change: the first change is due after step {every}, and from step {until} "
                f"of {steps} on nothing changes; take more epochs, or change connections more often"
            )
        if options["redistribute"] == "off":
            del options["redistribute"]
        return Evolution(model, optimizer, every=every, until=until, seed=seed, track_visited=True, **options)


SET = EvolutionChoice(
    drop="set",
    grow="random",
    fraction=0.3,
    every_epochs=1,
    until=1.0,
    schedule="constant",
    redistribute="off",
    initial=0.0,
)
RIGL = EvolutionChoice(
    drop="magnitude",
    grow="gradient",
    fraction=0.3,
    every_steps=100,
    until=0.75,
    schedule="cosine",
    redistribute="off",
    initial=0.0,
)
SNFS = EvolutionChoice(
    drop="magnitude",
    grow="momentum",
    fraction=0.5,
    every_epochs=1,
    until=1.0,
    schedule="cosine",
    redistribute="momentum",
    initial=0.0,
)
ITOP = EvolutionChoice(
    drop="magnitude",
    grow="random",
    fraction=0.5,
    every_epochs=4,
    until=1.0,
    schedule="cosine",
    redistribute="off",
    initial=0.0,
)
