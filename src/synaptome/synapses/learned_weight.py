"""A weight of which only the presence or the sign is learned, through a score for each synapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from synaptome.errors import ConfigurationError
from synaptome.kernels.learned_weight import learned_mask, learned_weight
from synaptome.synapses.failing import Failures
from synaptome.synapses.learned_rules import Learned

SCORES = (0.01, 0.1)  # new scores are uniform between these: every synapse starts as it was drawn


class Tally(NamedTuple):
    """How many numbers are negative, zero and positive."""

    negative: int
    zero: int
    positive: int


class Connectivity(NamedTuple):
    """What became of the synapses of a layer.

    Attributes:
        masks: how many f(s) are negative, zero and positive.
        weights: how many effective weights `W f(s)` are.
        changed: the share of synapses that are not as they were drawn: masked, or of the other sign; in [0, 1].
    """

    masks: Tally
    weights: Tally
    changed: float


class Counted:
    """What a pass in training has added up for the penalty beside its product; copies and files leave it behind."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor] | None = None

    def keep(self, scores: Tensor, total: Tensor) -> None:
        """Keep the total over some scores, if it can be differentiated."""
        self._last = (scores, scores._version, total) if total.requires_grad else None

    def take(self, scores: Tensor) -> Tensor | None:
        """The total over these scores as they are now, once; None if there is none to be differentiated."""
        last, self._last = self._last, None
        if last is None or last[0] is not scores or last[1] != scores._version or not torch.is_grad_enabled():
            return None
        return last[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return Counted()

    def __reduce__(self) -> tuple[type[Counted], tuple[()]]:
        return Counted, ()


class LearnedWeight(nn.Module):
    """What learned layers have in common: their weight, its scores, and how the one is gated by the other.

    The weight is a buffer, not a Parameter: it travels with `state_dict`, and no optimizer over `model.parameters()`
    can move or decay it. With `train_weights` it is a Parameter. The Parameter `scores`, of the shape of the weight,
    starts from U(0.01, 0.1). Biases are trained as ever. A `supermask` also has the buffers `stream` and `counter`
    (0-d int64), from which its masks are drawn, one for each pass in training: a resumed run goes on with the same
    ones. Under data parallelism all ranks draw the same mask.

    The attribute `failures`, None or a `synaptome.Failures`, says whether the synapses that are left fail at random;
    one-dimensional and three-dimensional convolutions have no product with failures.

    A subclass stands before the layer of `torch.nn` of its geometry, which it names `_plain`, and calls `_learn` once.
    """

    _plain: ClassVar[type[Any]]
    _arguments: Callable[[Any], tuple[Any, ...]]  # what a plain layer of the geometry of another is made with

    weight: Tensor
    scores: nn.Parameter
    learned: Learned
    failures: Failures | None
    stream: Tensor
    counter: Tensor

    def _learn(self, learned: Learned, weight: Tensor) -> None:
        """Take a weight and draw its scores. A Parameter that is to be trained stays the same object."""
        self.failures = None
        self.scores = nn.Parameter(torch.empty_like(weight.detach()))
        self.reset_scores()
        self._give_weight(weight if learned.train_weights else weight.detach().clone(), learned)

    def _give_weight(self, weight: Tensor, learned: Learned) -> None:
        self.learned, self._rule, self._amount = learned, learned.rule, learned.amount  # looked up at every pass
        self._thresholded = "positive" if learned.rule == "bernoulli" else learned.rule  # by which f(s) is no draw
        self._expected = learned.inference == "expected"
        self._counted = Counted()
        del self.weight
        if not learned.train_weights:
            self.register_buffer("weight", weight.detach())
        else:
            self.register_parameter("weight", weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight))
        if learned.rule == "bernoulli" and "stream" not in self._buffers:
            # Drawn on the CPU: the same seed gives the same stream on every device.
            self.register_buffer("stream", torch.randint(2**62, (), dtype=torch.int64).to(weight.device))
            self.register_buffer("counter", torch.zeros((), dtype=torch.int64, device=weight.device))

    def relearn(self, learned: Learned) -> None:
        """Go on by another method, with the same weights and scores.

        Where `train_weights` changes, the weight becomes a Parameter, or a buffer: make the optimizer afterwards.
        """
        self._give_weight(self.weight, learned)

    @torch.no_grad()
    def reset_scores(self) -> None:
        """Draw all scores anew, on the device, by torch's generator."""
        self.scores.uniform_(*SCORES)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, as the `torch.nn` layer does, and all scores."""
        super().reset_parameters()  # type: ignore[misc]  # of the torch.nn layer beside this class
        if "scores" in self._parameters:  # the constructor of the torch.nn layer calls this before there are any
            self.reset_scores()

    def effective_weight(self) -> Tensor:
        """`W ∘ f(s)`, in the shape of the weight, with the straight-through gradient; in training a new draw."""
        return learned_weight(self.weight, self.scores, *self._draw()) if self.training else self.inference_weight()

    def inference_weight(self) -> Tensor:
        """The effective weight at inference, in the shape of the weight."""
        if self._expected:
            return self.weight * self.scores.sigmoid()
        return learned_weight(self.weight, self.scores, self._thresholded, self._amount)

    @property
    def penalty_factor(self) -> float:
        """What the penalty multiplies the sum of f(s) by: alpha / size, 0 for a method without a penalty."""
        return (self.learned.alpha or 0.0) / max(1, self.scores.numel())

    def counted(self) -> Tensor | None:
        """The penalty of this layer, if the last pass in training has added it up and nobody has taken it yet."""
        return None if torch.compiler.is_compiling() else self._counted.take(self.scores)

    def _draw(self) -> tuple[str, float, Tensor | None]:
        """The rule, amount and key of a pass in training; of a supermask, a new draw."""
        if self._rule != "bernoulli":
            return self._rule, self._amount, None
        key = torch.stack((self.stream, self.counter))
        self.counter.add_(1)
        return "bernoulli", 0.0, key

    @torch.no_grad()
    def mask(self) -> Tensor:
        """The sign of f(s), int8 in the shape of the weight; of a supermask 1 for the likelier synapses."""
        return learned_mask(self.scores, self._thresholded, self._amount).sign_().to(torch.int8)

    def check_mask(self, mask: Tensor) -> None:
        """Refuse a mask that no scores of this layer stand for; see `set_mask`."""
        learned, values = self.learned, torch.unique(mask).tolist()
        if mask.shape != self.scores.shape or not set(values) <= set(learned.values):
            told = ", ".join(f"{value:g}" for value in values[:5])
            raise ConfigurationError(
                f"a mask of {learned.method} holds {', '.join(map(str, learned.values))} in the shape "
                f"{list(self.scores.shape)}; given {told} in {list(mask.shape)}"
            )
        keeps, kept = round(learned.amount * mask.numel()), int(mask.sum())
        if learned.rule == "top" and kept != keeps:
            raise ConfigurationError(
                f"edge-popup of density {learned.amount:g} keeps {keeps} of {mask.numel()} synapses; given a mask that "
                f"keeps {kept}"
            )

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Give scores that stand for a mask: as far from a change as new ones are in the mean.

        Args:
            mask: integers in the shape of the weight, of the values that the method knows: 0 and 1 for pruning, -1 and
                1 for flipping, all three for `ternary`.

        Raises:
            ConfigurationError: the mask has another shape or another value, or keeps another share than `edge-popup`
                is to keep.
        """
        self.check_mask(mask)
        signs, middle = mask.to(self.scores), sum(SCORES) / 2
        if self.learned.rule == "ternary":
            self.scores.copy_(signs * (self.learned.amount + middle))
        elif self.learned.rule == "top":
            self.scores.copy_(signs * middle)
        else:
            self.scores.copy_(torch.where(signs > 0, middle, -middle))

    @torch.no_grad()
    def connectivity(self) -> Connectivity:
        """What became of the synapses; see `Connectivity`."""
        mask = self.mask()
        changed = (mask != 1).sum().item() / max(1, mask.numel())
        return Connectivity(_tally(mask), _tally(self.weight.sign() * mask), changed)

    @classmethod
    def from_dense(cls, layer: Any, *, method: str, **options: Any) -> Self:
        """A learned layer with the weight of a layer of torch, and its very bias; new scores.

        The weight is a copy, unless it is to be trained, so that what else holds it goes on as before. Make the
        optimizer afterwards.

        Args:
            layer: the layer of `torch.nn` that this class extends.
            method, options: as for a new layer.

        Raises:
            ConfigurationError: there is no such method, or an option is another method's or out of range.
        """
        learned = Learned(method, **options)
        made = cls.__new__(cls)
        cls._plain.__init__(made, *cls._arguments(layer), device="meta")
        made._learn(learned, layer.weight)
        made.bias = layer.bias
        return made.train(layer.training)

    def to_dense(self) -> Any:
        """A layer of torch with the effective weight at inference, as a new Parameter, and the very bias of this one.

        Failures stay behind.
        """
        dense = self._plain(*self._arguments(self), device="meta")
        dense.weight = nn.Parameter(self.inference_weight().detach())
        dense.bias = self.bias
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """What `print(module)` says of it."""
        return f"{super().extra_repr()}, {self.learned.options()}"


def _tally(numbers: Tensor) -> Tally:
    negative, positive = int((numbers < 0).sum()), int((numbers > 0).sum())
    return Tally(negative, numbers.numel() - negative - positive, positive)
