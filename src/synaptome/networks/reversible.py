"""All layers of a reversible network in one operation, whose memory does not grow with depth.

The forward pass keeps the last state only. The backward pass recomputes the states from it, layer by layer, and gives
each layer's gradient on the way (Gomez et al. 2017; Chang et al. 2018, arXiv 1709.03698). Undoing a shear needs the
very activations that its gradient needs, so that the backward pass takes three products where plain backpropagation
takes two, and the whole four thirds of the time.

Gradients are those of plain backpropagation to rounding. Over 256 layers they differ, relative to the largest, by 2e-15
in float64 and 1e-6 in float32 for `verlet` and `hamiltonian`, and by 5e-14 and 2e-5 for `leapfrog`, whose recurrence
adds up its rounding errors twice. The operation is one node for autograd, `torch.compile` and `torch.export`, whatever
the depth. Under autocast it stays in float32, because states that were rounded to bfloat16 could not be recomputed. It
has no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from synaptome.errors import ConfigurationError
from synaptome.kernels.operators import differentiated_by
from synaptome.networks.dynamics import DYNAMICS, arranged, join
from synaptome.networks.feedforward import ACTIVATIONS
from synaptome.networks.forces import apply, apply_transposed, moved_back, source_after

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
_aten = torch.ops.aten

# The gradient by the sum a, of the gradient by the activation s: functions of that gradient, a and s.
SLOPES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "linear": lambda grad, a, s: grad,
        "relu": lambda grad, a, s: _aten.threshold_backward(grad, s, 0),
        "swish": lambda grad, a, s: _aten.silu_backward(grad, a),
        "sigmoid": lambda grad, a, s: _aten.sigmoid_backward(grad, s),
        "tanh": lambda grad, a, s: _aten.tanh_backward(grad, s),
        "elu": lambda grad, a, s: _aten.elu_backward(grad, 1.0, 1.0, 1.0, False, a),
        "selu": lambda grad, a, s: _aten.elu_backward(grad, _SELU_ALPHA, _SELU_SCALE, 1.0, False, a),
    }
)
_Pull = Callable[[Tensor, Tensor, Tensor], Tensor]  # adds to the gradients by K and b, gives the one by the source


def reversible_flow(
    state: Tensor, weight: Tensor, bias: Tensor, *, dynamics: str, step: float, half_kick: bool, activation: str
) -> Tensor:
    """The carried state after all layers.

    Args:
        state: the carried state before them, `[batch, n]` or `[batch, n, height, width]`.
        weight: `[layers, m, m]` or `[layers, m, m, 3, 3]`, m being `Dynamics.control_width`.
        bias: `[layers, m]`.
        dynamics: `leapfrog`, `verlet` or `hamiltonian`.
        step: h.
        half_kick: whether the first layer begins with half a kick; for `verlet`.
        activation: a name in `ACTIVATIONS`.

    Raises:
        ConfigurationError: numbers too narrow to recompute states from.
    """
    if state.dtype not in (torch.float32, torch.float64) and not torch.is_autocast_enabled(state.device.type):
        raise ConfigurationError(
            f"a reversible network recomputes its states, for which {state.dtype} is too coarse; give it float32 or "
            f"float64, or set reversible=False"
        )
    result: Tensor = _forward(state, weight, bias, dynamics, step, half_kick, activation)
    return result


class _Reversible(torch.autograd.Function):
    """The operation with its gradient."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            last: Tensor = _forward(state, weight, bias, *options)
        ctx.save_for_backward(last, weight, bias)
        ctx.options = options
        return last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        last, weight, bias = ctx.saved_tensors
        return (*_backward(last, grad, weight, bias, *ctx.options), None, None, None, None)


def _kicks(layers: int, half_kick: bool) -> list[float]:
    return [0.5 if half_kick and layer == 0 else 1.0 for layer in range(layers)]


def _run(
    carried: Tensor, weight: Tensor, bias: Tensor, dynamics: str, step: float, half_kick: bool, activation: str
) -> Tensor:
    method, s = DYNAMICS[dynamics], ACTIVATIONS[activation]
    state = method.split(carried)
    for K, b, kick in zip(weight, bias, _kicks(len(weight), half_kick), strict=True):
        state = method.step(state, K, b, step, s, kick)
    # An operation never gives back its own input.
    return join(state) if len(weight) else arranged(carried).clone()


def _run_back(
    last: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    dynamics: str,
    step: float,
    half_kick: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the first state, the weights and the biases, from the last state and the gradient by it."""
    method = DYNAMICS[dynamics]
    assert method.shears is not None
    by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    state, grads = method.split(last), method.split(grad)
    kicks = _kicks(len(weight), half_kick)
    for layer in reversed(range(len(weight))):
        K, b = weight[layer], bias[layer]
        for shear in reversed(method.shears(step, kicks[layer])):
            force, pull = _PULLS[shear.force](K, source_after(state, shear), b, activation)
            state = moved_back(state, shear, force)
            moved = grads[0] if shear.mirrored else grads[shear.target]
            pulled = pull(moved * shear.scale, by_weight[layer], by_bias[layer])
            if shear.mirrored:
                grads = torch.add(grads[1] + pulled, moved, alpha=2), -moved
            else:
                pulled += grads[1 - shear.target]
                grads = (moved, pulled) if shear.target == 0 else (pulled, moved)
    return join(grads) if len(weight) else arranged(grad).clone(), by_weight, by_bias


def _pull_outward(K: Tensor, y: Tensor, b: Tensor, activation: str) -> tuple[Tensor, _Pull]:
    a = apply(K, y, b)
    s = ACTIVATIONS[activation](a)

    def pull(grad: Tensor, by_K: Tensor, by_b: Tensor) -> Tensor:
        grad = SLOPES[activation](grad, a, s)
        _add_outer(by_K, grad, y)
        _add_sum(by_b, grad)
        return apply_transposed(K, grad)

    return s, pull


def _pull_inward(K: Tensor, y: Tensor, b: Tensor, activation: str) -> tuple[Tensor, _Pull]:
    a = apply_transposed(K, y, b)
    s = ACTIVATIONS[activation](a)

    def pull(grad: Tensor, by_K: Tensor, by_b: Tensor) -> Tensor:
        grad = SLOPES[activation](grad, a, s)
        _add_outer(by_K, y, grad)
        _add_sum(by_b, grad)
        return apply(K, grad)

    return s, pull


def _pull_symmetric(K: Tensor, y: Tensor, b: Tensor, activation: str) -> tuple[Tensor, _Pull]:
    s, pull_outward = _pull_outward(K, y, b, activation)

    def pull(grad: Tensor, by_K: Tensor, by_b: Tensor) -> Tensor:
        _add_outer(by_K, s, grad)
        return pull_outward(apply(K, grad), by_K, by_b)

    return apply_transposed(K, s), pull


# The forces of `FORCES`, each with its gradient.
_PULLS: Mapping[str, Callable[[Tensor, Tensor, Tensor, str], tuple[Tensor, _Pull]]] = MappingProxyType(
    {"outward": _pull_outward, "inward": _pull_inward, "symmetric": _pull_symmetric}
)


def _add_outer(by_K: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the gradient by K of `<left, K right>`."""
    if by_K.dim() == 2:
        by_K.addmm_(left.T, right)
    else:
        by_K += conv2d_weight(right, by_K.shape, left, padding=1)  # type: ignore[no-untyped-call]


def _add_sum(by_b: Tensor, grad: Tensor) -> None:
    by_b += grad.sum(0) if grad.dim() == 2 else grad.sum((0, 2, 3))


def _register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    torch.library.define(f"synaptome::{name}", schema)
    torch.library.impl(f"synaptome::{name}", "CompositeExplicitAutograd", run)
    torch.library.register_fake(f"synaptome::{name}", fake)
    return getattr(torch.ops.synaptome, name).default


_OPTIONS = "str dynamics, float step, bool half_kick, str activation"
_forward = _register(
    "reversible_flow",
    f"(Tensor state, Tensor weight, Tensor bias, {_OPTIONS}) -> Tensor",
    _run,
    lambda state, *_: arranged(torch.empty_like(state, memory_format=torch.contiguous_format)),
)
_backward = _register(
    "reversible_flow_backward",
    f"(Tensor last, Tensor grad, Tensor weight, Tensor bias, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _run_back,
    lambda last, grad, weight, bias, *_: (
        arranged(torch.empty_like(last, memory_format=torch.contiguous_format)),
        torch.empty_like(weight),
        torch.empty_like(bias),
    ),
)
differentiated_by("reversible_flow", _Reversible)
