"""All layers of a stable network in one call: the final state of a dynamical system, and its gradients.

With a step h, an activation s, and K and b of the layer (Haber & Ruthotto 2017, arXiv 1705.03341; Chang et al. 2018,
arXiv 1709.03698; Galimberti et al. 2021, arXiv 2105.13205), a layer does:

| dynamics | fields | layer |
|---|---|---|
| `euler` | Y | `Y <- Y + h s(K Y + b)` |
| `antisymmetric` | Y | the same with `(K - K' - gamma I) / 2` for K |
| `leapfrog` | Y_j, Y_{j-1} | `Y_{j+1} = 2 Y_j - Y_{j-1} - h² K' s(K Y_j + b)` |
| `verlet` | Y, Z | `Z <- Z - h s(K' Y + b)`, then `Y <- Y + h s(K Z + b)` |
| `hamiltonian` | p, q | `p <- p - h/2 K' s(K q + b)`, `q <- q + h K' s(K p + b)`, `p <- p - h/2 K' s(K q + b)` |

A loop over layers in Python costs a narrow network far more than its arithmetic, forward and backward alike. Nor need
autograd store what every layer made of its input: the gradient runs the layers again, some at a time, from states that
were stored between them; or from the final state backwards, where the dynamics can be undone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels import flow_reference
from synaptome.kernels.backends import choose, implementation, implements
from synaptome.kernels.flow_kicks import SPLITTINGS
from synaptome.kernels.flow_reference import ACTIVATIONS
from synaptome.kernels.operators import differentiated_by, operator

ROW_BYTES = 512  # of a feature, in a chunk of examples that goes through all layers together
SEGMENT_BYTES = 2**19  # of what the kicks of a segment read and made of it: in the second-level cache
LINE_BYTES = 64  # such a row is a multiple of: a line of the cache, and the widest vector
WIDEST = 64  # features of a field up to which a call beats a loop over layers at any batch: at 128 it is level

DYNAMICS = ("antisymmetric", *SPLITTINGS)
REVERSIBLE = tuple(name for name, splitting in SPLITTINGS.items() if splitting.reversible)


def covers(state: Tensor, width: int, dynamics: str, activation: str) -> bool:
    """Whether one call of `flow` is faster than a loop over layers.

    Args:
        state: of the device and dtype in question.
        width: of a field.
        dynamics: a name, known here or not.
        activation: likewise.
    """
    return (
        dynamics in DYNAMICS
        and activation in ACTIVATIONS
        and width <= WIDEST
        and state.dtype in (torch.float32, torch.float64)
        and state.device.type == "cpu"
        # A tracer cannot follow the choice; where a backend is forced, the operator itself minds it.
        and (torch.compiler.is_compiling() or choose("flow", "cpu").backend != "reference")
    )


def flow(
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dynamics: str,
    step: float,
    gamma: float = 0.0,
    half_kick: bool = False,
    activation: str = "tanh",
    reversible: bool = False,
) -> Tensor:
    """The state after all layers, differentiable by the state, the weights and the biases.

    Args:
        state: `[batch, fields * width]`, the fields side by side in the order of the table above.
        weight: `[depth, width, width]`, K of each layer.
        bias: `[depth, width]`, b of each layer.
        dynamics: a name in the table above.
        step: h, above 0.
        gamma: of `antisymmetric`, at least 0.
        half_kick: whether the first kick of the first layer is half a kick, from which `verlet` is of second order.
        activation: s, `tanh` or `relu`.
        reversible: whether the gradient undoes the layers from the final state, which it meets up to rounding, rather
            than store states; for `leapfrog`, `verlet` and `hamiltonian`. The reference stores nothing in either case,
            and runs all layers again under autograd.

    Returns:
        `[batch, fields * width]`.

    Raises:
        ConfigurationError: a name does not exist, a number is out of range, shapes or dtypes do not fit, or what is
            asked for does not exist for these dynamics.
    """
    _check_options(dynamics, step, gamma, half_kick, activation, reversible)
    _check_operands(state, weight, bias, dynamics)
    if dynamics == "antisymmetric":
        eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        weight, dynamics = (weight - weight.mT - gamma * eye) / 2, "euler"
    differentiated = torch.is_grad_enabled() and any(operand.requires_grad for operand in (state, weight, bias))
    stored = differentiated and not reversible
    end: Tensor = layers(state, weight, bias, dynamics, step, half_kick, activation, stored)[0]
    return end


def _check_options(
    dynamics: str, step: float, gamma: float, half_kick: bool, activation: str, reversible: bool
) -> None:
    if dynamics not in DYNAMICS:
        raise unknown("dynamics of flow", dynamics, DYNAMICS)
    if activation not in ACTIVATIONS:
        raise unknown("activation of flow", activation, ACTIVATIONS)
    if not 0 < step < math.inf:  # also refuses NaN
        raise ConfigurationError(f"step is the time that a layer takes, a finite number above 0; given {step}")
    if not 0 <= gamma < math.inf:
        raise ConfigurationError(f"gamma is a damping, a finite number, at least 0; given {gamma}")
    if gamma and dynamics != "antisymmetric":
        raise ConfigurationError(f"gamma is for antisymmetric dynamics; leave it out for {dynamics}; given {gamma}")
    if half_kick and dynamics != "verlet":
        raise ConfigurationError(f"half_kick is a start of verlet dynamics; leave it out for {dynamics}")
    if reversible and dynamics not in REVERSIBLE:
        raise ConfigurationError(f"layers of {dynamics} cannot be undone; reversible is for {', '.join(REVERSIBLE)}")


def _check_operands(state: Tensor, weight: Tensor, bias: Tensor, dynamics: str) -> None:
    shape = weight.shape
    if weight.dim() != 3 or shape[1] != shape[2] or shape[1] == 0 or bias.shape != shape[:2]:
        raise ConfigurationError(
            "flow takes a weight [depth, width, width], with width at least 1, and a bias [depth, width]; "
            f"given {list(shape)} and {list(bias.shape)}"
        )
    columns = _fields(dynamics) * shape[1]
    if state.dim() != 2 or state.shape[1] != columns:
        raise ConfigurationError(
            f"{dynamics} dynamics with weights of width {shape[1]} take a state [batch, {columns}]; "
            f"given {list(state.shape)}"
        )
    if not state.dtype == weight.dtype == bias.dtype and not torch.is_autocast_enabled(state.device.type):
        raise ConfigurationError(
            f"state, weight and bias have one dtype; given {state.dtype}, {weight.dtype} and {bias.dtype}; convert "
            "them, or use autocast"
        )


def _fields(dynamics: str) -> int:
    return 1 if dynamics == "antisymmetric" else SPLITTINGS[dynamics].fields


def chunking(batch: int, itemsize: int) -> tuple[int, int]:
    """How many chunks the examples are cut into, and how many examples, some of them padding, each has.

    The gradients of weights are sums over chunks: this depends on nothing that may change from call to call.
    """
    chunks = max(1, -(-batch * itemsize // ROW_BYTES))
    line = LINE_BYTES // itemsize
    return chunks, -(-batch // (chunks * line)) * line


def segment_kicks(width: int) -> int:
    """How many kicks lie between two states that are stored: the gradient runs them again, a segment at a time."""
    return max(1, SEGMENT_BYTES // (2 * ROW_BYTES * width))


def _tape(state: Tensor, weight: Tensor, dynamics: str, stored: bool) -> Tensor:
    """Room for the state of each chunk before each segment: `[chunks, segments, fields, width, examples]`, or none."""
    depth, width = weight.shape[:2]
    if not stored or implementation("flow", state) is _layers:
        return state.new_empty(0, 0, 0, 0, 0)
    splitting = SPLITTINGS[dynamics]
    chunks, examples = chunking(state.shape[0], state.element_size())
    segments = -(-depth * len(splitting.kicks) // segment_kicks(width))
    return state.new_empty(chunks, segments, splitting.fields, width, examples)


# All layers: the final state, and what the gradient needs if it is to be stored.
layers = operator(
    "flow",
    "(Tensor state, Tensor weight, Tensor bias, str dynamics, float step, bool half_kick, str activation, bool stored)"
    " -> (Tensor, Tensor)",
    lambda state, weight, bias, dynamics, step, half_kick, activation, stored: (
        torch.empty_like(state, memory_format=torch.contiguous_format),
        _tape(state, weight, dynamics, stored),
    ),
)

# Its gradients by the state, the weight and the bias, of the initial state, the final one, and what was stored.
grads = operator(
    "flow_grads",
    "(Tensor grad, Tensor weight, Tensor bias, Tensor start, Tensor end, Tensor tape, str dynamics, float step, "
    "bool half_kick, str activation, bool stored) -> (Tensor, Tensor, Tensor)",
    lambda grad, weight, bias, *_: tuple(
        torch.empty_like(operand, memory_format=torch.contiguous_format) for operand in (grad, weight, bias)
    ),
)


class _Flow(torch.autograd.Function):
    """`layers` with its gradients."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            end, tape = layers(state, weight, bias, *options)
        ctx.options = options
        ctx.save_for_backward(weight, bias, state, end, tape)
        ctx.mark_non_differentiable(tape)
        return end, tape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return *grads(outputs[0], *ctx.saved_tensors, *ctx.options), *(None,) * len(ctx.options)


differentiated_by("flow", _Flow)


@implements("flow", "reference")
def _layers(state: Tensor, weight: Tensor, bias: Tensor, dynamics: str, *options: Any) -> tuple[Tensor, Tensor]:
    end = flow_reference.final_state(state, weight, bias, dynamics, *options[:-1])
    return end, _tape(state, weight, dynamics, stored=False)


@implements("flow_grads", "reference")
def _grads(
    grad: Tensor, weight: Tensor, bias: Tensor, start: Tensor, end: Tensor, tape: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    start, weight, bias = operands = [operand.detach().requires_grad_() for operand in (start, weight, bias)]
    # Whoever watches operations, as checks and profilers do, may run this one below autograd: put it back.
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        end = flow_reference.final_state(start, weight, bias, *options[:-1])
    return torch.autograd.grad(end, operands, grad, materialize_grads=True)


@implements("flow", "cpu")
def _layers_cpu(state: Tensor, weight: Tensor, bias: Tensor, dynamics: str, *options: Any) -> tuple[Tensor, Tensor]:
    from synaptome.kernels import flow_cpu

    tape = _tape(state, weight, dynamics, options[-1])
    return flow_cpu.layers(state, weight, bias, tape, dynamics, *options[:-1]), tape


@implements("flow_grads", "cpu")
def _grads_cpu(
    grad: Tensor, weight: Tensor, bias: Tensor, start: Tensor, end: Tensor, tape: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    from synaptome.kernels import flow_cpu

    return flow_cpu.grads(grad, weight, bias, end, tape, *options)
