"""Sparse layers whose connections fail at random, afresh for each example."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from synaptome.synapses.failing import Failures
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conversion import Parts

_S = TypeVar("_S", bound=SparseLinear)


class FailingSparseLinear(SparseLinear):
    """`SparseLinear` whose connections fail with probability `failure`, afresh for each example.

    `y[b, o] = Σ_k m[b, o, col[k]] v[k] x[b, col[k]] / (1 - p) + bias[o]` over the connections k of output o, with
    independent `m ~ Bernoulli(1 - p)` (Wan et al. 2013, equation 4, over the connections that there are). The bias
    never fails. Every leading index of x `[..., in_features]` is an example.

    Whether a connection fails depends on its place, not on the graph around it: with the same `failures` this layer and
    a `FailingLinear` of its dense weight fail alike, and a connection that evolution leaves alone goes on as before.

    Args:
        in_features, out_features, bias: as for `SparseLinear`, drawn from the same random numbers.
        failure: probability of failure in [0, 1), exact to 1/65536.
        inference: `expected`, `noisy`, `gaussian` or `mc(K)`; see `Failures`.
        noise: `bernoulli` or `gaussian`; see `Failures`.
        options: as for `SparseLinear`: one of density, epsilon, nnz, fan_in and edges; and topology, dense_above,
            device, dtype.

    Raises:
        ConfigurationError: failure, inference or noise is out of range, the graph is none that a `SparseLinear` takes,
            or x does not fit.
    """

    crossover: ClassVar[float] = 0.75

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.failures = Failures(failure, inference, noise, device=self.values.device)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self.place is None:
            return self.failures.sparse_linear(x, self.values, self.bias, self.structure)
        return self.failures.linear(x, self._dense_weight(self.place), self.bias)

    @classmethod
    def from_sparse(
        cls, layer: SparseLinear, *, failure: float, inference: str = "expected", noise: str = "bernoulli"
    ) -> FailingSparseLinear:
        """A failing layer that holds the very parameters and graph of `layer`: an optimizer of these keeps them.

        The two go on sharing them: where connections change, they change in both.
        """
        made = _moved(cls, layer)
        made.failures = Failures(failure, inference, noise, device=layer.values.device)
        return made.train(layer.training)

    def to_sparse(self) -> SparseLinear:
        """A `SparseLinear` that holds the very parameters and graph of this layer, and goes on sharing them."""
        return _moved(SparseLinear, self).train(self.training)

    @classmethod
    def from_dense(  # type: ignore[override]
        cls,
        layer: nn.Linear,
        mask: Tensor | None = None,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        dense_above: float | None = None,
    ) -> FailingSparseLinear:
        """A failing layer with the weights of `layer` at the connections of `mask`; see `SparseLinear.from_dense`."""
        sparse = SparseLinear.from_dense(layer, mask, dense_above=dense_above)
        return cls.from_sparse(sparse, failure=failure, inference=inference, noise=noise)

    @classmethod
    def from_parts(  # type: ignore[override]
        cls,
        parts: Parts,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        dense_above: float | None = None,
    ) -> FailingSparseLinear:
        """A failing layer made of given tensors, of which Parameters stay the same objects."""
        sparse = SparseLinear.from_parts(parts, dense_above=dense_above)
        return cls.from_sparse(sparse, failure=failure, inference=inference, noise=noise)

    @classmethod
    def random_like(  # type: ignore[override]
        cls,
        layer: nn.Linear | SparseLinear,
        nnz: int,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        **options: Any,
    ) -> FailingSparseLinear:
        """A failing layer on a random graph, with new values; see `SparseLinear.random_like`."""
        sparse = SparseLinear.random_like(layer, nnz, **options)
        return cls.from_sparse(sparse, failure=failure, inference=inference, noise=noise)

    @classmethod
    def from_scipy(  # type: ignore[override]
        cls,
        matrix: Any,
        bias: Any = None,
        *,
        failure: float,
        inference: str = "expected",
        noise: str = "bernoulli",
        **options: Any,
    ) -> FailingSparseLinear:
        """A failing layer with the entries of a SciPy sparse array or matrix; see `SparseLinear.from_scipy`."""
        sparse = SparseLinear.from_scipy(matrix, bias, **options)
        return cls.from_sparse(sparse, failure=failure, inference=inference, noise=noise)

    def pruned(self, nnz: int) -> FailingSparseLinear:
        """As `SparseLinear.pruned`; connections of the result fail at the same rate, in a stream of their own."""
        kept = self.to_sparse().pruned(nnz)
        now = self.failures
        return self.from_sparse(kept, failure=now.rate, inference=now.inference, noise=now.noise)


def _moved(kind: type[_S], layer: SparseLinear) -> _S:
    """A layer of another kind with the storage of `layer`, its parameters and buffers, without its submodules."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    vars(made).update({name: value for name, value in vars(layer).items() if name not in vars(made)})
    # The dictionaries themselves: values of the one on an older graph of the other would be silently wrong.
    made._parameters = layer._parameters
    made._buffers = layer._buffers
    made._non_persistent_buffers_set = layer._non_persistent_buffers_set
    return made
