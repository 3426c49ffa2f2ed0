"""What the neurons of a network do: hidden activity over given inputs, and the covariance of the inputs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inference for a while: training modes, and buffers such as the counters of failures, then are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                setattr(module, name, buffer.copy_(content))


@torch.no_grad()
def hidden_activity(model: nn.Module, layers: Sequence[nn.Linear], inputs: Tensor) -> list[Tensor]:
    """The activity of each hidden layer in one inference pass: what each layer after the first is given.

    The model is as it was afterwards, failures' counters included.

    Args:
        model: any model in which the layers are called one after another.
        layers: its linear layers in order, as `linear_layers` lists them.
        inputs: what the model takes, `[n, ...]`.

    Returns:
        For layers 1 to L - 1 the activity `[n, width]`.

    Raises:
        ConfigurationError: a layer is not called by the model.
    """
    taken: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers[1:]}

    def keep(layer: nn.Module, given: tuple[Any, ...]) -> None:
        taken[layer].append(given[0].reshape(-1, given[0].shape[-1]))

    handles = [layer.register_forward_pre_hook(keep) for layer in taken]
    try:
        with undisturbed(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for number, given in enumerate(taken.values(), 2):
        if not given:
            raise ConfigurationError(f"layer {number} is not called by the model, so it has no activity to measure")
    return [torch.cat(given) for given in taken.values()]


def input_covariance(inputs: Tensor) -> Tensor:
    """The uncentred covariance `X'X/n` `[N, N]` of inputs `[n, ...]` that are flattened to X `[n, N]`."""
    X = inputs.detach().flatten(1).double()
    return (X.mT @ X / len(X)).to(inputs.dtype)


def covariance_spectrum(inputs: Tensor) -> Tensor:
    """The eigenvalues `[N]` of `input_covariance`, at least 0, in descending order."""
    X = inputs.detach().flatten(1).double()
    # X X' has the same eigenvalues but for zeros, and is smaller where inputs outnumber examples.
    gram = X.mT @ X if X.shape[0] >= X.shape[1] else X @ X.mT
    values = torch.linalg.eigvalsh(gram / len(X)).clamp_min(0).flip(0)
    return torch.cat((values, values.new_zeros(X.shape[1] - len(values)))).to(inputs.dtype)
