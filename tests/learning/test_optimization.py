"""Choices of an optimizer for another one."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.learning.optimization import OPTIMIZERS, Optimization


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_choices_for_one_optimizer_serve_any_other(name):
    given = Optimization(rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    renamed = given.renamed(name)
    assert (renamed.name, renamed.rate, renamed.schedule, renamed.drops) == (name, 0.1, "cosine", given.drops)
    made = renamed.optimizer([torch.nn.Parameter(torch.zeros(3, 3))])
    (group,) = made.param_groups
    # The optimizer itself knows what it takes.
    assert (renamed.momentum, renamed.weight_decay) == tuple(
        value if name in group else 0.0 for name, value in (("momentum", 0.9), ("weight_decay", 5e-4))
    )


def test_an_optimizer_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match=r"unknown optimizer 'adm' \(did you mean 'adam'"):
        Optimization().renamed("adm")


def test_no_weight_decay_means_none_whatever_torch_would_take():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert Optimization("adamw", rate=0.1).optimizer([parameter]).param_groups[0]["weight_decay"] == 0
    assert (
        Optimization("adamw", rate=0.1, weight_decay=0.02).optimizer([parameter]).param_groups[0]["weight_decay"]
        == 0.02
    )
