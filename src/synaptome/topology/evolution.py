"""Connections that die and are born during training, by any rule of `drop` and `grow`, under any torch optimizer."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from synaptome.errors import ConfigurationError, NumericError
from synaptome.kernels.graph import union
from synaptome.topology import grow as growth
from synaptome.topology import optimizer_state
from synaptome.topology.densities import apportion
from synaptome.topology.drop import DROPS
from synaptome.topology.gradients import Capture, gradient_blocks
from synaptome.topology.layers import (
    SparseLayer,
    barred,
    holders,
    label,
    layers_to_evolve,
    occupied,
    places_of,
    replace,
)
from synaptome.topology.schedule import SCHEDULES
from synaptome.topology.settings import Settings, differences

MOMENTUM_LEFT_OUT = 0.1  # of the weight of the running mean by which connections grow, unless told otherwise


class Evolution:
    """Drops connections of every sparse layer of a model and grows as many new ones.

    Call `step()` after each optimizer step, or after each epoch, as `every` and `until` are meant; then nothing else
    changes the connections. What the published methods are:

    | method | drop | grow | beside |
    |---|---|---|---|
    | SET (Mocanu et al. 2018) | `set` | `random` | once an epoch |
    | RigL (Evci et al. 2020) | `magnitude` | `gradient` | `schedule="cosine"` |
    | SNFS (Dettmers & Zettlemoyer 2019) | `magnitude` | `momentum` | `redistribute="momentum"` |
    | ITOP (Liu et al. 2021) | `magnitude` | `random`, `gradient` | a large `every` |

    Drop rules: `set`, `magnitude`, `taylor`; see `synaptome.topology.drop`. Growth rules, among the empty places:

    - `random`: drawn uniformly;
    - `random-unfired`: drawn uniformly from the places that were never occupied, while there are any;
    - `gradient`: where the gradient of the loss by a weight of 0 is largest in magnitude, summed over the last
      `accumulate` optimizer steps. Unlike in RigL the step itself is done before connections change;
    - `momentum`: where its running mean, with the decay of the optimizer's momentum, is largest. Unlike in SNFS it is
      cut off after `accumulate` steps, since a mean for every place would be a dense matrix.

    A place that a step vacates stays empty in that step, under every rule (RigL lets it compete for regrowth). So a
    layer drops no more connections than it has empty places. The number of connections stays exactly the same, in each
    layer or, when redistributed, in the model. Of equal candidates the first in the order of (row, col) is taken.

    Values and optimizer state of the connections that stay are untouched; new ones have the state of a new parameter.
    An evolution belongs to the values that the model's sparse layers hold when it is made, without those of layers that
    are frozen then (`requires_grad` False). A layer that takes the place of another and holds the very same values goes
    on evolving, as under `rewire(model, Failing(...))`. When values leave the model, as under `rewire` with `Dense` or
    `Sparse`, the next change is refused: make a new optimizer and a new evolution. So does a copy of the model need.

    Under `DistributedDataParallel` give the wrapped model, and every process the same seed: all then make the same
    choices, by the gradients of all. Growing by gradient takes memory for the activations of `accumulate` steps and a
    block of the gradient, and time for the dense gradient.

    Args:
        model: any module with sparse layers, such as `synaptome.SparseLinear`; see
            `synaptome.topology.layers.SparseLayer` for what is asked of others.
        optimizer: of `torch.optim`, with the model's parameters; not LBFGS nor SparseAdam, whose state cannot follow.
        drop: see above.
        grow: see above.
        fraction: share of the connections to replace at a time, in (0, 1], before the schedule.
        every: calls of `step()` from one change to the next, at least 1.
        until: calls of `step()` after which nothing changes, that call included; None for never.
        schedule: how the fraction falls until then: `constant`, `cosine`, `linear` or `inverse-power` (the third power
            of the linear one).
        accumulate: optimizer steps over which gradients are taken, at least 1. By default 1 for `gradient`; for
            `momentum` as many as hold 90 % of the running mean's weight.
        redistribute: `momentum` shares what was dropped in all layers among them in proportion to the mean magnitude
            of their connections' momentum; None keeps the number of each layer.
        initial: value of a new connection, or `distribution` for one drawn as in a new layer.
        track_visited: remember every place that was ever occupied, 8 bytes each, for `itop_rate`; `random-unfired`
            does in any case.
        seed: of all random choices, from 0 to 2**63 - 1.

    Raises:
        ConfigurationError: a name is unknown, a number is out of range, the model has no sparse layer or only frozen
            ones, a layer lacks what is asked of it, or the optimizer cannot serve it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        drop: str = "magnitude",
        grow: str = "random",
        fraction: float = 0.3,
        every: int = 1,
        until: int | None = None,
        schedule: str = "constant",
        accumulate: int | None = None,
        redistribute: Literal["momentum"] | None = None,
        initial: float | Literal["distribution"] = 0.0,
        track_visited: bool = False,
        seed: int = 0,
    ) -> None:
        self._settings = Settings(
            drop=drop,
            grow=grow,
            fraction=fraction,
            every=every,
            until=until,
            schedule=schedule,
            accumulate=accumulate,
            redistribute=redistribute,
            initial=initial,
            track_visited=track_visited,
            seed=seed,
        )
        needed = ("in_features", "out_features", "row_of", "col")
        self._model = model
        self._layers = layers_to_evolve(model, needed + (("initial_values",) if initial == "distribution" else ()))
        self._held = {name: layer.values for name, layer in self._layers.items()}
        self._group = model.process_group if isinstance(model, DistributedDataParallel) else None
        if redistribute is not None and isinstance(model, DistributedDataParallel):
            raise ConfigurationError(
                "DistributedDataParallel needs parameters of a fixed size; leave redistribute at None under it"
            )
        self._optimizer = optimizer
        optimizer_state.check(optimizer, self._held)
        self._drop, self._grow = DROPS[drop], grow
        self._fraction, self._every, self._until, self._schedule = fraction, every, until, SCHEDULES[schedule]
        self._redistribute, self._initial = redistribute, initial
        self._accumulate = accumulate or 1
        self._decay = dict.fromkeys(self._layers, 1.0)
        if "momentum" in (grow, redistribute):
            decay = {name: optimizer_state.momentum(optimizer, v)[0] for name, v in self._held.items()}
            if grow == "momentum":
                self._decay = decay
                longest = math.log(MOMENTUM_LEFT_OUT) / math.log(max(decay.values()))
                self._accumulate = accumulate or math.ceil(longest)
        self._visited: dict[str, Tensor] | None = None
        if track_visited or grow == "random-unfired":
            self._visited = {name: occupied(layer) for name, layer in self._layers.items()}
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = 0
        self._capture = Capture(cast(dict[str, nn.Module], self._layers), optimizer, self._accumulate)
        self._watch()

    @torch.no_grad()
    def step(self) -> int:
        """Count a step, and change connections if it is time.

        Returns:
            How many connections were replaced.

        Raises:
            ConfigurationError: values have left the model, the optimizer no longer serves it, or there is no gradient
                to choose by.
            NumericError: a weight or a gradient is not finite. In both cases nothing was changed.
        """
        replaced = self._evolve(self._steps + 1) if self._due(self._steps + 1) else 0
        self._steps += 1
        self._watch()
        return replaced

    def itop_rate(self) -> float:
        """The share of all places of the layers that evolve that are or were occupied (Liu et al. 2021: R_s).

        Raises:
            ConfigurationError: places are not remembered, or values have left the model.
        """
        if self._visited is None:
            raise ConfigurationError("visited places are not remembered; give track_visited=True")
        self._look_up()
        visited = sum(len(union(self._visited[name], occupied(layer))) for name, layer in self._layers.items())
        return visited / sum(places_of(layer) - len(barred(layer)) for layer in self._layers.values())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed evolution needs beside the states of model and optimizer."""
        return {
            "settings": self._settings.as_state(),
            "steps": self._steps,
            "generator": self._generator.get_state(),
            "visited": None if self._visited is None else dict(self._visited),
            "seen": {name: [list(uses) for uses in seen] for name, seen in self._capture.seen.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, after model and optimizer went back to theirs: the coming steps are the same to the bit.

        Raises:
            ConfigurationError: the state is of another model, of an evolution with other settings, or corrupt, or
                values have left the model; nothing was changed.
        """
        self._look_up()
        wrong = self._what_is_wrong(state)
        if wrong:
            raise ConfigurationError(f"the state of an evolution does not fit: {wrong}")
        self._steps = state["steps"]
        self._generator.set_state(state["generator"].cpu())
        device = {name: layer.values.device for name, layer in self._layers.items()}
        if self._visited is not None:
            self._visited = {name: state["visited"][name].to(device[name]) for name in self._layers}
        self._watch()
        for name, steps in state["seen"].items():
            self._capture.seen[name].clear()
            self._capture.seen[name].extend(
                [(x.to(device[name]), g.to(device[name])) for x, g in uses] for uses in steps
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings}, layers={list(self._held)})"

    def _look_up(self) -> None:
        """Go over to the layers in which the values are now."""
        self._layers = holders(self._model, self._held)
        self._capture.follow(cast(dict[str, nn.Module], self._layers))

    def _due(self, step: int) -> bool:
        return step % self._every == 0 and (self._until is None or step < self._until)

    def _watch(self) -> None:
        """Capture gradients where the coming change needs them."""
        if self._grow not in ("gradient", "momentum"):
            return
        due = (self._steps // self._every + 1) * self._every
        # Each call to come follows at least one step of the optimizer.
        self._capture.watch(self._accumulate - (due - self._steps) if self._due(due) else -1)

    def _evolve(self, step: int) -> int:
        # Whatever can be refused is refused before the first random number and the first change.
        self._look_up()
        optimizer_state.check(self._optimizer, self._held)
        for name, values in self._held.items():
            if not _finite(values):
                raise NumericError(f"a weight of {label(name)} is not finite; no connection was changed")
        fraction = self._fraction * self._schedule(0.0 if self._until is None else step / self._until)
        closed = {name: _closed(layer) for name, layer in self._layers.items()}
        room = {name: places_of(layer) - len(closed[name]) for name, layer in self._layers.items()}
        dropped = {}
        for name, values in self._held.items():
            allowed = min(fraction, room[name] / max(len(values), 1))
            dropped[name] = self._drop(values.detach(), values.grad, allowed, room[name])
        counts = self._share_out({name: int(mask.count_nonzero()) for name, mask in dropped.items()}, room)
        if self._visited is not None:
            self._visited = {name: union(self._visited[name], occupied(layer)) for name, layer in self._layers.items()}
        grown = {name: self._grown(name, closed[name], counts[name]) for name in self._layers}
        for name, layer in self._layers.items():
            row = grown[name] // layer.in_features
            fresh = self._fresh(layer, row)
            source = replace(name, layer, dropped[name], row, grown[name] - row * layer.in_features, fresh)
            optimizer_state.follow(self._optimizer, layer.values, source)
            if self._visited is not None:
                self._visited[name] = union(self._visited[name], grown[name])
        return sum(counts.values())

    def _share_out(self, dropped: dict[str, int], room: dict[str, int]) -> dict[str, int]:
        """How many connections each layer grows: as many as it lost, or its share of all."""
        if self._redistribute is None:
            return dropped
        weights = []
        for name, values in self._held.items():
            mean = optimizer_state.momentum(self._optimizer, values)[1]
            if mean is None:
                raise ConfigurationError(
                    f"the optimizer has no momentum of {label(name)} yet by which connections are shared; call step() "
                    f"after the optimizer's step"
                )
            weights.append(float(mean.abs().mean()) if len(mean) else 0.0)
        shares = apportion(sum(dropped.values()), weights, [room[name] for name in dropped])
        return dict(zip(dropped, shares, strict=True))

    def _grown(self, name: str, closed: Tensor, count: int) -> Tensor:
        layer = self._layers[name]
        if self._grow == "random":
            return growth.random(closed, places_of(layer), count, self._generator)
        if self._grow == "random-unfired" and self._visited is not None:
            visited = union(self._visited[name], closed)
            return growth.random_unfired(closed, visited, places_of(layer), count, self._generator)
        blocks = gradient_blocks(
            name,
            list(self._capture.seen[name]),
            self._decay[name],
            (layer.out_features, layer.in_features),
            layer.values.detach(),
            self._group,
        )
        return growth.largest(blocks, closed, count)

    def _fresh(self, layer: SparseLayer, row: Tensor) -> Tensor:
        if self._initial == "distribution":
            return layer.initial_values(row, self._generator)
        return layer.values.new_full((len(row),), float(self._initial))

    def _what_is_wrong(self, state: dict[str, Any]) -> str | None:
        """What keeps a state from being loaded, in words; None if nothing does."""
        keys = ("settings", "steps", "generator", "visited", "seen")
        # Once there were states without settings.
        if set(state) | {"settings"} != set(keys):
            return f"it has the keys {', '.join(map(str, state))} instead of {', '.join(keys)}"
        different = differences(state["settings"], self._settings) if "settings" in state else None
        if different:
            return different
        if not isinstance(state["steps"], int) or state["steps"] < 0:
            return f"its number of steps is {state['steps']!r}"
        size, kind = self._generator.get_state().shape, torch.uint8
        if not isinstance(state["generator"], Tensor) or (state["generator"].shape, state["generator"].dtype) != (
            size,
            kind,
        ):
            return f"its generator is not a tensor of {size[0]} bytes"
        for key in ("seen", "visited") if self._visited is not None else ("seen",):
            if not isinstance(state[key], dict) or set(state[key]) != set(self._layers):
                return f"its {key} is not of {', '.join(map(label, self._layers))}"
        if self._visited is not None:
            for name, layer in self._layers.items():
                visited = state["visited"][name]
                if visited.dtype != torch.int64 or visited.dim() != 1:
                    given = f"{visited.dtype} {list(visited.shape)}"
                    return f"its visited places of {label(name)} are {given}, not int64 [places]"
                inside = bool(((visited >= 0) & (visited < places_of(layer))).all())
                if not inside or not bool((visited[1:] > visited[:-1]).all()):
                    return f"its visited places of {label(name)} are not ascending numbers below {places_of(layer)}"
        return None


def _closed(layer: SparseLayer) -> Tensor:
    """The places that no new connection may take, sorted, int64: they are occupied, or barred."""
    never = barred(layer)
    return union(occupied(layer), never) if len(never) else occupied(layer)


def _finite(numbers: Tensor) -> bool:
    # The least and the largest are NaN if any number is, and are found in a tenth of the time of looking at each.
    return len(numbers) == 0 or bool(torch.isfinite(torch.stack(numbers.aminmax())).all())
