"""A network as blocks of consecutive layers, for learning in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

from torch import nn

from synaptome.errors import ConfigurationError


@runtime_checkable
class Splittable(Protocol):
    """A network that knows how to split itself; `StableNetwork` and `FeedForward` do.

    Attributes:
        depth: the number of layers that a balance divides.
    """

    @property
    def depth(self) -> int:
        """The number of layers that a balance divides."""
        ...

    def split(self, balance: Sequence[int]) -> nn.ModuleList:
        """Blocks with so many layers each, which compute in a row what the network does."""
        ...


def depth_of(model: nn.Module) -> int:
    """The number of layers that a balance of the model divides.

    Raises:
        ConfigurationError: the model is neither sequential nor one that splits itself.
    """
    if isinstance(model, nn.Sequential):
        return len(model)
    if isinstance(model, Splittable):
        return model.depth
    raise ConfigurationError(
        f"only a sequence of layers can be split: a torch.nn.Sequential, a StableNetwork, a FeedForward, or a module "
        f"with depth and split(balance); given a {type(model).__name__}"
    )


def split(model: nn.Module, balance: Sequence[int]) -> nn.ModuleList:
    """The model as blocks of consecutive layers.

    Args:
        model: a `torch.nn.Sequential`, whose blocks hold its very modules, or a network that splits itself.
        balance: the number of layers in each block; the numbers sum to `depth_of(model)`.

    Returns:
        Blocks: each applied to what the one before gives, they compute what the model does.

    Raises:
        ConfigurationError: the numbers are no such, or the model cannot be split.
    """
    check_balance(balance, depth_of(model))
    if isinstance(model, nn.Sequential):
        return nn.ModuleList(model[start:stop] for start, stop in bounds(balance))
    assert isinstance(model, Splittable)
    return model.split(balance)


def even(depth: int, blocks: int) -> tuple[int, ...]:
    """The balance of `blocks` blocks whose sizes differ by at most 1, larger ones first.

    Raises:
        ConfigurationError: there are more blocks than layers, or none.
    """
    if not 1 <= blocks <= depth:
        raise ConfigurationError(f"a network of {depth} layers has from 1 to {depth} blocks; given {blocks}")
    small, larger = divmod(depth, blocks)
    return tuple(small + (block < larger) for block in range(blocks))


def bounds(balance: Sequence[int]) -> list[tuple[int, int]]:
    """The first layer of each block and the one after its last, counted from 0."""
    return list(pairwise(accumulate(balance, initial=0)))


def check_balance(balance: Sequence[int], depth: int) -> None:
    """Refuse numbers of layers that are below 1 or do not sum to the depth, with a ConfigurationError."""
    if not balance or min(balance) < 1 or sum(balance) != depth:
        raise ConfigurationError(
            f"balance gives each block its layers, whole numbers from 1 on that sum to the depth, {depth}; given "
            f"{list(balance)}, with the sum {sum(balance)}"
        )
