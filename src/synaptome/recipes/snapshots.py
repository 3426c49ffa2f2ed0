"""What recipes measure of the weights while they learn, as a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synaptome.analysis.spectra import Spectra
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError
from synaptome.training.callbacks import log_spaced
from synaptome.training.measures import Measure, Recorder

NAME = "spectra"
PROBES = 1000  # training examples, at most, over which activity and the covariance of the inputs are measured


@dataclass(frozen=True)
class Snapshots:
    """Statistics of singular modes, norms and activity, at steps evenly spaced on a logarithmic scale.

    Args:
        modes: leading modes whose overlaps are followed; 0 measures nothing.
        full: follow every singular value, not those of the leading modes alone.
        per_decade: snapshots for each factor of ten of the steps, at least 1.
    """

    modes: int = 8
    full: bool = False
    per_decade: int = 10

    def __post_init__(self) -> None:
        if self.modes < 0 or self.per_decade < 1:
            raise ConfigurationError(
                f"modes is at least 0 and per_decade at least 1; given {self.modes} and {self.per_decade}"
            )

    def of(self, data: Dataset, *, linear: bool = False) -> tuple[tuple[Recorder, ...], Mapping[str, Measure]]:
        """The recorders and the final measures of an experiment on this data.

        Args:
            data: on the device and in the dtype of the network.
            linear: whether the network is linear, so that the product of its weights is what it computes.
        """
        if self.modes == 0:
            return (), {}
        spectra = Spectra(data.train.inputs[:PROBES], data.teacher, self.modes, self.full, linear)
        return (Recorder(NAME, log_spaced(self.per_decade), spectra.snapshot),), {NAME: spectra.final}
