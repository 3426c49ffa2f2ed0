"""One block of a network that learns apart from the others: what it does with a batch, whatever carries its messages.

Block k takes the activity of block k - 1, gives its own to block k + 1, learns from a gradient by it, and gives the
gradient by its input back. The gradient is a guess of its synthesiser, `g = S(h, y)`, or a true one that arrives from
block k + 1 (Jaderberg et al. 2017, arXiv 1608.05343). What block k + 1 gives back may itself rest on a guess: targets
of synthesisers are bootstrapped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.loss import Loss, batch_means
from synaptome.learning.optimization import load_schedule, schedule_state

REMEMBERED = 100  # fits of a synthesiser over which its cosine is averaged, exponentially


@dataclass(frozen=True)
class Decoupling:
    """How blocks learn apart.

    Args:
        delay: steps that a true gradient may be late before a block waits for it, at least 0.
        true_share: of true gradients in an update, in [0, 1]; the rest are guesses. True gradients that are late belong
            to a batch of earlier steps, on which the block is run again (replay). With 1 there are no guesses: stale
            true gradients, or, without delay, backpropagation.
        warmup: steps of backpropagation at the start, in which synthesisers learn and blocks wait for each other.
        least_cosine: a block waits for true gradients, and takes no guesses, as long as the cosine between guesses and
            true gradients stays below, in [-1, 1]; None never.

    Raises:
        ConfigurationError: a number is out of range, or a least cosine is asked of guesses that there are not.
    """

    delay: int = 1
    true_share: float = 0.0
    warmup: int = 0
    least_cosine: float | None = None

    def __post_init__(self) -> None:
        if self.delay < 0 or self.warmup < 0:
            raise ConfigurationError(
                f"delay and warmup are numbers of steps, at least 0; given delay {self.delay}, warmup {self.warmup}"
            )
        if not 0 <= self.true_share <= 1:  # also refuses NaN
            raise ConfigurationError(f"true_share is a share in [0, 1]; given {self.true_share}")
        if self.least_cosine is not None and not -1 <= self.least_cosine <= 1:
            raise ConfigurationError(f"least_cosine is a cosine in [-1, 1], or None; given {self.least_cosine}")
        if self.least_cosine is not None and self.true_share == 1:
            raise ConfigurationError("least_cosine is of guesses, and with true_share 1 there are none; leave it out")

    def delay_of(self, block: int, blocks: int) -> int:
        """The delay of a block, counted from 0: without guesses true gradients come from the last block, one by one."""
        return self.delay if self.true_share < 1 else self.delay * (blocks - 1 - block)


class Synthesis(NamedTuple):
    """A synthesiser from `(activity, labels)` to a guess of the activity's shape, and the optimizer that fits it."""

    module: nn.Module
    optimizer: optim.Optimizer


class Passed(NamedTuple):
    """What a block keeps of a batch until its true gradient comes: input, activity and targets."""

    x: Tensor
    h: Tensor
    targets: Tensor


class BlockLearner:
    """A block, its optimizer, and the synthesiser of the gradient by its output.

    Args:
        block: from its input to its activity `[batch, ...]`; the last one gives outputs.
        optimizer: of its parameters.
        loss: of the network.
        how: in which way it learns.
        delay: of its true gradients, in steps.
        synthesis: of the gradient by its activity; None for the last block, which knows the loss.
        scheduler: of the optimizer's rate, a step for each batch.
        first: whether the input is the network's, by which no gradient is asked for.

    Attributes:
        arrived: true gradients that have come and are not used yet, oldest first.
        cosine: running mean of the cosine between guess and true gradient; 0 before the first.
        done: batches learned from.
    """

    def __init__(
        self,
        block: nn.Module,
        optimizer: optim.Optimizer,
        loss: Loss,
        how: Decoupling,
        *,
        delay: int = 0,
        synthesis: Synthesis | None = None,
        scheduler: LRScheduler | None = None,
        first: bool = False,
    ) -> None:
        self.block, self.optimizer, self.loss, self.how = block, optimizer, loss, how
        self.delay, self.synthesis, self.scheduler, self.first = delay, synthesis, scheduler, first
        self.arrived: deque[Tensor] = deque()
        self.cosine = 0.0
        self.done = 0
        self._fits = 0
        self._graph: Passed | None = None  # of the batch that was begun
        self._pending: deque[Passed] = deque()

    @property
    def waits(self) -> bool:
        """Whether the next update takes the true gradient of its own batch, and waits for it."""
        least = self.how.least_cosine
        doubted = least is not None and self._fits >= REMEMBERED and self.cosine < least
        return self.done < self.how.warmup or doubted

    @property
    def due_later(self) -> int:
        """How many of the true gradients that this block waits for the next one has not got itself yet."""
        return 0 if self.how.true_share < 1 else min(len(self._pending), self.delay - self.how.delay)

    @property
    def owed(self) -> list[Tensor]:
        """The activities whose true gradients have not arrived, oldest first."""
        return [passed.h for passed in self._pending][len(self.arrived) :]

    def begin(self, x: Tensor, targets: Tensor) -> Tensor:
        """The block's activity on an input, without a gradient of its own: the input of the next block."""
        if not self.block.training:
            self.block.train()
        x = x.detach() if self.first else x.detach().requires_grad_()
        h: Tensor = self.block(x)
        self._graph = Passed(x, h, targets)
        return h.detach()

    def conclude(self) -> tuple[Tensor | None, dict[str, float]]:
        """Of the last block: learn from the loss.

        Returns:
            The gradient by the input, None if the input is the network's; and the means over the batch, the loss and,
            of classes, the accuracy.

        Raises:
            NumericError: the loss is not finite; nothing was changed.
        """
        x, outputs, targets = self._begun()
        values = self.loss.per_example(outputs, targets)
        means = batch_means(outputs, values, targets)
        if not math.isfinite(means["loss"]):
            raise NumericError(f"the loss is {means['loss']}")
        self.optimizer.zero_grad()
        self.loss.objective(values).backward()  # type: ignore[no-untyped-call]
        self._update()
        return x.grad, means

    def learn(self, fetch: Callable[[], Tensor], send: Callable[[Tensor], None]) -> None:
        """Of every other block: learn from a guess or a true gradient, and fit the synthesiser to what arrives.

        Args:
            fetch: waits for the next true gradient, in the order of the batches.
            send: takes the gradient by the input; not called where that is the network's, nor, without guesses, before
                the first true gradient has come.
        """
        x, h, targets = self._begun()
        share, delay = (1.0, 0) if self.waits else (self.how.true_share, self.delay)
        self._pending.append(Passed(x.detach(), h.detach(), targets))
        self.optimizer.zero_grad()
        if share == 0:  # there is nothing to wait for
            self._backward(x, h, self._guess(h, targets), send)
            self._update()
            self._fit(self._true(delay, fetch))
            return
        true = self._true(delay, fetch)
        if true and not self._pending:  # the last is of this very batch
            delta = true[-1][1]
            self._backward(x, h, delta if share == 1 else torch.lerp(self._guess(h, targets), delta, share), send)
        else:
            if share < 1:
                self._backward(x, h, self._guess(h, targets), send, 1 - share)
            if true:
                late, delta = true[-1]
                again = late.x if self.first else late.x.requires_grad_()
                self._backward(again, self.block(again), delta, send if share == 1 else None, share)
        self._update()
        self._fit(true)

    def state_dict(self) -> dict[str, Any]:
        """All that goes on: the block, optimizers and synthesiser, and what is waiting for its true gradient."""
        synthesis = self.synthesis
        return {
            "block": self.block.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule_state(self.scheduler),
            "synthesiser": synthesis and synthesis.module.state_dict(),
            "synthesiser_optimizer": synthesis and synthesis.optimizer.state_dict(),
            "arrived": list(self.arrived),
            "pending": [list(passed) for passed in self._pending],
            "cosine": self.cosine,
            "fits": self._fits,
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.block.load_state_dict(state["block"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
        if self.synthesis is not None:
            self.synthesis.module.load_state_dict(state["synthesiser"])
            self.synthesis.optimizer.load_state_dict(state["synthesiser_optimizer"])
        self.arrived = deque(state["arrived"])
        self._pending = deque(Passed(*passed) for passed in state["pending"])
        self.cosine, self._fits, self.done = state["cosine"], state["fits"], state["done"]

    def _begun(self) -> Passed:
        begun, self._graph = self._graph, None
        if begun is None:
            raise RuntimeError("a block learns from a batch that it has begun")
        return begun

    def _true(self, delay: int, fetch: Callable[[], Tensor]) -> list[tuple[Passed, Tensor]]:
        """The batches whose gradient is due, oldest first, with it."""
        due = []
        while len(self._pending) > delay:
            due.append((self._pending.popleft(), self.arrived.popleft() if self.arrived else fetch()))
        return due

    def _scale(self, h: Tensor) -> int:
        """By how much the gradient of an example's own loss exceeds that of the objective."""
        return 1 if self.loss.summed else len(h)

    @torch.no_grad()
    def _guess(self, h: Tensor, targets: Tensor) -> Tensor:
        assert self.synthesis is not None
        guess: Tensor = self.synthesis.module(h.detach(), targets)
        return guess / self._scale(h)

    def _backward(
        self, x: Tensor, h: Tensor, gradient: Tensor, send: Callable[[Tensor], None] | None, share: float = 1.0
    ) -> None:
        """Add a share of a gradient by the activity to those of the parameters, and send the whole one by the input."""
        torch.autograd.backward(h, gradient if share == 1 else gradient * share)
        if send is not None and not self.first:
            assert x.grad is not None
            send(x.grad if share == 1 else x.grad / share)

    def _update(self) -> None:
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.done += 1

    def _fit(self, true: list[tuple[Passed, Tensor]]) -> None:
        """One step of the synthesiser for each true gradient: least squares, over examples' own gradients."""
        if self.synthesis is None:
            return
        for passed, delta in true:
            target = delta * self._scale(delta)
            guess = self.synthesis.module(passed.h, passed.targets)
            self.synthesis.optimizer.zero_grad()
            (guess - target).square().mean().backward()
            self.synthesis.optimizer.step()
            self._fits += 1
            rate = max(1 / self._fits, 1 / REMEMBERED)  # at first a plain mean
            self.cosine += rate * (cosine(guess.detach(), target) - self.cosine)


def cosine(first: Tensor, second: Tensor) -> float:
    """Of the angle between two tensors, from -1 to 1; 0 where one of them is 0."""
    lengths = first.norm() * second.norm()
    return (first.flatten() @ second.flatten() / lengths).item() if lengths > 0 else 0.0
