"""Which implementation serves an operation, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from synaptome.errors import ConfigurationError, unknown

BACKENDS = ("reference", "cpu", "cuda")
VARIABLE = "SYNAPTOME_BACKEND"

_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Choice(NamedTuple):
    """The backend that serves an operation on a device type, and the reason in words."""

    backend: str
    reason: str


def implements(operation: str, backend: str) -> Callable[[_Function], _Function]:
    """Decorator: this function serves `operation` on `backend`."""

    def register(function: _Function) -> _Function:
        _implementations.setdefault(operation, {})[backend] = function
        _choose.cache_clear()
        return function

    return register


def operations() -> dict[str, tuple[str, ...]]:
    """Every operation with the backends that implement it."""
    return {name: tuple(b for b in BACKENDS if b in table) for name, table in sorted(_implementations.items())}


def choose(operation: str, device_type: str) -> Choice:
    """The backend that serves `operation` on tensors of `device_type` (`cpu`, `cuda`, ...).

    Raises:
        ConfigurationError: `SYNAPTOME_BACKEND` names no backend, or one that cannot serve this operation or device.
    """
    return _choose(operation, device_type, os.environ.get(VARIABLE))


@cache  # asked at every call of an operation
def _choose(operation: str, device_type: str, forced: str | None) -> Choice:
    available = _implementations[operation]
    if not forced:
        if device_type in available:
            return Choice(device_type, f"the fastest for {device_type} tensors")
        return Choice("reference", "plain torch serves every device")
    if forced not in BACKENDS:
        raise unknown(f"backend in {VARIABLE}", forced, BACKENDS)
    if forced not in available:
        raise ConfigurationError(
            f"{VARIABLE}={forced}, but {operation} has no {forced} implementation; it has: {', '.join(available)}. "
            f"Unset {VARIABLE} to choose by device."
        )
    if forced not in ("reference", device_type):
        raise ConfigurationError(
            f"{VARIABLE}={forced}, but the tensors are on {device_type}; unset {VARIABLE} to choose by device"
        )
    return Choice(forced, f"forced by {VARIABLE}")


def passed_over(operation: str, device_type: str) -> dict[str, str]:
    """Every backend that does not serve `operation` on `device_type`, and why."""
    chosen = choose(operation, device_type)

    def reason(backend: str) -> str:
        if backend not in _implementations[operation]:
            return "not implemented"
        if backend not in ("reference", device_type):
            return f"it serves {backend} tensors"
        return f"{chosen.backend} is {chosen.reason}"

    return {backend: reason(backend) for backend in BACKENDS if backend != chosen.backend}


def implementation(operation: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that serves `operation` on such a tensor; narrow and complex numbers are the reference's."""
    dtype = tensor.dtype
    narrow = (dtype.is_floating_point or dtype.is_complex) and dtype not in (torch.float32, torch.float64)
    backend = "reference" if narrow else choose(operation, tensor.device.type).backend
    return _implementations[operation][backend]
