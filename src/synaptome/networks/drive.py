"""What drives the layers of a relaxing network: an affine function of all states, and its reciprocal counterpart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synaptome.networks.relaxation import States


@dataclass(frozen=True)
class Drive:
    """The drive of every layer as an affine function of all states.

    Attributes:
        constants: what does not depend on the states, for each layer `[width]` or `[patterns, width]`.
        couplings: for each layer, the layers that act on it and their matrices `[width there, width here]`.
    """

    constants: tuple[Tensor, ...]
    couplings: tuple[tuple[tuple[int, Tensor], ...], ...]

    def __call__(self, states: States) -> list[Tensor]:
        """The drives, each `[patterns, width]`, differentiable."""
        drives = []
        for state, constant, couplings in zip(states, self.constants, self.couplings, strict=True):
            drive = constant.expand_as(state)
            for source, matrix in couplings:
                drive = torch.addmm(drive, states[source], matrix)
            drives.append(drive)
        return drives

    def write(self, states: States, out: States) -> None:
        """The same without autograd, into tensors that are there already."""
        for target, constant, couplings in zip(out, self.constants, self.couplings, strict=True):
            if not couplings:
                target.copy_(constant)
            for number, (source, matrix) in enumerate(couplings):
                torch.addmm(target if number else constant, states[source], matrix, out=target)

    def transposed_about(self, states: States) -> Drive:
        """The drive that is the same at these states, and whose derivative by the states is the transpose of this one.

        At a point of rest s0 of `F(s) = 0` it is what the states feel under the force `F(s) - (J - J') (s - s0)`, J
        being the Jacobian of F at s0: J less its non-reciprocal part twice (Scurria et al. 2026).
        """
        couplings = tuple(
            tuple(
                (target, matrix.T) for target, given in enumerate(self.couplings) for at, matrix in given if at == here
            )
            for here in range(len(self.couplings))
        )
        constants = []
        for drive, reversed_couplings in zip(self(states), couplings, strict=True):
            for source, matrix in reversed_couplings:
                drive = torch.addmm(drive, states[source], matrix, alpha=-1)
            constants.append(drive)
        return Drive(tuple(constants), couplings)
