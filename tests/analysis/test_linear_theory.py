"""Deep linear networks with failures: against every mask there is, Monte-Carlo, autograd and closed forms."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.analysis.linear_theory import (
    expected_gradient,
    expected_loss,
    imbalance,
    second_moments,
    single_layer_minimiser,
)
from synaptome.errors import ConfigurationError
from synaptome.synapses.failing import FailingLinear

RATES = st.sampled_from([0.0, 0.25, 0.5, 0.9])


def drawn(widths, seed, d=None):
    """Weights, teacher and a covariance that is neither diagonal nor of full rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [normal(out, inputs) for inputs, out in itertools.pairwise(widths)]
    examples = normal(max(1, widths[0] - 1), widths[0])
    return weights, normal(widths[-1], widths[0]), examples.T @ examples / len(examples)


def over_all_masks(weights, teacher, covariance, failures):
    """The expectation by its definition: each of the 2^synapses masks with its probability."""
    total = torch.zeros((), dtype=torch.float64)
    moment = torch.zeros(weights[-1].shape[0], weights[-1].shape[0], dtype=torch.float64)
    sizes = [weight.numel() for weight in weights]
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        masks = torch.tensor(bits, dtype=torch.float64).split(sizes)
        product, probability = torch.eye(weights[0].shape[1], dtype=torch.float64), 1.0
        for weight, mask, failure in zip(weights, masks, failures, strict=True):
            product = weight * mask.view_as(weight) / (1 - failure) @ product
            alive = int(mask.sum())
            probability *= (1 - failure) ** alive * failure ** (mask.numel() - alive)
        error = product - teacher
        total += probability * (error @ covariance @ error.T).trace()
        moment += probability * product @ covariance @ product.T
    return total, moment


@pytest.mark.parametrize(
    ("widths", "failures"), [((2, 3, 2), (0.5, 0.3)), ((3, 2), (0.7,)), ((2, 2, 2, 1), (0.4, 0.0, 0.6))]
)
def test_expectations_are_those_over_all_masks(widths, failures):
    weights, teacher, covariance = drawn(widths, 1)
    loss, moment = over_all_masks(weights, teacher, covariance, failures)
    torch.testing.assert_close(expected_loss(weights, teacher, covariance, failures), loss)
    torch.testing.assert_close(second_moments(weights, covariance, failures)[-1], moment)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_expectations_are_those_of_sampled_networks(depth):
    torch.manual_seed(depth)
    failures = [0.5, 0.2, 0.0, 0.4, 0.5][:depth]
    layers = [FailingLinear(6, 6, bias=False, failure=failure, dtype=torch.float64) for failure in failures]
    weights, (_, teacher, covariance) = [layer.weight.detach() for layer in layers], drawn((6, 6), depth)
    count = 400_000
    x = torch.randn(count, 6, dtype=torch.float64) @ torch.linalg.cholesky(covariance + torch.eye(6)).mT
    with torch.no_grad():
        h = torch.nn.Sequential(*layers)(x)
    values = (h - x @ teacher.mT).square().sum(1)
    loss = expected_loss(weights, teacher, covariance + torch.eye(6), failures)
    assert abs(values.mean() - loss) < 4 * values.std() / count**0.5
    moment = second_moments(weights, covariance + torch.eye(6), failures)[-1]
    pairs = h.unsqueeze(2) * h.unsqueeze(1)
    assert ((pairs.mean(0) - moment).abs() < 5 * pairs.std(0) / count**0.5).all()


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=6).flatmap(
        lambda widths: st.tuples(
            st.just(widths), st.lists(RATES, min_size=len(widths) - 1, max_size=len(widths) - 1), st.booleans()
        )
    ),
    st.integers(0, 1000),
)
@settings(deadline=None)
def test_gradient_is_that_of_autograd(network, seed):
    widths, failures, identity = network
    weights, teacher, covariance = drawn(widths, seed)
    covariance = None if identity else covariance
    leaves = [weight.clone().requires_grad_() for weight in weights]
    expected = torch.autograd.grad(expected_loss(leaves, teacher, covariance, failures), leaves)
    before = [weight.clone() for weight in weights]
    loss, gradients = expected_gradient(weights, teacher, covariance, failures)
    torch.testing.assert_close(loss, expected_loss(weights, teacher, covariance, failures), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, list(expected), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(was, now) for was, now in zip(before, weights, strict=True))  # inputs are not written to
    if not identity:
        eye = torch.eye(widths[0], dtype=torch.float64)
        torch.testing.assert_close(
            expected_gradient(weights, teacher, eye, failures), expected_gradient(weights, teacher, None, failures)
        )


@pytest.mark.parametrize("failure", [0.0, 0.3, 0.5])
def test_one_layer_has_its_closed_minimum(failure):
    _, teacher, covariance = drawn((5, 2), 3)
    minimiser = single_layer_minimiser(teacher, covariance + torch.eye(5), failure)
    _, (gradient,) = expected_gradient([minimiser], teacher, covariance + torch.eye(5), [failure])
    assert gradient.abs().max() < 1e-12
    white = single_layer_minimiser(teacher, torch.eye(5, dtype=torch.float64), failure)
    torch.testing.assert_close(white, (1 - failure) * teacher)
    torch.testing.assert_close(expected_loss([white], teacher, None, [failure]), failure * teacher.square().sum())


def test_two_layers_pay_the_path_penalty():
    (first, second), teacher, _ = drawn((5, 4, 3), 4)
    p = 0.3
    penalty = ((1 - p) ** -2 - 1) * (first.square().sum(1) * second.square().sum(0)).sum()
    plain = (second @ first - teacher).square().sum()
    torch.testing.assert_close(expected_loss([first, second], teacher, None, [p, p]), plain + penalty)


def test_the_loss_stays_exact_where_it_is_tiny():
    (first, second), _, covariance = drawn((6, 5, 2), 6)
    teacher = second @ first
    nudge = 1e-9 * torch.ones_like(first)
    loss, _ = expected_gradient([first + nudge, second], teacher, covariance, [0.0, 0.0])
    error = second @ nudge
    torch.testing.assert_close(loss, (error @ covariance @ error.T).trace(), rtol=1e-5, atol=0.0)


def test_imbalance_is_conserved_by_gradient_flow():
    failures = [0.5, 0.3, 0.0, 0.6]
    weights, teacher, covariance = drawn((4, 5, 3, 6, 2), 5)
    _, gradients = expected_gradient(weights, teacher, covariance, failures)
    for layer in range(3):  # d/dt of the imbalance under dW/dt = -gradient
        own = (weights[layer] * gradients[layer]).sum(1)
        next_own = (weights[layer + 1] * gradients[layer + 1]).sum(0)
        torch.testing.assert_close(own, next_own)
    # Along a path of small steps it drifts with the square of the step only: halving the step halves the drift.
    start = imbalance(weights)

    def drift(rate, steps):
        path = [weight.clone() for weight in weights]
        for _ in range(steps):
            for weight, gradient in zip(path, expected_gradient(path, teacher, covariance, failures)[1], strict=True):
                weight -= rate * gradient
        return max((now - was).abs().max().item() for now, was in zip(imbalance(path), start, strict=True))

    coarse, fine = drift(2e-5, 500), drift(1e-5, 1000)
    assert coarse < 0.05
    assert fine == pytest.approx(coarse / 2, rel=0.1)


def test_what_does_not_fit_is_refused():
    weights, teacher, covariance = drawn((4, 3, 2), 0)
    with pytest.raises(ConfigurationError, match=r"the covariance is \[4, 4\] here; given \[3, 3\]"):
        expected_loss(weights, teacher, torch.eye(3), [0.5, 0.5])
    with pytest.raises(ConfigurationError, match=r"the teacher is \[2, 4\]"):
        expected_gradient(weights, teacher.mT, covariance, [0.5, 0.5])
    with pytest.raises(ConfigurationError, match="each of the 2 layers has a failure rate; given 1"):
        second_moments(weights, covariance, [0.5])
    with pytest.raises(ConfigurationError, match=r"in \[0, 1\); given 1"):
        expected_loss(weights, teacher, covariance, [0.5, 1.0])
    with pytest.raises(ConfigurationError, match="each layer takes what the one before it gives"):
        imbalance(weights[::-1])
    with pytest.raises(ConfigurationError, match="at least one layer"):
        second_moments([], None, [])
