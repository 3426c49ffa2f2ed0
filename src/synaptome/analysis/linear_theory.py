"""Deep linear networks with synaptic failures, exactly: expected loss, gradient and second moments, without sampling.

For `h_l = (W_l ∘ M_l / (1 - p_l)) h_{l-1}`, with independent `M_l ~ Bernoulli(1 - p_l)` for each example, the uncentred
second moments of the activities follow a recursion (`c_l = p_l / (1 - p_l)`, `S_0 = Σ`):

    S_l = W_l S_{l-1} W_l' + c_l diag((W_l ∘ W_l) diag S_{l-1})
    E‖h_L - W* x‖² = tr S_L - 2 tr(W_L ... W_1 Σ W*') + tr(W* Σ W*')

The first line holds because failures of different synapses are independent: they add to the variance of each unit, and
to no covariance. Mianjy & Arora 2019 study the same objective for dropout of units, where the second term differs.

Weights are a sequence `W_1 [n_1, n_0], ..., W_L [n_L, n_{L-1}]`; all tensors share one dtype and device. Any function
of this module can be differentiated by autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels.failing_linear import check_failure

Weights = Sequence[Tensor]


def second_moments(weights: Weights, covariance: Tensor | None, failures: Sequence[float]) -> list[Tensor]:
    """Uncentred second moments `E[h_l h_l']` `[n_l, n_l]` of every layer's activity, inputs first.

    Args:
        weights: W_1 to W_L.
        covariance: Σ `[n_0, n_0]`, the uncentred second moments of the inputs; None for the identity.
        failures: the probability of failure of each layer, in [0, 1).

    Returns:
        S_0 to S_L.

    Raises:
        ConfigurationError: shapes that do not fit, or a rate out of range.
    """
    _check(weights, None, covariance, failures)
    moments = [torch.eye(weights[0].shape[1]).to(weights[0]) if covariance is None else covariance]
    for weight, failure in zip(weights, failures, strict=True):
        before = moments[-1]
        variance = weight.square() @ before.diagonal()
        moments.append(weight @ before @ weight.mT + _odds(failure) * variance.diag())
    return moments


def expected_loss(weights: Weights, teacher: Tensor, covariance: Tensor | None, failures: Sequence[float]) -> Tensor:
    """`E‖h_L - W* x‖²`, 0-d, over inputs and failures: the squared error of an example, summed over the outputs.

    Args:
        weights, covariance, failures: as for `second_moments`.
        teacher: W* `[n_L, n_0]`.

    Raises:
        ConfigurationError: shapes that do not fit, or a rate out of range.
    """
    _check(weights, teacher, covariance, failures)
    moments = second_moments(weights, covariance, failures)
    correlation = teacher @ moments[0]  # Σ_yx = W* Σ
    carried = correlation
    for weight in weights:
        carried = carried @ weight.mT
    return moments[-1].trace() - 2 * carried.trace() + (correlation * teacher).sum()


def expected_gradient(
    weights: Weights, teacher: Tensor, covariance: Tensor | None, failures: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """`expected_loss` and its gradient by each weight, in closed form.

    With `B_l = W_L ... W_{l+1}` and the derivative of the loss by S_l, `Q_l = B_l' B_l + R_l`, where R_l is what
    failures add (`R_L = 0`, `R_{l-1} = W_l' R_l W_l + c_l diag((W_l ∘ W_l)' diag Q_l)`), half of the gradient is

        B_l' (B_l W_l S_{l-1} - W* Σ (W_{l-1} ... W_1)') + R_l W_l S_{l-1} + c_l diag(Q_l) W_l diag(S_{l-1})

    No S_l is formed, B_l has as few rows as there are outputs, and R_{L-1} is diagonal: two layers of N units take
    O(N²) operations for Σ = I, and each further layer five products of hidden matrices.

    Args and Raises: as for `expected_loss`.

    Returns:
        The loss, 0-d, and a gradient `[n_l, n_{l-1}]` for each layer.
    """
    _check(weights, teacher, covariance, failures)
    odds = [_odds(failure) for failure in failures]
    squares = [weight.square() for weight in weights]
    # Up: W_l S_{l-1}, diag S_{l-1} and W* Σ (W_{l-1} ... W_1)'.
    first = weights[0]
    products = [first if covariance is None else first @ covariance]
    spreads = [first.new_ones(first.shape[1]) if covariance is None else covariance.diagonal()]
    carried = [teacher if covariance is None else teacher @ covariance]
    for weight, above, squared, c in zip(weights[:-1], weights[1:], squares, odds, strict=False):
        variance = c * (squared @ spreads[-1])  # that failures add to each unit
        spreads.append((products[-1] * weight).sum(1) + variance)
        carried.append(carried[-1] @ weight.mT)
        products.append(torch.addmm(above * variance, above @ products[-1], weight.mT))
    # Down: B_l and R_l. R_l is None for 0, a vector where it is diagonal.
    gradients: list[Tensor] = []
    downstream: Tensor | None = None  # B_l; None for the identity
    added: Tensor | None = None
    for layer in range(len(weights) - 1, -1, -1):
        weight, squared, product, c = weights[layer], squares[layer], products[layer], odds[layer]
        if downstream is None:
            gradient = product - carried[layer]
            sensitivity = weight.new_ones(weight.shape[0])  # diag Q_l
        else:
            gradient = downstream.mT @ (downstream @ product - carried[layer])
            sensitivity = downstream.square().sum(0)
        noise = None  # R_l W_l S_{l-1}
        if added is not None:
            noise = _times(added, product)
            gradient += noise
            sensitivity = sensitivity + (added if added.dim() == 1 else added.diagonal())
        if c:
            gradient.addcmul_(weight * spreads[layer], sensitivity.unsqueeze(1), value=c)
        gradients.insert(0, gradient.mul_(2))
        downstream = weight if downstream is None else downstream @ weight
        if layer:
            own = c * (sensitivity @ squared)
            if added is None:
                added = own
            else:
                added = weight.mT @ _times(added, weight)
                added.diagonal().add_(own)
    # The error of the mean network and what failures add to it: no small difference of large numbers, never negative.
    assert downstream is not None  # there is at least one layer
    error = downstream - teacher
    loss = ((error if covariance is None else error @ covariance) * error).sum()
    if c:
        loss += c * (sensitivity @ (squared @ spreads[0]))
    if noise is not None:
        loss += (noise * first).sum()
    return loss, gradients


def single_layer_minimiser(teacher: Tensor, covariance: Tensor, failure: float) -> Tensor:
    """The one-layer network `W* Σ (Σ + c diag Σ)⁻¹` `[d, n]` of least expected loss; `(1 - p) W*` for Σ = I.

    Args:
        teacher: W* `[d, n]`.
        covariance: Σ `[n, n]`.
        failure: p in [0, 1).

    Raises:
        ConfigurationError: shapes that do not fit, or a rate out of range.
    """
    _check([teacher], teacher, covariance, [failure])
    penalised = covariance + _odds(failure) * covariance.diagonal().diag()
    minimiser: Tensor = torch.linalg.solve(penalised, (teacher @ covariance).mT).mT
    return minimiser


def imbalance(weights: Weights) -> list[Tensor]:
    """`‖W_l[k, :]‖² - ‖W_{l+1}[:, k]‖²` `[n_l]` for each hidden layer: conserved under gradient flow, failures or not.

    Raises:
        ConfigurationError: shapes that do not fit.
    """
    _check(weights, None, None, [0.0] * len(weights))
    return [lower.square().sum(1) - upper.square().sum(0) for lower, upper in itertools.pairwise(weights)]


def _odds(failure: float) -> float:
    return failure / (1 - failure)


def _times(matrix: Tensor, other: Tensor) -> Tensor:
    """The product with a matrix, or with the diagonal matrix of a vector."""
    return matrix.unsqueeze(1) * other if matrix.dim() == 1 else matrix @ other


def _check(weights: Weights, teacher: Tensor | None, covariance: Tensor | None, failures: Sequence[float]) -> None:
    if not weights:
        raise ConfigurationError("a network has at least one layer; given no weights")
    shapes = [tuple(weight.shape) for weight in weights]
    fit = all(lower[0] == upper[1] for lower, upper in itertools.pairwise(shapes))
    if any(len(shape) != 2 for shape in shapes) or not fit:
        raise ConfigurationError(f"each layer takes what the one before it gives, [out, in]; given {shapes}")
    inputs, outputs = shapes[0][1], shapes[-1][0]
    if teacher is not None and tuple(teacher.shape) != (outputs, inputs):
        raise ConfigurationError(f"the teacher is [{outputs}, {inputs}] for this network; given {list(teacher.shape)}")
    if covariance is not None and tuple(covariance.shape) != (inputs, inputs):
        raise ConfigurationError(f"the covariance is [{inputs}, {inputs}] here; given {list(covariance.shape)}")
    if len(failures) != len(weights):
        raise ConfigurationError(f"each of the {len(weights)} layers has a failure rate; given {len(failures)}")
    for failure in failures:
        check_failure(failure)
