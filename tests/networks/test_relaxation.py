"""Relaxation of patterns on dynamics whose course is known: where each stops, and what is said of it."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.kernels.relax import CONVERGED, NOT_FINITE, OUT_OF_STEPS
from synaptome.networks.relaxation import Relaxation, relax


def halving(states, out):
    """Each step halves a state, so that the residual of step t is the start over 2^t."""
    for state, target in zip(states, out, strict=True):
        torch.mul(state, 0.5, out=target)


def clipped_growth(states, out):
    for state, target in zip(states, out, strict=True):
        torch.add(state, 0.3, out=target).clamp_(0, 1)


START = torch.tensor([[1.0, 0.0], [8.0, 1.0], [0.0, 0.0]], dtype=torch.float64)


def test_each_pattern_stops_by_itself():
    done = relax(halving, [START, START[:, :1]], Relaxation(steps=6, tolerance=0.25))
    assert done.steps.tolist() == [2, 5, 1]
    assert done.outcome.tolist() == [CONVERGED] * 3
    assert done.residual.tolist() == [0.25, 0.25, 0.0]
    assert torch.equal(done.states[0], START * torch.tensor([[0.25], [2**-5], [0.5]], dtype=torch.float64))


def test_what_is_not_at_rest_is_told():
    done = relax(halving, [START], Relaxation(steps=3, tolerance=0.25))
    assert done.steps.tolist() == [2, 3, 1]
    assert done.outcome.tolist() == [CONVERGED, OUT_OF_STEPS, CONVERGED]
    assert done.residual.tolist() == [0.25, 1.0, 0.0]
    assert torch.equal(done.states[0][1], START[1] / 8)


def test_without_a_tolerance_every_step_is_taken_and_the_residual_is_that_of_the_last():
    done = relax(halving, [START], Relaxation(steps=3))
    assert done.steps.tolist() == [3, 3, 3]
    assert torch.equal(done.states[0], START / 8)
    assert done.residual.tolist() == [0.125, 1.0, 0.0]
    assert done.outcome.tolist() == [OUT_OF_STEPS, OUT_OF_STEPS, CONVERGED]


def test_the_residual_is_the_projected_one():
    """The raw derivative is 0.3 for ever; a state that is clipped is at rest all the same."""
    done = relax(clipped_growth, [torch.tensor([[0.0], [0.95]])], Relaxation(steps=50, tolerance=0.0))
    assert done.steps.tolist() == [5, 2]
    assert done.outcome.tolist() == [CONVERGED, CONVERGED]


@pytest.mark.parametrize("tolerance", [None, 0.25])
def test_a_pattern_that_is_not_finite_spoils_no_other(tolerance):
    start = START.clone()
    start[1, 1] = torch.nan
    done = relax(halving, [start], Relaxation(steps=4, tolerance=tolerance))
    assert done.outcome[1] == NOT_FINITE
    assert done.residual[1] == torch.inf
    whole = relax(halving, [START], Relaxation(steps=4, tolerance=tolerance))
    others = torch.tensor([0, 2])
    assert torch.equal(done.states[0][others], whole.states[0][others])
    assert torch.equal(done.outcome[others], whole.outcome[others])


def test_the_start_is_left_as_it_is():
    start = START.clone()
    relax(halving, [start], Relaxation(steps=3))
    relax(halving, [start], Relaxation(steps=3, tolerance=0.1))
    assert torch.equal(start, START)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "at least 1 step; given 0"),
        ({"dt": 0.0}, "above 0 and at most 1, where a step is a whole sweep; given 0"),
        ({"dt": 1.5}, "given 1.5"),
        ({"dt": float("nan")}, "given nan"),
        ({"tolerance": -1e-3}, "a residual of at least 0, or None to take all steps; given -0.001"),
    ],
)
def test_what_no_relaxation_has(given, message):
    with pytest.raises(ConfigurationError, match=message):
        Relaxation(**given)
