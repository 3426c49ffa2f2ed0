"""How many connections each layer of a network has: one density shared over the layers, or a rule for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from synaptome.errors import ConfigurationError
from synaptome.topology.graphs import check_density, check_epsilon


def uniform_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Every layer the same density, to within one connection.

    Args:
        shapes: of the layers' weights, `(out, in)` or `(out, in, *kernel)`.
        density: connections of all layers, as a share of all places in (0, 1].

    Returns:
        The density of each layer; times its size it is a whole number, and these add up to the number nearest to
        `density` times all places.

    Raises:
        ConfigurationError: the density is outside (0, 1], or a shape is not one of a weight.
    """
    sizes = _sizes(shapes)
    return _densities([float(size) for size in sizes], sizes, density)


def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Erdős–Rényi-kernel: densities proportional to the sum of a weight's dimensions over their product.

    `(n_in + n_out) / (n_in n_out)` for fully connected layers (Mocanu et al. 2018) and
    `(n_in + n_out + w + h) / (n_in n_out w h)` for convolutions (Evci et al. 2020, section 3). Where that would be more
    than 1 a layer is dense, and what it cannot take goes to the others in the same proportions.

    Args:
        shapes: of the layers' weights, `(out, in)` or `(out, in, *kernel)`.
        density: connections of all layers, as a share of all places in (0, 1].

    Returns:
        The density of each layer; times its size it is a whole number, and these add up to the number nearest to
        `density` times all places.

    Raises:
        ConfigurationError: the density is outside (0, 1], or a shape is not one of a weight.
    """
    return _densities([float(sum(shape)) for shape in shapes], _sizes(shapes), density)


def epsilon_densities(shapes: Sequence[Sequence[int]], epsilon: float) -> list[float]:
    """The Erdős–Rényi numbers of SET: `epsilon (n_in + n_out)` connections (Mocanu et al. 2018, equation 2).

    A layer of fewer places than that is full. What it cannot take goes nowhere, so the others do not depend on it.

    Args:
        shapes: of the layers' weights, `(out, in)` or `(out, in, *kernel)`, whose sides are all summed.
        epsilon: above 0.

    Returns:
        The density of each layer; times its size it is a whole number, the one nearest to `epsilon (n_in + n_out)`.

    Raises:
        ConfigurationError: epsilon is not positive, or a shape is not one of a weight.
    """
    check_epsilon(epsilon)
    sizes = _sizes(shapes)
    return [min(round(epsilon * sum(shape)), size) / size for shape, size in zip(shapes, sizes, strict=True)]


def apportion(total: int, weights: Sequence[float], most: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights`, none above `most`.

    What a full part cannot take goes to the others in proportion. Fractions are rounded by largest remainder, the
    first part first where remainders are equal.

    Args:
        total: from 0 to the sum of `most`.
        weights: at least 0; parts of weight 0 take something only when all others are full.
        most: at least 0.
    """
    parts = [0] * len(weights)
    open_parts = [i for i in range(len(weights)) if most[i] > 0]
    while total > 0:
        weighted = [i for i in open_parts if weights[i] > 0] or open_parts
        largest = max(weights[i] for i in weighted) or 1.0  # so that no quotient by the sum leaves the range of floats
        share = {i: weights[i] / largest if weights[i] > 0 else 1.0 for i in weighted}
        scale = total / math.fsum(share.values())
        full = [i for i in weighted if share[i] * scale >= most[i]]
        if not full:
            floors = {i: math.floor(share[i] * scale) for i in weighted}
            by_remainder = sorted(weighted, key=lambda i: floors[i] - share[i] * scale)
            for i in weighted:
                parts[i] = floors[i]
            for i in by_remainder[: total - sum(floors.values())]:
                parts[i] += 1
            return parts
        for i in full:
            parts[i] = min(most[i], total)
            total -= parts[i]
        open_parts = [i for i in open_parts if i not in full]
    return parts


def at_least(bound: float) -> str:
    """A positive number in words, rounded up to three digits, so that whoever takes it is not below the bound."""
    digit = 10.0 ** (math.floor(math.log10(bound)) - 2)
    return f"{math.ceil(bound / digit - 1e-9) * digit:.3g}"


def _sizes(shapes: Sequence[Sequence[int]]) -> list[int]:
    for shape in shapes:
        if len(shape) < 2 or min(shape) < 1:
            raise ConfigurationError(
                f"the shape of a weight is (out, in) or (out, in, *kernel), each at least 1; given {tuple(shape)}"
            )
    if not shapes:
        raise ConfigurationError("a density is shared over at least one layer; given no shapes")
    return [math.prod(shape) for shape in shapes]


def _densities(weights: list[float], sizes: list[int], density: float) -> list[float]:
    check_density(density)
    counts = apportion(round(density * sum(sizes)), weights, sizes)
    return [count / size for count, size in zip(counts, sizes, strict=True)]
