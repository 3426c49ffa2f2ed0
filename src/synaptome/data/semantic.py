"""The semantic task: four living things and their seven properties, a hierarchy that a linear network learns in stages.

Saxe, McClelland & Ganguli, "A mathematical theory of semantic development in deep neural networks", PNAS 116 (2019).
"""

from __future__ import annotations

import numpy as np
import torch

from synaptome.data.covariance import Covariance, symmetric_root
from synaptome.data.dataset import Dataset, Split

NAME = "semantic"
ITEMS = ("canary", "salmon", "oak", "rose")
PROPERTIES = ("grow", "move", "roots", "fly", "swim", "bark", "petals")
HAS_PROPERTY = (  # a row for each item, a column for each property
    (1, 1, 0, 1, 0, 0, 0),
    (1, 1, 0, 0, 1, 0, 0),
    (1, 0, 1, 0, 0, 1, 0),
    (1, 0, 1, 0, 0, 0, 1),
)


def semantic_hierarchy(covariance: Covariance | None = None, *, dtype: torch.dtype = torch.float32) -> Dataset:
    """The four items, as training set and as test set: there is nothing to generalise to, only an order of learning.

    The input-output covariance is `Σ_yx = Y' X / 4` `[7, 4]` and the teacher `W* = Σ_yx Σ_x⁻¹`, so that `Y = X W*'`.
    With one-hot items the singular values of `W*` are `√7` (all living things), `√3` (animals against plants) and `1`
    twice (within animals, within plants); those of `Σ_yx` are a quarter of them.

    Args:
        covariance: the uncentred input covariance `Σ_x` `[4, 4]`, positive definite (a linear map cannot tell dependent
            items apart). The inputs are then the rows of `X = 2 √Σ_x`, the symmetric root, so that `X' X / 4 = Σ_x`.
            None stands for `I / 4`: one-hot items.
        dtype: of all tensors.

    Returns:
        A data set with inputs `[4, 4]`, targets `[4, 7]` and the teacher `W*` `[7, 4]`.

    Raises:
        ConfigurationError: the covariance is not 4x4, symmetric and positive definite.
    """
    items = len(ITEMS)
    targets = np.array(HAS_PROPERTY, np.float64)
    inputs = np.eye(items) if covariance is None else items**0.5 * symmetric_root(covariance, items, definite=True)
    teacher = np.linalg.solve(inputs, targets).T
    split = Split(torch.from_numpy(inputs).to(dtype), torch.from_numpy(targets).to(dtype))
    shape = "one-hot items" if covariance is None else "items of given covariance"
    return Dataset(
        name=NAME,
        train=split,
        validation=None,
        test=split,
        teacher=torch.from_numpy(np.ascontiguousarray(teacher)).to(dtype),
        source=f"generated: {shape} with the properties of Saxe et al. 2019",
    )
