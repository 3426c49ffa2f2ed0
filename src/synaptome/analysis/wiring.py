"""Statistics of the connections of sparse layers: who has how many, where they are on the input, which stayed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.topology.evolution import Evolution
from synaptome.topology.layers import SparseLayer, occupied, sparse_layers
from synaptome.topology.sampling import members

EXACT = 32  # degrees below have a bin each
BINS_AN_OCTAVE = 16  # above, so that a bin is at most a sixteenth of its degrees wide
MOST_PIXELS = 64 * 64 * 4  # of an input whose map is kept


def out_degrees(layer: SparseLayer) -> Tensor:
    """How many connections each input has, int64 `[in_features]`."""
    return torch.bincount(layer.col, minlength=layer.in_features)


def in_degrees(layer: SparseLayer) -> Tensor:
    """How many connections each output has, int64 `[out_features]`."""
    return torch.bincount(layer.row_of, minlength=layer.out_features)


def degree_bins(largest: int) -> int:
    """How many of the bins of `degree_edges` it takes to hold the degrees from 0 to `largest`."""
    if largest < EXACT:
        return largest + 1
    octave = largest.bit_length() - EXACT.bit_length()
    return EXACT + BINS_AN_OCTAVE * octave + (largest >> (octave + 1)) - BINS_AN_OCTAVE + 1


def degree_edges(bins: int) -> Tensor:
    """The edges of the first `bins` bins in which degrees are counted, int64 `[bins + 1]`.

    Bin k holds the degrees from `edges[k]` up to, but not including, `edges[k + 1]`: 0, 1, ..., 31 have a bin each, and
    every further octave (from 32, from 64, ...) is cut into 16 bins of equal width. So a layer of a million neurons
    has 271 bins.
    """
    octave = [divmod(k - EXACT, BINS_AN_OCTAVE) for k in range(EXACT, bins + 1)]
    coarse = [(BINS_AN_OCTAVE + place) << (doublings + 1) for doublings, place in octave]
    return torch.tensor([*range(min(bins + 1, EXACT)), *coarse])


def degree_distribution(degrees: Tensor, largest: int) -> Tensor:
    """How many neurons have each degree.

    Args:
        degrees: integers from 0 to `largest`, `[neurons]`.
        largest: the degree of a neuron that is connected to all.

    Returns:
        Counts in the bins of `degree_edges`, int64 `[degree_bins(largest)]`.
    """
    bins = degree_bins(largest)
    inner = degree_edges(bins)[1:-1].to(degrees.device)
    return torch.bincount(torch.bucketize(degrees, inner, right=True), minlength=bins)


def pixel_map(layer: SparseLayer, shape: Sequence[int]) -> Tensor:
    """How many connections each pixel of the input has, int64 `[channels, height, width]`.

    Args:
        layer: the first one, whose inputs are the flattened pixels.
        shape: of an input, `[height, width]` or `[channels, height, width]`.

    Raises:
        ConfigurationError: the shape is neither, or has another number of pixels than the layer has inputs.
    """
    if len(shape) not in (2, 3) or math.prod(shape) != layer.in_features:
        raise ConfigurationError(
            f"a map of connections is for inputs of shape [height, width] or [channels, height, width] with one entry "
            f"for each of the layer's {layer.in_features} inputs; given {list(shape)}"
        )
    return out_degrees(layer).view(-1, *shape[-2:])


def centred_means(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a map over centred squares, from the smallest to the largest that fits.

    Sides are 2, 4, ... for images whose shorter side is even, 1, 3, ... where it is odd. Along a longer side of the
    other parity no square has its centre in the middle; it then lies half a pixel before it.

    Args:
        pixels: `[channels, height, width]` or `[height, width]`; channels are averaged.

    Returns:
        The sides, int64 `[squares]`, and the means, float64 `[squares]`.
    """
    height, width = pixels.shape[-2:]
    flat = pixels.double().reshape(-1, height, width).mean(0)
    shorter = min(height, width)
    sides = torch.arange(2 - shorter % 2, shorter + 1, 2)
    means = [
        flat[top : top + side, left : left + side].mean()
        for side, top, left in zip(
            sides.tolist(), ((height - sides) // 2).tolist(), ((width - sides) // 2).tolist(), strict=True
        )
    ]
    return sides, torch.stack(means)


def initial_present(layer: SparseLayer, initial: Tensor) -> Tensor:
    """The share of the places of an initial graph that hold a connection now, float64 [] in [0, 1].

    An upper bound of the share of connections that were never dropped: one that was dropped, and grew again at its
    place, counts as well. An unrelated graph has about its density of them.

    Args:
        layer: as it is now.
        initial: the places that were occupied, `row * in_features + column`, sorted, int64 `[connections]`; of none,
            all are there.
    """
    present = int(members(occupied(layer), initial.to(layer.values.device)).sum())
    return torch.tensor(present / len(initial) if len(initial) else 1.0, dtype=torch.float64)


def signs(values: Tensor) -> Tensor:
    """How many weights are negative, exactly 0, and positive: int64 `[3]`."""
    values = values.detach()
    return torch.stack([(values < 0).sum(), (values == 0).sum(), (values > 0).sum()])


class Connections:
    """Measures the connections of a model's sparse layers.

    A layer's number is its place, from 1, among all layers with weights, dense ones included, in the order in which
    the model holds them.

    Args:
        model: before training; its graph is what later ones are compared with.
        shape: of an input. The connections of its pixels are mapped where it is `[height, width]` or
            `[channels, height, width]`, of at most 64 x 64 x 4 entries, and the model's first layer with weights is a
            sparse one with an input for each.
        evolution: of the same model, with `track_visited`, where its ITOP rate is to be followed.

    Raises:
        ConfigurationError: the evolution does not remember visited places.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], evolution: Evolution | None = None) -> None:
        layers = _numbered(model)
        self._evolution = evolution
        self._initial = {number: occupied(layer).cpu() for number, layer in layers.items()}
        self._sizes = _sizes(layers)
        entries = math.prod(shape)
        mapped = len(shape) in (2, 3) and entries <= MOST_PIXELS and 1 in layers and layers[1].in_features == entries
        self._shape = tuple(shape) if mapped else None
        self._start = self.snapshot(model)

    @torch.no_grad()
    def snapshot(self, model: nn.Module) -> dict[str, Tensor]:
        """What is worth following over training.

        Returns:
            For each sparse layer l, on the CPU:

            - `layer{l}/out_degree`, `layer{l}/in_degree`: how many inputs and outputs have each number of connections,
              int64, in the bins of `degree_edges`;
            - `layer{l}/initial_present` []: see `initial_present`;
            - `layer{l}/signs` `[3]`: numbers of negative, zero and positive weights;

            and, as far as there are any, `input/connections` `[channels, height, width]`, the connections of each
            pixel, and `itop_rate` [], the share of all places that are or were occupied (Liu et al. 2021: R_s).

        Raises:
            ConfigurationError: the sparse layers are not those that the model started with.
        """
        layers = _numbered(model)
        if _sizes(layers) != self._sizes:
            raise ConfigurationError(
                f"the connections of a model are followed through the sparse layers that it started with, "
                f"{_told(self._sizes)}; it now has {_told(_sizes(layers))}"
            )
        found: dict[str, Tensor] = {}
        for number, layer in layers.items():
            found |= {
                f"layer{number}/out_degree": degree_distribution(out_degrees(layer), layer.out_features).cpu(),
                f"layer{number}/in_degree": degree_distribution(in_degrees(layer), layer.in_features).cpu(),
                f"layer{number}/initial_present": initial_present(layer, self._initial[number]),
                f"layer{number}/signs": signs(layer.values).cpu(),
            }
        if self._shape is not None:
            found["input/connections"] = pixel_map(layers[1], self._shape).cpu()
        if self._evolution is not None:
            found["itop_rate"] = torch.tensor(self._evolution.itop_rate(), dtype=torch.float64)
        return found

    def final(self, model: nn.Module) -> dict[str, Tensor]:
        """The snapshot of the trained network, and that of the initial one under `start/` names."""
        return self.snapshot(model) | {f"start/{name}": tensor for name, tensor in self._start.items()}


def _numbered(model: nn.Module) -> dict[int, SparseLayer]:
    sparse = {id(layer): layer for layer in sparse_layers(model).values()}
    weighted = [
        id(module)
        for module in model.modules()
        if id(module) in sparse or any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    ]
    return {number: sparse[module] for number, module in enumerate(weighted, 1) if module in sparse}


def _sizes(layers: dict[int, SparseLayer]) -> dict[int, tuple[int, int]]:
    return {number: (layer.out_features, layer.in_features) for number, layer in layers.items()}


def _told(sizes: dict[int, tuple[int, int]]) -> str:
    return ", ".join(f"layer {number} of {out} x {inputs}" for number, (out, inputs) in sizes.items()) or "none"
