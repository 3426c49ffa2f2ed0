"""Tensors between two processes over torch.distributed: in order, none waited for before it is needed."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.nested import put_together, take_apart

TAGS = 8  # that a line may have
AHEAD = 16  # tensors on their way to the other process, beyond which the sender waits for the oldest
Pending = distributed.Work | Future[bool]


class Line:
    """To and from another process; each kind of tensor has a tag and an order of its own.

    Args:
        peer: rank of the other process.
        timeout: seconds after which a process that does not answer counts as lost, above 0.
        ahead: tensors on their way to the other process, beyond which `send` waits for the oldest.
        watched: a tag of which `here` can be asked.

    Raises:
        ConfigurationError: the timeout is out of range.
    """

    def __init__(self, peer: int, timeout: float, *, ahead: int = AHEAD, watched: int | None = None) -> None:
        if not 0 < timeout < math.inf:  # also refuses NaN
            raise ConfigurationError(f"a timeout is a finite number of seconds above 0; given {timeout}")
        self.peer, self.timeout, self.ahead, self.watched = peer, timeout, ahead, watched
        self._sent: deque[tuple[distributed.Work, Tensor]] = deque()  # tensors must live until they are gone
        self._expected: dict[int, deque[tuple[Pending, Tensor]]] = defaultdict(deque)
        self._watch = None if watched is None else ThreadPoolExecutor(1)
        self._restarts: dict[int, int] = defaultdict(int)

    def send(self, tensor: Tensor, tag: int) -> None:
        """Send a tensor, which must not be written to any more."""
        tensor = tensor.detach().cpu().contiguous()
        work = self._guarded(lambda: distributed.isend(tensor, self.peer, tag=self._wire(tag)))
        self._sent.append((work, tensor))
        while self._sent and (len(self._sent) > self.ahead or self._sent[0][0].is_completed()):
            self._wait(self._sent.popleft()[0])

    def expect(self, shape: Sequence[int], tag: int, dtype: torch.dtype = torch.float32) -> None:
        """Make room for a tensor that will come, so that it can come at any time."""
        room = torch.empty(*shape, dtype=dtype)
        work = self._guarded(lambda: distributed.irecv(room, self.peer, tag=self._wire(tag)))
        if self._watch is not None and tag == self.watched:
            # gloo says that something has come only to who waits for it.
            work = self._watch.submit(work.wait, timedelta(seconds=self.timeout))
        self._expected[tag].append((work, room))

    def expected(self, tag: int) -> int:
        """How many tensors there is room for that have not been taken."""
        return len(self._expected[tag])

    def here(self, tag: int) -> bool:
        """Whether the oldest tensor that is expected under the watched tag has come: it can be taken without a wait."""
        oldest = self._expected[tag][0][0] if self._expected[tag] else None
        return isinstance(oldest, Future) and oldest.done()

    def take(self, tag: int) -> Tensor:
        """The oldest tensor that is expected, as soon as it is here."""
        work, tensor = self._expected[tag].popleft()
        self._wait(work)
        return tensor

    def restart(self, tag: int) -> None:
        """Let go of all that is on its way under a tag; both processes must, at the same place of their work."""
        self._expected[tag].clear()
        self._restarts[tag] += 1

    def receive(self, shape: Sequence[int], tag: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Expect a tensor and take it."""
        self.expect(shape, tag, dtype)
        return self.take(tag)

    def send_state(self, state: Any, tag: int) -> None:
        """Send nested tensors and plain values; see `synaptome.nested`."""
        tree, tensors = take_apart(state)
        for letter in (json.dumps(tree).encode(), safetensors.torch.save(tensors)):
            self.send(torch.tensor([len(letter)]), tag)
            self.send(torch.frombuffer(bytearray(letter), dtype=torch.uint8), tag)

    def receive_state(self, tag: int) -> Any:
        """What `send_state` was given."""
        tree, tensors = (self._letter(tag) for _ in range(2))
        return put_together(json.loads(tree), safetensors.torch.load(tensors))

    def flush(self) -> None:
        """Wait until everything that was sent has gone."""
        while self._sent:
            self._wait(self._sent.popleft()[0])

    def _letter(self, tag: int) -> bytes:
        size = int(self.receive((1,), tag, torch.int64))
        return self.receive((size,), tag, torch.uint8).numpy().tobytes()

    def _wire(self, tag: int) -> int:
        """The tag that torch sees: another one after each restart."""
        return tag + TAGS * self._restarts[tag]

    def _wait(self, pending: Pending) -> None:
        if isinstance(pending, Future):  # which waits as long
            self._guarded(pending.result)
        else:
            self._guarded(lambda: pending.wait(timedelta(seconds=self.timeout)))

    def _guarded(self, action: Any) -> Any:
        try:
            return action()
        except RuntimeError as error:
            raise WorkerLostError(
                f"process {self.peer} has ended, or did not answer within {self.timeout:g} s "
                f"({str(error).splitlines()[0]}); see what it says"
            ) from error
