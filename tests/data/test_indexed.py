"""Batches that say which examples they hold."""

import torch

from synaptome.data import Batch, Dataset, Split
from synaptome.data.indexed import IndexedBatch, indexed


def test_training_batches_say_whose_they_are_and_all_else_stays():
    split = Split(torch.arange(12.0).view(6, 2), torch.arange(6))
    whole = Dataset("made", split, None, split, classes=tuple("abcdef"))
    made = indexed(whole)
    index = torch.tensor([4, 0, 2])
    batch = made.train.training_batch(index, seed=0, step=3)
    inputs, targets = batch
    assert isinstance(batch, IndexedBatch)
    assert torch.equal(batch.examples, index)
    assert torch.equal(inputs, split.inputs[index])
    assert torch.equal(targets, index)
    assert type(made.train[index]) is Batch
    assert made.test is whole.test
    assert torch.equal(made.train.order(3, 1), split.order(3, 1))
