"""Truth tables."""

import pytest
import torch

from synaptome.data.logic import TABLES, logic
from synaptome.errors import ConfigurationError

OPERATIONS = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
    "not": lambda a: not a,
    "id": lambda a: a,
}


@pytest.mark.parametrize("task", TABLES)
@pytest.mark.parametrize("constant", [True, False])
def test_every_pattern_has_its_value(task, constant):
    table = logic(task, constant=constant)
    bits = OPERATIONS[task].__code__.co_argcount
    assert table.train.inputs.shape == (2**bits, bits + constant)
    assert len({tuple(row) for row in table.train.inputs.tolist()}) == 2**bits
    for inputs, targets in zip(table.train.inputs.tolist(), table.train.targets.tolist(), strict=True):
        assert targets == [float(OPERATIONS[task](*(bool(bit) for bit in inputs[:bits])))]
        assert inputs[bits:] == [1.0] * constant
    assert table.train.inputs.dtype == table.train.targets.dtype == torch.float64


@pytest.mark.parametrize("task", TABLES)
def test_one_hot_targets_have_a_neuron_for_each_value(task):
    plain, one_hot = logic(task), logic(task, one_hot=True)
    assert one_hot.outputs == 2
    assert torch.equal(one_hot.train.targets[:, 1:], plain.train.targets)
    assert (one_hot.train.targets.sum(1) == 1).all()


def test_a_task_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match=r"unknown task 'xnor'.*did you mean 'xor'"):
        logic("xnor")
