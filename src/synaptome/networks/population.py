"""Many small recurrent networks of one shape at once, each of which is what it would be alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from synaptome.data.streams import stream
from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.relax import ACTIVITIES, Relaxed, relax
from synaptome.networks.complete import LEAKS, Sizes, check_connections, complete_connections
from synaptome.networks.success import Success

STARTS, EVALUATION, REMOVALS, SIGNS = range(4)  # what random numbers are for: each has a stream of its own


class Couplings(NamedTuple):
    """What the neurons of a population do to each other, as long as it does not learn.

    Attributes:
        weight: W, float64 `[P, N, N]`, from row to column.
        bias, leak: of free neurons, float64 `[P, hidden + outputs]`.
    """

    weight: Tensor
    bias: Tensor
    leak: Tensor


class Population(nn.Module):
    """P networks of N neurons that relax to an equilibrium; see `synaptome.kernels.relax` for their dynamics.

    A network's random numbers are a function of its seed and of the epoch alone, and so it does not matter with which
    others it learns.

    Args:
        seeds: of each network, whole numbers from 0 to 2^63 - 1.
        sizes: how many neurons.
        connections: those that are allowed, bool `[N, N]` from row to column; all of a complete directed graph if None.
        leak: `deep` (Σ_k W_jk, Farinha et al. 2020), `one`, or `certified` (Σ_k |W_jk| + ε, with which Gershgorin's
            discs certify stability for all weights).
        bias: whether free neurons have biases, which start from 0.
        activity: `hard-sigmoid`, `sigmoid` or `tanh`.
        dt: of an Euler step.
        steps: of a free phase, at most.
        tolerance: residual with which a state counts as one at rest; at 0 it has to repeat itself to the bit.
        stop: whether a pattern at rest stops.
        std: standard deviation of the initial weights, which are normal.
        spread: states start from U(0, spread).

    Attributes:
        values: the weights of the allowed connections, float64 `[P, connections]`, in the order of `source`.
        source, target: neurons of each connection, int64 `[connections]`.
        present: which connections have not been removed, bool `[P, connections]`; the values of removed ones are 0.
        bias: float64 `[P, hidden + outputs]`, or None.
        success: what each network has achieved.

    Raises:
        ConfigurationError: a name or a number is none of these, or an output cannot be reached.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    success: Success
    seeds: Tensor
    source: Tensor
    target: Tensor
    present: Tensor

    def __init__(
        self,
        seeds: Sequence[int],
        sizes: Sizes,
        connections: Tensor | None = None,
        *,
        leak: str = "deep",
        bias: bool = False,
        activity: str = "hard-sigmoid",
        dt: float = 0.05,
        steps: int = 1000,
        tolerance: float = 0.0,
        stop: bool = True,
        std: float = 0.05,
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        if leak not in LEAKS:
            raise unknown("leak", leak, LEAKS)
        if activity not in ACTIVITIES:
            raise unknown("activity", activity, ACTIVITIES)
        numbers = {"dt": dt, "steps": steps, "tolerance": tolerance, "std": std, "spread": spread}
        for name, number in numbers.items():
            if not (0 <= number < math.inf and (number > 0 or name in ("tolerance", "std", "spread"))):
                least = "at least" if name in ("tolerance", "std", "spread") else "above"
                raise ConfigurationError(f"{name} is a finite number {least} 0; given {number}")
        if len(seeds) == 0:
            raise ConfigurationError("a population has at least one network; given no seeds")
        allowed = complete_connections(sizes) if connections is None else connections
        check_connections(allowed, sizes)
        self.sizes, self.leak_kind, self.activity = sizes, leak, activity
        self.dt, self.steps, self.tolerance, self.stop, self.spread = dt, steps, tolerance, stop, spread
        places = allowed.nonzero()
        drawn = [stream(seed, "population").normal(0.0, std, len(places)) for seed in seeds]
        self.values = nn.Parameter(torch.from_numpy(np.stack(drawn)))
        free = torch.zeros(len(seeds), sizes.free, dtype=torch.float64)
        self.register_parameter("bias", nn.Parameter(free) if bias else None)
        self.register_buffer("seeds", torch.tensor(list(seeds), dtype=torch.int64))
        self.register_buffer("source", places[:, 0].contiguous())
        self.register_buffer("target", places[:, 1].contiguous())
        self.register_buffer("present", torch.ones(len(seeds), len(places), dtype=torch.bool))
        self.success = Success(len(seeds))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def weight(self) -> Tensor:
        """W, float64 `[P, N, N]`, from row to column."""
        weight = self.values.new_zeros(len(self), self.sizes.neurons, self.sizes.neurons)
        weight[:, self.source, self.target] = self.values.detach()
        return weight

    @property
    def sparsity(self) -> Tensor:
        """The share of the allowed connections that are exactly 0, removed or not, float64 `[P]`."""
        return (self.values.detach() == 0).double().mean(1)

    def leak(self, weight: Tensor) -> Tensor:
        """What free neurons leak, `[P, hidden + outputs]`, given `weight`."""
        return LEAKS[self.leak_kind](weight)[:, self.sizes.inputs :]

    def couplings(self) -> Couplings:
        """Those of the weights and biases as they are."""
        weight = self.weight
        bias = weight.new_zeros(len(self), self.sizes.free) if self.bias is None else self.bias.detach()
        return Couplings(weight, bias, self.leak(weight))

    def at_connections(self, matrices: Tensor) -> Tensor:
        """Of matrices `[P, N, N]` the entries of the allowed connections, `[P, connections]`."""
        return matrices[:, self.source, self.target]

    def uniform(self, purpose: int, epoch: int, count: int) -> Tensor:
        """Each network's own random numbers in [0, 1) for a purpose in an epoch, float64 `[P, count]`."""
        from synaptome.kernels.splitmix import uniform

        numbers = np.empty((len(self), count))
        uniform(self.seeds.cpu().numpy(), 4 * epoch + purpose, numbers)
        return torch.from_numpy(numbers).to(self.seeds.device)

    def initial(self, inputs: Tensor, purpose: int = EVALUATION, epoch: int = 0) -> Tensor:
        """States to start from, `[P, M, N]`, with inputs `[M, inputs]` clamped; free ones are drawn from U(0, spread).

        Raises:
            ConfigurationError: the inputs are of another shape.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.sizes.inputs:
            raise ConfigurationError(f"inputs are of shape [patterns, {self.sizes.inputs}]; given {list(inputs.shape)}")
        patterns = len(inputs)
        free = self.spread * self.uniform(purpose, epoch, patterns * self.sizes.free)
        clamped = inputs.double().expand(len(self), patterns, -1)
        return torch.cat((clamped, free.view(len(self), patterns, -1)), 2)

    @torch.no_grad()
    def relax(
        self,
        state: Tensor,
        targets: Tensor | None = None,
        nudge: Tensor | None = None,
        *,
        steps: int | None = None,
        betas: tuple[float, float] | None = None,
        couplings: Couplings | None = None,
    ) -> Relaxed:
        """Let states `[P, M, N]` relax, freely or nudged.

        Args:
            state: where to start.
            targets: `[M, outputs]`, of a nudged phase.
            nudge: its strength, float64 `[P, M]`.
            steps: at most; those of a free phase if None.
            betas: (beta_0, beta_1) of traces, if these are to be summed.
            couplings: if they are known already.
        """
        networks, patterns, _ = state.shape
        couplings = couplings or self.couplings()
        beta_0, beta_1 = betas or (0.0, 0.0)
        return relax(
            state,
            *couplings,
            state.new_zeros(patterns, self.sizes.outputs) if targets is None else targets.double(),
            state.new_zeros(networks, patterns) if nudge is None else nudge,
            inputs=self.sizes.inputs,
            dt=self.dt,
            steps=self.steps if steps is None else steps,
            tolerance=self.tolerance,
            stop=self.stop,
            activity=self.activity,
            beta_0=beta_0,
            beta_1=beta_1,
            traced=betas is not None,
        )

    def activities(self, state: Tensor) -> Tensor:
        """What neurons send, `[P, M, N]`, in states of that shape."""
        inputs = self.sizes.inputs
        return torch.cat((state[..., :inputs], ACTIVITIES[self.activity](state[..., inputs:])), 2)

    def outputs(self, state: Tensor) -> Tensor:
        """What outputs send, `[P, M, outputs]`, in states `[P, M, N]`."""
        return ACTIVITIES[self.activity](state[..., -self.sizes.outputs :])

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs' activities `[P, M, outputs]` after a free phase on inputs `[M, inputs]`, always from one start."""
        return self.outputs(self.relax(self.initial(inputs)).state)

    def extra_repr(self) -> str:
        """Networks, neurons and dynamics, in a line."""
        return (
            f"{len(self)} networks, {self.sizes.inputs}+{self.sizes.hidden}+{self.sizes.outputs} neurons, "
            f"connections={self.values.shape[1]}, leak={self.leak_kind}, activity={self.activity}"
        )
