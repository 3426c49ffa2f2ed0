"""What the figures of synaptic measures draw from: the measures of one run of each group, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from synaptome.analysis.wiring import degree_bins
from synaptome.errors import SynaptomeError
from synaptome.report.table import Group
from synaptome.report.text import clean
from synaptome.training.measures import read_final, read_series

if TYPE_CHECKING:
    from torch import Tensor

    from synaptome.training.run import RunRecord

Array = NDArray[Any]

BEFORE, AFTER = "before training", "after training"

MOST_GROUPS = 6  # drawn side by side
LARGEST = 1e100  # beyond, axes overflow

# Number of axes of each measure; those of a series have the snapshot as a further, leading one.
_AXES = {
    "norm": 0,
    "participation_ratio": 0,
    "singular_values": 1,
    "overlap": 2,
    "histogram": 1,
    "histogram_edge": 0,
    "activity": 1,
    "activity_mean": 0,
    "activity_std": 0,
    "activity_silent": 0,
    "left": 2,
    "right": 2,
    "spectrum": 1,
    "covariance": 2,
    "rate": 1,
    "accuracy": 2,
    "out_degree": 1,
    "in_degree": 1,
    "initial_present": 0,
    "signs": 1,
    "connections": 3,
    "itop_rate": 0,
    "masks": 1,
    "weights": 1,
    "changed": 0,
    "score_edges": 1,
    "score_counts": 1,
    "time": 1,
    "eigenvalues": 3,
    "abscissa": 2,
    "norms": 1,
    "total": 1,
    "steps": 1,
    "points": 3,
    "labels": 1,
    "variance": 1,
    "width": 0,
    "classes": 2,
    "extent": 2,
    "examples": 2,
    "std": 1,
    "change": 2,
    "maps": 3,
    "mean": 2,
    "seeds": 1,
    "networks": 0,
    "threshold": 0,
    "patterns": 2,
    "matrix": 3,
    "allowed": 2,
    "bias": 2,
    "sizes": 1,
    "lambda": 2,
    "seed": 1,
    "pattern": 1,
    "example": 1,
    "dt": 0,
    "values": 2,
    "rise": 1,
    "lowest": 1,
}
_MOST_BINS = degree_bins(2**62)
_PAIRS = ("eigenvalues", "points", "variance", "extent", "examples", "lambda")
_ENTRIES = (
    dict.fromkeys(("signs", "masks", "weights"), (3, 3))
    | dict.fromkeys(("out_degree", "in_degree"), (1, _MOST_BINS))
    | dict.fromkeys(_PAIRS, (2, 2))
)  # of the last axis
_POSITIVE = ("masks", "weights", "score_counts", "norms", "labels", "classes", "std", "change", "sizes")
_LIMITS = dict.fromkeys(_POSITIVE, (0.0, math.inf)) | dict.fromkeys(("changed", "variance"), (0.0, 1.0))


@dataclass(frozen=True)
class Measures:
    """The measures of one run that can be drawn.

    Attributes:
        group: the label of the run's group.
        run: name of the run's folder.
        steps: training steps [n] of the snapshots.
        series: measures with a leading axis of n snapshots.
        final: measures of the trained network.
    """

    group: str
    run: str
    steps: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    series: Mapping[str, Array] = field(default_factory=dict)
    final: Mapping[str, Array] = field(default_factory=dict)

    @property
    def ends(self) -> dict[str, int]:
        """The first and the last snapshot, in words."""
        return {BEFORE if self.steps[0] == 0 else f"at step {self.steps[0]}": 0, AFTER: -1}

    def layers(self, name: str, final: bool = False) -> dict[int, Array]:
        """A measure of every layer that has it, by the layer's number, first layer first."""
        found = {}
        for key, values in (self.final if final else self.series).items():
            if match := re.fullmatch(rf"layer([1-9]\d{{0,5}})/{re.escape(name)}", key):
                found[int(match[1])] = values
        return dict(sorted(found.items()))  # numbers: layer 10 comes after layer 9


def read(groups: Sequence[Group], name: str) -> tuple[list[Measures], list[str]]:
    """For each group the measures of that name of its first run that has any.

    Returns:
        The measures, at most one run a group; and what is wrong with the files, a sentence each.
    """
    problems: list[str] = []
    runs = ((_read(group, run, name, problems) for run in group.runs) for group in groups)
    found = [first for each in runs if (first := next(filter(None, each), None))]
    return found, list(dict.fromkeys(problems))


def read_all(groups: Sequence[Group], name: str) -> tuple[list[list[Measures]], list[str]]:
    """The measures of that name of every run that has any, of the groups that have such runs; and what is wrong."""
    problems: list[str] = []
    found = [[each for run in group.runs if (each := _read(group, run, name, problems))] for group in groups]
    return [each for each in found if each], list(dict.fromkeys(problems))


def read_final_of_all(groups: Sequence[Group], name: str) -> tuple[list[list[dict[str, Array]]], list[str]]:
    """The final measures of that name of every run, group by group; and what is wrong with the files."""
    problems: list[str] = []
    found = [
        [_checked(_arrays(read_final, run.path, name, problems), 0, run.path, problems) for run in group.runs]
        for group in groups
    ]
    return found, list(dict.fromkeys(problems))


def _read(group: Group, run: RunRecord, name: str, problems: list[str]) -> Measures | None:
    """The measures of one run, None if it has none that can be drawn."""
    series = _arrays(read_series, run.path, name, problems)
    final = _arrays(read_final, run.path, name, problems)
    steps = series.pop("step", np.zeros(0, np.int64))
    whole = [_checked(arrays, axes, run.path, problems) for arrays, axes in ((series, 1), (final, 0))]
    return Measures(group.label, clean(run.path.name), steps, *whole) if any(whole) else None


def _arrays(
    read: Callable[[Path, str], dict[str, Tensor]], path: Path, name: str, problems: list[str]
) -> dict[str, Array]:
    try:
        tensors = read(path, name)
    except (SynaptomeError, OSError) as error:
        problems.append(clean(error))
        return {}
    return {key: _array(tensor) for key, tensor in tensors.items()}


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    exact = tensor.dtype in (torch.float32, torch.float64, torch.int64)
    return (tensor if exact else tensor.to(torch.float64)).numpy()


def _checked(arrays: dict[str, Array], snapshots: int, path: Path, problems: list[str]) -> dict[str, Array]:
    """The measures that can be drawn; others are told. Names of other recipes are passed over.

    `snapshots` is the number of leading axes for them: 1 in a series, 0 in what was measured once.
    """
    whole: dict[str, Array] = {}
    for key, values in arrays.items():
        name = key.rpartition("/")[2]
        if name not in _AXES:
            continue
        expected = _AXES[name] + snapshots
        if values.ndim != expected:
            wrong = f"has {values.ndim} axes where {expected} are expected"
        elif values.size and name in _ENTRIES and not _ENTRIES[name][0] <= values.shape[-1] <= _ENTRIES[name][1]:
            wrong = f"has {values.shape[-1]} entries, not {' to '.join(map(str, dict.fromkeys(_ENTRIES[name])))}"
        elif not (np.abs(values.astype(np.float64)) < LARGEST).all():
            wrong = f"holds numbers that are not finite, or beyond {LARGEST:g}"
        elif name in _LIMITS and not ((values >= _LIMITS[name][0]) & (values <= _LIMITS[name][1])).all():
            wrong = "holds numbers below 0" if _LIMITS[name][1] == math.inf else "holds numbers outside [0, 1]"
        else:
            whole |= {key: values} if values.size else {}
            continue
        problems.append(clean(f"{path / 'measures'}: {key} {wrong}, and is not drawn"))
    for layer in [key.removesuffix("score_counts") for key in whole if key.endswith("score_counts")]:
        edges, counts = whole.get(f"{layer}score_edges"), whole[f"{layer}score_counts"]
        if edges is None or edges.shape[-1] != counts.shape[-1] + 1 or not (np.diff(edges) > 0).all():
            problems.append(clean(f"{path / 'measures'}: {layer}score_counts lacks its bins, and is not drawn"))
            del whole[f"{layer}score_counts"]
    return whole
