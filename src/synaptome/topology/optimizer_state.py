"""The state that an optimizer keeps for each connection, when connections die and are born.

State tensors shaped like the parameter follow their connections; a new connection starts from the state that the
optimizer gives to a new parameter. Scalars, such as the number of steps, belong to the whole layer and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from synaptome.errors import ConfigurationError
from synaptome.kernels.graph import rearranged
from synaptome.topology.layers import label

# A state's first value, from the options of its parameter group and the values of the new connections `[m]`.
Fresh = Callable[[dict[str, Any], Tensor], Any]


def _zero(group: dict[str, Any], born: Tensor) -> Any:
    return 0.0


_MOMENTS: dict[str, Fresh] = {"exp_avg": _zero, "exp_avg_sq": _zero, "max_exp_avg_sq": _zero}

# By class (its subclasses included) and name of the state.
FRESH: dict[type[optim.Optimizer], dict[str, Fresh]] = {
    optim.ASGD: {"ax": lambda group, born: born},  # the average of the only iterate there is
    optim.Adadelta: {"square_avg": _zero, "acc_delta": _zero},
    optim.Adafactor: {"variance": _zero},
    optim.Adagrad: {"sum": lambda group, born: group["initial_accumulator_value"]},
    optim.Adam: _MOMENTS,
    optim.AdamW: _MOMENTS,
    optim.Adamax: {"exp_avg": _zero, "exp_inf": _zero},
    optim.NAdam: _MOMENTS,
    optim.RAdam: _MOMENTS,
    optim.RMSprop: {"square_avg": _zero, "momentum_buffer": _zero, "grad_avg": _zero},
    optim.Rprop: {"prev": _zero, "step_size": lambda group, born: float(group["lr"])},
    optim.SGD: {"momentum_buffer": _zero},
}


def group_of(optimizer: optim.Optimizer, values: nn.Parameter) -> dict[str, Any] | None:
    """The parameter group that holds these values; None if there is none."""
    return next((g for g in optimizer.param_groups if any(p is values for p in g["params"])), None)


def check(optimizer: optim.Optimizer, layers: dict[str, nn.Parameter]) -> None:
    """Refuse an optimizer whose state cannot follow the connections, before anything is changed.

    Args:
        optimizer: any.
        layers: the values of each sparse layer by the layer's name.

    Raises:
        ConfigurationError: it is of no class in `FRESH`, does not hold the values of a layer, or keeps a state for
            them that is not known.
    """
    known = _known(optimizer)
    missing = [name for name, values in layers.items() if group_of(optimizer, values) is None]
    if missing:
        raise ConfigurationError(
            f"the optimizer does not hold the values of {', '.join(map(label, missing))}; make it from the "
            f"parameters of the model as it is now"
        )
    for name, values in layers.items():
        for key, state in optimizer.state.get(values, {}).items():
            if isinstance(state, Tensor) and state.dim() > 0 and (state.shape != values.shape or key not in known):
                raise ConfigurationError(
                    f"{type(optimizer).__name__} keeps a state {key!r} of shape {list(state.shape)} for the values of "
                    f"{label(name)}, {list(values.shape)}, which cannot follow connections; it may follow if it is "
                    f"known: {', '.join(known)}"
                )


def follow(optimizer: optim.Optimizer, values: nn.Parameter, source: Tensor) -> None:
    """Bring the optimizer's state of `values` in the new order of their connections.

    Args:
        optimizer: one that `check` passed.
        values: as they are now, `[nnz']`.
        source: for each of them its index before, -1 for a new one: int64 `[nnz']`.
    """
    group = group_of(optimizer, values)
    assert group is not None  # `check` saw to it
    known = _known(optimizer)
    old = optimizer.state.get(values, {})
    per_connection = {key: state for key, state in old.items() if isinstance(state, Tensor) and state.dim() > 0}
    if not per_connection:
        return
    born = values.detach()[source < 0]
    for key, state in per_connection.items():
        old[key] = rearranged(state, source, torch.as_tensor(known[key](group, born)).expand(len(born)))


def momentum(optimizer: optim.Optimizer, values: nn.Parameter) -> tuple[float, Tensor | None]:
    """The decay of the optimizer's running mean of the gradient, and that mean `[nnz]`; None before its first step.

    Raises:
        ConfigurationError: it keeps no such mean.
    """
    group = group_of(optimizer, values) or {}
    decay = float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
    if decay == 0:
        raise ConfigurationError(
            f"{type(optimizer).__name__} keeps no momentum here; give it one (SGD with momentum, Adam, ...), or choose "
            f"a rule that needs none"
        )
    state = optimizer.state.get(values, {})
    return decay, state.get("exp_avg" if "betas" in group else "momentum_buffer")


def _known(optimizer: optim.Optimizer) -> dict[str, Fresh]:
    for kind in type(optimizer).__mro__:
        if kind in FRESH:
            return FRESH[kind]
    served = ", ".join(kind.__name__ for kind in FRESH)
    raise ConfigurationError(
        f"connections cannot change under {type(optimizer).__name__}, whose state is not known to follow them; take "
        f"one of: {served}"
    )
