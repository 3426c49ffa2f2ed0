"""What drives the layers of a relaxing network: an affine function of all states, and its reciprocal counterpart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from synaptome.kernels.sparse_product import Structure, sparse_linear
from synaptome.networks.relaxation import States


class Drive(Protocol):
    """The drive of every layer as an affine function of all states."""

    def __call__(self, states: States) -> list[Tensor]:
        """The drives, each `[patterns, width]`, differentiable."""
        ...

    def write(self, states: States, out: States) -> None:
        """The same without autograd, into tensors that are there already."""
        ...

    def transposed_about(self, states: States) -> Drive:
        """The drive that is the same at these states, and whose derivative by the states is the transpose of this one.

        At a point of rest s0 of `F(s) = 0` it is what the states feel under the force `F(s) - (J - J') (s - s0)`, J
        being the Jacobian of F at s0: J less its non-reciprocal part twice (Scurria et al. 2026).
        """
        ...


@dataclass(frozen=True)
class LayeredDrive:
    """That of layers of which some act on some others, each pair by a matrix of its own.

    Attributes:
        constants: what does not depend on the states, for each layer `[width]` or `[patterns, width]`.
        couplings: for each layer, the layers that act on it and their matrices `[width there, width here]`.
    """

    constants: tuple[Tensor, ...]
    couplings: tuple[tuple[tuple[int, Tensor], ...], ...]

    def __call__(self, states: States) -> list[Tensor]:
        """See `Drive`."""
        drives = []
        for state, constant, couplings in zip(states, self.constants, self.couplings, strict=True):
            drive = constant.expand_as(state)
            for source, matrix in couplings:
                drive = torch.addmm(drive, states[source], matrix)
            drives.append(drive)
        return drives

    def write(self, states: States, out: States) -> None:
        """See `Drive.write`."""
        for target, constant, couplings in zip(out, self.constants, self.couplings, strict=True):
            if not couplings:
                target.copy_(constant)
            for number, (source, matrix) in enumerate(couplings):
                torch.addmm(target if number else constant, states[source], matrix, out=target)

    def transposed_about(self, states: States) -> LayeredDrive:
        """See `Drive.transposed_about`."""
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
        return LayeredDrive(tuple(constants), couplings)


@dataclass(frozen=True)
class SparseDrive:
    """That of one layer, whose neurons act on one another by the connections of a graph.

    States as the transposed view of `[width, patterns]`, which is what it writes, are not copied.

    Attributes:
        constant: what does not depend on the state, `[patterns, width]`.
        values: the weights of the connections, `[nnz]`.
        structure: where they are in a matrix `[width, width]`, from column to row.
    """

    constant: Tensor
    values: Tensor
    structure: Structure

    def __call__(self, states: States) -> list[Tensor]:
        """See `Drive`."""
        return [self.constant + self._given(states)]

    def write(self, states: States, out: States) -> None:
        """See `Drive.write`."""
        torch.add(self.constant, self._given(states), out=out[0])

    def transposed_about(self, states: States) -> SparseDrive:
        """See `Drive.transposed_about`."""
        crow, col, ccol, row, permutation = self.structure
        places = torch.arange(len(permutation), dtype=permutation.dtype, device=permutation.device)
        inverse = torch.empty_like(permutation).scatter_(0, permutation.long(), places)
        turned = SparseDrive(
            self.constant, self.values.index_select(0, permutation), Structure(ccol, row, crow, col, inverse)
        )
        return replace(turned, constant=self.constant + self._given(states) - turned._given(states))

    def _given(self, states: States) -> Tensor:
        return sparse_linear(states[0], self.values, None, self.structure)
