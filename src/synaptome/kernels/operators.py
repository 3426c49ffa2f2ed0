"""How operations are registered with torch: cheap to call, and visible to autograd, autocast, compile and export.

`torch.library.custom_op` and `register_autograd` would do the same, at three times the cost of a call: as much as a
small sparse product takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from synaptome.kernels.backends import implementation


def operator(name: str, schema: str, fake: Callable[..., Any]) -> Any:
    """An operator `synaptome::name` that the backends implement (see `backends.implements`).

    Args:
        name: of the operation.
        schema: `(Tensor values, Tensor x, ...) -> Tensor`, of at least two tensors; the second chooses the backend.
        fake: the results' shapes, dtypes and devices, as empty tensors, of the same arguments.
    """
    torch.library.define(f"synaptome::{name}", schema)
    torch.library.impl(
        f"synaptome::{name}",
        "CompositeExplicitAutograd",
        lambda *operands: implementation(name, operands[1])(*operands),
    )
    torch.library.register_fake(f"synaptome::{name}", fake)
    return getattr(torch.ops.synaptome, name).default


def differentiated_by(name: str, function: type[torch.autograd.Function]) -> None:
    """Let a function, whose forward calls the operator below autograd, give the gradients of an operator.

    Under autocast its sums stay in float32, which the fast kernels take.
    """
    torch.library.impl(f"synaptome::{name}", "Autograd", function.apply)
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"synaptome::{name}", device, torch.float32)
