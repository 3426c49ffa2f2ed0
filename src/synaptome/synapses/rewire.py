"""Give the layers of any model other synapses, in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.failing import Failing, FailingLinear
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_recurrent import FailingRNNCell
from synaptome.synapses.failing_sparse import FailingSparseLinear
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conv import SparseConv2d
from synaptome.synapses.sparse_conversion import largest
from synaptome.synapses.sparse_weight import SparseWeight
from synaptome.synapses.sparsity import Sparse
from synaptome.synapses.wiring import Dense, Kind, Wiring

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]

# Each kind of layer with its failing form; both have the same parameters.
_FAILING: dict[type[nn.Module], type[Any]] = {
    nn.Linear: FailingLinear,
    nn.Conv2d: FailingConv2d,
    nn.RNNCell: FailingRNNCell,
}
_DENSE = {failing: dense for dense, failing in _FAILING.items()}
# And with its sparse form, which has parameters of its own.
_SPARSE: dict[type[nn.Module], type[Any]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
# What can become, or stay, sparse.
_STORABLE = {*_SPARSE, *_SPARSE.values(), *(_FAILING[dense] for dense in _SPARSE), FailingSparseLinear}
_KNOWN = {*_FAILING, *_DENSE, *_SPARSE.values(), FailingSparseLinear}

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

    `Sparse` serves `Linear` and `Conv2d` layers. From their weights, trained or new, those of largest magnitude are
    kept, of equal ones the first in the order of (output, input); with `start="random"` a random graph with new values
    takes their place. A density is shared over the converted layers to the exact number of connections. Biases stay,
    but the weights of layers that become sparse, or dense again, are new Parameters: make the optimizer afterwards.

    `Sparse` with `Failing` gives `Linear` layers whose connections fail. `Failing` alone leaves a sparse layer its
    graph and its values; `Sparse` alone takes a layer's failures away.

    Args:
        model: any module. If it is itself the layer to convert, use what is returned.
        wiring: a kind such as `Failing(0.3)` or `Sparse(0.05)`, or a sum of kinds on different axes, such as
            `Dense() + Failing(0.3)`.
        where: a pattern for the layers' dotted names (`"*.fc*"`, shell style), several of them, or a function of
            (name, module). The default takes every layer that can be converted.

    Returns:
        The model.

    Raises:
        ConfigurationError: no layer matches (the names that could have are listed), a named layer cannot be
            converted, or kinds have no product together. The model is then as it was.
    """
    wiring = wiring if isinstance(wiring, Wiring) else Wiring((wiring,))
    sparse = wiring.get(Sparse)
    kinds: tuple[Any, ...] = (*_FAILING, SparseWeight)
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}
    served = _STORABLE if sparse is not None else _KNOWN
    convertible = {name: m for name, m in layers.items() if type(m) in served}
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
                raise _no_layer(model, pattern, convertible)
            chosen.update(matching)
    for name, module in chosen.items():
        if name not in convertible:
            why = "has no sparse storage" if type(module) in _KNOWN else "uses its weight in its own way"
            raise ConfigurationError(
                f"{name or 'the model'} is a {type(module).__name__}, which {why} and cannot be rewired; convertible "
                f"layers: {', '.join(convertible) or 'none'}"
            )
        becomes_sparse = sparse is not None or (isinstance(module, SparseWeight) and wiring.get(Dense) is None)
        if becomes_sparse and wiring.get(Failing) is not None and not isinstance(module, (nn.Linear, SparseLinear)):
            raise ConfigurationError(
                f"{name or 'the model'} is a {type(module).__name__}, and sparse convolutions that fail have no "
                f"product yet; choose Sparse or Failing for it, make a sparse one dense with Dense() + Failing(...), "
                f"or leave it out by naming layers with where"
            )
    connections = {} if sparse is None or not chosen else _share(sparse, dict.fromkeys(chosen.values()))
    converted = {module: _convert(module, wiring, connections.get(module)) for module in chosen.values()}
    for name in chosen:
        if name:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, converted[chosen[name]])
    _leave_fast_paths(model, {layer for layer in converted.values() if type(layer) not in _FAILING})
    return converted.get(model, model)


def _leave_fast_paths(model: nn.Module, layers: set[nn.Module]) -> None:
    """Let torch's transformer encoders call their layers at inference too, rather than read weights from them."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)) and layers & set(module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0  # read by the fast path only, which takes 0 for a reason to stay out


def _no_layer(model: nn.Module, pattern: str, convertible: Iterable[str]) -> ConfigurationError:
    """The error for a pattern that no convertible layer matches, with what does match it."""
    names = list(convertible)
    met = [
        f"{name} is a {type(m).__name__}" for name, m in model.named_modules() if name and fnmatchcase(name, pattern)
    ]
    if not met:
        return unknown("layer", pattern, names)
    what = f"{met[0]}, and {len(met) - 1} more" if len(met) > 1 else met[0]
    return ConfigurationError(
        f"no layer that matches {pattern!r} can be rewired ({what}); Linear, Conv2d and RNNCell can: "
        f"{', '.join(names) or 'the model has none'}"
    )


def _share(sparse: Sparse, layers: Iterable[Any]) -> dict[nn.Module, int]:
    """How many connections each layer is to have."""
    layers = list(layers)
    shapes = [layer.weight_shape if isinstance(layer, SparseWeight) else layer.weight.shape for layer in layers]
    counts = dict(zip(layers, sparse.counts(shapes), strict=True))
    for layer, count in counts.items():
        if isinstance(layer, SparseWeight) and sparse.start == "magnitude":
            layer.check_prunable(count)
    return counts


def _convert(layer: nn.Module, wiring: Wiring, connections: int | None) -> nn.Module:
    """The successor of one layer, with so many connections if it is to be sparse."""
    failing, sparse = wiring.get(Failing), wiring.get(Sparse)
    successor: Any = layer
    if type(layer) is FailingSparseLinear:
        successor = layer.to_sparse()
    elif type(layer) in _DENSE and (failing is None or sparse is not None):
        successor = successor.to_dense()
    if sparse is not None and connections is not None:
        successor = _sparse(successor, sparse, connections)
    elif type(successor) in _SPARSE.values() and (failing is None or wiring.get(Dense) is not None):
        successor = successor.to_dense()
    if failing is not None:
        plain = _DENSE.get(type(successor), type(successor))
        form = FailingSparseLinear.from_sparse if plain is SparseLinear else _FAILING[plain].from_dense
        successor = form(successor, failure=failing.failure, inference=failing.inference, noise=failing.noise)
    for hooks in _HOOKS:
        getattr(successor, hooks).update(getattr(layer, hooks))
    successor._is_full_backward_hook = layer._is_full_backward_hook
    return successor  # type: ignore[no-any-return]


def _sparse(layer: Any, sparse: Sparse, connections: int) -> Any:
    """The sparse successor of a plain or sparse layer, with its very bias."""
    plain = type(layer) in _SPARSE
    form = _SPARSE[type(layer)] if plain else type(layer)
    if sparse.start == "random":
        return form.random_like(layer, connections, topology=sparse.topology, dense_above=sparse.dense_above)
    if plain:
        return form.from_dense(layer, largest(layer.weight, connections), dense_above=sparse.dense_above)
    successor = layer.pruned(connections)
    successor.dense_above = sparse.dense_above
    return successor
