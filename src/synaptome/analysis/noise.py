"""How sensitive a trained classifier is to noise on its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synaptome.analysis.accuracy import BATCH, check_classes
from synaptome.analysis.activity import undisturbed
from synaptome.data.dataset import Split
from synaptome.errors import ConfigurationError


@torch.no_grad()
def noise_sensitivity(
    model: nn.Module, split: Split, stds: Sequence[float], passes: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """The accuracy of a classifier, and how much its outputs change, under Gaussian noise on its inputs.

    Standard deviations share their random numbers: the noise of one is that of another, scaled. The model is as it was
    afterwards, and torch's random state is not touched.

    Args:
        model: a classifier from inputs `[n, ...]` to one score a class `[n, classes]`.
        split: examples with class indices as targets, on the device of the model.
        stds: standard deviations of the noise, in the units of the inputs, each at least 0.
        passes: over the split at each standard deviation, with fresh noise in each, at least 1.
        seed: of the noise.

    Returns:
        Float64 tensors: `std` `[S]`; `accuracy` `[S, passes]`, the share of examples classified correctly; `change`
        `[S, passes]`, the Frobenius norm of the change of the outputs of all examples over that of the outputs.

    Raises:
        ConfigurationError: there are no standard deviations, one is negative or not finite, passes is below 1, or the
            targets are no classes.
    """
    if not stds or passes < 1:
        raise ConfigurationError(
            f"at least one standard deviation and one pass are needed; given {list(stds)} and {passes}"
        )
    for std in stds:
        if not 0 <= std < math.inf:  # also refuses NaN
            raise ConfigurationError(f"a standard deviation of noise is a finite number of at least 0; given {std}")
    check_classes(split)
    with undisturbed(model):
        clean = _outputs(model, split.inputs)
        size = clean.norm().clamp_min(torch.finfo(torch.float64).tiny)
        accuracy = torch.empty(len(stds), passes, dtype=torch.float64)
        change = torch.empty_like(accuracy)
        for index in range(passes):
            # Drawn on the CPU, so that the noise is the same on every device.
            generator = torch.Generator().manual_seed(seed + index)
            drawn = torch.randn(split.inputs.shape, generator=generator, dtype=split.inputs.dtype)
            noise = drawn.to(split.inputs.device)
            for place, std in enumerate(stds):
                outputs = _outputs(model, split.inputs + std * noise)
                accuracy[place, index] = (outputs.argmax(1) == split.targets).double().mean()
                change[place, index] = (outputs - clean).norm() / size
    return {"std": torch.tensor(list(stds), dtype=torch.float64), "accuracy": accuracy, "change": change}


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in torch.split(inputs, BATCH)]).double()
