"""Statistics of a feed-forward network's weights and activity, as it learns and once it has."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from synaptome.analysis.activity import covariance_spectrum, hidden_activity, input_covariance
from synaptome.analysis.modes import (
    Modes,
    linear_layers,
    overlap,
    participation_ratio,
    product_modes,
    rank,
    singular_modes,
)
from synaptome.errors import ConfigurationError, NumericError

BINS = 41  # odd, so that the middle one is centred at 0
ALL_MODES = 1024  # up to this many are computed, kept or not, because their participation ratio is of all
COVARIANCE_INPUTS = 1024  # of more inputs the spectrum is kept, and not the matrix


def weight_histogram(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Counts int64 `[41]` of weights in bins of equal width from -edge to edge, and edge [], the largest |weight|.

    Bins are closed below and open above, the last is closed; zeros always lie in the middle one.
    """
    weight = weight.detach()
    edge = weight.abs().max()
    scale = edge if edge > 0 else torch.ones_like(edge)
    # In float64, so that a weight near the border of two bins falls on its own side.
    place = (weight.double() / scale.double() + 1) * (BINS / 2)
    index = place.floor().clamp(0, BINS - 1).long()
    return torch.bincount(index.flatten(), minlength=BINS).cpu(), edge.cpu()


class Spectra:
    """Measures the linear layers of a network; layers are numbered from 1 to L, all tensors are on the CPU.

    Args:
        probe: inputs over which activity is measured, `[n, ...]`, on the device and in the dtype of the models.
        teacher: W* `[d, N]` of rank r, for tasks that have one.
        modes: number of leading modes whose overlaps are measured, at least 1.
        full: whether snapshots hold all singular values, or those of the leading modes only.
        linear: whether the network is linear, so that the product of its weights is what it computes, biases aside.

    Raises:
        ConfigurationError: modes is below 1, there are no probe inputs, or the teacher is no matrix or is zero.
    """

    def __init__(
        self, probe: Tensor, teacher: Tensor | None = None, modes: int = 8, full: bool = False, linear: bool = False
    ) -> None:
        if modes < 1 or len(probe) < 1:
            raise ConfigurationError(f"spectra need at least 1 mode and 1 probe; given {modes} and {len(probe)}")
        self.probe = probe
        self.modes = modes
        self.full = full
        self.linear = linear
        self._teacher: Modes | None = None
        if teacher is not None:
            taught = singular_modes(teacher)
            if rank(taught) == 0:
                raise ConfigurationError("the teacher is zero, so it has no modes to compare with")
            self._teacher = taught.leading(rank(taught))

    @torch.no_grad()
    def snapshot(self, model: nn.Module) -> dict[str, Tensor]:
        """What is worth following over training; the model stays as it is, to the bit.

        Returns:
            For each layer l, with k_l = `min(modes, out, in)`:

            - `layer{l}/norm` []: Frobenius norm;
            - `layer{l}/singular_values` `[min(out, in)]`, or `[k_l]` unless `full`, descending;
            - `layer{l}/participation_ratio` []: `(Σs)²/(n Σs²)` in [1/n, 1] of all n singular values (where n is above
              1024 and not `full`, of the k_l leading ones); 0 for a zero matrix;
            - `layer{l}/histogram` int64 `[41]`: weights in bins of equal width from -edge to edge;
            - `layer{l}/histogram_edge` []: the largest absolute weight;

            for each hidden layer l < L:

            - `layer{l}/overlap` `[k_{l+1}, k_l]`: `|V_{l+1}' U_l|` of the leading modes;
            - `layer{l}/activity_mean`, `layer{l}/activity_std` []: over units and probe inputs, in inference;
            - `layer{l}/activity_silent` []: the share of (unit, input) pairs whose activity is exactly 0;

            with a teacher `W* = U* diag(s*) V*'` of rank r:

            - `teacher/left` `[k_L, r]`: `|U_L' U*|`, and `teacher/right` `[k_1, r]`: `|V_1' V*|`;

            and for linear networks with a teacher, of the product `W_L ... W_1`, with k = `min(modes, d, N)`:

            - `product/singular_values` `[k]`, `product/left` `[k, r]`, `product/right` `[k, r]`.

        Raises:
            ConfigurationError: the layers do not follow one another, or the teacher is not of the network's shape.
            NumericError: a weight is not finite.
        """
        layers = self._chain(model)
        found: dict[str, Tensor] = {}
        leading: list[Modes] = []
        for number, layer in enumerate(layers, 1):
            size = min(layer.weight.shape)
            modes = singular_modes(layer.weight, None if self.full or size <= ALL_MODES else self.modes)
            leading.append(modes.leading(self.modes))
            found[f"layer{number}/norm"] = torch.linalg.matrix_norm(layer.weight).cpu()
            found[f"layer{number}/singular_values"] = modes.s if self.full else modes.s[: self.modes]
            found[f"layer{number}/participation_ratio"] = participation_ratio(modes.s)
            found |= _histogram(number, layer.weight)
        found |= _overlaps(leading)
        for number, activity in enumerate(hidden_activity(model, layers, self.probe), 1):
            found[f"layer{number}/activity_mean"] = activity.mean().cpu()
            found[f"layer{number}/activity_std"] = activity.std(correction=0).cpu()
            found[f"layer{number}/activity_silent"] = (activity == 0).to(activity.dtype).mean().cpu()
        if self._teacher is not None:
            found["teacher/left"] = overlap(leading[-1].U, self._teacher.U)
            found["teacher/right"] = overlap(leading[0].V, self._teacher.V)
            if self.linear:
                product = product_modes([layer.weight for layer in layers], self.modes)
                found["product/singular_values"] = product.s
                found["product/left"] = overlap(product.U, self._teacher.U)
                found["product/right"] = overlap(product.V, self._teacher.V)
        return found

    @torch.no_grad()
    def final(self, model: nn.Module) -> dict[str, Tensor]:
        """What is too large to follow, of the trained network; the model stays as it is, to the bit.

        Returns:
            For each layer l, with r_l = `min(out, in)`: `layer{l}/singular_values` `[r_l]`, `layer{l}/histogram` and
            `layer{l}/histogram_edge` as in a snapshot; for each hidden layer `layer{l}/overlap` `[r_{l+1}, r_l]` of all
            modes and `layer{l}/activity` `[width]`, the root mean square of each unit over the probe inputs;
            `input/spectrum` `[N]`, the eigenvalues of the probe inputs' `X'X/n`, descending, and `input/covariance`
            `[N, N]`, that matrix, if N is at most 1024; with a teacher `teacher/singular_values` `[r]`.

        Raises:
            ConfigurationError, NumericError: as `snapshot`.
        """
        layers = self._chain(model)
        modes = [singular_modes(layer.weight) for layer in layers]
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(layers, 1):
            found[f"layer{number}/singular_values"] = modes[number - 1].s
            found |= _histogram(number, layer.weight)
        found |= _overlaps(modes)
        for number, activity in enumerate(hidden_activity(model, layers, self.probe), 1):
            found[f"layer{number}/activity"] = activity.square().mean(0).sqrt().cpu()
        found["input/spectrum"] = covariance_spectrum(self.probe).cpu()
        if self.probe[0].numel() <= COVARIANCE_INPUTS:
            found["input/covariance"] = input_covariance(self.probe).cpu()
        if self._teacher is not None:
            found["teacher/singular_values"] = self._teacher.s
        return found

    def _chain(self, model: nn.Module) -> list[nn.Linear]:
        layers = linear_layers(model)
        shapes = [tuple(layer.weight.shape) for layer in layers]
        if not layers or any(lower[0] != upper[1] for lower, upper in pairwise(shapes)):
            raise ConfigurationError(
                f"spectra are measured of linear layers that each take what the one before gives, [out, in]; "
                f"given {', '.join(map(str, map(list, shapes))) or 'none'}"
            )
        if self._teacher is not None:
            taught, learned = [len(self._teacher.U), len(self._teacher.V)], [shapes[-1][0], shapes[0][1]]
            if taught != learned:
                raise ConfigurationError(f"the teacher of this network is {learned}, [outputs, inputs]; given {taught}")
        for number, layer in enumerate(layers, 1):
            if not torch.isfinite(layer.weight).all():
                raise NumericError(f"the weights of layer {number} are not finite")
        return layers


def _overlaps(modes: list[Modes]) -> dict[str, Tensor]:
    """Of adjacent layers: what the upper looks for, with what the lower says."""
    return {
        f"layer{number}/overlap": overlap(upper.V, lower.U) for number, (lower, upper) in enumerate(pairwise(modes), 1)
    }


def _histogram(number: int, weight: Tensor) -> dict[str, Tensor]:
    counts, edge = weight_histogram(weight)
    return {f"layer{number}/histogram": counts, f"layer{number}/histogram_edge": edge}
