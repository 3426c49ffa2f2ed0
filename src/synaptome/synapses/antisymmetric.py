"""Synapses tied to their mirror images, so that what flows through them neither grows nor dies away.

Source: Haber & Ruthotto 2017, "Stable architectures for deep neural networks", Inverse Problems 34 (arXiv 1705.03341).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.synapses.failing import adopt
from synaptome.synapses.wiring import Axis, Kind
from synaptome.topology.ranges import is_real


@dataclass(frozen=True)
class Antisymmetric(Kind):
    """The choice of antisymmetric synapses, for `rewire`: the gamma of `AntisymmetricLinear`."""

    gamma: float = 0.0
    axis: ClassVar[Axis] = "tie"

    def __post_init__(self) -> None:
        _check_gamma(self.gamma)


class AntisymmetricLinear(nn.Linear):
    """A square `torch.nn.Linear` whose effective weight is `A = ½ (K - K' - γ I)`: `y = x A' + bias`.

    Every eigenvalue of A has the real part -γ/2, whatever the Parameter K, which is the attribute `weight`
    `[features, features]`. `x + h * torch.tanh(layer(x))` is a layer of the antisymmetric network of Haber & Ruthotto
    2017, `Y_{j+1} = Y_j + h σ(½ (K_j - K_j' - γ I) Y_j + b_j)`. Such an explicit Euler step amplifies what only turns,
    by `|1 + i h ω| > 1`; a small γ > 0 damps it.

    K is drawn as the weight of `torch.nn.Linear`, so each entry off the diagonal of A has half the variance of one of
    K. The symmetric part of K has no effect and no gradient.

    Args:
        features: number of inputs and of outputs.
        bias, device, dtype: as for `torch.nn.Linear`.
        gamma: γ, the diffusion; finite and at least 0.

    Raises:
        ConfigurationError: gamma is out of range.
    """

    def __init__(
        self,
        features: int,
        bias: bool = True,
        *,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_gamma(gamma)
        super().__init__(features, features, bias, device=device, dtype=dtype)
        self.gamma = gamma

    def effective_weight(self) -> Tensor:
        """`½ (K - K' - γ I)` `[features, features]`, with its gradient with respect to K."""
        skew = (self.weight - self.weight.mT) / 2
        if self.gamma == 0:
            return skew
        return skew - self.gamma / 2 * torch.eye(self.in_features, device=skew.device, dtype=skew.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., features]` to `[..., features]`."""
        return F.linear(x, self.effective_weight(), self.bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear, *, gamma: float = 0.0) -> AntisymmetricLinear:
        """An antisymmetric layer that holds the very parameters of `layer`, its weight as K.

        Its outputs are others, since they lack the symmetric part of K; an optimizer that has the parameters keeps
        them.

        Raises:
            ConfigurationError: the layer is not square, or gamma is out of range.
        """
        if layer.in_features != layer.out_features:
            raise ConfigurationError(
                f"an antisymmetric layer has as many outputs as inputs; given a layer with {layer.in_features} inputs "
                f"and {layer.out_features} outputs"
            )
        return adopt(cls(layer.in_features, layer.bias is not None, gamma=gamma, device="meta"), layer)

    def to_dense(self) -> nn.Linear:
        """A `torch.nn.Linear` with the effective weight, as a new Parameter, and the very bias of this layer."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        dense.weight = nn.Parameter(self.effective_weight().detach(), self.weight.requires_grad)
        dense.bias = self.bias
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"features={self.in_features}, bias={self.bias is not None}, gamma={self.gamma:g}"


def _check_gamma(gamma: float) -> None:
    if not is_real(gamma) or not 0 <= gamma < math.inf:  # also refuses NaN
        raise ConfigurationError(f"gamma is a finite number of at least 0; given {gamma!r}")
