"""Epochs of DEEP learning XOR: the notebook's algorithm in numpy, one step of time after the other, against the kernel.

`notebook` is the algorithm of the authors' notebook as it stands: patterns at once, a free phase and a nudged one of
1000 steps with the residual and the error at each, and outer products summed in a loop over time and patterns.
`one product` leaves residuals and errors out, and sums the outer products by one product of matrices. `all steps` is
synaptome without the stop at states that repeat themselves, `fused` with it, as it is by default. All start from the
same weights. One network is measured in processor time, a hundred in seconds on one core and on two.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import RESULTS, Contestant, Work, compare, save

from synaptome.data.logic import logic
from synaptome.learning.deep import PopulationLearning
from synaptome.learning.plasticity import Plasticity
from synaptome.networks.complete import Sizes
from synaptome.networks.population import Population

SIZES = Sizes(3, 5, 1)
STEPS, DT, BETA, RATE = 1000, 0.05, 10.0, 100.0
EPOCHS = 20  # a call
MANY = 100  # networks

Array = npt.NDArray[np.float64]


def epoch(weight: Array, table: tuple[Array, Array], generator: np.random.Generator, steps: int, plain: bool) -> Array:
    """The weights `[N, N]` after an epoch of DEEP; `plain` as the notebook has it."""
    inputs, targets = table
    X, patterns = inputs.shape[1], len(inputs)
    state = np.concatenate([inputs, generator.uniform(0, 0.1, (patterns, len(weight) - X))], 1)
    states = np.empty((2 * steps + 1, *state.shape))
    states[0] = state
    residuals, errors = np.zeros(2 * steps), np.zeros(2 * steps)
    for t in range(2 * steps):
        change = state @ weight - state * weight.sum(1)
        if t >= steps:
            change[:, -1:] += BETA * (targets - state[:, -1:])
        state[:, X:] = np.clip(state[:, X:] + DT * change[:, X:], 0, 1)
        states[t + 1] = state
        if plain:
            residuals[t] = np.sum(change[:, X:] ** 2)
            errors[t] = np.sum((state[:, -1:] - targets) ** 2) / 2
    sent, moved = states[steps + 1 :], np.diff(states[steps:], axis=0)
    if plain:
        learned = np.zeros_like(weight)
        for t in range(steps):
            for m in range(patterns):
                learned += np.outer(sent[t, m], moved[t, m])
    else:
        learned = sent.reshape(-1, len(weight)).T @ moved.reshape(-1, len(weight))
    learned = weight + RATE * learned / (steps * patterns)
    learned[:, :X] = 0
    np.fill_diagonal(learned, 0)
    return learned


def setup_numpy(plain: bool, epochs: int, steps: int) -> Work:
    """One network, in numpy."""
    split = logic("xor").train
    table = split.inputs.numpy(), split.targets.numpy()
    start = Population([0], SIZES).weight[0].numpy()

    def work() -> None:
        weight, generator = start, np.random.default_rng(0)
        for _ in range(epochs):
            weight = epoch(weight, table, generator, steps, plain)

    return work


def setup(networks: int, stop: bool, epochs: int, steps: int) -> Work:
    """Some networks, in synaptome, each time from the start."""
    batch = logic("xor").train[:]
    population = Population(range(networks), SIZES, dt=DT, steps=steps, stop=stop)
    rule = PopulationLearning(population, Plasticity(beta=BETA, rate=RATE, steps=steps))
    state: dict[str, Any] = {
        "model": {name: tensor.clone() for name, tensor in population.state_dict().items()},
        "epoch": 0,
    }

    def work() -> None:
        rule.load_state_dict(state)
        for _ in range(epochs):
            rule.step(batch)

    return work


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short phases, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the hundred networks")
    options = parser.parse_args()
    steps, rounds = (20, 2) if options.quick else (STEPS, 9)
    one = [
        Contestant(name, partial(setup_numpy, plain, EPOCHS, steps))
        for name, plain in (("notebook", True), ("one product", False))
    ]
    for name, stop in (("all steps", False), ("fused", True)):
        one.append(Contestant(name, partial(setup, 1, stop, EPOCHS, steps)))
    what = f"XOR, {SIZES.neurons} neurons, T1 = T2 = {steps}"
    results = compare(
        "relaxation",
        one,
        baseline="all steps",
        rounds=rounds,
        threads=1,
        amount=EPOCHS,
        unit="epochs",
        note=f"one network: {what}; processor time",
        limit=60.0,
        clock=time.process_time,
    )
    for threads in options.threads:
        many = [
            Contestant(name, partial(setup, MANY, stop, EPOCHS, steps))
            for name, stop in (("all steps", False), ("fused", True))
        ]
        results += compare(
            "relaxation",
            many,
            baseline="all steps",
            rounds=rounds,
            threads=threads,
            amount=EPOCHS,
            unit="epochs",
            note=f"{MANY} networks: {what}",
            limit=30.0,
        )
    save(results, options.out)


if __name__ == "__main__":
    main()
