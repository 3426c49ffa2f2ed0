"""From mask to speed: learned layers of which few synapses are left become truly sparse."""

from __future__ import annotations

from typing import Any

from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.synapses.failing import FailingLinear
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_sparse import FailingSparseLinear
from synaptome.synapses.learned_weight import LearnedWeight
from synaptome.synapses.rewire import put
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conv import SparseConv2d


def to_sparse(model: nn.Module, below: float | None = None) -> nn.Module:
    """Give the learned layers of a model, in place, the storage in which they are fast; their outputs stay.

    A `Linear` or `Conv2d` layer that keeps less than the share `below` of its synapses becomes a `SparseLinear` or a
    `SparseConv2d` of these, every other one a layer of torch with its effective weight at inference. Failures go on
    with the same numbers; a convolution that fails stays dense, since there is no sparse product for it. The weights
    are new Parameters, biases the very ones.

    Args:
        model: any module. If it is itself a learned layer, use what is returned.
        below: in [0, 1]; by default the `crossover` of the sparse layer, the density from which a dense one is faster
            at about a hundred examples a batch. On single examples layers of a few hundred neurons are faster dense at
            a density of 0.05 still; 0 leaves all of them dense.

    Returns:
        The model.

    Raises:
        ConfigurationError: `below` is out of range, or the model has no learned layer.
    """
    if below is not None and not 0 <= below <= 1:  # also refuses NaN
        raise ConfigurationError(f"below is a density in [0, 1]; given {below}")
    names = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, LearnedWeight)}
    if not names:
        raise ConfigurationError(f"a {type(model).__name__} has no learned layer to make sparse")
    return put(model, names, {layer: _stored(layer, below) for layer in names.values()})


def _stored(layer: LearnedWeight, below: float | None) -> nn.Module:
    dense: Any = layer.to_dense()
    failures = layer.failures
    mask = dense.weight != 0
    density = mask.double().mean().item()
    if isinstance(dense, nn.Linear):
        form = SparseLinear if failures is None else FailingSparseLinear
        if density < (form.crossover if below is None else below):
            sparse = SparseLinear.from_dense(dense, mask)
            return (
                sparse if failures is None else _failing(FailingSparseLinear.from_sparse(sparse, failure=0), failures)
            )
        return dense if failures is None else _failing(FailingLinear.from_dense(dense, failure=0), failures)
    if failures is not None:
        return _failing(FailingConv2d.from_dense(dense, failure=0), failures)
    if isinstance(dense, nn.Conv2d) and density < (SparseConv2d.crossover if below is None else below):
        return SparseConv2d.from_dense(dense, mask)
    return dense  # type: ignore[no-any-return]


def _failing(layer: Any, failures: nn.Module) -> nn.Module:
    """A failing layer with the failures of another."""
    layer.failures = failures  # which are in the mode of the layer that they were in
    return layer  # type: ignore[no-any-return]
