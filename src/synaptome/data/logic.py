"""Truth tables of one and two inputs, the smallest tasks there are; XOR is the one that needs hidden neurons."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from synaptome.data.dataset import Dataset, Split
from synaptome.errors import unknown

# The value for each pattern, in the order of binary numbers: 0, 1, or 00, 01, 10, 11.
TABLES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"and": (0, 0, 0, 1), "or": (0, 1, 1, 1), "xor": (0, 1, 1, 0), "not": (1, 0), "id": (0, 1)}
)


def logic(task: str = "xor", *, one_hot: bool = False, constant: bool = True) -> Dataset:
    """A whole truth table, as training set and as test set: there is nothing to generalise to.

    Args:
        task: `and`, `or`, `xor`, `not` or `id`.
        one_hot: whether there is an output for each of the values 0 and 1, of which the true one is 1.
        constant: whether a further input, the last one, is always 1.

    Returns:
        A data set with float64 inputs `[2 or 4, inputs]` and real targets `[2 or 4, 1 or 2]`.

    Raises:
        ConfigurationError: there is no such task.
    """
    if task not in TABLES:
        raise unknown("task", task, TABLES)
    values = torch.tensor(TABLES[task])
    bits = len(values).bit_length() - 1
    patterns = torch.arange(len(values)).unsqueeze(1) >> torch.arange(bits - 1, -1, -1) & 1
    inputs = torch.cat((patterns, torch.ones(len(values), 1, dtype=torch.int64)), 1) if constant else patterns
    targets = torch.nn.functional.one_hot(values, 2) if one_hot else values.unsqueeze(1)
    split = Split(inputs.double(), targets.double())
    return Dataset(name=f"logic-{task}", train=split, validation=None, test=split, source="generated: a truth table")
