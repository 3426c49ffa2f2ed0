"""Convolutions of which only the connections exist: values on a graph, no dense kernels anywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from synaptome.errors import ConfigurationError
from synaptome.kernels.sparse_conv2d import dense_kernels, sparse_conv2d
from synaptome.synapses import sparse_conversion
from synaptome.synapses.failing_conv import conv2d_arguments
from synaptome.synapses.sparse import Edges
from synaptome.synapses.sparse_weight import SparseWeight
from synaptome.synapses.sparsity import check_dense_above
from synaptome.topology.initial import initial_graph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)


class SparseConv2d(SparseWeight):
    """`torch.nn.Conv2d` of which only some connections exist.

    A connection is an entry of the kernels `[out_channels, in_channels / groups, kernel height, kernel width]`, which
    all positions of an image share. As a matrix the weight is `[out_features, in_features]`, where out_features are the
    output channels, and the input of a connection, its column, is `(channel * kernel height + y) * kernel width + x`
    with the channel counted within the group; values, graph and state are those of a `SparseLinear` of that shape, and
    evolve as those do.

    On a CPU, time is in proportion to the connections, beside a copy of inputs and outputs: at density 0.05 a step of
    forward and backward takes about a quarter of the time of `torch.nn.Conv2d` on one core. It takes longer above a
    density of 0.3 (128 channels of 8 x 8) to more than 0.5 (16 of 32 x 32); see `synaptome bench sparse-conv2d`. On
    other devices the values are scattered into dense kernels.

    Values and bias are drawn as by `torch.nn.Conv2d`, with the mean number of connections of an output channel in place
    of `in_features`: uniformly from `(-b, b)` with `b = sqrt(out_features / nnz)`.

    Give exactly one of:

    Args:
        density: the share of all places that are connected, in (0, 1].
        epsilon: `nnz = epsilon (out_channels + in_channels / groups + kernel height + kernel width)`, above 0: the sum
            over the sides of the kernels, as Evci et al. 2020 extend equation 2 of Mocanu et al. 2018.
        nnz: the number of connections, from 0 to `out_features * in_features`.
        fan_in: the number of connections of every output channel, from 0 to `in_features`.
        edges: output channels and columns of the connections, two lists of integers `[nnz]` (or one `[2, nnz]`), in
            any order, as tensors, arrays or Python's.

    And:

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv2d`.
        topology: as for `SparseLinear`, over channels and columns.
        dense_above: a density in [0, 1] above which torch convolves dense kernels, which every forward fills with the
            values: the cost of a dense layer under a mask. By default None, never.

    Raises:
        ConfigurationError: none or several of density ... edges are given, one is out of range, an edge is out of range
            or given twice, or torch has no such convolution.
    """

    # Above this density a training step of the dense layer is faster, where there are many channels.
    crossover: ClassVar[float] = 0.3

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        density: float | None = None,
        epsilon: float | None = None,
        nnz: int | None = None,
        fan_in: int | None = None,
        edges: Edges | None = None,
        topology: str = "erdos-renyi",
        dense_above: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = {"density": density, "epsilon": epsilon, "nnz": nnz, "fan_in": fan_in, "edges": edges}
        arguments: Any = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        try:
            with torch.device("meta"):
                dense = nn.Conv2d(*arguments)
        except (ValueError, RuntimeError) as error:
            raise ConfigurationError(f"torch.nn.Conv2d does not take this geometry: {error}") from error
        row, col = initial_graph("SparseConv2d", dense.weight.shape, topology, size)
        super().__init__()
        values = torch.empty(len(col), device=device, dtype=dtype)
        own = nn.Parameter(values.new_empty(out_channels)) if bias else None
        self._build(dense, row, col, values, own, dense_above)
        self.reset_parameters()

    @classmethod
    def _of(cls, layer: Any, row: Tensor, col: Tensor, values: Tensor, dense_above: float | None) -> SparseConv2d:
        """Sorted connections with the geometry, the very bias and the mode of another layer, plain or sparse."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._build(layer, row, col, values, layer.bias, dense_above)
        return made.train(layer.training)

    def _build(
        self,
        like: Any,
        row: Tensor,
        col: Tensor,
        values: Tensor,
        bias: nn.Parameter | None,
        dense_above: float | None,
    ) -> None:
        """Everything but the numbers, in the geometry of a layer, plain or sparse."""
        check_dense_above(dense_above)
        self.dense_above = dense_above
        for name in GEOMETRY:
            setattr(self, name, getattr(like, name))
        columns = self.in_channels // self.groups * math.prod(self.kernel_size)
        self._hold(columns, self.out_channels, row, col, values)
        self.register_parameter("bias", bias)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(out_channels, in_channels / groups, kernel height, kernel width)`."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`; the batch axis may lack."""
        x, padding = self._padded(x)
        if self.dense_above is not None and self.density > self.dense_above:
            channels = self.in_channels // self.groups
            weight = dense_kernels(self.values, self.crow, self.col, channels, self.kernel_size)
            return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        geometry: Any = (self.kernel_size, self.stride, padding, self.dilation, self.groups)
        return sparse_conv2d(x, self.values, self.bias, self.crow, self.col, self.in_channels, *geometry)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The images, padded where zeros on both sides alike do not do, and the padding that is left to do."""
        left, right, top, bottom = margins = self._reversed_padding_repeated_twice
        if self.padding_mode == "zeros" and left == right and top == bottom:
            return x, (top, left)
        return F.pad(x, margins, "constant" if self.padding_mode == "zeros" else self.padding_mode), (0, 0)

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient of a loss by all entries of the kernels, connected or not: `[out_features, in_features]`.

        Args:
            x: what `forward` took.
            grad: the gradient of the loss by what it returned.
        """
        x, padding = self._padded(x if x.dim() == 4 else x.unsqueeze(0))
        grad = grad if grad.dim() == 4 else grad.unsqueeze(0)
        geometry = self.stride, padding, self.dilation, self.groups
        by_weight: Tensor = conv2d_weight(x, self.weight_shape, grad, *geometry)  # type: ignore[no-untyped-call]
        return by_weight.flatten(1)

    @classmethod
    def random_like(
        cls,
        layer: nn.Conv2d | SparseConv2d,
        nnz: int,
        *,
        topology: str = "erdos-renyi",
        dense_above: float | None = None,
    ) -> SparseConv2d:
        """A layer on a random graph, with new values, the geometry of a plain or sparse one and its very bias."""
        weight = layer.values if isinstance(layer, SparseConv2d) else layer.weight
        options: Any = {
            "topology": topology,
            "dense_above": dense_above,
            "device": weight.device,
            "dtype": weight.dtype,
        }
        drawn = cls(*conv2d_arguments(layer), nnz=nnz, **options)
        drawn.values.requires_grad_(weight.requires_grad)
        bias: Any = layer.bias
        drawn.bias = bias
        return drawn.train(layer.training)

    @classmethod
    def from_dense(
        cls, layer: nn.Conv2d, mask: Tensor | None = None, *, dense_above: float | None = None
    ) -> SparseConv2d:
        """A sparse layer with the weights of `layer` at the connections of `mask`, and its very bias.

        The values are a new Parameter: make the optimizer afterwards.

        Args:
            layer: any Conv2d.
            mask: bool `[out_channels, in_channels / groups, kernel height, kernel width]`; by default where the weight
                is not 0.
            dense_above: as for a new layer.

        Raises:
            ConfigurationError: the mask does not fit.
        """
        parts = sparse_conversion.of_dense(layer, mask)
        return cls._of(layer, parts.row, parts.col, parts.values, dense_above)

    def to_dense(self) -> nn.Conv2d:
        """A `torch.nn.Conv2d` with these weights, 0 where there is no connection, and the very bias of this layer."""
        with torch.device("meta"):
            dense = nn.Conv2d(*conv2d_arguments(self))
        weight = sparse_conversion.to_dense(self).view(dense.weight.shape)
        dense.weight = nn.Parameter(weight, self.values.requires_grad)
        dense.bias = self.bias
        return dense.train(self.training)

    def pruned(self, nnz: int) -> SparseConv2d:
        """A sparse layer with the `nnz` connections of largest magnitude, and the very bias of this one.

        Of equal magnitudes the first in the order of (output, input) is kept. The values are a new Parameter.

        Raises:
            ConfigurationError: there are not so many connections.
        """
        self.check_prunable(nnz)
        parts = sparse_conversion.of_largest(self, self.bias, nnz)
        return self._of(self, parts.row, parts.col, parts.values, self.dense_above)

    def to_scipy(self) -> csr_array:
        """A copy of the weights as `scipy.sparse.csr_array` `[out_features, in_features]`; values of 0 stay in it."""
        return sparse_conversion.to_scipy(self)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "dense_above": None}
        told = "".join(f", {name}={value}" for name in usual if (value := getattr(self, name)) != usual[name])
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}{told}, "
            f"bias={self.bias is not None}, nnz={self.nnz}, density={self.density:.3g}"
        )
