"""Networks of layers that act on their neighbours in both directions, and relax to an equilibrium.

The input x is clamped. Layer l has states s_l; the drive of its neurons is what they get from both sides,

    a_l = W_l s_{l-1} + b_l + B_l s_{l+1},   s_0 = x,   B = 0 for the last layer,

and states follow their drive as `synaptome.networks.states` says. Symmetric networks have `B_l = W_{l+1}'`, and an
energy that relaxation never increases while steps are small (Scellier & Bengio 2017); others hold feedback weights B_l
of their own (Scellier et al. 2018), and need not even have an equilibrium.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.networks.drive import LayeredDrive
from synaptome.networks.equilibrium import EquilibriumNetwork, gradient
from synaptome.networks.relaxation import Relaxation, States
from synaptome.networks.states import state_named


class LayeredNetwork(EquilibriumNetwork):
    """A classifier or regressor whose output is read at the equilibrium of its layers.

    Weights, feedback weights among them, start from Glorot's uniform distribution (Glorot & Bengio 2010, equation 16),
    biases from 0, and every relaxation from states 0.

    Args:
        widths: `[inputs, hidden, ..., outputs]`, at least two numbers from 1 on; three with a read-out.
        state: `hard-sigmoid`, `sigmoid` or `tanh`.
        symmetric: whether a connection has one weight for both directions; else feedback has weights of its own.
        bias: whether neurons have biases.
        readout: whether the outputs are no neurons but a linear read-out of the last hidden layer, which gets nothing
            back from it in the free phase (Laborieux et al. 2021).
        relaxation: of the free phase.

    Attributes:
        layers: W_l and b_l, `nn.Linear` from layer l - 1 to layer l.
        feedback: B_l, `nn.Linear` from layer l + 1 to layer l, without biases; none in a symmetric network.
        readout: an `nn.Linear`, or None.

    Raises:
        ConfigurationError: a width or a name that does not exist.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        state: str = "hard-sigmoid",
        symmetric: bool = True,
        bias: bool = True,
        readout: bool = False,
        relaxation: Relaxation | None = None,
    ) -> None:
        least = 3 if readout else 2
        if len(widths) < least or min(widths) < 1:
            raise ConfigurationError(
                f"a layered network{' with a read-out' if readout else ''} needs at least {least} widths, each at "
                f"least 1; given {list(widths)}"
            )
        super().__init__(state_named(state), symmetric, widths[1:-1] if readout else widths[1:], relaxation)
        self.out_features = widths[-1]
        pairs = list(pairwise([widths[0], *self.widths]))
        self.layers = nn.ModuleList(nn.Linear(lower, upper, bias) for lower, upper in pairs)
        self.feedback = nn.ModuleList(
            nn.Linear(upper, lower, bias=False) for lower, upper in ([] if symmetric else pairs[1:])
        )
        self.readout = nn.Linear(widths[-2], widths[-1], bias) if readout else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def drive(self, x: Tensor) -> LayeredDrive:
        """See `EquilibriumNetwork.drive`."""
        first, *others = _linear(self.layers)
        constants = [F.linear(x.flatten(1), first.weight, first.bias)]
        couplings: list[tuple[tuple[int, Tensor], ...]] = []
        for number, layer in enumerate(others):
            constants.append(layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias)
            back = layer.weight if self.symmetric else _linear(self.feedback)[number].weight.T
            couplings.append(((number + 1, back),))
        couplings.append(())
        for number, layer in enumerate(others, 1):
            couplings[number] = ((number - 1, layer.weight.T), *couplings[number])
        return LayeredDrive(tuple(constants), tuple(couplings))

    def nudged(self, states: States) -> Tensor:
        """The last layer."""
        return states[-1]

    def outputs(self, states: States) -> Tensor:
        """What the network says at these states, `[batch, outputs]`: the last layer, or the read-out of it."""
        if self.readout is None:
            return states[-1]
        outputs: Tensor = self.readout(states[-1])
        return outputs

    @torch.no_grad()
    def contrast(self, inputs: Tensor, free: States, plus: States, minus: States, difference: float) -> None:
        """See `EquilibriumNetwork.contrast`."""
        scale = -1 / (difference * len(inputs))
        changes = [(above - below).mul_(scale) for above, below in zip(plus, minus, strict=True)]
        for number, layer in enumerate(_linear(self.layers)):
            into = gradient(layer.weight)
            if number == 0:
                torch.mm(changes[0].T, inputs, out=into)
            elif self.symmetric:
                torch.mm(plus[number].T, plus[number - 1], out=into)
                into.addmm_(minus[number].T, minus[number - 1], alpha=-1).mul_(scale)
            else:
                torch.mm(changes[number].T, free[number - 1], out=into)
            if layer.bias is not None:
                torch.sum(changes[number], 0, out=gradient(layer.bias))
        for number, layer in enumerate(_linear(self.feedback)):
            torch.mm(changes[number].T, free[number + 1], out=gradient(layer.weight))

    def energy(self, x: Tensor, states: States) -> Tensor:
        """`E = sum_l (sum G(s_l) - b_l' s_l - s_l' W_l s_{l-1})`, `[batch]`, differentiable; of symmetric networks.

        For G see `synaptome.networks.states`. The gradient of -E by s_l is `a_l - G'(s_l)`.

        Raises:
            ConfigurationError: the network is not symmetric, and no energy is known whose descent its relaxation is.
        """
        if not self.symmetric:
            raise ConfigurationError(
                "a network with feedback weights of its own has no energy; make it with symmetric=True"
            )
        total = x.new_zeros(len(x))
        below = x.flatten(1)
        for layer, state in zip(self.layers, states, strict=True):
            total = total + (self.state.potential(state) - state * layer(below)).sum(1)
            below = state
        return total

    @torch.no_grad()
    def step_bound(self) -> float:
        """The dt above which the projected map is expansive along modes that a smaller dt would let come to rest.

        An eigenvalue `a + ib` of all couplings makes a step multiply a mode by `1 + dt (a - 1 + ib)`. Where a < 1 this
        shrinks the mode up to `dt = 2 (1 - a) / ((1 - a)^2 + b^2)`, for symmetric weights `2 / (1 + max |a|)`, which is
        also where a step of projected gradient descent on the energy stops being sure to decrease it. Modes with a >= 1
        grow under any dt, until states are clipped, and count for nothing here. Every state counts as one where rho is
        steepest; states that are clipped or saturated allow more.
        """
        first = _linear(self.layers)[0]
        drive = self.drive(first.weight.new_zeros(1, first.in_features))
        # Layers act on neighbours only: the eigenvalues are the square roots of those of a product over every second,
        # and zeros.
        small, large = sorted(
            (range(start, len(self.widths), 2) for start in (0, 1)), key=lambda side: sum(self.widths[i] for i in side)
        )
        if not small:
            return 2.0
        product = self._block(drive, small, large) @ self._block(drive, large, small)
        roots = torch.linalg.eigvals(product.double()).sqrt() * self.state.slope
        values = torch.cat((roots, -roots))
        values = values[values.real < 1]
        gap = 1 - values.real
        return (2 * gap / (gap.square() + values.imag.square())).min().item()

    def _block(self, drive: LayeredDrive, targets: Sequence[int], sources: Sequence[int]) -> Tensor:
        """The matrix with which some layers act on others, `[widths of targets, widths of sources]`."""
        empty = drive.constants[0]
        rows = []
        for target in targets:
            given = dict(drive.couplings[target])
            row = [
                given[source].T if source in given else empty.new_zeros(self.widths[target], self.widths[source])
                for source in sources
            ]
            rows.append(torch.cat(row, 1))
        return torch.cat(rows)

    def synapses(self) -> list[list[nn.Parameter]]:
        """The parameters by layer, the read-out last; feedback belongs to the layer that it comes from."""
        groups = [list(layer.parameters()) for layer in self.layers]
        for number, feedback in enumerate(self.feedback, 1):
            groups[number] += list(feedback.parameters())
        return [*groups, *([] if self.readout is None else [list(self.readout.parameters())])]

    def extra_repr(self) -> str:
        """What `print(network)` says of it."""
        return f"state={self.state.name!r}, symmetric={self.symmetric}, relaxation={self.relaxation}"


def _linear(layers: nn.ModuleList) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
