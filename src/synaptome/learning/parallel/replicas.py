"""The processes that work at one block, each on its share of every batch: data parallelism inside a block.

Gradients in a share are those of the whole batch's objective. So they add up, whatever the sizes of shares, to what one
process would have computed, and every replica makes the same update.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from synaptome.learning.loss import batch_means
from synaptome.learning.parallel.groups import leave_at_exit, listening


class Replicas:
    """Of a block that one process works at: there is nobody to share with.

    Attributes:
        count: of replicas.
    """

    count = 1

    def spread(self, block: nn.Module) -> nn.Module:
        """The block, such that the gradients of its parameters are added up over replicas in a backward pass."""
        return block

    def share(self, tensor: Tensor) -> Tensor:
        """This replica's examples of a tensor of the whole batch."""
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over replicas."""
        return tensor

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over replicas."""

    def means(self, outputs: Tensor, values: Tensor, targets: Tensor, examples: int) -> dict[str, float]:
        """Means over the whole batch, of so many examples; the rest as for `synaptome.learning.loss.batch_means`."""
        return batch_means(outputs, values, targets)

    def least(self, number: int) -> int:
        """The least of the numbers that replicas give."""
        return number

    def listening(self) -> AbstractContextManager[None]:
        """Around what waits for other replicas: where one is gone, a `WorkerLostError` is raised."""
        return nullcontext()


ALONE = Replicas()


class ReplicaProcesses(Replicas):
    """Of a block that several processes work at; every process of the run makes one, at the same time.

    Process `block * replicas + replica` has its place in a mesh of dimensions "block" and "data".

    Args:
        blocks, replicas: of the mesh; together as many as there are processes.
        timeout: seconds after which a replica that does not answer counts as lost.
    """

    def __init__(self, blocks: int, replicas: int, timeout: float) -> None:
        leave_at_exit()
        # A mesh of the CPU, also where replicas compute on GPUs: it has the backends that the processes have met with.
        mesh = init_device_mesh("cpu", (blocks, replicas), mesh_dim_names=("block", "data"))
        self.count, self._rank = replicas, mesh.get_local_rank("data")
        self._timeout, self._group = timeout, mesh.get_group("data")
        _set_pg_timeout(timedelta(seconds=timeout), self._group)  # a mesh takes none, and half an hour is the default

    def spread(self, block: nn.Module) -> nn.Module:
        """See `Replicas.spread`: by torch's `DistributedDataParallel`, which adds up while it goes backward."""
        if not any(parameter.requires_grad for parameter in block.parameters()):
            return block  # which DistributedDataParallel refuses, and there is nothing to add up
        with self.listening():
            parallel = nn.parallel.DistributedDataParallel(block, process_group=self._group)
        # A lambda, since torch refuses annotations that are strings.
        parallel.register_comm_hook(self._group, lambda group, bucket: _add_up(group, bucket.buffer()))
        return parallel

    def share(self, tensor: Tensor) -> Tensor:
        """See `Replicas.share`: the first shares are one example larger where they cannot be equal."""
        return tensor.tensor_split(self.count)[self._rank]

    def total(self, tensor: Tensor) -> Tensor:
        """See `Replicas.total`."""
        with self.listening():
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Replicas.add_up`.

        For synthesisers, of which a step makes none or several fits: DistributedDataParallel is for one backward pass a
        forward pass, and a guess has none.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(together, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def means(self, outputs: Tensor, values: Tensor, targets: Tensor, examples: int) -> dict[str, float]:
        """See `Replicas.means`: loss and accuracy, since blocks in processes learn classes."""
        right = outputs.argmax(1) == targets
        sums = torch.stack((values.detach().double().sum(), right.double().sum()))  # since a share may be empty
        loss, accuracy = (self.total(sums) / examples).tolist()
        return {"loss": loss, "accuracy": accuracy}

    def least(self, number: int) -> int:
        """See `Replicas.least`."""
        found = torch.tensor([number])
        with self.listening():
            distributed.all_reduce(found, distributed.ReduceOp.MIN, group=self._group)
        return int(found)

    def listening(self) -> AbstractContextManager[None]:
        """See `Replicas.listening`."""
        return listening(self._timeout)


def _add_up(group: distributed.ProcessGroup, gradients: Tensor) -> torch.futures.Future[Tensor]:
    """What DistributedDataParallel does with gradients, in place of the mean: replicas have shares of one sum."""
    work = distributed.all_reduce(gradients, group=group, async_op=True)
    assert work is not None
    future: torch.futures.Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])
