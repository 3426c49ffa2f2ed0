"""The graph that a new layer starts from, by whichever one of several sizes was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synaptome.errors import ConfigurationError
from synaptome.topology import graphs


def initial_graph(layer: str, shape: Sequence[int], topology: str, sizes: Mapping[str, Any]) -> graphs.Graph:
    """Outputs and inputs of the connections of a new layer, sorted, int64 on the CPU.

    Args:
        layer: its name in errors.
        shape: of its weight, `(out, in)` or `(out, in, *kernel)`; the inputs are the places of a row.
        topology: see `graphs.random_graph`; for density, epsilon and nnz.
        sizes: `density`, `epsilon`, `nnz`, `fan_in` and `edges`, of which exactly one is not None. With epsilon there
            are `epsilon * sum(shape)` connections (Mocanu et al. 2018, equation 2; Evci et al. 2020 for kernels).

    Raises:
        ConfigurationError: none or several are given, or one is out of range.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    if len(given) != 1:
        raise ConfigurationError(
            f"a {layer} takes exactly one of {', '.join(sizes)}; given {' and '.join(given) or 'none'}"
        )
    ((size, value),) = given.items()
    out_features, in_features = shape[0], math.prod(shape[1:])
    if graphs.rewiring_of(topology) is not None and size in ("fan_in", "edges"):
        raise ConfigurationError(f"topology {topology} goes with density, epsilon or nnz; given {size}")
    if size == "edges":
        row, col = value
        return graphs.from_edges(out_features, in_features, row, col)
    if size == "fan_in":
        return graphs.fixed_fan_in(out_features, in_features, value)
    if size == "density":
        value = graphs.nnz_of_density(out_features, in_features, value)
    elif size == "epsilon":
        value = graphs.nnz_of_epsilon(shape, value)
    return graphs.random_graph(out_features, in_features, value, topology)
