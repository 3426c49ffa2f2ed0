"""Guesses of what other blocks will send: a small network, what fits it by least squares, and how good its guesses are.

Of gradients by a block's activity (synthetic gradients), and of a block's input (synthetic inputs): Jaderberg et al.
2017, arXiv 1608.05343.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from synaptome.learning.in_flight import InFlight, Kept
from synaptome.learning.parallel.replicas import ALONE, Replicas

REMEMBERED = 100  # fits of a synthesiser over which its cosine is averaged, exponentially


class Synthesis:
    """A synthesiser and the optimizer that fits it.

    Args:
        module: from what a guess is made of, tensors `[batch, ...]`, to the guess.
        optimizer: of its parameters.

    Attributes:
        cosine: running mean of the cosine between guesses and what they were of; 0 before the first fit.
        fits: how many there were.
        replicas: of the block.
    """

    def __init__(self, module: nn.Module, optimizer: optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.cosine, self.fits = 0.0, 0
        self.replicas: Replicas = ALONE

    @torch.no_grad()
    def guess(self, *given: Tensor) -> Tensor:
        """A guess that is a constant for those who use it."""
        guess: Tensor = self.module(*given)
        return guess

    def fit(self, given: tuple[Tensor, ...], target: Tensor, examples: int) -> None:
        """One step towards the target, by the mean square over all elements of the whole batch, of so many examples."""
        guess = self.module(*given)
        self.optimizer.zero_grad()
        elements = examples * math.prod(target.shape[1:])
        ((guess - target).square().sum() / elements).backward()
        self.replicas.add_up(self.module.parameters())
        self.optimizer.step()
        self.fits += 1
        rate = max(1 / self.fits, 1 / REMEMBERED)  # at first a plain mean
        self.cosine += rate * (cosine(guess.detach(), target, self.replicas) - self.cosine)

    def state_dict(self) -> dict[str, Any]:
        """The synthesiser, its optimizer, and how good it is."""
        return {
            "synthesiser": self.module.state_dict(),
            "synthesiser_optimizer": self.optimizer.state_dict(),
            "cosine": self.cosine,
            "fits": self.fits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.module.load_state_dict(state["synthesiser"])
        self.optimizer.load_state_dict(state["synthesiser_optimizer"])
        self.cosine, self.fits = state["cosine"], state["fits"]


class SyntheticInputs:
    """Guesses of a block's input `I(x)` from the network's input x, fitted to the activities that come later.

    With them a block begins a batch when the block before does (Jaderberg et al. 2017: full unlock).

    Args:
        synthesis: of the input; its synthesiser takes the network's input `[batch, *input_shape]`.
        delay: steps that an activity may be late before the block waits for it.

    Attributes:
        activities: batches whose activity has not come from the block before, and activities that have come.
    """

    def __init__(self, synthesis: Synthesis, delay: int) -> None:
        self.synthesis, self.delay = synthesis, delay
        self.activities = InFlight()

    def guess(self, x: Tensor) -> Tensor:
        """The guess of the block's input."""
        return self.synthesis.guess(x)

    def fit(self, x: Tensor, examples: int, wait: bool, fetch: Callable[[], Tensor]) -> None:
        """One fit for each activity that is due, when the block has learned from a batch.

        Args:
            x: the network's input, which the guess was made from.
            examples: of the whole batch.
            wait: for the activity of this very batch.
            fetch: waits for the next activity.
        """
        self.activities.pending.append(Kept((x.detach(),), examples))
        for kept, activity in self.activities.due(0 if wait else self.delay, fetch):
            self.synthesis.fit(kept.tensors, activity, kept.examples)


def cosine(first: Tensor, second: Tensor, replicas: Replicas = ALONE) -> float:
    """Of the angle between two tensors, shared out among replicas, from -1 to 1; 0 where one of them is 0."""
    one, other = first.flatten(), second.flatten()
    sums = torch.stack((one @ other, one.norm(), other.norm())).double()
    sums[1:] *= sums[1:].clone()  # squares add up, as products do
    product, *squares = replicas.total(sums).tolist()
    lengths = math.sqrt(squares[0] * squares[1])
    return product / lengths if lengths > 0 else 0.0
