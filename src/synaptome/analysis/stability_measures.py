"""What a run keeps of a trained stable network, so that its figures need no network: bounded in time and in size.

Layers and examples are samples, spread evenly over all of them, so that a network of depth 1024 takes a few seconds on
one core, and what is kept stays below 0.5 MB.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.analysis.accuracy import check_classes
from synaptome.analysis.stability import energy_drift, gradient_norms, spectral_abscissa, states, step_eigenvalues
from synaptome.data.dataset import Dataset, Split
from synaptome.data.planar import EXTENTS
from synaptome.errors import ConfigurationError, NumericError
from synaptome.networks.stable import StableNetwork

# At most:
JACOBIAN_LAYERS, JACOBIAN_EXAMPLES = 9, 8
MOST_STATE = 256  # numbers in a state whose Jacobian is taken
MOST_EIGENVALUES = 512  # of a layer; of wide states fewer examples are taken
GRADIENT_LAYERS, GRADIENT_EXAMPLES = 65, 64
FRAMES, PATHS = 41, 200  # times and examples, of the paths of the features
SHOWN = 400  # examples on the decision regions
GRID = 128  # squares along the longer side of the plane
MOST_NUMBERS = 2**22  # in the states of layers that are held at once


class Stability:
    """Measures a trained network's stability, and what it does with the points of the plane.

    Args:
        data: with class indices as targets. What is measured is measured on test examples.

    Raises:
        ConfigurationError: the targets are no classes.
    """

    def __init__(self, data: Dataset) -> None:
        check_classes(data.test)
        self._test = data.test
        self._extent = EXTENTS.get(data.name)

    def final(self, model: nn.Module) -> dict[str, Tensor]:
        """What is worth keeping of the trained network.

        Returns:
            On the CPU, and float64 unless said otherwise. `time` holds the times `j h` of the layers before which it is
            measured. L, E, F and P are numbers of layers, examples, frames and points:

            - `jacobian/time` `[L]`, `jacobian/eigenvalues` float32 `[L, E n, 2]`, real and imaginary parts of the
              `step_eigenvalues` of all examples, and `jacobian/abscissa` `[L, E]`; where a state has at most 256
              numbers;
            - `gradient/time` `[L]`, `gradient/norms` `[L]`: the `gradient_norms`;
            - `energy/time` `[L]`, `energy/total` and `energy/steps` `[L]`, the mean `energy_drift` of the examples;
              where the network has that energy;
            - `trajectory/time` `[F]`, `trajectory/points` float32 `[F, P, 2]`, `trajectory/labels` int64 `[P]`,
              `trajectory/variance` `[2]` (see `trajectories`), and `trajectory/width` int64 `[]`, the number of
              features; of networks with at least 2;
            - `regions/classes` uint8 `[rows, columns]`, `regions/extent` `[2, 2]`, `regions/examples` float32 `[P, 2]`
              and `regions/labels` int64 `[P]`: see `decision_regions`; of a data set of `synaptome.data.planar`.

        Raises:
            ConfigurationError: the model is no `StableNetwork`.
            NumericError: a feature or a Jacobian is not finite.
        """
        if not isinstance(model, StableNetwork):
            raise ConfigurationError(
                f"stability over layers is that of a StableNetwork; given a {type(model).__name__}"
            )
        found = self._stability(copy.deepcopy(model).to("cpu", torch.float64))
        if model.width > 1:
            found |= self._trajectories(model)
        if self._extent is not None:
            shown = _examples(self._test, SHOWN)
            found |= {
                "regions/classes": decision_regions(model, self._extent),
                "regions/extent": torch.tensor(self._extent, dtype=torch.float64),
                "regions/examples": shown.inputs.float(),
                "regions/labels": shown.targets,
            }
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _stability(self, network: StableNetwork) -> dict[str, Tensor]:
        """Of a network in float64, so that rounding is no part of it."""
        size = network.opening(self._test.inputs[:1].to("cpu", torch.float64)).numel()
        held = max(1, MOST_NUMBERS // (size * network.depth))
        probe = _examples(self._test, min(GRADIENT_EXAMPLES, held))
        inputs, targets = probe.inputs.to("cpu", torch.float64), probe.targets.cpu()
        layers = spread(network.depth + 1, GRADIENT_LAYERS)
        times = _times(network, layers)
        found = {"gradient/time": times, "gradient/norms": gradient_norms(network, inputs, targets, layers)}
        if network.dynamics == "hamiltonian" and network.flow.activation == "tanh":
            total, steps = (gained[layers].mean(1) for gained in energy_drift(network, inputs))
            found |= {"energy/time": times, "energy/total": total, "energy/steps": steps}
        if size <= MOST_STATE:
            layers = spread(network.depth, JACOBIAN_LAYERS)
            count = min(JACOBIAN_EXAMPLES, max(1, MOST_EIGENVALUES // size))
            carried = states(network, inputs[spread(len(inputs), count)], layers)
            eigenvalues = torch.view_as_real(step_eigenvalues(network, carried, layers))
            found |= {
                "jacobian/time": _times(network, layers),
                "jacobian/eigenvalues": eigenvalues.flatten(1, 2).float(),
                "jacobian/abscissa": spectral_abscissa(network, carried, layers),
            }
        return found

    def _trajectories(self, network: StableNetwork) -> dict[str, Tensor]:
        layers = spread(network.depth + 1, FRAMES)
        shown = _examples(self._test, PATHS)
        points, variance = trajectories(network, shown.inputs, layers)
        return {
            "trajectory/time": _times(network, layers),
            "trajectory/points": points,
            "trajectory/labels": shown.targets,
            "trajectory/variance": variance,
            "trajectory/width": torch.tensor(network.width),
        }


@torch.no_grad()
def trajectories(network: StableNetwork, inputs: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The paths of the features through time, in the plane.

    It is the plane of the features themselves where there are two, else that of the two leading principal components of
    all examples before all of these layers. Features of an image are the means over the pixels of its channels.

    Args:
        network: with at least 2 features.
        inputs: what it takes, `[batch, ...]`.
        layers: numbers of layers from 0 on, ascending; the depth stands for the state after the last one.

    Returns:
        float32 `[layers, batch, 2]`, and the share of the variance along each axis, float64 `[2]`.

    Raises:
        ConfigurationError: there are no such layers, or the network has one feature.
        NumericError: a feature is not finite.
    """
    if network.width < 2:
        raise ConfigurationError("paths in the plane are those of at least 2 features; this network has 1")
    method = network.flow.method
    held = max(1, MOST_NUMBERS // (len(layers) * network.opening(inputs[:1]).numel()))
    parts = []
    for batch in torch.split(inputs, held):
        carried = states(network, batch, layers)
        features = method.features(method.split(carried.flatten(0, 1))).double()
        means = features.flatten(2).mean(2) if features.dim() > 2 else features
        parts.append(means.view(*carried.shape[:2], -1).cpu())
    paths = torch.cat(parts, 1)
    if not paths.isfinite().all():
        raise NumericError("a feature of the network is not finite, so that there are no paths to draw")
    centred = paths - paths.mean((0, 1))
    covariance = centred.flatten(0, 1).mT @ centred.flatten(0, 1)
    variance = covariance.diagonal()
    if network.width > 2:
        values, vectors = torch.linalg.eigh(covariance)
        variance, leading = values[-2:].flip(0).clamp_min(0), vectors[:, -2:].flip(1)
        # A component has no sign of its own: its largest entry is made positive.
        leading = leading * leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
        paths = centred @ leading
    return paths.float(), variance / covariance.trace().clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def decision_regions(model: nn.Module, extent: Sequence[tuple[float, float]], side: int = GRID) -> Tensor:
    """The class that a classifier of points of the plane gives to each square of a grid, at its centre.

    Args:
        model: from `[n, 2]` to one score a class `[n, classes]`, at most 256, in the mode in which it is to be tested.
        extent: lowest and highest values of the first, and of the second feature.
        side: squares along the longer side of the extent, at least 1.

    Returns:
        uint8 `[rows, columns]`; the first row has the lowest second feature, the first column the lowest first one.

    Raises:
        ConfigurationError: side is below 1.
    """
    if side < 1:
        raise ConfigurationError(f"side is a number of squares, at least 1; given {side}")
    spans = [high - low for low, high in extent]
    centres = []
    for (low, _), span in zip(extent, spans, strict=True):
        count = max(1, round(side * span / max(spans)))
        centres.append(low + span * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    grid = torch.stack(torch.meshgrid(*centres, indexing="xy"), -1)
    scores: Tensor = model(grid.flatten(0, 1).to(next(model.parameters())))
    return scores.argmax(1).view(grid.shape[:2]).to(torch.uint8)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0 to count - 1, evenly, with the first and the last one."""
    chosen = torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round()
    return [int(each) for each in chosen]


def _examples(split: Split, most: int) -> Split:
    """Spread over the split, because examples may be sorted by class."""
    index = torch.tensor(spread(len(split), most), device=split.inputs.device)
    return Split(*split[index])


def _times(network: StableNetwork, layers: Sequence[int]) -> Tensor:
    return torch.tensor(layers, dtype=torch.float64) * network.step
