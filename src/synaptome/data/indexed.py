"""Batches that say which of the training examples they hold, for rules that keep something for each example."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from synaptome.data.dataset import Batch, Dataset, Split


class IndexedBatch(Batch):
    """A batch with the places of its examples in the split.

    Args:
        inputs, targets: as for `Batch`.
        examples: int64 `[batch]`, from 0.
    """

    examples: Tensor

    def __new__(cls, inputs: Tensor, targets: Tensor, examples: Tensor) -> IndexedBatch:  # noqa: D102
        batch = super().__new__(cls, inputs, targets)
        batch.examples = examples
        return batch


@dataclass(frozen=True)
class IndexedSplit(Split):
    """A split whose training batches are `IndexedBatch`es."""

    def training_batch(self, index: Tensor, seed: int, step: int) -> IndexedBatch:
        """The examples of `index`, with it."""
        return IndexedBatch(*self[index], index)


def indexed(dataset: Dataset) -> Dataset:
    """The data set with training batches that say which examples they hold; all else stays."""
    return replace(dataset, train=IndexedSplit(dataset.train.inputs, dataset.train.targets))
