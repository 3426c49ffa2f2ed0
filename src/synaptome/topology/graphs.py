"""Connection graphs to start from: which inputs each output is connected to.

A graph is a pair (row, col), int64 `[nnz]` each, on the CPU: the outputs and inputs of its connections, sorted by
(row, col), without repetition. Everything here takes time and memory in proportion to the connections, never to
`out_features * in_features`. The same state of the generator gives the same bits on any number of threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.graph import ascending, empty_places, union
from synaptome.topology.ranges import is_real, is_whole
from synaptome.topology.sampling import distinct

Graph = tuple[Tensor, Tensor]

TOPOLOGIES = ("erdos-renyi", "small-world", "small-world(p)")
REWIRING = 0.1  # of small worlds, unless told otherwise
MOST_PLACES = 2**53  # places are drawn from 62 random bits: up to here they are equally likely to 0.2 %


def random_graph(
    out_features: int, in_features: int, nnz: int, topology: str, generator: torch.Generator | None = None
) -> Graph:
    """A random graph of a topology given by name: `erdos-renyi`, or `small-world(p)`, where p is its `rewiring`.

    Args:
        out_features, in_features, nnz, generator: as for `erdos_renyi` and `small_world`.
        topology: `small-world` has p = 0.1.

    Raises:
        ConfigurationError: there is no such topology, or a number is out of range.
    """
    rewiring = rewiring_of(topology)
    if rewiring is None:
        return erdos_renyi(out_features, in_features, nnz, generator)
    return small_world(out_features, in_features, nnz, rewiring, generator)


def rewiring_of(topology: str) -> float | None:
    """The share of connections that is rewired in a topology given by name; None for `erdos-renyi`, which has none.

    Raises:
        ConfigurationError: there is no such topology, or the share is outside [0, 1].
    """
    match = re.fullmatch(r"(erdos-renyi|small-world)(?:\((\d+(?:\.\d+)?)\))?", topology)
    if match is None or (match[2] is not None and match[1] != "small-world"):
        raise unknown("topology", topology, TOPOLOGIES)
    if match[1] == "erdos-renyi":
        return None
    return _checked_rewiring(float(match[2] or REWIRING))


def erdos_renyi(out_features: int, in_features: int, nnz: int, generator: torch.Generator | None = None) -> Graph:
    """A graph drawn uniformly from all those with exactly `nnz` connections (Erdős & Rényi 1959, G(n, M)).

    Args:
        out_features, in_features: at least 1.
        nnz: number of connections, from 0 to `out_features * in_features`.
        generator: of the CPU; torch's own if None.

    Raises:
        ConfigurationError: a number is out of range.
    """
    places = count_places(out_features, in_features)
    _check_connections(nnz, out_features, in_features)
    return _unravel(distinct(torch.tensor([places]), torch.tensor([nnz]), generator), in_features)


def fixed_fan_in(out_features: int, in_features: int, fan_in: int, generator: torch.Generator | None = None) -> Graph:
    """Every output is connected to exactly `fan_in` inputs, drawn uniformly and independently of other outputs.

    Args:
        out_features, in_features: at least 1.
        fan_in: connections of each output, from 0 to `in_features`.
        generator: of the CPU; torch's own if None.

    Raises:
        ConfigurationError: a number is out of range.
    """
    count_places(out_features, in_features)
    if not (is_whole(fan_in) and 0 <= fan_in <= in_features):
        raise ConfigurationError(f"fan_in is a whole number from 0 to in_features = {in_features}; given {fan_in!r}")
    sizes = torch.full((out_features,), in_features)
    return _unravel(distinct(sizes, torch.full_like(sizes, fan_in), generator), in_features)


def small_world(
    out_features: int,
    in_features: int,
    nnz: int,
    rewiring: float,
    generator: torch.Generator | None = None,
) -> Graph:
    """A ring of inputs and outputs with local connections, some of which are rewired at random.

    The bipartite form of the graphs of Watts & Strogatz 1998. Inputs and outputs lie evenly on one ring. At first each
    output is connected to the inputs nearest to it, `nnz / out_features` of them; where that is no whole number, some
    outputs, spread evenly, have one more than the others. Then each connection is rewired with probability `rewiring`,
    independently: it keeps its output, and the rewired connections of an output take inputs drawn uniformly from all
    to which that output has no connection left. As in the original, both ends count: fan-ins stay as they were, and
    no connection is doubled. Unlike there, all are rewired at once, so a connection may come back to its own place.
    With `rewiring` 0 the graph is the lattice; with 1 it is uniform among the graphs of these fan-ins.

    Args:
        out_features, in_features: at least 1.
        nnz: number of connections, from 0 to `out_features * in_features`.
        rewiring: probability that a connection is rewired, in [0, 1].
        generator: of the CPU; torch's own if None.

    Raises:
        ConfigurationError: a number is out of range.
    """
    count_places(out_features, in_features)
    _check_connections(nnz, out_features, in_features)
    _checked_rewiring(rewiring)
    each, more = divmod(nnz, out_features)
    output = torch.arange(out_features + 1)
    fan_in = (output * each + output * more // out_features).diff()
    row = torch.repeat_interleave(fan_in)
    # The window of k inputs whose middle is nearest to the output's place (o + 1/2) in / out on the ring.
    output = output[:-1]
    start = ((2 * output + 1) * in_features - fan_in * out_features + out_features) // (2 * out_features)
    places = torch.arange(nnz).add_((start - fan_in.cumsum(0) + fan_in)[row]).remainder_(in_features)
    places = ascending(places.add_(row * in_features), out_features * in_features)
    stays = torch.rand(nnz, dtype=torch.float64, generator=generator) >= rewiring
    places = places[stays]
    kept_by = torch.bincount(row[stays], minlength=out_features)
    ranks = distinct(in_features - kept_by, fan_in - kept_by, generator)
    return _unravel(union(places, empty_places(places, ranks)), in_features)


def from_edges(out_features: int, in_features: int, row: Tensor, col: Tensor) -> Graph:
    """A graph of given connections, sorted.

    Args:
        out_features, in_features: at least 1.
        row, col: output and input of each connection, integers `[nnz]`, in any order.

    Raises:
        ConfigurationError: shapes differ, or a connection is out of range or given twice.
    """
    count_places(out_features, in_features)
    if row.dim() != 1 or row.shape != col.shape:
        raise ConfigurationError(
            f"edges are two lists of the same length, outputs and inputs; given {list(row.shape)} and {list(col.shape)}"
        )
    for name, index in (("output", row), ("input", col)):
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ConfigurationError(f"the {name}s of edges are integers; given {index.dtype}")
    row, col = (index.to("cpu", torch.int64) for index in (row, col))
    for name, index, size in (("output", row, out_features), ("input", col, in_features)):
        wrong = ((index < 0) | (index >= size)).nonzero().view(-1)
        if len(wrong):
            raise ConfigurationError(f"edge {wrong[0]} has {name} {index[wrong[0]]}; {name}s go from 0 to {size - 1}")
    places = ascending(row * in_features + col, out_features * in_features)
    twice = (places[1:] == places[:-1]).nonzero().view(-1)
    if len(twice):
        o, i = divmod(int(places[twice[0]]), in_features)
        raise ConfigurationError(f"the edge from input {i} to output {o} is given more than once; give each edge once")
    return _unravel(places, in_features)


def count_places(out_features: int, in_features: int) -> int:
    """`out_features * in_features`, or a ConfigurationError if one of them is below 1 or the product above 2**53."""
    if not (is_whole(out_features) and is_whole(in_features) and out_features >= 1 and in_features >= 1):
        raise ConfigurationError(
            f"in_features and out_features are whole numbers of at least 1; given {in_features!r} and {out_features!r}"
        )
    if out_features * in_features > MOST_PLACES:
        raise ConfigurationError(
            f"in_features times out_features is at most 2**53; given {in_features} times {out_features}"
        )
    return out_features * in_features


def nnz_of_density(out_features: int, in_features: int, density: float) -> int:
    """The number of connections nearest to a share `density` of all places.

    Raises:
        ConfigurationError: the density is outside (0, 1].
    """
    check_density(density)
    return round(density * count_places(out_features, in_features))


def nnz_of_epsilon(shape: Sequence[int], epsilon: float) -> int:
    """The number of connections nearest to `epsilon * (n_in + n_out)` (Mocanu et al. 2018, equation 2).

    Args:
        shape: of the weight, `(out, in)` or `(out, in, *kernel)`, whose sides are all summed (Evci et al. 2020).
        epsilon: above 0.

    Raises:
        ConfigurationError: epsilon is not positive, or asks for more connections than there are places.
    """
    places = count_places(shape[0], math.prod(shape[1:]))
    check_epsilon(epsilon)
    nnz = round(epsilon * sum(shape))
    if nnz > places:
        raise ConfigurationError(
            f"epsilon {epsilon:g} asks for {nnz} connections, but a weight {list(shape)} has {places} places; take "
            f"epsilon at most {places / sum(shape):g}"
        )
    return nnz


def check_density(density: float) -> None:
    """Refuse a density outside (0, 1]: a ConfigurationError."""
    if not (is_real(density) and 0 < density <= 1):  # also refuses NaN
        raise ConfigurationError(f"density is a share of all places in (0, 1]; given {density!r}")


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not positive, or infinite: a ConfigurationError."""
    if not (is_real(epsilon) and epsilon > 0 and math.isfinite(epsilon)):
        raise ConfigurationError(f"epsilon is a positive number; given {epsilon!r}")


def _check_connections(nnz: int, out_features: int, in_features: int) -> None:
    places = out_features * in_features
    if not (is_whole(nnz) and 0 <= nnz <= places):
        raise ConfigurationError(
            f"nnz is a whole number of connections from 0 to out_features * in_features = {places}; given {nnz!r}"
        )


def _checked_rewiring(rewiring: float) -> float:
    if not 0 <= rewiring <= 1:  # also refuses NaN
        raise ConfigurationError(f"rewiring is a probability in [0, 1]; given {rewiring}")
    return rewiring


def _unravel(places: Tensor, in_features: int) -> Graph:
    row = places // in_features
    return row, places.sub_(row * in_features)
