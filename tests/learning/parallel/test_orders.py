"""What process 0 asks of the others; the rules that use it are tested with real processes."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.learning.parallel.orders import Orders


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3), torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2).long()],
    ids=["real", "too many", "none", "two axes"],
)
def test_labels_are_classes_and_not_more_than_was_said(alone, labels):
    with pytest.raises(ConfigurationError, match="learn classes, int64, from 1 to 8 a step; given"):
        Orders(8, 2.5).give(0, labels)
