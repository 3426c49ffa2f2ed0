"""State functions: their steps, differentiable and in place, their energies, and names that do not exist."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.networks.states import STATES, state_named

A = torch.linspace(-3, 3, 41, dtype=torch.float64)


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("dt", [0.2, 1.0])
def test_a_step_in_place_is_the_differentiable_one(state, dt):
    s = torch.linspace(state.low, state.high, 41, dtype=torch.float64)
    drive = A.clone()
    state.move(s, drive, dt)
    assert torch.equal(drive, state.moved(s, A, dt))


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_states_stay_in_their_range_and_rest_where_they_are_rho_of_their_drive(state):
    s = state.function(A)
    assert s.min() >= state.low
    assert s.max() <= state.high
    torch.testing.assert_close(state.moved(s, A, 0.3), s, rtol=0, atol=1e-15)
    far = state.moved(torch.full_like(A, state.high), 100 * A, 0.9)
    assert far.min() >= state.low
    assert far.max() <= state.high


def test_steps_are_those_of_the_equations():
    s, a = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([3.0, 0.7, -2.0])
    torch.testing.assert_close(STATES["hard-sigmoid"].moved(s, a, 0.5), torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(STATES["tanh"].moved(s, a, 0.25), 0.75 * s + 0.25 * torch.tanh(a))
    torch.testing.assert_close(STATES["sigmoid"].moved(s, a, 1.0), 1 / (1 + torch.exp(-a)))


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_potential_has_the_inverse_of_rho_as_its_derivative(state):
    a = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    s = state.function(a).requires_grad_()
    (derivative,) = torch.autograd.grad(state.potential(s).sum(), s)
    torch.testing.assert_close(derivative, a)
    ends = torch.tensor([state.low, state.high])
    assert state.potential(ends).isfinite().all()


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_slope_is_the_largest_derivative(state):
    a = A.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(state.function(a).sum(), a)
    assert derivative.max().item() == pytest.approx(state.slope)


def test_a_name_that_does_not_exist():
    with pytest.raises(ConfigurationError, match=r"unknown state function 'sigmoidal' \(did you mean 'sigmoid'\?\)"):
        state_named("sigmoidal")
