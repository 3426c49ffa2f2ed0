"""Synapses that fail at random, afresh for each example (DropConnect).

Source: Wan, Zeiler, Zhang, LeCun & Fergus 2013, "Regularization of Neural Networks using DropConnect".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.convolution import Pair
from synaptome.kernels.counter_normal import counter_normal
from synaptome.kernels.failing_conv2d import failing_conv2d
from synaptome.kernels.failing_linear import check_failure, failing_linear
from synaptome.kernels.failing_sparse import failing_sparse_linear
from synaptome.kernels.sparse_product import Structure, sparse_linear
from synaptome.synapses.wiring import Axis, Kind

INFERENCES = ("expected", "noisy", "gaussian", "mc")
NOISES = ("bernoulli", "gaussian")
DEFAULT_SAMPLES = 16

Form = Literal["expected", "bernoulli", "gaussian"]
_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True)
class Failing(Kind):
    """The choice of failing synapses, for `rewire`: the arguments of `Failures`."""

    failure: float
    inference: str = "expected"
    noise: str = "bernoulli"
    axis: ClassVar[Axis] = "noise"

    def __post_init__(self) -> None:
        check_failure(self.failure)
        parse_inference(self.inference)
        check_noise(self.noise)


def parse_inference(inference: str) -> tuple[str, int]:
    """The mode and the number of samples in `expected`, `noisy`, `gaussian`, `mc` or `mc(K)`.

    Raises:
        ConfigurationError: it is none of them, or K is not a positive integer.
    """
    match = re.fullmatch(r"(expected|noisy|gaussian|mc)(?:\((\d+)\))?", inference)
    if match is None or (match[2] is not None and (match[1] != "mc" or int(match[2]) < 1)):
        raise ConfigurationError(
            f"inference is one of expected, noisy, gaussian, mc, mc(K) with K >= 1; given {inference!r}"
        )
    samples = int(match[2]) if match[2] else DEFAULT_SAMPLES
    return match[1], samples if match[1] == "mc" else 1


def check_noise(noise: str) -> Form:
    """Refuse a noise that is neither `bernoulli` nor `gaussian`."""
    if noise not in NOISES:
        raise unknown("noise", noise, NOISES)
    return cast(Form, noise)


class Failures(nn.Module):
    """The noise of a synapse: at what rate it fails, what happens at inference, and its stream of random numbers.

    While training, every example meets noise of its own, in one of two forms:

    - `bernoulli`: real failures, each synapse on its own (default);
    - `gaussian`: a sample of `N(x W', p/(1-p) (x∘x)(W∘W)')`, which has the mean and the covariance of one layer's
      failing product, at the cost of two products without failures and a normal number for each output. Source:
      Wang & Manning 2013, "Fast dropout training", who replace dropout's noise in training by its normal form.

    At inference (`eval()`):

    - `expected`: no failures, `x W'`, the mean over them (default);
    - `noisy`: the noise goes on, as synapses go on failing in the living brain;
    - `gaussian`: a sample of the normal distribution above, whatever the noise was in training (Wan et al. 2013,
      section 3.2);
    - `mc(K)`: the mean over K noisy passes of this layer (`mc` is `mc(16)`). For the mean and spread over passes of a
      whole network use `synaptome.predict`.

    Buffers `stream` and `counter` (0-d int64) travel with `state_dict`: a resumed run goes on with the same failures.
    The counter advances by one at every noisy pass. Under data parallelism each rank fails on its own.

    Args:
        rate: probability that a synapse fails, in [0, 1).
        inference: see above.
        noise: `bernoulli` or `gaussian`; see above.

    Raises:
        ConfigurationError: the rate is outside [0, 1), or the inference or the noise is unknown.
    """

    stream: Tensor
    counter: Tensor

    def __init__(
        self,
        rate: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_failure(rate)
        self.rate = rate
        self.inference = inference
        self.noise = noise
        # Drawn on the CPU: the same seed gives the same stream on every device.
        self.register_buffer("stream", torch.randint(2**62, (), dtype=torch.int64).to(device))
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64, device=device))
        # Never called, since this module is not. But torch.nn.TransformerEncoderLayer reads the weights of its linear
        # layers at inference without calling them, unless a module inside it has a hook.
        self.register_forward_pre_hook(_no_change)

    @property
    def inference(self) -> str:
        """What happens at inference; can be set."""
        return self._inference

    @inference.setter
    def inference(self, inference: str) -> None:
        self._mode, self.samples = parse_inference(inference)
        self._inference = inference

    @property
    def noise(self) -> str:
        """The form of a noisy pass; can be set."""
        return self._noise

    @noise.setter
    def noise(self, noise: str) -> None:
        self._noise = check_noise(noise)

    def next_key(self) -> Tensor:
        """The key `[2]` of the coming noisy pass; advances the counter."""
        key = torch.stack((self.stream + _rank(), self.counter))
        self.counter.add_(1)
        return key

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x W' + bias` with the noise while training, and as `inference` says afterwards."""
        return self.average(lambda form: self.linear_pass(form, x, weight, bias))

    def sparse_linear(self, x: Tensor, values: Tensor, bias: Tensor | None, structure: Structure) -> Tensor:
        """`x W' + bias` for a sparse W, with the noise while training, and as `inference` says afterwards."""
        return self._product(
            noisy=lambda: failing_sparse_linear(x, values, bias, structure, self.rate, self.next_key()),
            mean=lambda: sparse_linear(x, values, bias, structure),
            spread=lambda: sparse_linear(x * x, values * values, None, structure),
        )

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        """`torch.nn.functional.conv2d` with the noise while training, and as `inference` says afterwards."""
        geometry: Any = (stride, padding, dilation, groups)
        return self._product(
            noisy=lambda: failing_conv2d(x, weight, bias, self.rate, self.next_key(), *geometry),
            mean=lambda: F.conv2d(x, weight, bias, *geometry),
            spread=lambda: F.conv2d(x * x, weight * weight, None, *geometry),
        )

    def average(self, one_pass: Callable[[Form], Tensor]) -> Tensor:
        """The output of a layer whose one pass, with its products in the form that it is given, is `one_pass`."""
        form, passes = self._form()
        total = one_pass(form)
        for _ in range(passes - 1):
            total = total + one_pass(form)
        return total / passes if passes > 1 else total

    def linear_pass(
        self, form: Form, x: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor | None = None
    ) -> Tensor:
        """`x W' + bias` in a given form; with a key, the failures are those of every pass with that key."""
        return self._sample(
            form,
            noisy=lambda: failing_linear(x, weight, bias, self.rate, self.next_key() if key is None else key),
            mean=lambda: F.linear(x, weight, bias),
            spread=lambda: F.linear(x * x, weight * weight),
            key=key,
        )

    def _product(self, noisy: Callable[[], Tensor], mean: Callable[[], Tensor], spread: Callable[[], Tensor]) -> Tensor:
        """The output of a layer that is one product: with failures, without them, and its `(x∘x)(W∘W)'`."""
        return self.average(lambda form: self._sample(form, noisy, mean, spread))

    def _form(self) -> tuple[Form, int]:
        """The form of the product now, and the number of passes to average."""
        if self.rate == 0:
            return "expected", 1
        if self.training or self._mode in ("noisy", "mc"):
            return self._noise, 1 if self.training else self.samples
        return cast(Form, self._mode), 1

    def _sample(
        self,
        form: Form,
        noisy: Callable[[], Tensor],
        mean: Callable[[], Tensor],
        spread: Callable[[], Tensor],
        key: Tensor | None = None,
    ) -> Tensor:
        if form == "expected":
            return mean()
        if form == "bernoulli":
            return noisy()
        variance = self.rate / (1 - self.rate) * spread()
        # Clamped, because the square root has no gradient at 0 (an example of zeros has no variance).
        deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        noise: Tensor = counter_normal(self.next_key() if key is None else key, deviation.detach())
        return mean() + deviation * noise

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"rate={self.rate:g}, inference={self._inference!r}, noise={self._noise!r}"


class FailingLinear(nn.Linear):
    """`torch.nn.Linear` whose synapses fail with probability `failure`, afresh for each example.

    `y[b, o] = Σ_i m[b, o, i] W[o, i] x[b, i] / (1 - p) + bias[o]` with independent `m ~ Bernoulli(1 - p)`
    (Wan et al. 2013, equation 4; unlike theirs, surviving weights are scaled up in training, so that plain `W` is
    right at inference). The bias never fails. Every leading index of x `[..., in_features]` is an example.

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`, drawn from the same random numbers.
        failure: probability of failure in [0, 1), exact to 1/65536.
        inference: `expected`, `noisy`, `gaussian` or `mc(K)`; see `Failures`.
        noise: `bernoulli` or `gaussian`; see `Failures`.

    Raises:
        ConfigurationError: failure, inference or noise is out of range, or x does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.failures = Failures(failure, inference, noise, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return self.failures.linear(x, self.weight, self.bias)

    @classmethod
    def from_dense(
        cls, layer: nn.Linear, *, failure: float, inference: str = "expected", noise: str = "bernoulli"
    ) -> FailingLinear:
        """A failing layer that holds the very parameters of `layer`: an optimizer that has them keeps them."""
        with torch.device("meta"):
            failing = cls(layer.in_features, layer.out_features, layer.bias is not None, failure=failure)
        failing.failures = Failures(failure, inference, noise, device=layer.weight.device)
        return adopt(failing, layer)

    def to_dense(self) -> nn.Linear:
        """A plain `torch.nn.Linear` that holds the very parameters of this layer."""
        return adopt(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"), self)


def adopt(successor: _M, layer: nn.Module) -> _M:
    """`successor` with the very parameters of `layer` in place of its own, and the training mode of `layer`."""
    for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
        setattr(successor, name, parameter)
    return successor.train(layer.training)


def _no_change(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A hook that changes nothing."""


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
