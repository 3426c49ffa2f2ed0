"""Initial weights by name, each layer's a pure function of (seed, layer): weights that stay frozen are known by a seed.

| name | weights | source |
|---|---|---|
| `glorot` | truncated normal, variance 2 / (fan_in + fan_out) | Glorot & Bengio 2010, equation 12 |
| `he` | truncated normal, variance 2 / fan_in | He et al. 2015, equation 10 |
| `signed-constant` | ±sqrt(2 / fan_in), + with probability p1 | Ramanujan et al. 2020; p1: Ivan & Florian 2020 |
| `binary` | ±1, + with probability p1 | Ivan & Florian 2020 |

The truncated normals end at two standard deviations of the normal distribution that is truncated, which is made wider
by 1 / 0.8796, so that the variance of the weights themselves is the one that stands here. Keras, TensorFlow and JAX do
the same (`VarianceScaling`); `torch.nn.init.trunc_normal_` does not, and the variance of its numbers is 0.774 times
the one that it is given.

A weight `[out, in, *kernel]` has fan_in = in * kernel size and fan_out = out * kernel size; for grouped convolutions,
`in` is the number of inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.exact_draws import TRUNCATED_STD, positive, truncated_normal

# The standard deviation, or the magnitude, for a fan_in and a fan_out.
_NORMAL: dict[str, Callable[[int, int], float]] = {
    "glorot": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "he": lambda fan_in, fan_out: math.sqrt(2 / fan_in),
}
_TWO_VALUED: dict[str, Callable[[int, int], float]] = {
    "signed-constant": lambda fan_in, fan_out: math.sqrt(2 / fan_in),
    "binary": lambda fan_in, fan_out: 1.0,
}
INITIALISERS = (*_NORMAL, *_TWO_VALUED)


def check_initialiser(initialiser: str, p1: float | None = None) -> None:
    """Refuse an initialiser that does not exist, or a p1 that it does not take: a ConfigurationError."""
    if initialiser not in INITIALISERS:
        raise unknown("initialiser", initialiser, INITIALISERS)
    if p1 is None:
        return
    if initialiser in _NORMAL:
        raise ConfigurationError(
            f"p1 is the share of positive weights of {' and '.join(_TWO_VALUED)}, and {initialiser} is symmetric; "
            f"given p1={p1}: leave it out, or choose one of these"
        )
    if not 0 <= p1 <= 1:  # also refuses NaN
        raise ConfigurationError(f"p1 is the probability that a weight is positive, in [0, 1]; given {p1}")


def frozen_weight(shape: Sequence[int], initialiser: str, *, seed: int, layer: int, p1: float | None = None) -> Tensor:
    """The initial weight of a layer: the same bits on every machine, with any version and any number of threads.

    Args:
        shape: `(out, in, *kernel)`, at least two numbers, each at least 1.
        initialiser: `glorot`, `he`, `signed-constant` or `binary`.
        seed: of the network, from 0 to 2^63 - 1.
        layer: which layer of the network it is, from 0 to 2^63 - 1.
        p1: probability that a weight is positive, of the latter two; 0.5 if None.

    Returns:
        float32 of that shape, on the CPU; no weight is 0.

    Raises:
        ConfigurationError: one of the arguments is none of the above, or contradicts another.
    """
    check_initialiser(initialiser, p1)
    if len(shape) < 2 or min(shape) < 1:
        raise ConfigurationError(f"a weight has a shape (out, in, *kernel) of numbers from 1 on; given {list(shape)}")
    for what, number in (("seed", seed), ("layer", layer)):
        if not 0 <= number < 2**63:
            raise ConfigurationError(f"a {what} is a whole number from 0 to 2^63 - 1; given {number}")
    fan_in = math.prod(shape[1:])
    fan_out = shape[0] * math.prod(shape[2:])
    key = torch.tensor([seed, layer], dtype=torch.int64, device="cpu")
    count = math.prod(shape)
    if initialiser in _NORMAL:
        weight = truncated_normal(key, count).mul_(_NORMAL[initialiser](fan_in, fan_out) / TRUNCATED_STD)
    else:
        signs = positive(key, count, 0.5 if p1 is None else p1).double().mul_(2).sub_(1)
        weight = signs.mul_(_TWO_VALUED[initialiser](fan_in, fan_out))
    return weight.float().view(*shape)


def weight_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """The layers that `initialise` draws, by name and in the order of their numbers, which count from 1."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def initialise(model: nn.Module, initialiser: str, *, seed: int, p1: float | None = None) -> None:
    """Draw the weights of every linear layer and convolution, in place; their biases become 0.

    Layer n, counted from 1 in the order of `model.named_modules()`, gets `frozen_weight(..., seed=seed, layer=n)`. Give
    layers other synapses afterwards: `synaptome.rewire` keeps the weights of dense layers.

    Args:
        model: any module.
        initialiser, seed, p1: as for `frozen_weight`.

    Raises:
        ConfigurationError: as `frozen_weight`; or the model has no such layer.
    """
    layers = weight_layers(model)
    if not layers:
        raise ConfigurationError(f"a {type(model).__name__} has no linear layer and no convolution to initialise")
    for number, layer in enumerate(layers.values(), 1):
        layer.weight.copy_(frozen_weight(layer.weight.shape, initialiser, seed=seed, layer=number, p1=p1))
        if layer.bias is not None:
            layer.bias.zero_()
