"""Give the layers of any model other synapses, in place, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from synaptome.errors import ConfigurationError, unknown
from synaptome.synapses.antisymmetric import Antisymmetric, AntisymmetricLinear
from synaptome.synapses.failing import Failing, FailingLinear, Failures
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_recurrent import FailingRNNCell
from synaptome.synapses.failing_sparse import FailingSparseLinear
from synaptome.synapses.learned import LearnedConv1d, LearnedConv2d, LearnedConv3d, LearnedLinear
from synaptome.synapses.learned_rules import Learned
from synaptome.synapses.learned_weight import LearnedWeight
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conv import SparseConv2d
from synaptome.synapses.sparse_conversion import largest
from synaptome.synapses.sparse_weight import SparseWeight
from synaptome.synapses.sparsity import Sparse
from synaptome.synapses.wiring import Dense, Kind, Wiring
from synaptome.topology.layers import label

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
# And with the form whose presence or sign is learned.
_LEARNED: dict[type[nn.Module], type[Any]] = {
    nn.Linear: LearnedLinear,
    nn.Conv1d: LearnedConv1d,
    nn.Conv2d: LearnedConv2d,
    nn.Conv3d: LearnedConv3d,
}
# What can become, or stay, sparse.
_STORABLE = {*_SPARSE, *_SPARSE.values(), *(_FAILING[dense] for dense in _SPARSE), FailingSparseLinear}
_STORED_SPARSELY = {*_SPARSE.values(), FailingSparseLinear}
_KNOWN = {*_FAILING, *_DENSE, *_STORED_SPARSELY, *_LEARNED.values(), AntisymmetricLinear}

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
    So a weight that such a layer shared with another module, as the output of a language model with its `Embedding`,
    is no longer tied to it, of which a warning tells.

    `Sparse` with `Failing` gives `Linear` layers whose connections fail. `Failing` alone leaves a sparse layer its
    graph and its values; `Sparse` alone takes a layer's failures away.

    `Learned` serves `Linear` layers and all convolutions, with `Failing` as well `Linear` and `Conv2d`. Their weights
    stay as they are, as copies that no optimizer holds; the new Parameters `scores` are what is trained: make the
    optimizer afterwards. A layer that is learned already keeps its weights and its scores, also under `Failing` alone;
    `Learned` alone takes failures away, and `Dense` leaves the effective weights. `Learned` and `Sparse` have no
    product together; see `synaptome.to_sparse`.

    `Antisymmetric` serves square `Linear` layers, with or without failures, which it takes away. Their very weights go
    on as K; no other kind but `Dense` goes with it. Afterwards `Dense` leaves the effective weights, as new Parameters.

    Args:
        model: any module. If it is itself the layer to convert, use what is returned.
        wiring: a kind such as `Failing(0.3)` or `Sparse(0.05)`, or a sum of kinds on different axes, such as
            `Dense() + Failing(0.3)`.
        where: a pattern for the layers' dotted names (`"*.fc*"`, shell style), several of them, or a function of
            (name, module), true for at least one. The default takes every layer that can be converted.

    Returns:
        The model.

    Raises:
        ConfigurationError: what is given is no kind, no layer matches (the names that could have are listed), a named
            layer cannot be converted, would be left without connections or is not square where it has to be, or kinds
            have no product together. The model is then as it was.
    """
    if not isinstance(wiring, Kind | Wiring):
        raise ConfigurationError(
            f"a model is rewired with a kind of synapse, such as Sparse(0.1), Failing(0.3) or a sum of kinds; given "
            f"{wiring!r}"
        )
    wiring = wiring if isinstance(wiring, Wiring) else Wiring((wiring,))
    _check_kinds(wiring)
    sparse = wiring.get(Sparse)
    chosen = _chosen(model, wiring, where)
    if wiring.get(Antisymmetric) is not None:
        _check_square(chosen)
    for name, module in chosen.items():
        becomes_sparse = sparse is not None or (isinstance(module, SparseWeight) and wiring.get(Dense) is None)
        if becomes_sparse and wiring.get(Failing) is not None and not isinstance(module, (nn.Linear, SparseLinear)):
            raise ConfigurationError(
                f"{label(name)} is a {type(module).__name__}, and sparse convolutions that fail have no "
                f"product yet; choose Sparse or Failing for it, make a sparse one dense with Dense() + Failing(...), "
                f"or leave it out by naming layers with where"
            )
    connections = {} if sparse is None else _share(sparse, {module: name for name, module in chosen.items()})
    _warn_untied(model, connections)
    converted = {module: _convert(module, wiring, connections.get(module)) for module in chosen.values()}
    return put(model, chosen, converted)


def _check_kinds(wiring: Wiring) -> None:
    """Refuse kinds that have no product together, whatever the layer."""
    sparse, learned, antisymmetric = wiring.get(Sparse), wiring.get(Learned), wiring.get(Antisymmetric)
    if sparse is not None and learned is not None:
        raise ConfigurationError(
            f"{learned} gates dense weights, and has no product with {sparse} yet; learn first, and then give what is "
            f"pruned to synaptome.to_sparse"
        )
    others = [str(kind) for kind in wiring if not isinstance(kind, Antisymmetric | Dense)]
    if antisymmetric is not None and others:
        raise ConfigurationError(
            f"{antisymmetric} ties plain dense weights, and has no product with {' and '.join(others)}; give it alone, "
            f"and the other kind to other layers, which where can name"
        )


def _chosen(model: nn.Module, wiring: Wiring, where: Where) -> dict[str, nn.Module]:
    """The layers that `where` names, all of which can be converted."""
    plain = {**_FAILING, **_LEARNED} if wiring.get(Learned) is not None else _FAILING
    kinds: tuple[Any, ...] = (*plain, SparseWeight, LearnedWeight)
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}
    served = _served(wiring)
    convertible = {name: m for name, m in layers.items() if type(m) in served}
    if callable(where):
        chosen = {name: m for name, m in layers.items() if where(name, m)}
        if not chosen:
            raise ConfigurationError(
                f"where(name, module) is true for no layer; convertible layers: {', '.join(convertible) or 'none'}"
            )
    else:
        patterns = _patterns(where)
        chosen = {}
        for pattern in patterns:
            # "*" means all that can be had; a narrower pattern means what it says, or is refused.
            among = convertible if pattern == "*" else layers
            matching = {name: m for name, m in among.items() if fnmatchcase(name, pattern)}
            if not matching:
                raise _no_layer(model, pattern, convertible, served)
            chosen.update(matching)
    for name, module in chosen.items():
        if name not in convertible:
            why = _why_not(module, wiring)
            raise ConfigurationError(
                f"{label(name)} is a {type(module).__name__}, which {why} and cannot be rewired; convertible "
                f"layers: {', '.join(convertible) or 'none'}"
            )
    return chosen


def _check_square(chosen: Mapping[str, Any]) -> None:
    """Refuse layers that have no mirror images of their synapses."""
    named = {name: (layer.in_features, layer.out_features) for name, layer in chosen.items()}
    told = [f"{label(name)} has {i} inputs and {o} outputs" for name, (i, o) in named.items() if i != o]
    if told:
        square = [name for name, (i, o) in named.items() if i == o]
        raise ConfigurationError(
            f"antisymmetric synapses need as many outputs as inputs, and {', '.join(told)}; name square layers with "
            f"where: {', '.join(square) or 'none of these is'}"
        )


def put(model: nn.Module, names: Mapping[str, nn.Module], successors: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put the successors of layers, with all that hangs on these, into the places of a model that have these names.

    Returns:
        The model, or its successor.
    """
    for layer, successor in successors.items():
        for hooks in _HOOKS:
            getattr(successor, hooks).update(getattr(layer, hooks))
        successor._is_full_backward_hook = layer._is_full_backward_hook
    for name, layer in names.items():
        if name:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, successors[layer])
    _leave_fast_paths(model, {layer for layer in successors.values() if type(layer) not in _FAILING})
    return successors.get(model, model)


def _served(wiring: Wiring) -> set[type[nn.Module]]:
    """The kinds of layer that can be converted."""
    failing, dense = wiring.get(Failing) is not None, wiring.get(Dense) is not None
    if wiring.get(Antisymmetric) is not None:
        made_plain = {SparseLinear, FailingSparseLinear, LearnedLinear} if dense else set()
        return {nn.Linear, FailingLinear, AntisymmetricLinear, *made_plain}
    if wiring.get(Sparse) is not None:
        return _STORABLE
    tied = {AntisymmetricLinear} if dense else set()
    plain = {kind for kind in _LEARNED if not failing or kind in _FAILING}
    learned = {_LEARNED[kind] for kind in plain}
    if wiring.get(Learned) is not None:
        failed = {_FAILING[kind] for kind in plain if kind in _FAILING}
        return plain | learned | failed | tied | (_STORED_SPARSELY if dense else set())
    return _KNOWN - {AntisymmetricLinear, *_LEARNED.values()} | learned | tied


def _why_not(module: nn.Module, wiring: Wiring) -> str:
    """What a layer that is not served does or lacks."""
    if type(module) not in _KNOWN and type(module) not in _LEARNED:
        return "uses its weight in its own way"
    if wiring.get(Antisymmetric) is not None:
        linear = isinstance(module, SparseLinear | LearnedLinear)
        made = " while it is sparse or learned (Dense() + Antisymmetric(...) makes it dense)" if linear else ""
        return f"has no antisymmetric form{made}"
    if isinstance(module, AntisymmetricLinear):
        return "has no product with other kinds (make it plain with Dense() first)"
    if wiring.get(Sparse) is not None:
        return "has no sparse storage"
    if wiring.get(Learned) is None or isinstance(module, (nn.Conv1d, nn.Conv3d)):
        return "has no product with failures"
    if isinstance(module, SparseWeight):
        return "has no learned form while it is sparse (Dense() + Learned(...) makes it dense)"
    return "has no learned form"


def _leave_fast_paths(model: nn.Module, layers: set[nn.Module]) -> None:
    """Let torch's transformer encoders call their layers at inference too, rather than read weights from them."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)) and layers & set(module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0  # read by the fast path only, which takes 0 for a reason to stay out


def _patterns(where: Any) -> list[str]:
    """The patterns that are given, of which there must be some."""
    patterns = [where] if isinstance(where, str) else list(where) if isinstance(where, Iterable) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigurationError(
            f"where is a pattern for names of layers, a list of at least one, or a function of (name, module); given "
            f"{where!r}"
        )
    return patterns


def _no_layer(
    model: nn.Module, pattern: str, convertible: Iterable[str], served: set[type[nn.Module]]
) -> ConfigurationError:
    """The error for a pattern that no convertible layer matches, with what does match it."""
    names = list(convertible)
    alone = not any(True for _ in model.children())
    met = [
        f"{label(name)} is a {type(m).__name__}"
        for name, m in model.named_modules()
        if (name or alone) and fnmatchcase(name, pattern)
    ]
    if not met:
        return unknown("layer", pattern, names)
    *kinds, last = (kind.__name__ for kind in dict.fromkeys((*_FAILING, *_LEARNED)) if kind in served)
    can = f"{', '.join(kinds)} and {last}" if kinds else last
    what = f"{met[0]}, and {len(met) - 1} more" if len(met) > 1 else met[0]
    return ConfigurationError(
        f"no layer that matches {pattern!r} can be rewired ({what}); {can} can: "
        f"{', '.join(names) or 'the model has none'}"
    )


def _warn_untied(model: nn.Module, sparse: Iterable[nn.Module]) -> None:
    """Tell of weights with several names that layers give up when they become sparse."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            names.setdefault(id(parameter), []).append(f"{name}.{attribute}" if name else attribute)
    for weight in {id(layer._parameters["weight"]) for layer in sparse if "weight" in layer._parameters}:
        if len(names[weight]) > 1:
            warnings.warn(
                f"{' and '.join(names[weight])} are one Parameter, and are tied no longer: sparse layers have weights "
                f"of their own",
                stacklevel=3,
            )


def _share(sparse: Sparse, named: Mapping[Any, str]) -> dict[nn.Module, int]:
    """How many connections each layer is to have."""
    layers = list(named)
    shapes = [layer.weight_shape if isinstance(layer, SparseWeight) else layer.weight.shape for layer in layers]
    counts = dict(zip(layers, sparse.counts(shapes, list(named.values())), strict=True))
    for layer, count in counts.items():
        if isinstance(layer, SparseWeight) and sparse.start == "magnitude":
            layer.check_prunable(count)
    return counts


def _convert(layer: nn.Module, wiring: Wiring, connections: int | None) -> nn.Module:
    """The successor of one layer, with so many connections if it is to be sparse."""
    failing, sparse, learned = wiring.get(Failing), wiring.get(Sparse), wiring.get(Learned)
    antisymmetric, dense = wiring.get(Antisymmetric), wiring.get(Dense) is not None
    successor: Any = layer
    if type(layer) is FailingSparseLinear:
        successor = layer.to_sparse()
    elif type(layer) in _DENSE and (failing is None or sparse is not None or learned is not None):
        successor = successor.to_dense()
    if sparse is not None and connections is not None:
        successor = _sparse(successor, sparse, connections)
    elif type(successor) in _SPARSE.values() and (failing is None or dense):
        successor = successor.to_dense()
    elif dense and (
        (isinstance(layer, LearnedWeight) and learned is None)
        or (isinstance(layer, AntisymmetricLinear) and antisymmetric is None)
    ):
        successor = layer.to_dense()
    if antisymmetric is not None:
        successor = AntisymmetricLinear.from_dense(successor, gamma=antisymmetric.gamma)
    if learned is not None:
        successor = _learned(successor, learned)
    if isinstance(successor, LearnedWeight):
        successor.failures = None if failing is None else _failures(failing, successor)
    elif failing is not None:
        plain = _DENSE.get(type(successor), type(successor))
        form = FailingSparseLinear.from_sparse if plain is SparseLinear else _FAILING[plain].from_dense
        successor = form(successor, failure=failing.failure, inference=failing.inference, noise=failing.noise)
    return successor  # type: ignore[no-any-return]


def _learned(layer: Any, learned: Learned) -> Any:
    """The learned successor of a plain layer, or a learned layer that goes on by another method."""
    if not isinstance(layer, LearnedWeight):
        return _LEARNED[type(layer)].from_dense(layer, **asdict(learned))
    layer.relearn(learned)
    return layer


def _failures(failing: Failing, layer: LearnedWeight) -> Failures:
    failures = Failures(failing.failure, failing.inference, failing.noise, device=layer.weight.device)
    return failures.train(layer.training)


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
