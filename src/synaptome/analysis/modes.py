"""Singular modes of a network's weights, and how those of two matrices overlap.

`W = U diag(s) V'`: a column of V is a pattern that a layer looks for, the column of U the pattern with which it
answers, and s how strongly. Deep linear networks learn mode by mode (Saxe, McClelland & Ganguli 2014, "Exact solutions
to the nonlinear dynamics of learning in deep linear neural networks").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError


class Modes(NamedTuple):
    """Singular modes: U `[out, r]`, s `[r]` in descending order, V `[in, r]`. The sign of a mode is arbitrary."""

    U: Tensor
    s: Tensor
    V: Tensor

    def leading(self, k: int) -> Modes:
        """The k strongest modes, or all where there are fewer."""
        return Modes(self.U[:, :k], self.s[:k], self.V[:, :k])


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model (`torch.nn.Linear` and kinds of it), in order.

    Numbers in names count as numbers, so layer 10 comes after layer 2 however they were put into the model; layers
    whose names differ otherwise come in the order in which the model holds them.
    """
    held: dict[str, int] = {}

    def place(name: str) -> list[tuple[int, int]]:
        parts, parent = [], ""
        for part in name.split("."):
            stem, number = re.fullmatch(r"(.*?)(\d*)", part).groups()  # type: ignore[union-attr]  # matches anything
            parts.append((held.setdefault(f"{parent}.{stem}", len(held)), int(number or -1)))
            parent = f"{parent}.{part}"
        return parts

    layers = [(place(name), module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [layer for _, layer in sorted(layers, key=lambda pair: pair[0])]


def singular_modes(weight: Tensor, k: int | None = None) -> Modes:
    """The singular modes of a matrix: all of them, or the k leading ones.

    All come from LAPACK's SVD. A few of a large matrix come from the leading eigenvectors of its smaller Gram matrix in
    float64 (LAPACK's syevr), about four times as fast: they are as good for modes stronger than 1e-7 of the strongest,
    and no more than orthonormal below that. The same matrix gives the same bits, and no random number is drawn.

    Args:
        weight: `[out, in]`, on any device.
        k: how many, at least 1; `min(out, in)` where there are fewer; all if None.

    Returns:
        U, s and V with r = `min(k, out, in)`, on the CPU, in the dtype of the weight (float32 for narrower ones).

    Raises:
        ConfigurationError: the weight is no matrix, or k is below 1.
    """
    if weight.dim() != 2 or (k is not None and k < 1):
        raise ConfigurationError(f"modes are those of a matrix, and at least 1; given {list(weight.shape)} and {k}")
    W = weight.detach().cpu()
    W = W if W.dtype in (torch.float32, torch.float64) else W.float()
    if k is None or min(W.shape) < 16 * k:
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        return Modes(U, s, Vh.mT).leading(min(W.shape) if k is None else k)
    double = W.double()
    if W.shape[0] < W.shape[1]:
        V, s, U = _leading_modes(double.mT, k)
    else:
        U, s, V = _leading_modes(double, k)
    return Modes(U.to(W.dtype), s.to(W.dtype), V.to(W.dtype))


def _leading_modes(tall: Tensor, k: int) -> Modes:
    """The k leading modes of a float64 matrix with at least as many rows as columns."""
    import scipy.linalg

    columns = tall.shape[1]
    gram = (tall.mT @ tall).numpy()
    with _one_blas_thread():
        _, vectors = scipy.linalg.eigh(gram, subset_by_index=(columns - k, columns - 1), check_finite=False)
    # The SVD of what the matrix makes of that subspace: modes orthonormal to rounding, whatever the rank.
    basis = torch.from_numpy(vectors)
    U, s, rotation = torch.linalg.svd(tall @ basis, full_matrices=False)
    return Modes(U, s, basis @ rotation.mT)


def product_modes(weights: Sequence[Tensor], k: int) -> Modes:
    """The k leading modes of the map `W_L ... W_1` of a linear network, from `W_1, ..., W_L`."""
    product = weights[0] if len(weights) == 1 else torch.linalg.multi_dot(list(reversed(weights)))
    return singular_modes(product, k)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """`|first' second|` `[a, b]` of modes, the columns of `[n, a]` and `[n, b]`: 1 for the same, 0 for orthogonal ones.

    Absolute values, because the sign of a mode is arbitrary. Between modes of equal strength any rotation is, too.
    """
    return (first.mT @ second.to(first.dtype)).abs()


def rank(modes: Modes) -> int:
    """How many singular values are more than rounding (numpy's and MATLAB's tolerance: `max(out, in) eps s_1`)."""
    tolerance = max(len(modes.U), len(modes.V)) * torch.finfo(modes.s.dtype).eps * modes.s.max()
    return int((modes.s > tolerance).sum())


def participation_ratio(singular_values: Tensor) -> Tensor:
    """`(Σs)² / (n Σs²)`, 0-d, of n singular values: 1 where all are equal, 1/n where one stands alone, 0 for zeros."""
    relative = singular_values / singular_values.max().clamp_min(torch.finfo(singular_values.dtype).tiny)
    squares = relative.square().sum()
    if squares == 0:
        return squares
    return relative.sum().square() / (len(relative) * squares)


def _one_blas_thread() -> AbstractContextManager[Any]:
    """SciPy's BLAS keeps threads of its own, on whose number bits would depend; here they gain nothing."""
    limit: AbstractContextManager[Any] = _blas().limit(limits=1, user_api="blas")
    return limit


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
