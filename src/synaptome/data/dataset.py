"""The in-memory data set every recipe trains on, and the seeded order in which batches are drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from synaptome.data.streams import philox
from synaptome.errors import ConfigurationError


class Batch(NamedTuple):
    """Inputs `[batch, ...]` with their targets: class indices `[batch]` int64, or real values `[batch, outputs]`."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Split:
    """One part of a data set, wholly in memory.

    Attributes:
        inputs: `[n, ...]`, floating point.
        targets: `[n]` int64 class indices, or `[n, outputs]` real values.

    Raises:
        ConfigurationError: inputs and targets differ in number.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ConfigurationError(
                f"a split needs as many targets as inputs: {len(self.inputs)} inputs, {len(self.targets)} targets"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """The examples of a slice, or of int64 indices `[n]` counted from 0."""
        if isinstance(index, Tensor):  # the same numbers as by indexing, in half the time
            return Batch(self.inputs.index_select(0, index), self.targets.index_select(0, index))
        return Batch(self.inputs[index], self.targets[index])

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order `[n]` (int64, on the CPU) in which an epoch visits the examples; see `epoch_order`."""
        return epoch_order(len(self), seed, epoch)

    def training_batch(self, index: Tensor, seed: int, step: int) -> Batch:
        """What a run of `seed` learns from at its step `step`, from 0 on: here the examples of `index` as they are.

        A pure function of its arguments, so that a resumed run sees the same batches.
        """
        return self[index]

    def batches(self, size: int) -> Iterator[Batch]:
        """Every example once, in stored order, in batches of at most `size`.

        Raises:
            ConfigurationError: `size` is below 1.
        """
        if size < 1:
            raise ConfigurationError(f"batch size must be at least 1, got {size}")
        return (self[start : start + size] for start in range(0, len(self), size))


@dataclass(frozen=True)
class Population(Split):
    """A split that stands for a whole population: its few examples have the population's second moments exactly.

    For learning rules that work with expectations. Every batch drawn of it is all of it.

    Attributes:
        size: how many examples an epoch counts.
    """

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """All of it, whatever the index."""
        return Batch(self.inputs, self.targets)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Any order: each batch is the same."""
        return torch.zeros(1, dtype=torch.int64).expand(self.size)


@dataclass(frozen=True)
class Dataset:
    """A named data set: what is learned from, what is chosen by, and what is only ever reported.

    Attributes:
        name: as given on the command line.
        train: examples that the weights are fitted to.
        validation: held out of the training examples; None when nothing was held out.
        test: never used to choose anything.
        classes: names of the classes, or None for regression.
        teacher: for regression, the linear map `[outputs, inputs]` that made the targets.
        source: where the examples came from, in words: the folder they were read from, or what generated them.
        mean: what was subtracted from each channel (inputs in [0, 1]); None when inputs were not normalised.
        std: what each channel was then divided by.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...] | None = None
    teacher: Tensor | None = None
    source: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of classes, or of real outputs."""
        return len(self.classes) if self.classes is not None else int(self.train.targets.shape[1])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on another device, the teacher with it."""
        return replace(
            self,
            train=self.train.to(device),
            validation=None if self.validation is None else self.validation.to(device),
            test=self.test.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )


def epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    """The order `[examples]` (int64) in which epoch `epoch` visits the training examples.

    A pure function of its arguments: a resumed run needs to know only the epoch and the position in it.

    Raises:
        ConfigurationError: the seed or the epoch is negative or needs more than 63 bits.
    """
    return torch.from_numpy(philox(seed, epoch).permutation(examples))
