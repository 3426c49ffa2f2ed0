"""What every synapse and every learning rule must do. Run these on your own: they raise where a promise is broken.

from synaptome.conformance import check_rule, check_synapse

check_synapse(lambda: MyLinear(6, 4))
check_synapse(make_my_conv, make_inputs=lambda leading: torch.randn(*leading, 3, 8, 8), leading=((), (0,), (5,)))
check_rule(make_my_rule, make_a_batch)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from synaptome.data.dataset import Batch
from synaptome.learning.rule import LearningRule
from synaptome.nested import put_together, take_apart

Make = Callable[[], nn.Module]
MakeInputs = Callable[[tuple[int, ...]], Tensor | tuple[Tensor, ...]]
_T = TypeVar("_T")
SEED = 20
LEADING = ((), (0,), (1,), (5,), (2, 3), (2, 0, 3))


class ConformanceError(AssertionError):
    """A synapse or a rule breaks a promise; the message says which."""


def check_synapse(
    make: Make,
    in_features: int | None = None,
    *,
    make_inputs: MakeInputs | None = None,
    leading: Sequence[tuple[int, ...]] = LEADING,
) -> None:
    """Check a layer against everything a synapse promises.

    Forward and backward in float32 and float64 (gradients against finite differences with the same failures), empty
    batches, any leading axes, any strides, same seed same bits, deepcopy, `state_dict` and safetensors round trips,
    inference that changes nothing, `torch.compile` (fullgraph) and `torch.export` to the same bits, a way to a dense
    layer and back that keeps the parameters, and a `repr` that says what it is.

    Args:
        make: makes a fresh layer on the CPU in float32, drawing from torch's generator.
        in_features: of a layer from `[..., in_features]` to `[..., out_features]`; by default its attribute of that
            name.
        make_inputs: makes what any other layer takes, a float32 tensor or several, from the leading axes that they are
            to have, drawing from torch's generator.
        leading: the leading axes that the layer takes, and gives to its output.

    Raises:
        ConformanceError: a promise is broken.
    """
    if make_inputs is None:
        size = in_features if in_features is not None else int(_seeded(make).in_features)  # type: ignore[arg-type]
        inputs = _Inputs(lambda shape: torch.randn(*shape, size))
    else:
        inputs = _Inputs(make_inputs)
    _check_shapes(make, inputs, leading)
    _check_gradients(make, inputs)
    _check_same_bits(make, inputs)
    _check_states(make, inputs)
    _check_inference(make, inputs)
    _check_graphs(make, inputs)
    _check_dense(make, inputs)


def check_rule(make: Callable[[], LearningRule], make_batch: Callable[[int], Batch], *, steps: int = 30) -> None:
    """Check a learning rule against the protocol `synaptome.learning.rule.LearningRule`.

    It learns (the loss on its batches falls), reports finite numbers with `loss` among them, does the same twice from
    the same seed, evaluates without changing anything, and goes on from a saved state to the same bits.

    Args:
        make: makes a fresh rule, drawing from torch's generator.
        make_batch: the i-th batch, always the same one for the same i.
        steps: how many batches must lower the loss of the first.

    Raises:
        ConformanceError: a promise is broken.
    """
    rule, twin = _seeded(make), _seeded(make)
    torch.manual_seed(SEED)
    start = rule.evaluate(make_batch(0))
    _require(start == rule.evaluate(make_batch(0)), "evaluating twice in a row gives two results")
    before = _frozen(rule.state_dict())
    rule.evaluate(make_batch(1))
    _same_state(before, _frozen(rule.state_dict()), "evaluate changes the state of the rule")
    torch.manual_seed(SEED)
    reports = [rule.step(make_batch(i)) for i in range(steps)]
    for report in reports:
        _require("loss" in report, f"step reports no 'loss', only {sorted(report)}")
        for key, value in report.items():
            _require(
                isinstance(value, float) and math.isfinite(value), f"step reports {key} = {value!r}, not a finite float"
            )
    end = rule.evaluate(make_batch(0))
    _require(end["loss"] < start["loss"], f"after {steps} steps the loss went from {start['loss']} to {end['loss']}")
    torch.manual_seed(SEED)
    again = [twin.step(make_batch(i)) for i in range(steps)]
    _require(reports == again, "the same seed and the same batches give different numbers")
    _same_state(_frozen(rule.state_dict()), _frozen(twin.state_dict()), "the same seed ends in different states")
    saved = put_together(*take_apart(rule.state_dict()))
    generator = torch.get_rng_state()
    after = [rule.step(make_batch(i)) for i in range(steps)]
    torch.manual_seed(SEED + 1)
    resumed = make()
    resumed.load_state_dict(saved)
    torch.set_rng_state(generator)
    _require(after == [resumed.step(make_batch(i)) for i in range(steps)], "a resumed rule goes on with other numbers")
    _same_state(_frozen(rule.state_dict()), _frozen(resumed.state_dict()), "a resumed rule ends in another state")


class _Inputs:
    """Inputs of the layer under test: the same at every call."""

    def __init__(self, make_inputs: MakeInputs) -> None:
        self._make = make_inputs

    def __call__(self, *leading: int) -> tuple[Tensor, ...]:
        made = _seeded(lambda: self._make(leading))
        return (made,) if isinstance(made, Tensor) else made


def _check_shapes(make: Make, inputs: _Inputs, leading: Sequence[tuple[int, ...]]) -> None:
    layer = _seeded(make)
    features = layer(*inputs(3)).shape[1:]
    for axes in leading:
        tensors = [tensor.requires_grad_() for tensor in inputs(*axes)]
        y = layer(*tensors)
        given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        _require(y.shape == (*axes, *features), f"input {given} gives {tuple(y.shape)}, not {(*axes, *features)}")
        y.sum().backward()
        for x in tensors:
            _require(
                x.grad is not None and x.grad.shape == x.shape, f"input {tuple(x.shape)} gets no gradient of its shape"
            )
    plain = inputs(5)
    strided = copy.deepcopy(layer)(*map(_strided, plain))
    _close(strided, copy.deepcopy(layer)(*plain), "strides of the input change the output")
    _require(len(layer.extra_repr()) > 0, "extra_repr says nothing")


def _strided(x: Tensor) -> Tensor:
    """The same numbers, the axes in memory the other way round and twice as far apart."""
    reverse = tuple(reversed(range(x.dim())))
    x = x.permute(reverse)
    return torch.stack((x, x), -1)[..., 0].permute(reverse)


def _check_gradients(make: Make, inputs: _Inputs) -> None:
    layer = _seeded(make).double()
    tensors = tuple(x.double().requires_grad_() for x in inputs(3))
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    values = tuple(p.detach().clone().requires_grad_() for p in layer.parameters() if p.requires_grad)

    def function(*operands: Tensor) -> Any:
        x, parameters = operands[: len(tensors)], operands[len(tensors) :]
        # A copy each time: the same counters, hence the same failures, for every finite difference.
        return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, parameters, strict=True)), x)

    try:
        torch.autograd.gradcheck(function, (*tensors, *values))
    except RuntimeError as error:
        raise ConformanceError(f"gradients are not those of finite differences: {error}") from error


def _check_same_bits(make: Make, inputs: _Inputs) -> None:
    x = inputs(5)
    first, second = _seeded(make), _seeded(make)
    for i in range(3):
        _equal(first(*x), second(*x), f"two layers from the same seed differ at pass {i}")
    _equal(copy.deepcopy(first)(*x), first(*x), "a deepcopy gives another output")


def _check_states(make: Make, inputs: _Inputs) -> None:
    x = inputs(5)
    layer = _seeded(make)
    layer(*x)  # so that counters stand somewhere else than at the start
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    read = safetensors.torch.load(safetensors.torch.save(state))
    torch.manual_seed(SEED + 1)
    other = make()
    other.load_state_dict(read)
    for i in range(3):
        _equal(layer(*x), other(*x), f"a layer with the state_dict of another gives another output at pass {i}")
    double = make().to(torch.float64)
    y = double(*(tensor.double() for tensor in x))
    _require(y.dtype == torch.float64, "after .to(float64) the output is not float64")


def _check_inference(make: Make, inputs: _Inputs) -> None:
    x = inputs(5)
    layer = _seeded(make).eval()
    before = _frozen(layer.state_dict())
    _equal(layer(*x), layer(*x), "inference gives two outputs for one input (the default must be deterministic)")
    _same_state(before, _frozen(layer.state_dict()), "inference changes the state")


def _check_graphs(make: Make, inputs: _Inputs) -> None:
    x = inputs(5)
    for training in (True, False):
        layer = _seeded(make).train(training)
        eager, traced = copy.deepcopy(layer), copy.deepcopy(layer)
        torch.compiler.reset()  # it gives up on code that it has compiled for many a layer before
        compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
        # Both of its ends dynamic or not, the exported program must advance the counters as the layer does.
        exported = torch.export.export(copy.deepcopy(layer), x).module()
        for i in range(3):
            y = eager(*x)
            _equal(compiled(*x), y, f"torch.compile gives another output at pass {i} (training={training})")
            _equal(exported(*x), y, f"torch.export gives another output at pass {i} (training={training})")


def _check_dense(make: Make, inputs: _Inputs) -> None:
    x = inputs(5)
    layer: Any = _seeded(make)
    _require(callable(getattr(layer, "to_dense", None)), "there is no to_dense()")
    _require(callable(getattr(type(layer), "from_dense", None)), "there is no from_dense()")
    dense = layer.to_dense()
    kind = type(dense)
    _require(kind.__module__.startswith("torch.nn."), f"to_dense() gives a {kind.__name__}, not a layer of torch.nn")
    _close(dense.eval()(*x), layer.eval()(*x), "to_dense() differs from the layer at inference")


def _seeded(make: Callable[[], _T]) -> _T:
    torch.manual_seed(SEED)
    return make()


def _frozen(state: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    return take_apart(state)


def _same_state(first: tuple[Any, dict[str, Tensor]], second: tuple[Any, dict[str, Tensor]], broken: str) -> None:
    _require(first[0] == second[0], broken)
    for name, tensor in first[1].items():
        _equal(tensor, second[1][name], f"{broken}: {name}")


def _equal(first: Tensor, second: Tensor, broken: str) -> None:
    _require(torch.equal(first, second), broken)


def _close(first: Tensor, second: Tensor, broken: str) -> None:
    gap = (first - second).abs().max()
    _require(bool(gap <= 1e-5 * (1 + second.abs().max())), f"{broken} by {gap}")


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise ConformanceError(broken)
