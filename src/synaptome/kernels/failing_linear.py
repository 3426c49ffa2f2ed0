"""The product with failures: `y[b, o] = Σ_i m[b, o, i] W[o, i] x[b, i] / (1 - p)`, a fresh mask for each example.

Three operations, each of which makes the mask again from the key (see `synaptome.kernels.randomness`), so that a
`[batch, out, in]` mask never exists: the product, its gradient by the input, its gradient by the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError
from synaptome.kernels import randomness
from synaptome.kernels.backends import implementation, implements

MASK_ELEMENTS = 2**18  # masks are made this many at a time: they stay in a core's second-level cache


def failing_linear(x: Tensor, weight: Tensor, bias: Tensor | None, failure: float, key: Tensor) -> Tensor:
    """`x W' / (1 - p) + bias` in which each synapse of each example fails with probability p.

    Wan et al. 2013, equation 4, with the surviving weights scaled up so that the expectation is `x W'`.

    Args:
        x: `[..., in_features]`; every leading index is an example with failures of its own.
        weight: `[out_features, in_features]`.
        bias: `[out_features]` or None; it never fails.
        failure: probability of failure in [0, 1), rounded to 1/65536.
        key: int64 `[2]`, (stream, counter): same key, same failures.

    Returns:
        `[..., out_features]`.

    Raises:
        ConfigurationError: the failure rate is out of range, or shapes or dtypes do not fit.
    """
    check_failure(failure)
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ConfigurationError(
            f"failing_linear multiplies x [..., in] with weight [out, in]; "
            f"given x {list(x.shape)} and weight {list(weight.shape)}"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ConfigurationError(f"x is {x.dtype} and weight is {weight.dtype}; convert one of them, or use autocast")
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y: Tensor = product(flat, weight, failure, key)
    if bias is not None:
        y = y + bias
    return y.view(*x.shape[:-1], weight.shape[0])


def check_failure(failure: float) -> None:
    """Refuse a probability of failure outside [0, 1)."""
    if not isinstance(failure, (int, float)) or not 0 <= failure < 1:  # also refuses NaN
        raise ConfigurationError(f"failure is the probability that a synapse fails, in [0, 1); given {failure!r}")


@torch.library.custom_op("synaptome::failing_linear", mutates_args=())
def product(x: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    """`[batch, in]` times `[out, in]` to `[batch, out]`, with failures."""
    return implementation("failing_linear", x)(x, weight, failure, key)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::failing_linear_input_grad", mutates_args=())
def input_grad(grad: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    """Gradient by x: `[batch, out]` times `[out, in]` to `[batch, in]`, with the failures of the product."""
    return implementation("failing_linear_input_grad", grad)(grad, weight, failure, key)  # type: ignore[no-any-return]


@torch.library.custom_op("synaptome::failing_linear_weight_grad", mutates_args=())
def weight_grad(grad: Tensor, x: Tensor, failure: float, key: Tensor) -> Tensor:
    """Gradient by the weight: `[batch, out]` and `[batch, in]` to `[out, in]`, with the failures of the product."""
    return implementation("failing_linear_weight_grad", grad)(grad, x, failure, key)  # type: ignore[no-any-return]


@product.register_fake
def _(x: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@input_grad.register_fake
def _(grad: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1])


@weight_grad.register_fake
def _(grad: Tensor, x: Tensor, failure: float, key: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1], x.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.failure, key = inputs
    ctx.save_for_backward(x, weight, key)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight, key = ctx.saved_tensors
    by_x = input_grad(grad, weight, ctx.failure, key) if ctx.needs_input_grad[0] else None
    by_weight = weight_grad(grad, x, ctx.failure, key) if ctx.needs_input_grad[1] else None
    return by_x, by_weight, None, None


product.register_autograd(_backward, setup_context=_save_for_backward)


# Under autocast the sums stay in float32, which the fast kernels take.
for _device in ("cpu", "cuda"):
    product.register_autocast(_device, torch.float32)


def _masks(x: Tensor, weight_shape: tuple[int, int], failure: float, key: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Masks `[chunk, out, in]`, already scaled by 1 / (1 - p), for consecutive chunks of examples."""
    out_features, in_features = weight_shape
    chunk = max(1, MASK_ELEMENTS // max(1, out_features * in_features))
    scale = 1 / (1 - randomness.threshold(failure) / randomness.DRAWS)
    for start in range(0, len(x), chunk):
        examples = range(start, min(start + chunk, len(x)))
        survives = randomness.surviving(key, examples, out_features, in_features, failure)
        yield slice(examples.start, examples.stop), survives.to(x.dtype).mul_(scale)


@implements("failing_linear", "reference")
def _product(x: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], weight.shape[0])
    for examples, mask in _masks(x, (weight.shape[0], weight.shape[1]), failure, key):
        torch.matmul(mask.mul_(weight), x[examples].unsqueeze(2), out=y[examples].unsqueeze(2))
    return y


@implements("failing_linear_input_grad", "reference")
def _input_grad(grad: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    by_x = grad.new_empty(grad.shape[0], weight.shape[1])
    for examples, mask in _masks(grad, (weight.shape[0], weight.shape[1]), failure, key):
        torch.matmul(grad[examples].unsqueeze(1), mask.mul_(weight), out=by_x[examples].unsqueeze(1))
    return by_x


@implements("failing_linear_weight_grad", "reference")
def _weight_grad(grad: Tensor, x: Tensor, failure: float, key: Tensor) -> Tensor:
    by_weight = grad.new_zeros(grad.shape[1], x.shape[1])
    for examples, mask in _masks(grad, (grad.shape[1], x.shape[1]), failure, key):
        mask.mul_(grad[examples].unsqueeze(2)).mul_(x[examples].unsqueeze(1))
        by_weight += mask.sum(0)
    return by_weight


@implements("failing_linear", "cpu")
def _product_cpu(x: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    from synaptome.kernels import failing_linear_cpu

    return failing_linear_cpu.product(x, weight, failure, key)


@implements("failing_linear_input_grad", "cpu")
def _input_grad_cpu(grad: Tensor, weight: Tensor, failure: float, key: Tensor) -> Tensor:
    from synaptome.kernels import failing_linear_cpu

    return failing_linear_cpu.input_grad(grad, weight, failure, key)


@implements("failing_linear_weight_grad", "cpu")
def _weight_grad_cpu(grad: Tensor, x: Tensor, failure: float, key: Tensor) -> Tensor:
    from synaptome.kernels import failing_linear_cpu

    return failing_linear_cpu.weight_grad(grad, x, failure, key)
