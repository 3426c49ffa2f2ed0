"""Ctrl-C and SIGTERM as a request: the step is finished and saved; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, SIGINT and SIGTERM only set `signum`; whoever works looks at it between steps.

    Within another one it is that one: whoever asks several runs to stop asks the one that is at work.

    Attributes:
        signum: the signal that asked to stop, or None. Another thread may set it too.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._token: Token[StopRequest | None] | None = None

    def __enter__(self) -> StopRequest:
        outer = _active.get()
        if outer is not None:
            return outer
        self._token = _active.set(self)
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for signum in SIGNALS:
                self._previous[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
        if self._token is not None:
            _active.reset(self._token)
            self._token = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.signum = signum


# Each thread has its own: runs in several threads of one process are stopped one by one.
_active: ContextVar[StopRequest | None] = ContextVar("_active", default=None)
