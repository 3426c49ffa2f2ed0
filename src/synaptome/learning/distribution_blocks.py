"""Blocks of a model's parameters, one for each worker of parallel variable distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.networks.multilevel import PATHS
from synaptome.networks.stable import StableNetwork

Values = Mapping[str, Tensor]  # of the trainable parameters, by name


@dataclass(frozen=True)
class Piece:
    """A parameter, or consecutive rows of it.

    Attributes:
        name: of the parameter in the model.
        rows: first row and the one after the last; None for all of it.
    """

    name: str
    rows: tuple[int, int] | None = None


Block = tuple[Piece, ...]


class Partition:
    """The trainable parameters of a model in blocks.

    Args:
        model: any.
        blocks: at least one; together they hold each row of each trainable parameter once. Their pieces may come in
            any order.

    Attributes:
        blocks: the same, pieces in the order of the model's parameters, and neighbouring rows in one piece.

    Raises:
        ConfigurationError: a block is empty, there is no such parameter or row, it is not trained, or it lies in no
            block or in two.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self._trained = trained(model)
        others = {name for name, _ in model.named_parameters()} - set(self._trained)
        if not blocks or not all(blocks):
            raise ConfigurationError(
                f"blocks are lists of at least one parameter each; given {[len(block) for block in blocks]} of them"
            )
        # For each parameter the block of each of its rows; a parameter without axes has one row.
        self._owners = {name: torch.full((_rows(each),), -1) for name, each in self._trained.items()}
        for number, block in enumerate(blocks):
            for piece in block:
                if piece.name not in self._trained:
                    why = "is frozen or empty" if piece.name in others else "is no name of one"
                    raise ConfigurationError(
                        f"block {number + 1} holds the parameter {piece.name!r}, which {why}; those that are trained "
                        f"are {', '.join(self._trained)}"
                    )
                self._give(piece, number)
        for name, owners in self._owners.items():
            if (owners < 0).any():
                raise ConfigurationError(
                    f"{name!r} lies in no block, or not all of its {len(owners)} rows do; the blocks hold every "
                    f"parameter that is trained: add it to one, or freeze it"
                )
        self.blocks = tuple(tuple(self._pieces(number)) for number in range(len(blocks)))

    def values(self) -> dict[str, Tensor]:
        """The parameters as they are, sharing the model's memory."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def install(self, values: Values) -> None:
        """Write values into the model's parameters."""
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])

    def take(self, values: Values, block: int) -> list[Tensor]:
        """The pieces of a block, views of the values."""
        return [
            values[piece.name] if piece.rows is None else values[piece.name][slice(*piece.rows)]
            for piece in self.blocks[block]
        ]

    def put(self, values: Values, block: int, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """The values with a block's pieces in place of its own; differentiable by both."""
        made = dict(values)
        for piece, given in zip(self.blocks[block], pieces, strict=True):
            if piece.rows is None:
                made[piece.name] = given
            else:
                first, end = piece.rows
                old = made[piece.name]
                made[piece.name] = torch.cat([old[:first], given, old[end:]])
        return made

    def shift(self, values: Values, directions: Values, steps: Tensor) -> dict[str, Tensor]:
        """`x_s + steps_s d_s` for each block s; differentiable by the steps.

        Args:
            values: x.
            directions: d, of the same shapes.
            steps: `[blocks]`, of any floating dtype and on any device.
        """
        made = {}
        for name, value in values.items():
            owned = steps[self._owners[name].to(steps.device)].to(value)
            by_row = owned.view((*value.shape[:1], *(1 for _ in value.shape[1:])))
            made[name] = value + by_row * directions[name]
        return made

    def _give(self, piece: Piece, number: int) -> None:
        owners = self._owners[piece.name]
        first, end = (0, len(owners)) if piece.rows is None else piece.rows
        if not 0 <= first < end <= len(owners):
            raise ConfigurationError(
                f"block {number + 1} holds the rows {first} to {end} (without the last) of {piece.name!r}, which has "
                f"{len(owners)}"
            )
        if (owners[first:end] >= 0).any():
            other = int(owners[first:end].max()) + 1
            raise ConfigurationError(
                f"{piece.name!r}, or rows of it, lie in block {other} and in block {number + 1}, or twice in one; each "
                f"parameter that is trained lies in one block, once"
            )
        owners[first:end] = number

    def _pieces(self, number: int) -> Iterable[Piece]:
        for name, owners in self._owners.items():
            mine = (owners == number).nonzero().flatten().tolist()
            if len(mine) == len(owners):
                yield Piece(name)
            elif mine:
                breaks = [at for at, (row, later) in enumerate(pairwise(mine), 1) if later > row + 1]
                for first, end in pairwise([0, *breaks, len(mine)]):
                    yield Piece(name, (mine[first], mine[end - 1] + 1))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained and not empty, by name, in the model's order; a shared one by its first name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad and each.numel()}


def by_layers(model: nn.Module, count: int) -> tuple[Block, ...]:
    """Consecutive layers in blocks of about equally many parameters.

    Layers are modules with parameters of their own, in the order in which the model lists them. Those of a
    `StableNetwork` are rows of one parameter; its opening and its classifier are layers too.

    Args:
        model: any.
        count: number of blocks, from 1 to the number of layers.

    Raises:
        ConfigurationError: there are not so many layers, or less than one block is asked for.
    """
    layers = _stable_layers(model) if isinstance(model, StableNetwork) else _module_layers(model)
    if not 1 <= count <= len(layers):
        raise ConfigurationError(
            f"{type(model).__name__} has {len(layers)} layers that are trained, so there can be 1 to {len(layers)} "
            f"blocks of layers; given {count}"
        )
    parameters = dict(model.named_parameters())
    sizes = [sum(_size(parameters[piece.name], piece) for piece in layer) for layer in layers]
    sums = list(accumulate(sizes, initial=0))
    bounds = [0]
    for number in range(1, count):
        # Where the sum is nearest to its share, with a layer left for each block before and after.
        allowed = range(bounds[-1] + 1, len(layers) - (count - number) + 1)
        bounds.append(min(allowed, key=lambda at: abs(sums[at] - sums[-1] * number / count)))
    bounds.append(len(layers))
    return tuple(tuple(piece for layer in layers[first:end] for piece in layer) for first, end in pairwise(bounds))


def by_parameters(model: nn.Module, groups: Iterable[Iterable[nn.Parameter]]) -> tuple[Block, ...]:
    """One block for each group of whole parameters, as optimizers take groups.

    Raises:
        ConfigurationError: one of them is no parameter of the model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    blocks = [list(group) for group in groups]
    for number, block in enumerate(blocks, 1):
        for parameter in block:
            if parameter not in names:
                raise ConfigurationError(
                    f"group {number} holds a parameter of shape {list(parameter.shape)} that is none of the model's"
                )
    return tuple(tuple(Piece(names[parameter]) for parameter in block) for block in blocks)


def _module_layers(model: nn.Module) -> list[Block]:
    names = trained(model)
    layers = []
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
        if kept := tuple(Piece(name) for name in own if name in names):
            layers.append(kept)
    return layers


def _stable_layers(network: StableNetwork) -> list[Block]:
    names = trained(network)
    path = [name for name in PATHS if name in names]
    rows = [tuple(Piece(name, (row, row + 1)) for name in path) for row in range(network.controls)]
    ends = [tuple(Piece(name) for name in names if name.startswith(part)) for part in ("opening.", "classifier.")]
    return [layer for layer in (ends[0], *rows, ends[1]) if layer]


def _rows(parameter: Tensor) -> int:
    return len(parameter) if parameter.dim() else 1


def _size(parameter: Tensor, piece: Piece) -> int:
    rows = _rows(parameter)
    first, end = (0, rows) if piece.rows is None else piece.rows
    return parameter.numel() // rows * (end - first)
