"""Layers whose weights stay as they were drawn, and whose synapses learn whether they are there, or their sign.

Sources: Zhou, Lan, Liu & Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask"; Ramanujan et
al. 2020, "What's Hidden in a Randomly Weighted Neural Network?"; Ivan & Florian 2020, "Training highly effective
connectivities within neural networks with randomly initialized, fixed weights"; Koster, Grothe & Rettinger 2022,
"Signing the Supermask: Keep, Hide, Invert".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.kernels.convolution import Pair
from synaptome.kernels.learned_linear import learned_linear, learned_linear_and_sum
from synaptome.kernels.learned_weight import is_plain
from synaptome.synapses.failing_conv import conv2d_arguments
from synaptome.synapses.learned_rules import Learned
from synaptome.synapses.learned_weight import LearnedWeight


class LearnedLinear(LearnedWeight, nn.Linear):
    """`torch.nn.Linear` whose synapses learn whether they are there, or their sign: `y = x (W ∘ f(s))' + bias`.

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`, drawn from the same random numbers.
        method: how, such as `free-pruning` or `free-flipping`; see `Learned`.
        options: alpha, density, threshold, inference and train_weights, as for `Learned`.

    Raises:
        ConfigurationError: there is no such method, or an option is another method's or out of range.
    """

    _plain = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        learned = Learned(method, **options)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._learn(learned, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self.failures is not None:
            return self.failures.linear(x, self.effective_weight(), self.bias)
        if self.training:
            if self.learned.alpha is not None and is_plain(self.weight):
                operands = x, self.weight, self.scores, self.bias, self._rule, self.penalty_factor
                y, total = learned_linear_and_sum(*operands)
                self._counted.keep(self.scores, total)
                return y
            return learned_linear(x, self.weight, self.scores, self.bias, *self._draw())
        return F.linear(x, self.inference_weight(), self.bias)

    @staticmethod
    def _arguments(layer: Any) -> tuple[Any, ...]:
        return layer.in_features, layer.out_features, layer.bias is not None


class _LearnedConv(LearnedWeight):
    """What learned convolutions of any dimension have in common."""

    _conv_forward: Any  # of the convolution of torch.nn

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        method: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        learned = Learned(method, **options)
        geometry: Any = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, *geometry)
        self._learn(learned, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, *size]` to `[batch, out_channels, *size]`; the batch axis may lack."""
        y: Tensor = self._conv_forward(x, self.effective_weight(), self.bias)
        return y

    _arguments = staticmethod(conv2d_arguments)


class LearnedConv1d(_LearnedConv, nn.Conv1d):
    """`torch.nn.Conv1d` whose synapses learn whether they are there, or their sign.

    Arguments and errors are those of `torch.nn.Conv1d`, with method and options as for `LearnedLinear`.
    """

    _plain = nn.Conv1d


class LearnedConv2d(_LearnedConv, nn.Conv2d):
    """`torch.nn.Conv2d` whose synapses learn whether they are there, or their sign.

    A synapse is an entry of the kernels, which all positions of an image share. Arguments and errors are those of
    `torch.nn.Conv2d`, with method and options as for `LearnedLinear`.
    """

    _plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`; the batch axis may lack."""
        if self.failures is None:
            return super().forward(x)
        padding: Pair | str = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        geometry: Any = (self.stride, padding, self.dilation, self.groups)
        return self.failures.conv2d(x, self.effective_weight(), self.bias, *geometry)


class LearnedConv3d(_LearnedConv, nn.Conv3d):
    """`torch.nn.Conv3d` whose synapses learn whether they are there, or their sign.

    Arguments and errors are those of `torch.nn.Conv3d`, with method and options as for `LearnedLinear`.
    """

    _plain = nn.Conv3d
