"""The convolution of which only some connections exist: `y[o, p] = Σ_k v[k] x[c(k), stride p + offset(k)]`.

A connection is a non-zero of the kernels `[out_channels, in_channels / groups, height, width]`, whose last three axes
are the columns of a sparse matrix. The reference scatters the values into dense kernels; on the CPU the time is
proportional to the connections (see `synaptome.kernels.sparse_conv2d_cpu`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from synaptome.errors import ConfigurationError
from synaptome.kernels.backends import implementation, implements
from synaptome.kernels.convolution import Pair, output_size, pair
from synaptome.kernels.sparse_product import row_indices

Sizes = Sequence[int]


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    in_channels: int,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` with a sparse weight, whose connections are given in compressed sparse rows.

    Args:
        x: `[batch, in_channels, height, width]`, or a single example without its batch axis.
        values: `[nnz]`, the weights of the connections in the order of rows.
        bias: `[out_channels]` or None.
        crow: `[out_channels + 1]`, int32 or int64, where each row begins in `col`.
        col: `[nnz]`, of the same dtype, ascending within a row: `(channel within its group * kernel height + y) *
            kernel width + x` of each connection.
        in_channels: of x.
        kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`; integers or pairs of them.

    Returns:
        `[batch, out_channels, height, width]`, or without its batch axis.

    Raises:
        ConfigurationError: shapes or dtypes do not fit, or a number is out of range.
    """
    kernel, strides, dilations = (
        pair(name, value, 1)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    margins = pair("padding", padding, 0)
    out_channels = crow.shape[0] - 1
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ConfigurationError(
            f"groups is a divisor of the channels, {in_channels} in and {out_channels} out; given {groups}"
        )
    if x.dim() not in (3, 4) or x.shape[-3] != in_channels:
        raise ConfigurationError(
            f"sparse_conv2d convolves x [batch, {in_channels}, height, width] or [{in_channels}, height, width]; given "
            f"x {list(x.shape)}"
        )
    if values.shape != col.shape:
        raise ConfigurationError(
            f"there are {col.numel()} connections, each with a value; given values {list(values.shape)}"
        )
    if x.dtype != values.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ConfigurationError(
            f"x is {x.dtype} and the values are {values.dtype}; convert one of them, or use autocast"
        )
    if min(output_size(x.shape, kernel, strides, margins, dilations)) < 1:
        raise ConfigurationError(
            f"a kernel {list(kernel)} with {dilation=} does not fit into an image {list(x.shape[-2:])} with {padding=}"
        )
    images = x if x.dim() == 4 else x.unsqueeze(0)
    y: Tensor = product(values, images, bias, crow, col, kernel, strides, margins, dilations, groups)
    return y if x.dim() == 4 else y.squeeze(0)


@torch.library.custom_op("synaptome::sparse_conv2d", mutates_args=())
def product(
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`."""
    size = output_size(x.shape, kernel, stride, padding, dilation)
    shape = (x.shape[0], crow.shape[0] - 1, *size)
    run = implementation("sparse_conv2d", x)
    return run(values, x, bias, crow, col, shape, kernel, stride, padding, dilation, groups)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::sparse_conv2d_input_grad", mutates_args=())
def input_grad(
    values: Tensor,
    grad: Tensor,
    crow: Tensor,
    col: Tensor,
    image: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient by x, whose images are `[in_channels, height, width]`."""
    shape = (grad.shape[0], *image)
    run = implementation("sparse_conv2d_input_grad", grad)
    return run(values, grad, crow, col, shape, kernel, stride, padding, dilation, groups)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::sparse_conv2d_values_grad", mutates_args=())
def values_grad(
    grad: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient by the values, `[nnz]`: that by dense kernels, at the connections."""
    run = implementation("sparse_conv2d_values_grad", grad)
    return run(grad, x, crow, col, kernel, stride, padding, dilation, groups)  # type: ignore[no-any-return]


@product.register_fake
def _(
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    size = output_size(x.shape, kernel, stride, padding, dilation)
    return x.new_empty(x.shape[0], crow.shape[0] - 1, *size)


@input_grad.register_fake
def _(values: Tensor, grad: Tensor, crow: Tensor, col: Tensor, image: Sequence[int], *_: Any) -> Tensor:
    return grad.new_empty(grad.shape[0], *image)


@values_grad.register_fake
def _(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, *_: Any) -> Tensor:
    return grad.new_empty(col.shape[0])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, x, _, crow, col, *ctx.convolution = inputs
    ctx.save_for_backward(values, x, crow, col)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, x, crow, col = ctx.saved_tensors
    grad = grad.contiguous()  # once for both
    by_values = by_x = None
    if ctx.needs_input_grad[0]:
        by_values = values_grad(grad, x, crow, col, *ctx.convolution)
    if ctx.needs_input_grad[1]:
        by_x = input_grad(values, grad, crow, col, x.shape[1:], *ctx.convolution)
    by_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return by_values, by_x, by_bias, None, None, None, None, None, None, None


product.register_autograd(_backward, setup_context=_save_for_backward)


# Under autocast the sums stay in float32, which the fast kernels take.
for _device in ("cpu", "cuda"):
    product.register_autocast(_device, torch.float32)


def dense_kernels(values: Tensor, crow: Tensor, col: Tensor, in_channels: int, kernel: Sizes) -> Tensor:
    """`[out_channels, in_channels, height, width]` with the values at the connections, and 0 elsewhere.

    Args:
        values, crow, col, kernel: as for `sparse_conv2d`.
        in_channels: of one group.
    """
    weight = values.new_zeros(len(crow) - 1, in_channels, *kernel)
    weight.flatten(1)[row_indices(crow, len(col)), col] = values
    return weight


@implements("sparse_conv2d", "reference")
def _product(
    values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, shape: Sizes, kernel: Sizes, *rest: Any
) -> Tensor:
    weight = dense_kernels(values, crow, col, x.shape[1] // rest[-1], kernel)
    return F.conv2d(x, weight, bias, *rest)


@implements("sparse_conv2d_input_grad", "reference")
def _input_grad(
    values: Tensor, grad: Tensor, crow: Tensor, col: Tensor, shape: Sizes, kernel: Sizes, *rest: Any
) -> Tensor:
    weight = dense_kernels(values, crow, col, shape[1] // rest[-1], kernel)
    return conv2d_input(shape, weight, grad, *rest)  # type: ignore[no-untyped-call,no-any-return]


@implements("sparse_conv2d_values_grad", "reference")
def _values_grad(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, kernel: Sizes, *rest: Any) -> Tensor:
    shape = (grad.shape[1], x.shape[1] // rest[-1], *kernel)
    by_weight: Tensor = conv2d_weight(x, shape, grad, *rest)  # type: ignore[no-untyped-call]
    return by_weight.flatten(1)[row_indices(crow, len(col)), col]


@implements("sparse_conv2d", "cpu")
def _product_cpu(*operands: Any) -> Tensor:
    from synaptome.kernels import sparse_conv2d_cpu

    return sparse_conv2d_cpu.product(*operands)


@implements("sparse_conv2d_input_grad", "cpu")
def _input_grad_cpu(*operands: Any) -> Tensor:
    from synaptome.kernels import sparse_conv2d_cpu

    return sparse_conv2d_cpu.input_grad(*operands)


@implements("sparse_conv2d_values_grad", "cpu")
def _values_grad_cpu(*operands: Any) -> Tensor:
    from synaptome.kernels import sparse_conv2d_cpu

    return sparse_conv2d_cpu.values_grad(*operands)
