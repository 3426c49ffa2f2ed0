"""The suite for synapses refuses layers that break a promise; what passes it, passes beside its own tests."""

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import ConformanceError, check_synapse


class Cell(syn.FailingRNNCell):
    """Takes two inputs; a flaw may be put in."""

    def __init__(self, flaw=lambda y, x, h: y):
        super().__init__(3, 4, failure=0.5)
        self.flaw = flaw

    def forward(self, x, h=None):
        return self.flaw(super().forward(x, h), x, h)


def inputs(leading):
    return torch.randn(*leading, 3), torch.randn(*leading, 4)


LEADING = ((), (0,), (5,))


def test_a_layer_of_two_inputs_passes():
    check_synapse(Cell, make_inputs=inputs, leading=LEADING)


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        (lambda y, x, h: y.reshape(-1, 4), r"input \(3,\), \(4,\) gives \(1, 4\), not \(4,\)"),
        (lambda y, x, h: y + x.stride(0), "strides of the input change the output"),
        (lambda y, x, h: y + x.detach().sum(-1, keepdim=True), "gradients are not those of finite differences"),
        (lambda y, x, h: y + h.detach().sum(-1, keepdim=True), "gradients are not those of finite differences"),
        (lambda y, x, h: y + 1e-6 * torch.rand(()), "gradients are not those of finite differences"),
    ],
)
def test_flaws_are_found(flaw, message):
    with pytest.raises(ConformanceError, match=message):
        check_synapse(lambda: Cell(flaw), make_inputs=inputs, leading=LEADING)


def test_an_input_without_a_gradient_is_found():
    with pytest.raises(ConformanceError, match=r"input \(4,\) gets no gradient of its shape"):
        check_synapse(lambda: Cell(lambda y, x, h: x.sum() + torch.zeros(*x.shape[:-1], 4)), make_inputs=inputs)


def test_leading_axes_that_a_layer_does_not_take_are_found():
    with pytest.raises(ValueError, match="x is \\[batch, 3\\]"):
        check_synapse(Cell, make_inputs=inputs, leading=((2, 3),))


class NoWayBack(syn.FailingConv2d):
    def __init__(self):
        super().__init__(2, 3, 3, failure=0.5)

    def to_dense(self):
        return self


class AnotherWeight(NoWayBack):
    def to_dense(self):
        return nn.Conv2d(2, 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoWayBack, r"to_dense\(\) gives a NoWayBack, not a layer of torch\.nn"),
        (AnotherWeight, r"to_dense\(\) differs from the layer at inference by \d"),
    ],
)
def test_a_dense_layer_that_is_none_is_found(make, message):
    with pytest.raises(ConformanceError, match=message):
        check_synapse(make, make_inputs=lambda leading: torch.randn(*leading, 2, 5, 5), leading=LEADING)
