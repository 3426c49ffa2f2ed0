"""The objective of one outer iteration as a function of the parameters, from the inputs or from a layer on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synaptome.data.dataset import Batch
from synaptome.learning.distribution_blocks import Block, Piece, Values
from synaptome.learning.loss import Loss
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.partition import split
from synaptome.networks.stable import StableNetwork

Run = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Cut:
    """A model as two functions of itself and a tensor, one after the other.

    Attributes:
        before: from inputs to the activations that the first layer of a block takes.
        after: from there to the outputs.
    """

    before: Run
    after: Run


@dataclass(frozen=True)
class Objective:
    """`f(parameters)`, the sum or mean of the losses of a batch; differentiable, and the same at every call.

    Attributes:
        model: any.
        loss: of its outputs.
        batch: of examples.
        buffers: of the model, at every call: layers whose synapses fail draw the same failures each time, and the
            model's own buffers stay as they are.
        run: what is called of the model.
    """

    model: nn.Module
    loss: Loss
    batch: Batch
    buffers: Mapping[str, Tensor]
    run: Run

    @classmethod
    def of(cls, model: nn.Module, loss: Loss, batch: Batch) -> Objective:
        """The objective of a batch with the model's buffers as they are now."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return cls(model, loss, batch, buffers, _whole)

    def __call__(self, values: Values) -> Tensor:
        """The objective, 0-d."""
        return self.loss.objective(self.loss.per_example(self.outputs(values), self.batch.targets))

    def outputs(self, values: Values) -> Tensor:
        """The model's outputs `[batch, outputs]` with these parameters."""
        given = dict(values) | {name: buffer.clone() for name, buffer in self.buffers.items()}
        named = {f"model.{name}": tensor for name, tensor in given.items()}
        outputs: Tensor = functional_call(_Part(self.model, self.run), named, (self.batch.inputs,))
        return outputs

    def after(self, cut: Cut, values: Values) -> Objective:
        """The same function where no parameter before the cut changes; what these make of the batch is computed once.

        Args:
            cut: of the model.
            values: all parameters, of which those before the cut are taken.
        """
        with torch.no_grad():
            activations = replace(self, run=cut.before).outputs(values)
        return replace(self, run=cut.after, batch=Batch(activations, self.batch.targets))


def cut_before(model: nn.Module, block: Block) -> Cut | None:
    """The model cut before the first layer that a block holds parameters of.

    Returns:
        None if that is the first one, or if the model is neither a `torch.nn.Sequential`, nor a `FeedForward`, nor a
        `StableNetwork`: of others it is not known in which order they use their layers.
    """
    if type(model) is StableNetwork:
        layer = min(_first_layer(model, piece) for piece in block)
        return Cut(lambda m, x: m(x, stop=layer), lambda m, h: m(h, start=layer)) if layer else None
    if type(model) not in (nn.Sequential, FeedForward):
        return None
    held = {model.get_parameter(piece.name) for piece in block}
    layers = list(model.children() if type(model) is nn.Sequential else model.layers)  # type: ignore[arg-type]
    first = next(number for number, layer in enumerate(layers) if held & set(layer.parameters()))
    if not first:
        return None
    halves = first, len(layers) - first
    return Cut(lambda m, x: split(m, halves)[0](x), lambda m, h: split(m, halves)[1](h))


class _Part(nn.Module):
    """A model of which something else than `forward` is called."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model, self.run = model, run
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.model, x)


def _whole(model: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = model(x)
    return outputs


def _first_layer(network: StableNetwork, piece: Piece) -> int:
    """The first layer that these parameters act on; 0 for the opening, the depth for the classifier."""
    if piece.name.startswith("classifier."):
        return network.depth
    if piece.name.startswith("opening.") or piece.rows is None or piece.rows[0] == 0:
        return 0
    # Control i takes part from the first layer after control i - 1 on, which stands at layer (i - 1) depth / controls.
    return (piece.rows[0] - 1) * network.depth // network.controls + 1
