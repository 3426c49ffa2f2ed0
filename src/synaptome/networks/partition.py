"""A network as blocks of consecutive layers, for learning in parallel."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Protocol, cast, runtime_checkable

import torch
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
    if isinstance(model, nn.Sequential):
        check_balance(balance, len(model))
        return nn.ModuleList(model[start:stop] for start, stop in bounds(balance))
    depth_of(model)  # which refuses other models
    blocks: nn.ModuleList = cast(Splittable, model).split(balance)
    return blocks


def even(depth: int, blocks: int) -> tuple[int, ...]:
    """The balance of `blocks` blocks whose sizes differ by at most 1, larger ones first.

    Raises:
        ConfigurationError: there are more blocks than layers, or none.
    """
    check_blocks(depth, blocks)
    small, larger = divmod(depth, blocks)
    return tuple(small + (block < larger) for block in range(blocks))


def bounds(balance: Sequence[int]) -> list[tuple[int, int]]:
    """The first layer of each block and the one after its last, counted from 0."""
    return list(pairwise(accumulate(balance, initial=0)))


@torch.no_grad()
def border_shapes(
    blocks: Iterable[nn.Module], example: Sequence[int], device: torch.device | str = "cpu"
) -> list[tuple[int, ...]]:
    """The shape of an example's activity after each block but the last.

    Args:
        blocks: in a row.
        example: shape of an input of the first.
        device: of the blocks.
    """
    x, shapes = torch.zeros(1, *example, device=device), []
    for block in blocks:
        x = copy.deepcopy(block).eval()(x)  # of a copy: to run a block may count, or draw
        shapes.append(tuple(x.shape[1:]))
    return shapes[:-1]


def check_blocks(depth: int, blocks: int) -> None:
    """Refuse more blocks than layers, or none, with a ConfigurationError."""
    if not 1 <= blocks <= depth:
        raise ConfigurationError(
            f"a network of depth {depth} has from 1 to {depth} blocks; given {blocks}: choose as many, or a greater "
            f"depth"
        )


def check_balance(balance: Sequence[int], depth: int, least: int = 1) -> None:
    """Refuse numbers of layers that do not sum to the depth, with a ConfigurationError.

    Args:
        balance: the number of layers in each block, at least 1.
        depth: of the network.
        least: layers of the last block; 0 where it has something else to do.
    """
    if not balance or min([1, *balance[:-1]]) < 1 or balance[-1] < least or sum(balance) != depth:
        raise ConfigurationError(
            f"balance gives each block its layers, whole numbers from 1 on{'' if least else ' (from 0 for the last)'} "
            f"that sum to the depth, {depth}; given {list(balance)}, with the sum {sum(balance)}"
        )
