"""Recurrent networks whose recurrent synapses fail at random, afresh for each example.

Source: Merity, Keskar & Socher 2018, "Regularizing and Optimizing LSTM Language Models" (AWD-LSTM), whose recurrent
weights fail once for a whole sequence; theirs fail for all examples of a batch alike, ours for each on its own.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.failing import Failures, Form, adopt

Fresh = Literal["step", "sequence"]
FRESH = ("step", "sequence")
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


class FailingRNNCell(nn.RNNCell):
    """`torch.nn.RNNCell` whose recurrent synapses fail, afresh for each example and each call (time step).

    `h' = tanh(W_ih x + b_ih + (m ∘ W_hh) h / (1 - p) + b_hh)` with independent `m ~ Bernoulli(1 - p)`. The weights from
    the input and the biases never fail.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as for `torch.nn.RNNCell`, drawn from the same
            random numbers.
        failure: probability of failure in [0, 1), exact to 1/65536.
        inference: `expected`, `noisy`, `gaussian` or `mc(K)`; see `Failures`.
        noise: `bernoulli` or `gaussian`; see `Failures`.

    Raises:
        ConfigurationError: failure, inference, noise or nonlinearity is out of range, or x or h does not fit.
    """

    failing_weights = ("weight_hh",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, nonlinearity, device=device, dtype=dtype)
        self.failures = Failures(failure, inference, noise, device=device)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """`[batch, input_size]` and the state `[batch, hidden_size]` (default 0) to the next; the batch may lack."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            raise ConfigurationError(
                f"x is [batch, {self.input_size}] or [{self.input_size}]; given {list(x.shape)}, to a cell with "
                f"input_size={self.input_size}"
            )
        h = _state(h, x, (*x.shape[:-1], self.hidden_size))
        driven = F.linear(x, self.weight_ih, self.bias_ih)
        return self.failures.average(
            lambda form: _step(self, driven, self.failures.linear_pass(form, h, self.weight_hh, self.bias_hh))
        )

    @classmethod
    def from_dense(
        cls, cell: nn.RNNCell, *, failure: float, inference: str = "expected", noise: str = "bernoulli"
    ) -> FailingRNNCell:
        """A failing cell that holds the very parameters of `cell`: an optimizer that has them keeps them."""
        with torch.device("meta"):
            failing = cls(cell.input_size, cell.hidden_size, cell.bias, cell.nonlinearity, failure=failure)
        failing.failures = Failures(failure, inference, noise, device=cell.weight_hh.device)
        return adopt(failing, cell)

    def to_dense(self) -> nn.RNNCell:
        """A plain `torch.nn.RNNCell` that holds the very parameters of this cell."""
        dense = nn.RNNCell(self.input_size, self.hidden_size, self.bias, self.nonlinearity, device="meta")
        return adopt(dense, self)


class FailingRNN(nn.Module):
    """`torch.nn.RNN` of one layer whose recurrent synapses fail, afresh for each example.

    With `fresh="step"` they fail anew at each time step, each step being that of a `FailingRNNCell`; with
    `fresh="sequence"` what failed stays so until the end of the sequence (Merity et al. 2018, section 2). The
    parameters are those of `torch.nn.RNN`, by name too.

    As `noise` or as inference, `gaussian` keeps the normal numbers of each example where failures are kept. With
    `fresh="sequence"` mean and variance of the product with a given state are exact, but the noise of two steps is
    fully correlated, as that of failures is only where the two states are parallel. `mc(K)` averages the outputs of K
    whole passes over the sequence.

    Args:
        input_size, hidden_size, nonlinearity, bias, batch_first, device, dtype: as for `torch.nn.RNN`, drawn from the
            same random numbers.
        failure: probability of failure in [0, 1), exact to 1/65536.
        fresh: `step` or `sequence`.
        inference: `expected`, `noisy`, `gaussian` or `mc(K)`; see `Failures`.
        noise: `bernoulli` or `gaussian`; see `Failures`.

    Raises:
        ConfigurationError: failure, fresh, inference, noise or nonlinearity is out of range, or x or h_0 does not fit.
    """

    failing_weights = ("weight_hh_l0",)
    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        failure: float,
        fresh: str = "step",
        inference: str = "expected",
        noise: str = "bernoulli",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_nonlinearity(nonlinearity)
        if fresh not in FRESH:
            raise unknown("choice of fresh", fresh, FRESH)
        super().__init__()
        self.input_size, self.hidden_size, self.nonlinearity = input_size, hidden_size, nonlinearity
        self.bias, self.batch_first, self.fresh = bias, batch_first, cast(Fresh, fresh)
        # Not a subclass of it, which torch.compile would refuse.
        adopt(self, self._torch_rnn(device, dtype))
        self.failures = Failures(failure, inference, noise, device=device)

    def forward(self, x: Tensor, h_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All states and the last one, of a sequence.

        Args:
            x: `[time, batch, input_size]`, `[batch, time, input_size]` if `batch_first`, or `[time, input_size]`.
            h_0: the first state, `[1, batch, hidden_size]`, or `[1, hidden_size]` without a batch; by default 0.

        Returns:
            The states, as x but `hidden_size`, and the last of them, as h_0.
        """
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise ConfigurationError(
                f"x is {'[batch, time' if self.batch_first else '[time, batch'}, {self.input_size}] or "
                f"[time, {self.input_size}]; given {list(x.shape)}, to a network with input_size={self.input_size}"
            )
        swap = self.batch_first and x.dim() == 3
        driven = F.linear(x.transpose(0, 1) if swap else x, self.weight_ih_l0, self.bias_ih_l0 if self.bias else None)
        if len(driven) == 0:
            raise ConfigurationError(f"a sequence has at least one time step; given x {list(x.shape)}")
        h = _state(h_0, x, (1, *driven.shape[1:])).squeeze(0)
        states = self.failures.average(lambda form: self._one_pass(form, driven, h))
        return states.transpose(0, 1) if swap else states, states[-1:]

    def _one_pass(self, form: Form, driven: Tensor, h: Tensor) -> Tensor:
        key = self.failures.next_key() if self.fresh == "sequence" and form != "expected" else None
        bias = self.bias_hh_l0 if self.bias else None
        states = []
        for step in driven:
            h = _step(self, step, self.failures.linear_pass(form, h, self.weight_hh_l0, bias, key))
            states.append(h)
        return torch.stack(states)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return (
            f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}, bias={self.bias}, "
            f"batch_first={self.batch_first}, fresh={self.fresh!r}"
        )

    @classmethod
    def from_dense(
        cls,
        layer: nn.RNN,
        *,
        failure: float,
        fresh: str = "step",
        inference: str = "expected",
        noise: str = "bernoulli",
    ) -> FailingRNN:
        """A failing network that holds the very parameters of `layer`: an optimizer that has them keeps them.

        Raises:
            ConfigurationError: `layer` is of several layers or of two directions.
        """
        if layer.num_layers != 1 or layer.bidirectional:
            raise ConfigurationError(
                f"a FailingRNN has one layer of one direction; given {layer}: chain several of one layer instead"
            )
        with torch.device("meta"):
            failing = cls(
                layer.input_size,
                layer.hidden_size,
                nonlinearity=layer.nonlinearity,
                bias=layer.bias,
                batch_first=layer.batch_first,
                failure=failure,
                fresh=fresh,
            )
        failing.failures = Failures(failure, inference, noise, device=next(layer.parameters()).device)
        return adopt(failing, layer)

    def to_dense(self) -> nn.RNN:
        """A plain `torch.nn.RNN` that holds the very parameters of this network."""
        dense = adopt(self._torch_rnn("meta"), self)
        dense.flatten_parameters()  # cuDNN wants their numbers in one piece; the Parameter objects stay
        return dense

    def _torch_rnn(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> nn.RNN:
        return nn.RNN(
            self.input_size,
            self.hidden_size,
            nonlinearity=self.nonlinearity,
            bias=self.bias,
            batch_first=self.batch_first,
            device=device,
            dtype=dtype,
        )


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in _ACTIVATIONS:
        raise unknown("nonlinearity", nonlinearity, _ACTIVATIONS)


def _state(h: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if h is None:
        return x.new_zeros(shape)
    if h.shape != shape:
        raise ConfigurationError(f"with x {list(x.shape)} the state is {list(shape)}; given {list(h.shape)}")
    return h


def _step(layer: FailingRNNCell | FailingRNN, driven: Tensor, recurrent: Tensor) -> Tensor:
    return _ACTIVATIONS[layer.nonlinearity](driven + recurrent)
