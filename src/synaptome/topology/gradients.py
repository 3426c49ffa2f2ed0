"""Gradients of connections that do not exist, from a layer's inputs and the gradients of its outputs.

The gradient of a loss by the full matrix `[out, in]` is `Σ_b g[b, :]' x[b, :]`. It is computed a block of rows at a
time, from the last batches, and never held as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from synaptome.errors import ConfigurationError
from synaptome.topology.layers import label

BLOCK = 2**20  # elements of the gradient held at once, or a row if that is more

# What one optimizer step saw of a layer: inputs `[batch, in]` and gradients of outputs `[batch, out]` of each use.
Uses = list[tuple[Tensor, Tensor]]


class Capture:
    """The inputs of layers and the gradients of their outputs over the last steps of an optimizer.

    Nothing is captured before `watch`.

    Args:
        layers: by name, with a Parameter `values`. They take `[..., in]` to `[..., out]`, or have a method
            `weight_gradient(x, gradient)`, which makes `[out, in]` of an input and the gradient of its output.
        optimizer: one whose steps end a batch.
        steps: how many to keep, at least 1.
    """

    def __init__(self, layers: dict[str, nn.Module], optimizer: optim.Optimizer, steps: int) -> None:
        self._layers = layers
        self._hooks = {name: self._forward_hook(name, layer.values) for name, layer in layers.items()}
        self._optimizer = optimizer
        self.seen: dict[str, deque[Uses]] = {name: deque(maxlen=steps) for name in layers}
        self._current: dict[str, Uses] = {name: [] for name in layers}
        self._end: RemovableHandle | None = None  # of the optimizer's hook, while something is captured

    def watch(self, still_needed: int) -> None:
        """Keep the newest `still_needed` steps of those that were seen, and capture from now on; stop if negative."""
        for name, uses in self.seen.items():
            while len(uses) > max(still_needed, 0):
                uses.popleft()
            self._current[name] = []
        if still_needed < 0 and self._end is not None:
            self._unhook()
            self._end.remove()
            self._end = None
        elif still_needed >= 0 and self._end is None:
            self._hook()
            self._end = self._optimizer.register_step_post_hook(self._end_of_step)

    def follow(self, layers: dict[str, nn.Module]) -> None:
        """Go over to the layers that hold the same values now."""
        if all(layers[name] is layer for name, layer in self._layers.items()):
            return
        if self._end is not None:
            self._unhook()
        self._layers = layers
        if self._end is not None:
            self._hook()

    def _hook(self) -> None:
        self._unhook()  # a layer may have been given the hooks of the one before it
        for name, layer in self._layers.items():
            layer.register_forward_hook(self._hooks[name], with_kwargs=True)

    def _unhook(self) -> None:
        # Not by handles, which belong to the layer that the hook was registered for, and know nothing of copies.
        for name, layer in self._layers.items():
            for key in [key for key, hook in layer._forward_hooks.items() if hook is self._hooks[name]]:
                del layer._forward_hooks[key]
                layer._forward_hooks_with_kwargs.pop(key, None)

    def _forward_hook(self, name: str, values: Any) -> Callable[..., None]:
        def after_forward(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
            # Hooks are copied with a layer, be it to a successor with the same values or to a copy of the model.
            if not output.requires_grad or getattr(layer, "values", None) is not values:
                return
            inputs = (args[0] if args else next(iter(kwargs.values()))).detach()

            def after_backward(gradient: Tensor) -> None:
                self._current[name].append(_use(layer, inputs, gradient.detach()))

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        return after_forward

    def _end_of_step(self, *_: Any) -> None:
        for name, uses in self._current.items():
            if uses:
                self.seen[name].append(uses)
                self._current[name] = []


def _use(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    whole: Callable[[Tensor, Tensor], Tensor] | None = getattr(layer, "weight_gradient", None)
    if whole is None:
        return x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    # The weight of a convolution is smaller than its unfolded inputs: each row of its gradient is one of the batch.
    rows = whole(x, gradient)
    return rows, torch.eye(len(rows), dtype=rows.dtype, device=rows.device)


def gradient_blocks(
    name: str,
    steps: Sequence[Uses],
    decay: float,
    shape: tuple[int, int],
    like: Tensor,
    group: torch.distributed.ProcessGroup | None,
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the full matrix's gradient, as `synaptome.topology.grow.largest` takes them.

    Args:
        name: of the layer.
        steps: what was seen of it, oldest first.
        decay: the gradient of a step weighs `decay` to the power of its age: 1 for the sum, an optimizer's momentum
            for its running mean, cut off after these steps.
        shape: `[out, in]`.
        like: gives dtype and device.
        group: processes over whose gradients is summed; None for this one alone.

    Raises:
        ConfigurationError: nothing was seen.
    """
    if not steps:
        raise ConfigurationError(
            f"there is no gradient of {label(name)} to grow connections by; call step() after the optimizer's step, "
            f"on a model that calls this layer (a compiled one runs no hooks)"
        )
    out_features, in_features = shape
    rows = max(1, BLOCK // in_features)
    uses = [(x.to(like), g.to(like).mul(decay**age)) for age, step in enumerate(reversed(steps)) for x, g in step]
    for start in range(0, out_features, rows):
        stop = min(start + rows, out_features)
        block = like.new_zeros(stop - start, in_features)
        for x, g in uses:
            block.addmm_(g[:, start:stop].mT, x)
        if group is not None:
            torch.distributed.all_reduce(block, group=group)
        yield start * in_features, block.view(-1)
