"""The graph that a new layer starts from, by whichever one of several sizes was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.topology import graphs
from synaptome.topology.densities import at_least


def initial_graph(layer: str, shape: Sequence[int], topology: str, sizes: Mapping[str, Any]) -> graphs.Graph:
    """Outputs and inputs of the connections of a new layer, sorted, int64 on the CPU.

    Args:
        layer: its name in errors.
        shape: of its weight, `(out, in)` or `(out, in, *kernel)`; the inputs are the places of a row.
        topology: see `graphs.random_graph`; for density, epsilon and nnz.
        sizes: `density`, `epsilon`, `nnz`, `fan_in` and `edges`, of which exactly one is not None. With epsilon there
            are `epsilon * sum(shape)` connections (Mocanu et al. 2018, equation 2; Evci et al. 2020 for kernels).

    Raises:
        ConfigurationError: none or several are given, or one is out of range, or rounds to no connection.
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
    with torch.device("cpu"):  # whatever device new tensors are made on around here
        if size == "edges":
            return graphs.from_edges(out_features, in_features, *_ends(value))
        if size == "fan_in":
            return graphs.fixed_fan_in(out_features, in_features, value)
        nnz = value
        if size == "density":
            nnz = graphs.nnz_of_density(out_features, in_features, value)
        elif size == "epsilon":
            nnz = graphs.nnz_of_epsilon(shape, value)
        if size != "nnz" and nnz == 0:
            least = 1 / (out_features * in_features if size == "density" else sum(shape))
            raise ConfigurationError(
                f"{size} {value:g} leaves a {layer} {list(shape)} without any connection; take {size} at least "
                f"{at_least(least)}, or nnz=0 if that is what you mean"
            )
        return graphs.random_graph(out_features, in_features, nnz, topology)


def _ends(edges: Any) -> tuple[Tensor, Tensor]:
    """Outputs and inputs of edges, from tensors, arrays or lists."""
    try:
        row, col = (torch.as_tensor(end) for end in edges)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f"{list(edges.shape)}" if hasattr(edges, "shape") else f"a {type(edges).__name__}"
        if isinstance(edges, list | tuple):
            shape = f"{len(edges)} entries"
        raise ConfigurationError(
            f"edges are the outputs and the inputs of all connections, two lists of integers [nnz] or one [2, nnz]; "
            f"given {shape} (of pairs give the transpose)"
        ) from error
    # Of an empty list torch cannot know that it would hold integers.
    row, col = (end if len(end.reshape(-1)) else end.to(torch.int64) for end in (row, col))
    return row, col
