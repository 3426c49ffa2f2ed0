"""Linear regression on a linear teacher: the task on which the theory of deep linear networks is exact.

Mianjy & Arora, "On dropout and nuclear norm regularization" (2019), study deep linear networks with failing units on
this kind of task.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt
import torch

from synaptome.data.covariance import Covariance, symmetric_root
from synaptome.data.dataset import Dataset, Population, Split
from synaptome.data.streams import stream
from synaptome.errors import ConfigurationError

NAME = "linear"


def linear_regression(
    features: int = 100,
    d: int = 1,
    train: int = 100_000,
    test: int = 1000,
    covariance: Covariance | None = None,
    seed: int = 0,
    *,
    population: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Inputs `x ~ N(0, Σ)` with the noiseless targets `W* x` of a linear teacher.

    Training and test inputs come from streams of their own: the test set does not change with the size of the
    training set.

    Args:
        features: N, the number of inputs.
        d: number of outputs, 1 or 2, which is also the rank of the teacher.
        train: number of training examples.
        test: number of test examples.
        covariance: Σ `[features, features]`; the identity when None.
        seed: of the inputs. The teacher is not random.
        population: nothing is drawn for training: the training split is the `Population` of N examples whose second
            moments are Σ exactly, and it counts `train` examples an epoch.
        dtype: of all tensors.

    Returns:
        A data set with inputs `[n, features]`, targets `[n, d]` and the teacher `W*` `[d, features]`.

    Raises:
        ConfigurationError: a size out of range, or Σ not square, of the right size, symmetric and positive
                semidefinite.
    """
    for what, count in (("train", train), ("test", test)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigurationError(f"{what} must be a number of examples of at least 1, got {count!r}")
    weights = linear_teacher(features, d)
    root = None if covariance is None else symmetric_root(covariance, features)

    def draw(part: str, examples: int) -> Split:
        inputs = stream(seed, f"linear {part}").standard_normal((examples, features))
        if root is not None:
            inputs = inputs @ root
        return pairs(inputs)

    def pairs(inputs: npt.NDArray[np.float64]) -> Split:
        # The targets are those of the inputs as rounded, so that the teacher's error is rounding only.
        rounded = torch.from_numpy(inputs).to(dtype)
        return Split(rounded, (rounded.double() @ torch.from_numpy(weights).mT).to(dtype))

    if population:
        whole = pairs(sqrt(features) * (np.eye(features) if root is None else root))
        learned: Split = Population(whole.inputs, whole.targets, size=train)
    else:
        learned = draw("train", train)
    shape = "identity" if covariance is None else "given"
    return Dataset(
        name=NAME,
        train=learned,
        validation=None,
        test=draw("test", test),
        teacher=torch.from_numpy(weights).to(dtype),
        source=f"generated: {features} Gaussian inputs, {shape} covariance, teacher of rank {d}, seed {seed}",
    )


def linear_teacher(features: int, d: int) -> npt.NDArray[np.float64]:
    """The teacher `W*` `[d, features]`, N = `features`.

    d = 1: `1/√N` for each input, so one mode of strength 1. d = 2: `1·u1 v1' + 0.2·u2 v2'` with `u1 = (1, 1)/√2`,
    `v1 = (1, ..., 1)/√N`, `u2 = (-1, 1)/√2`, `v2 = (e0 - e2)/√2`, so two orthogonal modes of strength 1 and 0.2.

    Raises:
        ConfigurationError: d is not 1 or 2, or there are too few features for that d.
    """
    if isinstance(d, bool) or d not in (1, 2):
        raise ConfigurationError(f"d, the number of outputs of the teacher, must be 1 or 2, got {d!r}")
    least = 1 if d == 1 else 3  # v2 reaches as far as e2
    if isinstance(features, bool) or not isinstance(features, int) or features < least:
        raise ConfigurationError(f"features must be an integer of at least {least} for d={d}, got {features!r}")
    v1 = np.full(features, 1 / sqrt(features))
    if d == 1:
        return v1[None, :]
    v2 = np.zeros(features)
    v2[0], v2[2] = 1 / sqrt(2), -1 / sqrt(2)
    u1, u2 = np.array([1, 1]) / sqrt(2), np.array([-1, 1]) / sqrt(2)
    return np.outer(u1, v1) + 0.2 * np.outer(u2, v2)
