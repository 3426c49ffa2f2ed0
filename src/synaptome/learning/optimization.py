"""Optimizer and learning-rate schedule by name, for recipes; rules themselves take any torch optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from synaptome.errors import ConfigurationError, unknown

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], LRScheduler | None]

DROPS = (0.5, 0.75)  # He et al. 2016, section 4.2: at 32 000 and 48 000 of 64 000 steps

# The share of the initial rate that is left when a share t of the steps is done, for drops at given shares.
SCHEDULES: dict[str, Callable[[float, tuple[float, ...]], float]] = {
    "constant": lambda t, drops: 1.0,
    "cosine": lambda t, drops: 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t, drops: 1 - t,
    "drops": lambda t, drops: 10.0 ** -sum(t >= drop for drop in drops),
}
# All but SparseAdam, which takes nothing but sparse gradients.
OPTIMIZERS = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and cls not in (torch.optim.Optimizer, torch.optim.SparseAdam)
}


@dataclass(frozen=True)
class Optimization:
    """An optimizer of `torch.optim` with its schedule.

    Args:
        name: class in torch.optim, in any case: sgd, adam, adamw, rmsprop, lbfgs, ...
        rate: initial learning rate, positive.
        momentum: for optimizers that have it.
        weight_decay: for optimizers that have it.
        schedule: how the rate falls over the run; drops divides it by 10 at the shares that `drops` names.
        drops: shares of the steps, in (0, 1) and ascending.

    Raises:
        ConfigurationError: one of them is none of the above, or drops are given with another schedule.
    """

    name: str = "sgd"
    rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "drops"] = "constant"
    drops: tuple[float, ...] = DROPS

    def __post_init__(self) -> None:
        if self.name.lower() not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ConfigurationError(f"the learning rate is a positive number; given {self.rate}")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        self._check_drops()
        for option in ("momentum", "weight_decay"):
            value = getattr(self, option)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigurationError(f"{option} is a number of at least 0; given {value}")
            if value and not _has(self.name, option):
                raise ConfigurationError(f"{self.name} has no {option}; leave it at 0, or choose another optimizer")

    def _check_drops(self) -> None:
        given = ", ".join(str(drop) for drop in self.drops) or "none"
        if self.schedule != "drops" and self.drops != DROPS:
            raise ConfigurationError(
                f"drops belong to the schedule 'drops', and the schedule is {self.schedule!r}; given drops {given}: "
                f"leave them out, or choose that schedule"
            )
        ascending = all(earlier < later for earlier, later in pairwise((0.0, *self.drops, 1.0)))  # also refuses NaN
        if not self.drops or not ascending:
            raise ConfigurationError(
                f"drops are shares of the steps, at least one, between 0 and 1 and ascending; given {given}"
            )

    def renamed(self, name: str) -> Optimization:
        """These choices for another optimizer: momentum and weight decay are 0 where it has none.

        Args:
            name: class in torch.optim, in any case.

        Raises:
            ConfigurationError: there is no optimizer of that name.
        """
        if name.lower() not in OPTIMIZERS:
            raise unknown("optimizer", name, OPTIMIZERS)
        momentum = self.momentum if _has(name, "momentum") else 0.0
        weight_decay = self.weight_decay if _has(name, "weight_decay") else 0.0
        return replace(self, name=name, momentum=momentum, weight_decay=weight_decay)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters; a ConfigurationError where it cannot serve them."""
        given = {"lr": self.rate, "momentum": self.momentum, "weight_decay": self.weight_decay}
        # Zeros too: torch's own default may be another, as AdamW's weight decay is.
        options: dict[str, Any] = {name: value for name, value in given.items() if _has(self.name, name)}
        try:
            return OPTIMIZERS[self.name.lower()](parameters, **options)
        except ValueError as error:
            raise ConfigurationError(f"{self.name} refuses these parameters: {error}") from None

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR | None:
        """The schedule over `steps` steps; None if the rate is constant."""
        if self.schedule == "constant":
            return None
        left = SCHEDULES[self.schedule]
        return LambdaLR(optimizer, lambda step: left(min(step / max(1, steps), 1.0), self.drops))


def _has(optimizer: str, option: str) -> bool:
    return option in inspect.signature(OPTIMIZERS[optimizer.lower()]).parameters


def restarted(schedule: MakeScheduler, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    """A new schedule for an optimizer that has had one: it starts from the rate that the one before started from."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    return schedule(optimizer)


def schedule_state(scheduler: LRScheduler | None) -> dict[str, Any] | None:
    """The numbers of a schedule; its function is made anew from the configuration."""
    if scheduler is None:
        return None
    return {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}


def load_schedule(scheduler: LRScheduler | None, state: dict[str, Any] | None) -> None:
    """Go back to the numbers of `schedule_state`."""
    if scheduler is not None and state is not None:
        scheduler.load_state_dict(scheduler.state_dict() | state)
