"""One block of a network that learns apart from the others: what it does with a batch, whatever carries its messages.

Block k takes the activity of block k - 1, gives its own to block k + 1, learns from a gradient by it, and gives the
gradient by its input back. The gradient is a guess of its synthesiser, `g = S(h, y)`, or a true one that arrives from
block k + 1 (Jaderberg et al. 2017, arXiv 1608.05343). What block k + 1 gives back may itself rest on a guess: targets
of synthesisers are bootstrapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from synaptome.errors import NumericError
from synaptome.learning.decoupling import Decoupling
from synaptome.learning.guesses import REMEMBERED, Synthesis, SyntheticInputs
from synaptome.learning.in_flight import InFlight, Kept
from synaptome.learning.loss import Loss
from synaptome.learning.optimization import load_schedule, schedule_state
from synaptome.learning.parallel.replicas import ALONE, Replicas


class Begun(NamedTuple):
    """The batch that a block is at: input, activity with its graph, targets, and examples of the whole batch."""

    x: Tensor
    h: Tensor
    targets: Tensor
    examples: int


class BlockLearner:
    """A block, its optimizer, and the synthesiser of the gradient by its output.

    Args:
        block: from its input to its activity `[batch, ...]`; the last one gives outputs.
        optimizer: of its parameters.
        loss: of the network.
        how: in which way it learns.
        delay: of its true gradients, in steps.
        synthesis: of the gradient by its activity; None for the last block, which knows the loss.
        inputs: guesses of its input; None for a block that waits for the activity of the block before.
        scheduler: of the optimizer's rate, a step for each batch.
        first: whether the input is the network's, by which no gradient is asked for.

    Attributes:
        gradients: batches whose true gradient has not been used, and true gradients that have come.
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
        inputs: SyntheticInputs | None = None,
        scheduler: LRScheduler | None = None,
        first: bool = False,
    ) -> None:
        self.block, self.optimizer, self.loss, self.how = block, optimizer, loss, how
        self.delay, self.synthesis, self.inputs = delay, synthesis, inputs
        self.scheduler, self.first = scheduler, first
        self.gradients = InFlight()
        self.done = 0
        self._replicas: Replicas = ALONE
        self._forward = block  # what is called in place of it
        self._begun: Begun | None = None

    def join(self, replicas: Replicas) -> None:
        """Learn with other replicas of this block, each from its share of every batch."""
        self._replicas = self.gradients.replicas = replicas
        for synthesis in self.guesses.values():
            synthesis.replicas = replicas
        if self.inputs is not None:
            self.inputs.activities.replicas = replicas
        self.rejoin()

    def rejoin(self) -> None:
        """As `join`, with the same replicas, when the block has new parameters."""
        self._forward = self._replicas.spread(self.block)

    @property
    def warm(self) -> bool:
        """Whether the warm-up is over."""
        return self.done >= self.how.warmup

    @property
    def waits(self) -> bool:
        """Whether the next update takes the true gradient of its own batch, and waits for it."""
        guesses, least = self.synthesis, self.how.least_cosine
        doubted = least is not None and guesses is not None and guesses.fits >= REMEMBERED and guesses.cosine < least
        return not self.warm or doubted

    @property
    def due_later(self) -> int:
        """How many of the true gradients that this block waits for the next one has not got itself yet."""
        return 0 if self.how.true_share < 1 else min(len(self.gradients.pending), self.delay - self.how.delay)

    @property
    def guesses(self) -> dict[str, Synthesis]:
        """The synthesisers that there are: of `gradients` by the activity, and of `inputs`."""
        inputs = None if self.inputs is None else self.inputs.synthesis
        found = {"gradients": self.synthesis, "inputs": inputs}
        return {name: synthesis for name, synthesis in found.items() if synthesis is not None}

    def look(self) -> None:
        """At what has come by now: a block that runs freely uses it in the next step, and others when it is due."""
        if self.how.free:
            self.gradients.look()
            if self.inputs is not None:
                self.inputs.activities.look()

    def begin(self, x: Tensor, targets: Tensor, examples: int | None = None) -> Tensor:
        """The block's activity on an input, without a gradient of its own: the input of the next block.

        Args:
            x: the input `[batch, ...]`.
            targets: of these examples.
            examples: of the whole batch, where this is a replica's share of it.
        """
        if not self.block.training:
            self.block.train()
        x = x.detach() if self.first else x.detach().requires_grad_()
        with self._replicas.listening():
            h: Tensor = self._forward(x)
        self._begun = Begun(x, h, targets, len(targets) if examples is None else examples)
        return h.detach()

    def conclude(self) -> tuple[Tensor | None, dict[str, float]]:
        """Of the last block: learn from the loss.

        Returns:
            The gradient by the input, None if the input is the network's; and the means over the whole batch, the loss
            and, of classes, the accuracy.

        Raises:
            NumericError: the loss is not finite; nothing was changed.
        """
        x, outputs, targets, examples = self._taken()
        values = self.loss.per_example(outputs, targets)
        means = self._replicas.means(outputs, values, targets, examples)
        if not math.isfinite(means["loss"]):
            raise NumericError(f"the loss is {means['loss']}")
        self.optimizer.zero_grad()
        with self._replicas.listening():
            torch.autograd.backward(values.sum() / self._scale(examples))
        self._update()
        return x.grad, means

    def learn(self, fetch: Callable[[], Tensor], send: Callable[[Tensor], None]) -> None:
        """Of every other block: learn from a guess or a true gradient, and fit the synthesiser to what arrives.

        Args:
            fetch: waits for the next true gradient, in the order of the batches.
            send: takes the gradient by the input; not called where that is the network's, nor, without guesses, before
                the first true gradient has come.
        """
        x, h, targets, examples = self._taken()
        share, delay = (1.0, 0) if self.waits else (self.how.true_share, self.delay)
        pending = self.gradients.pending
        pending.append(Kept((x.detach(), h.detach(), targets), examples))
        self.optimizer.zero_grad()
        if share == 0:  # there is nothing to wait for
            self._backward(send, (x, h, self._guess(h, targets, examples), 1.0))
            self._update()
            self._fit(self.gradients.due(delay, fetch))
            return
        true = self.gradients.due(delay, fetch, most=1)  # since a step goes back to one earlier batch
        if true and not pending:  # the last is of this very batch
            delta = true[-1][1]
            mixed = delta if share == 1 else torch.lerp(self._guess(h, targets, examples), delta, share)
            self._backward(send, (x, h, mixed, 1.0))
        else:
            parts = [(x, h, self._guess(h, targets, examples), 1 - share)] if share < 1 else []
            if true:
                late, delta = true[-1]
                again = late.tensors[0] if self.first else late.tensors[0].requires_grad_()
                with self._replicas.listening():
                    parts.append((again, self._forward(again), delta, share))
            self._backward(send, *parts)
        self._update()
        self._fit(true)

    def state_dict(self) -> dict[str, Any]:
        """All that goes on: the block, optimizers and synthesisers, and what is in flight, of this replica."""
        guesses = {"synthesiser": None, "synthesiser_optimizer": None, "cosine": 0.0, "fits": 0}
        state = {
            "block": self.block.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule_state(self.scheduler),
            **(guesses if self.synthesis is None else self.synthesis.state_dict()),
            "done": self.done,
            **self.gradients.state_dict(),
        }
        if self.inputs is not None:
            state["inputs"] = self.inputs.synthesis.state_dict() | self.inputs.activities.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, that of the whole batches; a replica takes its share of what is in flight."""
        self.block.load_state_dict(state["block"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
        if self.synthesis is not None:
            self.synthesis.load_state_dict(state)
        device = next(self.block.parameters()).device
        self.gradients.load_state_dict(state, device)
        if self.inputs is not None:
            self.inputs.synthesis.load_state_dict(state["inputs"])
            self.inputs.activities.load_state_dict(state["inputs"], device)
        self.done = state["done"]

    def _taken(self) -> Begun:
        begun, self._begun = self._begun, None
        if begun is None:
            raise RuntimeError("a block learns from a batch that it has begun")
        return begun

    def _scale(self, examples: int) -> int:
        """By how much the gradient of an example's own loss exceeds that of the objective."""
        return 1 if self.loss.summed else examples

    def _guess(self, h: Tensor, targets: Tensor, examples: int) -> Tensor:
        assert self.synthesis is not None
        return self.synthesis.guess(h.detach(), targets) / self._scale(examples)

    def _backward(self, send: Callable[[Tensor], None], *parts: tuple[Tensor, Tensor, Tensor, float]) -> None:
        """Gradients of the parameters by shares of those by activities; the whole one by the first input is sent.

        Args:
            send: as for `learn`.
            parts: input, activity with the graph, gradient by the activity, and its share.
        """
        if not parts:
            return
        # One pass for all parts: of several, the gradients of replicas would be added up more than once.
        with self._replicas.listening():
            torch.autograd.backward(
                [h for _, h, _, _ in parts],
                [gradient if share == 1 else gradient * share for _, _, gradient, share in parts],
            )
        x, _, _, share = parts[0]
        if not self.first:
            assert x.grad is not None
            send(x.grad if share == 1 else x.grad / share)

    def _update(self) -> None:
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.done += 1

    def _fit(self, true: list[tuple[Kept, Tensor]]) -> None:
        """One step of the synthesiser for each true gradient: least squares, over examples' own gradients."""
        if self.synthesis is None:
            return
        for (tensors, examples), delta in true:
            self.synthesis.fit(tensors[1:], delta * self._scale(examples), examples)
