"""Convolutions whose synapses fail at random, afresh for each example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.kernels.convolution import Pair
from synaptome.synapses.failing import Failures, adopt


class FailingConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose synapses fail with probability `failure`, afresh for each example.

    A synapse of an example is an entry of the kernels, which all positions of the image share: where it fails, it fails
    at all of them, `y[b, o] = Σ_i (m[b, o, i] ∘ W[o, i]) ⋆ x[b, i] / (1 - p) + bias[o]` with independent
    `m ~ Bernoulli(1 - p)` (Wan et al. 2013, equation 4, whose layers are fully connected). The bias never fails.

    As `noise` or as inference, `gaussian` samples `N(x ⋆ W, p/(1-p) (x∘x) ⋆ (W∘W))`: mean and variance at each position
    are exact, but the positions become independent, where true failures are shared among them.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv2d`, drawn from the same random numbers.
        failure: probability of failure in [0, 1), exact to 1/65536.
        inference: `expected`, `noisy`, `gaussian` or `mc(K)`; see `Failures`.
        noise: `bernoulli` or `gaussian`; see `Failures`.

    Raises:
        ConfigurationError: failure, inference or noise is out of range, or x does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode, device=device, dtype=dtype)  # type: ignore[arg-type]
        self.failures = Failures(failure, inference, noise, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`; the batch axis may lack."""
        padding: Pair | str = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return self.failures.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    @classmethod
    def from_dense(
        cls, layer: nn.Conv2d, *, failure: float, inference: str = "expected", noise: str = "bernoulli"
    ) -> FailingConv2d:
        """A failing layer that holds the very parameters of `layer`: an optimizer that has them keeps them."""
        with torch.device("meta"):
            failing = cls(*conv2d_arguments(layer), failure=failure)
        failing.failures = Failures(failure, inference, noise, device=layer.weight.device)
        return adopt(failing, layer)

    def to_dense(self) -> nn.Conv2d:
        """A plain `torch.nn.Conv2d` that holds the very parameters of this layer."""
        with torch.device("meta"):
            dense = nn.Conv2d(*conv2d_arguments(self))
        return adopt(dense, self)


def conv2d_arguments(layer: Any) -> tuple[Any, ...]:
    """What a `torch.nn.Conv2d` of the geometry of `layer`, which may be of another kind, is made with."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return layer.in_channels, layer.out_channels, *geometry, layer.bias is not None, layer.padding_mode
