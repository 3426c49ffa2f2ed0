"""What became of learned synapses: how many are kept, masked or inverted, layer by layer, and how their scores lie."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.synapses.learned_model import connectivity, learned_layers
from synaptome.synapses.learned_weight import Connectivity

BINS = 50  # of a histogram of scores: even, so that 0, where most methods decide, is the border of two


def share_changed(model: nn.Module) -> float:
    """The share of a model's learned synapses that are not as they were drawn: masked, or of the other sign; in [0, 1].

    Raises:
        ConfigurationError: the model has no learned layer.
    """
    return _share(_measured(model))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """What is worth following over training.

    Returns:
        For each learned layer l, counted from 1 in the order of the model, on the CPU:

        - `layer{l}/masks` int64 `[3]`: how many f(s) are negative, zero and positive;
        - `layer{l}/weights` int64 `[3]`: how many effective weights `W f(s)` are;
        - `layer{l}/changed` float64 []: see `share_changed`;

        and `changed`, of all learned layers together.

    Raises:
        ConfigurationError: the model has no learned layer.
    """
    layers = _measured(model)
    found = {"changed": torch.tensor(_share(layers), dtype=torch.float64)}
    for number, layer in enumerate(layers, 1):
        found |= {
            f"layer{number}/masks": torch.tensor(layer.masks),
            f"layer{number}/weights": torch.tensor(layer.weights),
            f"layer{number}/changed": torch.tensor(layer.changed, dtype=torch.float64),
        }
    return found


def final(model: nn.Module) -> dict[str, Tensor]:
    """The snapshot of the trained network, and for each learned layer l the histogram of its scores.

    Returns:
        What `snapshot` does, and `layer{l}/score_edges` float64 `[51]` and `layer{l}/score_counts` int64 `[50]`; see
        `score_histogram`.

    Raises:
        ConfigurationError: the model has no learned layer.
    """
    found = snapshot(model)
    for number, layer in enumerate(learned_layers(model).values(), 1):
        edges, counts = score_histogram(layer.scores)
        found |= {f"layer{number}/score_edges": edges, f"layer{number}/score_counts": counts}
    return found


def score_histogram(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Edges float64 `[51]` of 50 bins of equal width between ± the largest |score|, and counts int64 `[50]`.

    Bins are closed below and open above, the last is closed. 0 is always the edge in the middle.

    Args:
        scores: of any shape, at least one.
    """
    values = scores.detach().cpu().double().flatten()
    largest = values.abs().max()
    # Multiples of one width: linspace would miss 0 by rounding.
    half = BINS // 2
    edges = torch.arange(-half, half + 1, dtype=torch.float64) * ((largest if largest > 0 else 1.0) / half)
    return edges, torch.bincount(torch.bucketize(values, edges[1:-1], right=True), minlength=BINS)


def _measured(model: nn.Module) -> list[Connectivity]:
    found = list(connectivity(model).values())
    if not found:
        raise ConfigurationError(
            f"a {type(model).__name__} has no learned layer, so there is no connectivity to measure; make some with "
            f"rewire(model, Learned(...))"
        )
    return found


def _share(layers: list[Connectivity]) -> float:
    """Of all synapses: a large layer counts for more."""
    masks = [layer.masks for layer in layers]
    return sum(mask.negative + mask.zero for mask in masks) / max(1, sum(map(sum, masks)))
