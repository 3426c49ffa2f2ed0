"""One block of a pipeline of microbatches, in a process of its own; see `synaptome.learning.parallel.pipeline`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn, optim
from torch.nn import functional as F

from synaptome.errors import ConfigurationError, NumericError, unknown
from synaptome.learning.loss import Loss, loss_named
from synaptome.learning.optimization import MakeOptimizer, MakeScheduler, load_schedule, schedule_state
from synaptome.learning.parallel.groups import listening, own_group
from synaptome.learning.parallel.lines import Line
from synaptome.learning.parallel.messages import check_processes

Order = Literal["gpipe", "1f1b"]
NOTHING = -1  # the label of a copy that does not count


@dataclass(frozen=True)
class Microbatches:
    """How a batch goes through a pipeline.

    Args:
        order: `gpipe` or `1f1b`.
        count: microbatches of a batch, at least 1; of 1f1b at least as many as there are blocks.
        batch: examples a step, at most.

    Raises:
        ConfigurationError: one of them is none of the above.
    """

    order: Order
    count: int
    batch: int

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise unknown("order of a pipeline", self.order, get_args(Order))
        if self.count < 1 or self.batch < 1:
            raise ConfigurationError(
                f"microbatches and the examples of a batch are whole numbers of at least 1; given {self.count} and "
                f"{self.batch}"
            )

    @property
    def size(self) -> int:
        """Examples of a microbatch."""
        return math.ceil(self.batch / self.count)

    def check(self, blocks: int) -> None:
        """Refuse fewer microbatches than 1F1B needs to keep so many blocks at work: a ConfigurationError."""
        if self.order == "1f1b" and self.count < blocks:
            raise ConfigurationError(
                f"1f1b takes at least as many microbatches as there are blocks; given {self.count} microbatches and "
                f"{blocks} blocks: give more microbatches, or choose gpipe"
            )


class PipelineBlock:
    """The block of this process in a pipeline; see `synaptome.learning.parallel.orders.Worker`.

    Every process makes one at the same time, of the same blocks.

    Args:
        blocks: of the network, in a row, one for each process, on the CPU. Their layers may not draw noise of their
            own, nor look at several examples at once, if the result is to be that of the whole batch.
        optimizer: makes that of a block, of its parameters, with one group of them; none that calls a closure.
        shapes: of an example's input, of its activity after each block, and so of its output.
        microbatches: how a batch goes through.
        timeout: seconds after which a process that does not answer counts as lost.
        loss: a name in `synaptome.learning.loss.LOSSES`, or a `Loss`.
        scheduler: makes the learning-rate schedule of a block's optimizer, a step for each batch.

    Attributes:
        model: the block.

    Raises:
        ConfigurationError: there are not as many processes as blocks, two or more; or shapes, microbatches, the
            optimizer or the timeout are not as above.
        WorkerLostError: the others did not all come in time.
    """

    model: nn.Module

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        optimizer: MakeOptimizer,
        shapes: Sequence[Sequence[int]],
        microbatches: Microbatches,
        timeout: float,
        *,
        loss: str | Loss = "cross-entropy",
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self._group = own_group(timeout)
        rank, count = check_processes(len(blocks)), len(blocks)
        microbatches.check(count)
        self.blocks, self.timeout, self.microbatches = list(blocks), timeout, microbatches
        self.model = self.blocks[rank]
        self.loss = loss_named(loss) if isinstance(loss, str) else loss
        self.optimizer = optimizer(trained(self.model))
        _check(self.optimizer, shapes, count)
        self.scheduler = scheduler and scheduler(self.optimizer)
        self._last, self._examples = count - 1, 0
        self._sums = torch.zeros(2, dtype=torch.float64)  # of losses and of right answers
        like = next(self.model.parameters())
        if like.device.type != "cpu":
            raise ConfigurationError(f"a pipeline passes tensors of the CPU over gloo; given blocks on {like.device}")
        from torch.distributed import pipelining  # which takes a second to import

        example = [torch.empty(microbatches.size, *shape, dtype=like.dtype) for shape in shapes]
        stage = pipelining.PipelineStage(
            _Contiguous(self.model),
            rank,
            count,
            like.device,
            input_args=example[rank].requires_grad_(rank > 0),
            output_args=example[rank + 1].requires_grad_(),
            group=self._group,
        )
        schedule = pipelining.ScheduleGPipe if microbatches.order == "gpipe" else pipelining.Schedule1F1B
        self._schedule = schedule(stage, microbatches.count, loss_fn=self._share_of_loss, scale_grads=False)

    def learn(self, labels: Tensor, inputs: Tensor | None = None) -> dict[str, float]:
        """One step with all other processes.

        Args:
            labels: int64 `[batch]`.
            inputs: `[batch, ...]`, in process 0.

        Returns:
            Means over the batch.

        Raises:
            NumericError: the loss is not finite; it is raised in all processes, and nothing was changed.
            WorkerLostError: another process ended, or did not answer in time.
        """
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad()
        self._examples = len(labels)
        self._sums.zero_()
        missing = self.microbatches.count * self.microbatches.size - len(labels)
        with listening(self.timeout):
            if inputs is not None:
                copies = inputs[:1].expand(missing, *inputs.shape[1:])
                self._schedule.step(torch.cat([inputs, copies]), return_outputs=False)
            else:
                self._schedule.step(target=F.pad(labels, (0, missing), value=NOTHING), return_outputs=False)
            distributed.broadcast(self._sums, self._last, group=self._group)
        loss, accuracy = (self._sums / len(labels)).tolist()
        if not math.isfinite(loss):
            raise NumericError(f"the loss is {loss}")
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return {"loss": loss, "accuracy": accuracy}

    def work(self, labels: Tensor, line: Line) -> None:
        """See `Worker`."""
        with suppress(NumericError):  # process 0 says so, and ends it
            self.learn(labels)

    def state_dict(self) -> dict[str, Any]:
        """The block, its optimizer and its schedule."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule_state(self.scheduler),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])

    def _share_of_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What a microbatch adds to the objective of the batch; called in the last process."""
        count = int((labels != NOTHING).sum())  # copies come last
        outputs, labels = outputs[:count], labels[:count]
        values = self.loss.per_example(outputs, labels)
        self._sums += torch.stack([values.detach().sum().double(), (outputs.argmax(1) == labels).sum().double()])
        return values.sum() if self.loss.summed else values.sum() / self._examples


class _Contiguous(nn.Module):
    """A block whose activity can be sent as it lies in memory."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        activity: Tensor = self.block(x)
        return activity.contiguous()


def trained(block: nn.Module) -> list[nn.Parameter]:
    """The parameters of a block that learn."""
    return [parameter for parameter in block.parameters() if parameter.requires_grad]


def _check(optimizer: optim.Optimizer, shapes: Sequence[Sequence[int]], blocks: int) -> None:
    if len(shapes) != blocks + 1:
        raise ConfigurationError(
            f"{blocks} blocks have {blocks + 1} shapes, of the input and of what each gives; given {len(shapes)}"
        )
    if isinstance(optimizer, optim.LBFGS) or len(optimizer.param_groups) > 1:
        raise ConfigurationError(
            f"a pipeline takes one step for each batch, with the parameters of a block in one group; given "
            f"{type(optimizer).__name__} with {len(optimizer.param_groups)} groups: choose SGD or Adam"
        )
