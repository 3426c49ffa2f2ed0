"""Give the layers of any model other synapses, in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.failing import Failing, FailingLinear
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_recurrent import FailingRNNCell
from synaptome.synapses.wiring import Kind, Wiring

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]

# Each kind of layer with its failing form; both have the same parameters.
_FAILING: dict[type[nn.Module], type[Any]] = {
    nn.Linear: FailingLinear,
    nn.Conv2d: FailingConv2d,
    nn.RNNCell: FailingRNNCell,
}
_DENSE = {failing: dense for dense, failing in _FAILING.items()}

# Everything else that a module carries and that must follow it to its successor.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def rewire(model: nn.Module, wiring: Kind | Wiring, where: Where = "*") -> nn.Module:
    """Convert the layers of `model` that `where` names, in place: `Linear`, `Conv2d` and `RNNCell`.

    Parameters keep their identity, so an optimizer that holds them goes on; hooks, device, dtype and training mode
    stay. A layer that stands in several places of the model is converted once. `rewire(model, Dense())` is the way
    back: plain layers.

    Args:
        model: any module. If it is itself the layer to convert, use what is returned.
        wiring: a kind such as `Failing(0.3)`, or a sum of kinds on different axes, such as `Dense() + Failing(0.3)`.
        where: a pattern for the layers' dotted names (`"*.fc*"`, shell style), several of them, or a function of
            (name, module). The default takes every layer that can be converted.

    Returns:
        The model.

    Raises:
        ConfigurationError: no layer matches (the names that could have are listed), or a named layer cannot be
            converted. The model is then as it was.
    """
    wiring = wiring if isinstance(wiring, Wiring) else Wiring((wiring,))
    kinds: tuple[Any, ...] = tuple(_FAILING)
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}
    convertible = {name: m for name, m in layers.items() if type(m) in _FAILING or type(m) in _DENSE}
    if callable(where):
        chosen = {name: m for name, m in layers.items() if where(name, m)}
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        chosen = {}
        for pattern in patterns:
            # "*" means all that can be had; a narrower pattern means what it says, or is refused.
            among = convertible if pattern == "*" else layers
            matching = {name: m for name, m in among.items() if fnmatchcase(name, pattern)}
            if not matching:
                raise unknown("layer", pattern, convertible)
            chosen.update(matching)
    for name, module in chosen.items():
        if name not in convertible:
            raise ConfigurationError(
                f"{name or 'the model'} is a {type(module).__name__}, which uses its weight in its own way and "
                f"cannot be rewired; convertible layers: {', '.join(convertible) or 'none'}"
            )
    converted = {module: _convert(module, wiring) for module in chosen.values()}
    for name in chosen:
        if name:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, converted[chosen[name]])
    return converted.get(model, model)


def _convert(layer: nn.Module, wiring: Wiring) -> nn.Module:
    """The successor of one layer."""
    failing = wiring.get(Failing)
    dense = _DENSE.get(type(layer), type(layer))
    successor: Any = layer
    if failing is not None:
        successor = _FAILING[dense].from_dense(
            layer, failure=failing.failure, inference=failing.inference, noise=failing.noise
        )
    elif type(layer) is not dense:
        successor = successor.to_dense()
    for hooks in _HOOKS:
        getattr(successor, hooks).update(getattr(layer, hooks))
    successor._is_full_backward_hook = layer._is_full_backward_hook
    return successor  # type: ignore[no-any-return]
