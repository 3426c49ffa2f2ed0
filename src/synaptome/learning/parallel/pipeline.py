"""Backprop of blocks in processes of their own, on several microbatches at once, by `torch.distributed.pipelining`.

A batch is cut into microbatches. A block works at one while the next block works at the one before; gradients add up,
and every block updates when all are through, so that the result is that of backpropagation. GPipe takes all
microbatches forward and then all backward (Huang et al. 2019, arXiv 1811.06965); 1F1B goes back with a microbatch as
soon as it can, and keeps fewer activities (Narayanan et al. 2021, arXiv 2006.09503: PipeDream-Flush).

torch's pipelines pass tensors of one shape. A batch that is smaller than the others, or not divisible, is filled up
with copies of its first example, which do not count: it takes as long as a whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from synaptome.data.dataset import Batch
from synaptome.learning.loss import batch_means
from synaptome.learning.parallel.orders import STEP, Orders
from synaptome.learning.parallel.pipeline_block import PipelineBlock, trained
from synaptome.synapses.predict import predict


class Pipeline:
    """The rule of process 0; the others `synaptome.learning.parallel.orders.serve` their blocks.

    Its state is that of `Backprop` of all blocks as one `torch.nn.Sequential`, with which one process goes on from it.

    Args:
        block: of process 0.

    Attributes:
        model: all blocks. Those of the other processes are copies, renewed when they are asked for.
    """

    model: nn.Module

    def __init__(self, block: PipelineBlock) -> None:
        self.block, self.model = block, nn.Sequential(*block.blocks)
        self._orders = Orders(block.microbatches.batch, block.timeout)
        self._stale = False

    def step(self, batch: Batch) -> dict[str, float]:
        """One update of each block; see `LearningRule.step`.

        Raises:
            NumericError: the loss is not finite; the model is then as it was before the step.
            WorkerLostError: another process ended, or did not answer in time.
            ConfigurationError: targets are not classes, or are more than was said.
        """
        self._orders.give(STEP, batch.targets)
        self._stale = True
        return self.block.learn(batch.targets, batch.inputs)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Means over the batch in inference, in this process, with the parameters of all blocks as they are now."""
        if self._stale:
            self._take_over(self._orders.models())
        outputs = predict(self.model, batch.inputs).mean
        return batch_means(outputs, self.block.loss.per_example(outputs, batch.targets), batch.targets)

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and schedule of the whole network."""
        own, others = self.block.state_dict(), self._orders.states()
        self._take_over([state["model"] for state in others])
        optimizers = [state["optimizer"] for state in (own, *others)]
        return {"model": self.model.state_dict(), "optimizer": joined(optimizers), "scheduler": own["scheduler"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, in all processes."""
        self.model.load_state_dict(state["model"])
        optimizers = parted(state["optimizer"], [len(trained(block)) for block in self.block.blocks])
        states = [
            {"model": block.state_dict(), "optimizer": optimizer, "scheduler": state["scheduler"]}
            for block, optimizer in zip(self.block.blocks, optimizers, strict=True)
        ]
        self.block.load_state_dict(states[0])
        self._orders.give_states(states[1:])
        self._stale = False

    def close(self) -> None:
        """Let the other processes end, if they have not."""
        self._orders.close()

    def _take_over(self, models: Sequence[dict[str, Any]]) -> None:
        for block, model in zip(self.block.blocks[1:], models, strict=True):
            block.load_state_dict(model)
        self._stale = False


def joined(optimizers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of one optimizer of all parameters, of those of the optimizers of each block, in a row."""
    values: dict[int, Any] = {}
    count = 0
    for own in optimizers:
        values |= {count + number: of_one for number, of_one in own["state"].items()}
        count += len(own["param_groups"][0]["params"])
    return {"state": values, "param_groups": [{**optimizers[0]["param_groups"][0], "params": list(range(count))}]}


def parted(optimizer: dict[str, Any], counts: Sequence[int]) -> list[dict[str, Any]]:
    """What `joined` was given, of its result, and of the number of parameters in each block."""
    (group,), found = optimizer["param_groups"], []
    for start, end in pairwise(accumulate(counts, initial=0)):
        values = {number - start: of_one for number, of_one in optimizer["state"].items() if start <= number < end}
        found.append({"state": values, "param_groups": [{**group, "params": list(range(end - start))}]})
    return found
