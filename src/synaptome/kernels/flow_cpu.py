"""All layers of a stable network on the CPU, by Numba: a chunk of examples at a time goes through all of them.

A chunk lies as `[features, examples]` in the nearest caches; its products and tanh are those of `flow_vectors`. Page
faults of fresh memory would cost a wide network as much as its arithmetic, so that few states are stored; the gradient
takes the kicks between two of them again, a segment whose intermediate results stay in the second-level cache.

Threads take chunks. The gradients of weights are sums over examples: those of a few groups of chunks are summed apart,
each by one thread in one order, and then added up, so that the bits do not depend on the number of threads.

Imported when a CPU tensor asks for it, and compiled at the first call; the machine code is kept on disk where Numba
finds a folder that it may write.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.flow import chunking, segment_kicks
from synaptome.kernels.flow_kicks import plan
from synaptome.kernels.flow_vectors import RELU, TANH, activate, combine, correlate, multiply
from synaptome.kernels.threads import in_threads

GROUPS = 8  # of chunks, and so the most threads of a gradient
GROUP_BYTES = 2**25  # that the weights' gradients of all groups may take, if there are more than two
KINDS = {"tanh": TANH, "relu": RELU}


def layers(
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    tape: Tensor,
    dynamics: str,
    step: float,
    half_kick: bool,
    activation: str,
) -> Tensor:
    """The state after all layers, `[batch, fields * width]`; those between segments go to the tape, if any."""
    end = torch.empty_like(state, memory_format=torch.contiguous_format)
    chunks, examples = chunking(state.shape[0], state.element_size())
    arrays = [operand.detach().contiguous().numpy() for operand in (state, weight, bias, end, tape)]
    kicks = plan(dynamics, weight.shape[0], step, half_kick, arrays[0].dtype.name)
    options = KINDS[activation], segment_kicks(weight.shape[1]), examples
    in_threads(
        lambda begin, stop: _forward(*arrays, *kicks, *options, begin, stop),
        chunks if len(state) else 0,
        len(kicks.places) * state.shape[0] * weight.shape[1] ** 2,
    )
    return end


def grads(
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    end: Tensor,
    tape: Tensor,
    dynamics: str,
    step: float,
    half_kick: bool,
    activation: str,
    stored: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the initial state, the weight and the bias, from the tape, or from the final state alone."""
    chunks, examples = chunking(grad.shape[0], grad.element_size())
    groups = min(chunks, max(2, min(GROUPS, GROUP_BYTES // max(1, weight.nbytes))))
    by_state = torch.empty_like(grad, memory_format=torch.contiguous_format)
    by_weight, by_bias = weight.new_zeros(groups, *weight.shape), bias.new_zeros(groups, *bias.shape)
    operands = grad, weight, bias, end, tape, by_state, by_weight, by_bias
    arrays = [operand.detach().contiguous().numpy() for operand in operands]
    kicks = plan(dynamics, weight.shape[0], step, half_kick, arrays[0].dtype.name)
    options = KINDS[activation], stored, segment_kicks(weight.shape[1]), chunks, examples
    in_threads(
        lambda begin, stop: _backward(*arrays, *kicks, *options, begin, stop),
        groups if len(grad) else 0,
        3 * len(kicks.places) * grad.shape[0] * weight.shape[1] ** 2,
    )
    return by_state, by_weight.sum(0), by_bias.sum(0)


@numba.njit
def _gather(fields, state, order, first):  # type: ignore[no-untyped-def]
    """The examples of a chunk as `[fields, width, examples]`; the last one again where there are no more."""
    width = fields.shape[1]
    for example in range(fields.shape[2]):
        row = state[min(first + example, len(state) - 1)]
        for field in range(len(fields)):
            for i in range(width):
                fields[order[field], i, example] = row[field * width + i]


@numba.njit
def _scatter(state, fields, order, first):  # type: ignore[no-untyped-def]
    width = fields.shape[1]
    for example in range(min(fields.shape[2], len(state) - first)):
        row = state[first + example]
        for field in range(len(fields)):
            for i in range(width):
                row[field * width + i] = fields[order[field], i, example]


@numba.njit
def _copy(target, source):  # type: ignore[no-untyped-def]
    t, s = target.reshape(-1), source.reshape(-1)
    for i in range(len(t)):
        t[i] = s[i]


@numba.njit
def _move(target, source, matrix, transposed, activity, kept, taken, added, pulled):  # type: ignore[no-untyped-def]
    """A kick, whose force is this activity or is pulled back from it."""
    if pulled:
        combine(target, kept, source, taken, matrix, not transposed, activity, added)
    else:
        t, a = target.reshape(-1), activity.reshape(-1)
        for i in range(len(t)):
            t[i] += added * a[i]


@numba.njit
def _slopes(delta, upstream, activity, factor, kind):  # type: ignore[no-untyped-def]
    """`delta = factor upstream s'(u)` where the activity is s(u)."""
    d, g, a = delta.reshape(-1), upstream.reshape(-1), activity.reshape(-1)
    one, zero = a.dtype.type(1), a.dtype.type(0)
    if kind == TANH:
        for i in range(len(d)):
            d[i] = factor * g[i] * (one - a[i] * a[i])
    else:
        for i in range(len(d)):
            d[i] = zero if a[i] <= zero else factor * g[i]


@numba.njit
def _kick(fields, activity, weight, bias, place, factors, pulled, kind):  # type: ignore[no-untyped-def]
    """A kick; its activity, `[width, examples]`, is kept."""
    target, source, layer, transposed = place
    kept, taken, added = factors
    multiply(activity, weight[layer], transposed != 0, fields[source])
    activate(activity, bias[layer], kind)
    _move(fields[target], fields[source], weight[layer], transposed != 0, activity, kept, taken, added, pulled)


@numba.njit
def _segment(fields, reads, activities, weight, bias, places, factors, pulled, kind):  # type: ignore[no-untyped-def]
    """Kicks, of which the fields that they read, `[kicks, width, examples]`, and the activities are kept."""
    for kick in range(len(places)):
        _copy(reads[kick], fields[places[kick, 1]])
        _kick(fields, activities[kick], weight, bias, places[kick], factors[kick], pulled, kind)


@compiled
def _forward(  # type: ignore[no-untyped-def]
    state, weight, bias, end, tape, places, factors, order, pulled, kind, segment, examples, begin, stop
):
    width, unmoved = weight.shape[1], np.arange(len(order))
    fields = np.empty((len(order), width, examples), state.dtype)
    activity = np.empty((width, examples), state.dtype)
    for chunk in range(begin, stop):
        _gather(fields, state, unmoved, chunk * examples)
        for kick in range(len(places)):
            if len(tape) > 0 and kick % segment == 0:
                _copy(tape[chunk, kick // segment], fields)
            _kick(fields, activity, weight, bias, places[kick], factors[kick], pulled, kind)
        _scatter(end, fields, order, chunk * examples)


@compiled
def _backward(  # type: ignore[no-untyped-def]
    grad, weight, bias, end, tape, by_state, by_weight, by_bias,
    places, factors, order, pulled, kind, stored, segment, chunks, examples, begin, stop,
):  # fmt: skip
    width, unmoved, groups = weight.shape[1], np.arange(len(order)), len(by_weight)
    zero, one = grad.dtype.type(0), grad.dtype.type(1)
    fields = np.empty((len(order), width, examples), grad.dtype)
    grads = np.empty_like(fields)
    reads = np.empty((segment if stored else 1, width, examples), grad.dtype)
    activities = np.empty_like(reads)
    delta, pull, ones = np.empty_like(reads[0]), np.empty_like(reads[0]), np.ones((1, examples), grad.dtype)
    for group in range(begin, stop):
        for chunk in range(chunks * group // groups, chunks * (group + 1) // groups):
            first = chunk * examples
            _gather(grads, grad, order, first)
            grads[:, :, len(grad) - first :] = zero
            if not stored:
                _gather(fields, end, order, first)
            for kick in range(len(places) - 1, -1, -1):
                target, source, layer, transposed = places[kick]
                kept, taken, added = factors[kick]
                K, turned, by_K = weight[layer], transposed != 0, by_weight[group, layer]
                by_target, by_source = grads[target], grads[source]
                if not stored:  # undo the kick, once it is known what it read
                    read, activity = reads[0], activities[0]
                    _copy(read, fields[source])
                    multiply(activity, K, turned, read)
                    activate(activity, bias[layer], kind)
                    _move(fields[target], read, K, turned, activity, kept, -kept * taken, -kept * added, pulled)
                else:  # at the last kick of a segment, run all of it again
                    if kick == len(places) - 1 or kick % segment == segment - 1:
                        start = kick - kick % segment
                        _copy(fields, tape[chunk, start // segment])
                        again = slice(start, kick + 1)
                        _segment(fields, reads, activities, weight, bias, places[again], factors[again], pulled, kind)
                    read, activity = reads[kick % segment], activities[kick % segment]
                if pulled:
                    multiply(pull, K, turned, by_target)
                    correlate(by_K, added, activity, by_target)
                    _slopes(delta, pull, activity, added, kind)
                else:
                    _slopes(delta, by_target, activity, added, kind)
                if turned:
                    correlate(by_K, one, read, delta)
                else:
                    correlate(by_K, one, delta, read)
                correlate(by_bias[group, layer].reshape(-1, 1), one, delta, ones)
                combine(by_source, one, by_target, taken, K, not turned, delta, one)
                if kept != one:
                    by_target *= kept
            _scatter(by_state, grads, unmoved, first)
