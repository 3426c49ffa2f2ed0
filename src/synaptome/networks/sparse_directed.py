"""Complete directed networks of many neurons, of whose connections only a few exist, that relax to an equilibrium.

Neurons are inputs, which are clamped, hidden neurons and outputs. Any of them may act on any hidden neuron or output
but itself; nothing acts on inputs. The drive of a free neuron is

    a_j = Σ_i x_i W_ij + Σ_k s_k W_kj + b_j,   i over the inputs, k over the other free neurons,

of which the first sum is computed once, and states follow their drive as `synaptome.networks.states` says. With the
hard sigmoid that is the network of Scellier et al. 2018 with leak 1, and its graph that of Farinha et al. 2020. Weights
are not symmetric, and there is no energy; what such a network learns by is asymmetric or corrected equilibrium
propagation. Weights are values on a graph: time and memory go with the connections, and with neurons times batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.sparse_product import sddmm, sparse_linear
from synaptome.networks.drive import Drive, SparseDrive
from synaptome.networks.equilibrium import EquilibriumNetwork, Nudge, gradient
from synaptome.networks.relaxation import Outcome, Relaxation, States
from synaptome.networks.states import state_named
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_recurrent import SparseRecurrent

PRODUCTS = 40  # by which a spectral radius is estimated, after as many in which smaller modes fade
PROBES = 8  # random vectors
OUTPUT_SHARE = 0.1  # of the size of others, from which weights to outputs start


class SparseDirectedNetwork(EquilibriumNetwork):
    """A classifier or regressor on any graph of directed connections; its outputs are the last of its free neurons.

    Every relaxation starts from states 0.

    Args:
        afferent: connections from inputs to free neurons, and the biases of these.
        recurrent: connections among the free neurons.
        outputs: how many of the free neurons are outputs, at least 1.
        state: `hard-sigmoid`, `sigmoid` or `tanh`.
        relaxation: of the free phase.

    Raises:
        ConfigurationError: sizes do not fit, a name does not exist, or no path leads from the inputs to an output.
    """

    def __init__(
        self,
        afferent: SparseLinear,
        recurrent: SparseRecurrent,
        outputs: int,
        *,
        state: str = "hard-sigmoid",
        relaxation: Relaxation | None = None,
    ) -> None:
        neurons = recurrent.out_features
        if afferent.out_features != neurons or not 1 <= outputs <= neurons:
            raise ConfigurationError(
                f"inputs act on the same free neurons that act on one another, of which at least 1 and at most all are "
                f"outputs; given connections to {afferent.out_features} neurons, among {neurons}, and {outputs} outputs"
            )
        super().__init__(state_named(state), False, [neurons], relaxation)
        self.out_features = outputs
        self.afferent, self.recurrent, self.readout = afferent, recurrent, None
        self._check_paths()

    @classmethod
    def random(
        cls,
        inputs: int,
        hidden: int,
        outputs: int,
        density: float,
        *,
        radius: float = 0.5,
        state: str = "hard-sigmoid",
        relaxation: Relaxation | None = None,
    ) -> SparseDirectedNetwork:
        """A network on a random graph; the same share of all places is connected from inputs and among free neurons.

        Weights of a fan-in of n, on average, start from `N(0, 1 / n)` where inputs act, and from `N(0, radius² / n)`
        among free neurons; see `SparseRecurrent`. Biases start from 0. Outputs start near the mean of one-hot targets:
        from a bias of `1 / outputs`, and weights a tenth of that size. A hard sigmoid that is clipped at 0 learns
        nothing, and with weights of full size half of the outputs would start there.

        Args:
            inputs, outputs: at least 1.
            hidden: at least 0; there are two free neurons or more.
            density: the share of all places that are connected, in (0, 1].
            radius: of the disc of the recurrent weight's eigenvalues, above 0. Below 1, disturbances die out.
            state, relaxation: as of any such network.

        Raises:
            ConfigurationError: a number is out of range, or no path leads from the inputs to an output.
        """
        if hidden < 0 or outputs < 1:
            raise ConfigurationError(
                f"a network has at least 1 output, and hidden neurons or none; given {outputs} and {hidden}"
            )
        afferent = SparseLinear(inputs, hidden + outputs, density=density)
        afferent.draw_normal((afferent.out_features / afferent.nnz) ** 0.5)
        assert afferent.bias is not None
        recurrent = SparseRecurrent(hidden + outputs, density=density, radius=radius)
        with torch.no_grad():
            afferent.bias.zero_()[hidden:] = 1 / outputs
            for layer in (afferent, recurrent):
                layer.values[layer.crow[hidden] :] *= OUTPUT_SHARE
        return cls(afferent, recurrent, outputs, state=state, relaxation=relaxation)

    def _check_paths(self) -> None:
        reached = torch.zeros(self.widths[0], dtype=torch.bool, device=self.afferent.values.device)
        reached[self.afferent.row_of] = True
        target, source = self.recurrent.row_of, self.recurrent.col
        known = -1
        while known < (known := int(reached.count_nonzero())):
            reached[target[reached[source]]] = True
        lost = (~self.nudged([reached.unsqueeze(0)])).nonzero()[:, 1].tolist()
        if lost:
            told = ", ".join(map(str, lost))
            raise ConfigurationError(
                f"every output is reached from an input; no path of connections leads to output {told}: take more "
                f"connections, or another seed"
            )

    def drive(self, x: Tensor) -> SparseDrive:
        """See `EquilibriumNetwork.drive`."""
        return SparseDrive(self.afferent(x.flatten(1)), self.recurrent.values, self.recurrent.structure)

    def relax(
        self, drive: Drive, states: States, relaxation: Relaxation | None = None, nudge: Nudge | None = None
    ) -> Outcome:
        """See `EquilibriumNetwork.relax`; states that are transposed views of `[width, batch]` are not copied."""
        return super().relax(drive, [state.T.contiguous().T for state in states], relaxation, nudge)

    def nudged(self, states: States) -> Tensor:
        """The outputs."""
        return states[0][:, -self.out_features :]

    def outputs(self, states: States) -> Tensor:
        """See `EquilibriumNetwork.outputs`."""
        return self.nudged(states)

    @torch.no_grad()
    def contrast(self, inputs: Tensor, free: States, plus: States, minus: States, difference: float) -> None:
        """See `EquilibriumNetwork.contrast`; of the connections that there are, and no others."""
        change = (plus[0] - minus[0]).mul_(-1 / (difference * len(inputs))).T.contiguous()
        for layer, given in ((self.afferent, inputs), (self.recurrent, free[0])):
            gradient(layer.values).copy_(sddmm(change, given.T.contiguous(), layer.crow, layer.col))
        if self.afferent.bias is not None:
            torch.sum(change, 1, out=gradient(self.afferent.bias))

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """Of the weights among free neurons: an estimate by the growth of random vectors, `lim |W^n v|^(1/n)`.

        Gelfand's formula, from products alone. Within a few per cent where many eigenvalues are of about that size.
        """
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.widths[0], PROBES, generator=generator, dtype=torch.float64)
        values, structure = self.recurrent.values.double(), self.recurrent.structure
        v, growth = v.to(values.device), 0.0
        for number in range(2 * PRODUCTS):
            v = sparse_linear(v.T, values, None, structure).T
            size = v.norm()
            if not size > 0:
                return 0.0
            v = v / size
            growth += float(size.log()) if number >= PRODUCTS else 0.0
        return math.exp(growth / PRODUCTS)

    def step_bound(self) -> float:
        """See `EquilibriumNetwork.step_bound`: `2 / (1 + r)`, r the spectral radius times the slope of rho.

        A step multiplies the mode of an eigenvalue λ by `1 + dt (λ - 1)`. For all λ in a disc of radius r < 1 that is
        within the circle of 1 up to this dt, and for any dt up to 1. Beyond r = 1 it still is for real λ below 1, but
        modes of complex ones may need smaller steps.
        """
        return 2 / (1 + self.spectral_radius() * self.state.slope)

    def synapses(self) -> list[list[nn.Parameter]]:
        """Weights of the inputs and biases, and weights among free neurons."""
        return [list(self.afferent.parameters()), list(self.recurrent.parameters())]

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"outputs={self.out_features}, state={self.state.name!r}, relaxation={self.relaxation}"
