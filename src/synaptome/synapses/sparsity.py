"""The choice of sparse storage, for `rewire`: how many connections, shared in what way among layers, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.wiring import Axis, Kind
from synaptome.topology import graphs
from synaptome.topology.densities import at_least, epsilon_densities, erk_densities, uniform_densities
from synaptome.topology.layers import label
from synaptome.topology.ranges import is_real

DISTRIBUTIONS = {"uniform": uniform_densities, "erk": erk_densities}
STARTS = ("magnitude", "random")


@dataclass(frozen=True)
class Sparse(Kind):
    """The choice of sparse storage, for `rewire`. Give either a density or epsilon.

    Args:
        density: connections of all converted layers together, as a share of their places, in (0, 1].
        distribution: of the density: `uniform`, the same for each layer, or `erk`, in proportion to
            `(n_in + n_out) / (n_in n_out)`, full layers clipped (see `synaptome.topology.densities`).
        epsilon: `epsilon (n_in + n_out)` connections for each layer (Mocanu et al. 2018, equation 2), above 0; a layer
            of fewer places is full.
        start: `magnitude`, the weights of largest magnitude of the layer that is converted, or `random`, a random graph
            with new values, both as those of a new `SparseLinear`.
        topology: of a random graph, as for `SparseLinear`: `erdos-renyi` or `small-world(p)`.
        dense_above: as for `SparseLinear`.

    Raises:
        ConfigurationError: both or none of density and epsilon are given, one of the arguments is none of the above, or
            they contradict one another.
    """

    density: float | None = None
    distribution: str = "uniform"
    _: KW_ONLY
    epsilon: float | None = None
    start: str = "magnitude"
    topology: str = "erdos-renyi"
    dense_above: float | None = None
    axis: ClassVar[Axis] = "storage"

    def __post_init__(self) -> None:
        if (self.density is None) is (self.epsilon is None):
            given = "none" if self.density is None else "both"
            raise ConfigurationError(f"Sparse takes exactly one of density and epsilon; given {given}")
        if self.density is not None:
            graphs.check_density(self.density)
        if self.epsilon is not None:
            graphs.check_epsilon(self.epsilon)
        if self.distribution not in DISTRIBUTIONS:
            raise unknown("distribution", self.distribution, DISTRIBUTIONS)
        if self.epsilon is not None and self.distribution != "uniform":
            raise ConfigurationError(
                f"distribution={self.distribution!r} shares a density, and epsilon gives each layer a number of its "
                f"own; give a density with it, or leave it out"
            )
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        if graphs.rewiring_of(self.topology) is not None and self.start != "random":
            raise ConfigurationError(
                f"topology={self.topology!r} is drawn at random, and start={self.start!r} keeps connections that there "
                f"are; give start='random' with it, or leave it out"
            )
        check_dense_above(self.dense_above)

    def counts(self, shapes: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> list[int]:
        """How many connections each layer has.

        Args:
            shapes: of the layers' weights, `(out, in)` or `(out, in, *kernel)`.
            names: of the layers, for errors; by default none.

        Raises:
            ConfigurationError: there is no layer, a shape is not one of a weight, or a layer would have no connection.
        """
        if self.density is not None:
            densities = DISTRIBUTIONS[self.distribution](shapes, self.density)
        else:
            assert self.epsilon is not None  # exactly one of them is given
            densities = epsilon_densities(shapes, self.epsilon)
        counts = [round(density * math.prod(shape)) for density, shape in zip(densities, shapes, strict=True)]
        if 0 in counts:
            index = counts.index(0)
            which = f"{label(names[index])} {list(shapes[index])}" if names else f"a layer {list(shapes[index])}"
            size, given = ("density", self.density) if self.density is not None else ("epsilon", self.epsilon)
            raise ConfigurationError(
                f"{size} {given:g} leaves {which} without any connection; take {size} at least "
                f"{at_least(self._least(shapes))}, or leave that layer as it is"
            )
        return counts

    def _least(self, shapes: Sequence[Sequence[int]]) -> float:
        """A density, or epsilon, with which every layer has a connection."""
        if self.density is None:
            return 1 / min(map(sum, shapes))
        # The share of the layer with the least weight is 1 then; what full layers cannot take only adds to it.
        sizes = [math.prod(shape) for shape in shapes]
        weights = sizes if self.distribution == "uniform" else [sum(shape) for shape in shapes]
        return math.ceil(sum(weights) / min(weights)) / sum(sizes)


def check_dense_above(dense_above: float | None) -> None:
    """Refuse a threshold that is no density: a ConfigurationError."""
    if dense_above is not None and not (is_real(dense_above) and 0 <= dense_above <= 1):  # also refuses NaN
        raise ConfigurationError(f"dense_above is a density in [0, 1], or None for never; given {dense_above!r}")
