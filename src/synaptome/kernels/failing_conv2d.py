"""The convolution with failures: a fresh mask of the kernels for each example, shared by all positions of its image.

`y[b, o] = Σ_i (m[b, o, i] ∘ W[o, i]) ⋆ x[b, i] / (1 - p)`. The masked kernels exist for a chunk of examples only (see
`synaptome.kernels.masked_weight`), whose images torch convolves as the groups of a single one. On a CPU that takes a
third of the time of unfolded images and matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from synaptome.errors import ConfigurationError
from synaptome.kernels.convolution import Pair, output_size, pair
from synaptome.kernels.failing_linear import check_failure
from synaptome.kernels.masked_weight import add_masked, chunks, masked_weight


def failing_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    failure: float,
    key: Tensor,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` in which each synapse of each example fails with probability p.

    A synapse is an entry of the kernels: where it fails, it fails at all positions of that example's image. The mask of
    example b is `randomness.surviving(key, ..., out_channels, in_channels / groups * height * width, failure)[b]`.

    Args:
        x: `[batch, in_channels, height, width]`, or a single example without its batch axis.
        weight: `[out_channels, in_channels / groups, kernel height, kernel width]`.
        bias: `[out_channels]` or None; it never fails.
        failure: probability of failure in [0, 1), rounded to 1/65536.
        key: int64 `[2]`, (stream, counter): same key, same failures.
        stride, padding, dilation, groups: as for `torch.nn.functional.conv2d`, padding `same` and `valid` included.

    Returns:
        `[batch, out_channels, height, width]`, or without its batch axis.

    Raises:
        ConfigurationError: the failure rate is out of range, or shapes or dtypes do not fit.
    """
    check_failure(failure)
    if (
        x.dim() not in (3, 4)
        or weight.dim() != 4
        or x.shape[-3] != weight.shape[1] * groups
        or weight.shape[0] % groups != 0
    ):
        raise ConfigurationError(
            f"failing_conv2d convolves x [batch, in, height, width] or [in, height, width] with weight "
            f"[out, in / groups, height, width]; given x {list(x.shape)}, weight {list(weight.shape)} and {groups=}"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ConfigurationError(f"x is {x.dtype} and weight is {weight.dtype}; convert one of them, or use autocast")
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    images, margins = _padded(x if x.dim() == 4 else x.unsqueeze(0), weight, strides, padding, dilations)
    size = output_size(images.shape, weight.shape, strides, margins, dilations)
    if min(size) < 1:
        raise ConfigurationError(
            f"a kernel {list(weight.shape[2:])} with {dilation=} does not fit into an image {list(x.shape[-2:])} "
            f"with {padding=}"
        )
    y: Tensor = product(images, weight, strides, margins, dilations, groups, failure, key)
    if bias is not None:
        y += bias.view(-1, 1, 1)  # in place: another tensor of this size takes as long as the convolution
    return y if x.dim() == 4 else y.squeeze(0)


@torch.library.custom_op("synaptome::failing_conv2d", mutates_args=())
def product(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    failure: float,
    key: Tensor,
) -> Tensor:
    """`[batch, in, height, width]` to `[batch, out, height, width]`, with failures."""
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    y = x.new_empty(x.shape[0], weight.shape[0], *size)
    for examples in chunks(len(x), weight.numel()):
        kernels = masked_weight(weight, examples, failure, key).flatten(0, 1)
        folded = _as_groups(x, examples)
        together = F.conv2d(folded, kernels, None, stride, padding, dilation, groups * len(examples))
        y[examples.start : examples.stop] = together.view(len(examples), *y.shape[1:])
    return y


@torch.library.custom_op("synaptome::failing_conv2d_input_grad", mutates_args=())
def input_grad(
    grad: Tensor,
    weight: Tensor,
    image: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    failure: float,
    key: Tensor,
) -> Tensor:
    """Gradient by x, whose images are `[in, height, width]`, with the failures of the product."""
    channels, height, width = image
    by_x = grad.new_empty(grad.shape[0], *image)
    for examples in chunks(len(grad), weight.numel()):
        kernels = masked_weight(weight, examples, failure, key).flatten(0, 1)
        size = (1, len(examples) * channels, height, width)
        folded = _as_groups(grad, examples)
        geometry = (stride, padding, dilation, groups * len(examples))
        together: Tensor = conv2d_input(size, kernels, folded, *geometry)  # type: ignore[no-untyped-call]
        by_x[examples.start : examples.stop] = together.view(len(examples), *image)
    return by_x


@torch.library.custom_op("synaptome::failing_conv2d_weight_grad", mutates_args=())
def weight_grad(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    failure: float,
    key: Tensor,
) -> Tensor:
    """Gradient by the weight, whose kernels are `[height, width]`, with the failures of the product."""
    shape = (grad.shape[1], x.shape[1] // groups, *kernel)
    by_weight = grad.new_zeros(shape)
    for examples in chunks(len(x), by_weight.numel()):
        size = (len(examples) * shape[0], *shape[1:])
        folded, folded_grad = _as_groups(x, examples), _as_groups(grad, examples)
        geometry = (stride, padding, dilation, groups * len(examples))
        together: Tensor = conv2d_weight(folded, size, folded_grad, *geometry)  # type: ignore[no-untyped-call]
        add_masked(by_weight, together.view(len(examples), *shape), examples, failure, key)
    return by_weight


@product.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    failure: float,
    key: Tensor,
) -> Tensor:
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    return x.new_empty(x.shape[0], weight.shape[0], *size)


@input_grad.register_fake
def _(grad: Tensor, weight: Tensor, image: Sequence[int], *_: Any) -> Tensor:
    return grad.new_empty(grad.shape[0], *image)


@weight_grad.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    failure: float,
    key: Tensor,
) -> Tensor:
    return grad.new_empty(grad.shape[1], x.shape[1] // groups, *kernel)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.geometry, ctx.failure, key = inputs
    ctx.save_for_backward(x, weight, key)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, key = ctx.saved_tensors
    rest = (*ctx.geometry, ctx.failure, key)
    by_x = input_grad(grad, weight, x.shape[1:], *rest) if ctx.needs_input_grad[0] else None
    by_weight = weight_grad(grad, x, weight.shape[2:], *rest) if ctx.needs_input_grad[1] else None
    return by_x, by_weight, None, None, None, None, None, None


product.register_autograd(_backward, setup_context=_save_for_backward)


# Under autocast the sums stay in float32, which the fast kernels take.
for _device in ("cpu", "cuda"):
    product.register_autocast(_device, torch.float32)


def _padded(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: Pair | str, dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The images, padded where the two sides of an axis differ, and the padding that is left for both sides."""
    if padding == "valid":
        return x, (0, 0)
    if not isinstance(padding, str):
        return x, pair("padding", padding, 0)
    if padding != "same" or stride != (1, 1):
        raise ConfigurationError(
            f"padding is an integer, a pair of them, 'valid', or, where stride is 1, 'same'; given {padding=} "
            f"with stride={stride}"
        )
    height, width = (spread * (kernel - 1) for spread, kernel in zip(dilation, weight.shape[2:], strict=True))
    if height % 2 or width % 2:  # the far side has one more
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x, (height // 2, width // 2)


def _as_groups(images: Tensor, examples: range) -> Tensor:
    """Some examples of `[batch, channels, height, width]` as the channels of one."""
    return images[examples.start : examples.stop].contiguous().flatten(0, 1).unsqueeze(0)
