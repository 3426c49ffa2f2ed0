"""Fully connected feed-forward networks of any depth, with a choice of synapse for each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, unknown
from synaptome.networks.partition import bounds, check_balance
from synaptome.synapses.rewire import rewire
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparsity import Sparse
from synaptome.synapses.wiring import Kind, Wiring

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "swish": F.silu,  # Ramachandran et al. 2017, with beta = 1
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,  # Clevert et al. 2016, with alpha = 1
    "selu": F.selu,  # Klambauer et al. 2017
}
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda y: y, "softmax": lambda y: torch.softmax(y, -1)}
SCALINGS = ("sqrt", "lin", "const")


class FeedForward(nn.Module):
    """`h_l = activation(W_l h_{l-1} + b_l)`; the last layer's sum goes through `output` instead.

    Weights start from N(0, std) with std given by `scaling`, biases from 0. Layers of `Sparse(start="random")` are
    never dense, and their fan_in is the mean number of connections of an output.

    Args:
        widths: `[inputs, hidden, ..., outputs]`, at least two positive numbers.
        activation: `linear`, `relu`, `swish`, `sigmoid`, `tanh`, `elu` or `selu`, of the hidden layers.
        output: `linear` or `softmax`.
        bias: whether layers have biases.
        scaling: `sqrt` (std = fan_in^-1/2), `lin` (fan_in^-1), `const` (0.001), or a number alpha (fan_in^-alpha).
        wiring: what the synapses of the chosen layers are; dense if None.
        layers: which layers the wiring is for: `all`, `none`, or numbers from 1, such as `1,3`.

    Raises:
        ConfigurationError: a name, a width or a layer number that does not exist.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: str = "relu",
        output: str = "linear",
        bias: bool = True,
        scaling: str = "sqrt",
        wiring: Kind | Wiring | None = None,
        layers: str = "all",
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigurationError(f"a network needs at least two widths, each at least 1; given {list(widths)}")
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if output not in OUTPUTS:
            raise unknown("output", output, OUTPUTS)
        self.activation, self.output = activation, output
        kinds = wiring if isinstance(wiring, Wiring) else Wiring(() if wiring is None else (wiring,))
        shapes = [(fan_out, fan_in) for fan_in, fan_out in pairwise(widths)]
        chosen = [number - 1 for number in layer_numbers(layers, len(shapes))]
        sparse = kinds.get(Sparse)
        drawn = sparse if sparse is not None and sparse.start == "random" and chosen else None
        counts = {} if drawn is None else dict(zip(chosen, drawn.counts([shapes[i] for i in chosen]), strict=True))
        self.layers = nn.ModuleList()
        for index, (fan_out, fan_in) in enumerate(shapes):
            if drawn is not None and index in counts:
                layer: nn.Linear | SparseLinear = _drawn(drawn, fan_in, fan_out, bias, counts[index], scaling)
            else:
                layer = nn.Linear(fan_in, fan_out, bias)
                nn.init.normal_(layer.weight, std=initial_std(scaling, fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        others = Wiring(tuple(kind for kind in kinds if kind is not drawn))
        if chosen and others.kinds:
            rewire(self.layers, others, where=[str(index) for index in chosen])

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]`, flattened to `[batch, inputs]`, to `[batch, outputs]`."""
        return _through(self.layers, x.flatten(1), self.activation, self.output)

    @property
    def depth(self) -> int:
        """The number of layers, the last one among them."""
        return len(self.layers)

    def split(self, balance: Sequence[int]) -> nn.ModuleList:
        """The network as blocks of consecutive layers, the very layers of this network, for parallel learning.

        Args:
            balance: the number of layers in each block; the numbers sum to the depth.

        Returns:
            Of `FeedForwardBlock`: each applied to what the one before gives, they compute what the network does.

        Raises:
            ConfigurationError: the numbers are no such.
        """
        check_balance(balance, self.depth)
        last = self.depth
        return nn.ModuleList(
            FeedForwardBlock(self.layers[start:stop], self.activation, self.output if stop == last else None)
            for start, stop in bounds(balance)
        )

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"activation={self.activation!r}, output={self.output!r}"


class FeedForwardBlock(nn.Module):
    """Consecutive layers of a feed-forward network, made by `FeedForward.split`.

    Args:
        layers: of the network.
        activation: after each of them, but for the network's last.
        output: what comes after that one, if it is here.
    """

    def __init__(self, layers: nn.ModuleList, activation: str, output: str | None) -> None:
        super().__init__()
        self.layers, self.activation, self.output = layers, activation, output

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, ...]`, flattened to `[batch, features]`, to `[batch, features of the last layer]`."""
        return _through(self.layers, x.flatten(1), self.activation, self.output)

    def extra_repr(self) -> str:
        """What `print(block)` says of it."""
        return f"activation={self.activation!r}, output={self.output!r}"


def _through(layers: nn.ModuleList, h: Tensor, activation: str, output: str | None) -> Tensor:
    for number, layer in enumerate(layers, 1):
        function = ACTIVATIONS[activation] if output is None or number < len(layers) else OUTPUTS[output]
        h = function(layer(h))
    return h


def _drawn(sparse: Sparse, fan_in: int, fan_out: int, bias: bool, nnz: int, scaling: str) -> SparseLinear:
    """A layer on a random graph; never by way of a dense weight, which may be far too large to hold."""
    layer = SparseLinear(fan_in, fan_out, bias, nnz=nnz, topology=sparse.topology, dense_above=sparse.dense_above)
    layer.draw_normal(initial_std(scaling, nnz / fan_out if nnz else 1.0))
    return layer


def initial_std(scaling: str, fan_in: float) -> float:
    """Standard deviation of the initial weights, by name or by exponent; see `FeedForward`."""
    if scaling == "const":
        return 0.001
    try:
        alpha = {"sqrt": 0.5, "lin": 1.0}[scaling] if scaling in SCALINGS else float(scaling)
    except ValueError:
        raise unknown("scaling", scaling, (*SCALINGS, "a number alpha, for fan_in^-alpha")) from None
    if not math.isfinite(alpha):
        raise ConfigurationError(f"the scaling's exponent alpha is a finite number; given {scaling}")
    return float(fan_in**-alpha)


def layer_numbers(layers: str, depth: int) -> list[int]:
    """The layers meant by `all`, `none` or `1,3`, as sorted numbers from 1 to depth."""
    if layers in ("all", "none"):
        return list(range(1, depth + 1)) if layers == "all" else []
    try:
        numbers = sorted({int(number) for number in layers.split(",")})
    except ValueError:
        raise ConfigurationError(f"layers are 'all', 'none' or numbers such as '1,3'; given {layers!r}") from None
    for number in numbers:
        if not 1 <= number <= depth:
            raise ConfigurationError(f"layer {number} does not exist; this network has layers 1 to {depth}")
    return numbers
