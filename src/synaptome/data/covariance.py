"""A covariance given by the user: checked, and its symmetric square root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from synaptome.errors import ConfigurationError, DataError

Covariance = Sequence[Sequence[float]] | npt.NDArray[np.floating] | Tensor

TOLERANCE = 1e-6  # relative to the largest entry or eigenvalue: what rounding a matrix to float32 may leave


def read_covariance(path: Path) -> npt.NDArray[np.float64]:
    """A matrix from a .npy file, or from text with a row a line, its numbers parted by spaces or commas.

    Nothing in the file is executed. What a covariance must be is checked by `symmetric_root`.

    Raises:
        DataError: the file is missing, or does not hold numbers.
    """
    try:
        if path.suffix == ".npy":
            # Mapped, so that a header that claims more than the file holds is refused before any memory is taken.
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
            if matrix.dtype.kind not in "fiu":
                raise ValueError(f"it holds {matrix.dtype}, not real numbers")
            return np.array(matrix, np.float64)
        lines = [line for line in path.read_text(encoding="utf-8").replace(",", " ").splitlines() if line.strip()]
        if not lines:
            raise ValueError("it is empty")
        return np.loadtxt(lines, dtype=np.float64, ndmin=2)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if "mmap length" in str(error):
            reason = "it is shorter than its header says"
        raise DataError(f"the covariance in {path} cannot be read: {reason}") from None


def symmetric_root(covariance: Covariance, size: int, *, definite: bool = False) -> npt.NDArray[np.float64]:
    """The symmetric `R` `[size, size]` with `R R = covariance`.

    Args:
        covariance: `[size, size]`, symmetric and positive semidefinite to a relative 1e-6.
        size: of the inputs it describes.
        definite: refuse a singular matrix too.

    Raises:
        ConfigurationError: not a matrix of finite numbers, not square, of another size, not symmetric, not positive
            semidefinite, or singular where that is refused.
    """
    try:
        matrix = np.asarray(covariance.detach().cpu() if isinstance(covariance, Tensor) else covariance, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"covariance must be a matrix of real numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigurationError(f"covariance must be square, got shape {list(matrix.shape)}")
    if len(matrix) != size:
        raise ConfigurationError(
            f"covariance must be {size}x{size}, one row for each input, got {len(matrix)}x{len(matrix)}"
        )
    if not np.isfinite(matrix).all():
        raise ConfigurationError("covariance must be finite, got an infinite entry or one that is not a number")
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > TOLERANCE * float(np.abs(matrix).max()):
        row, column = divmod(int(np.abs(matrix - matrix.T).argmax()), size)
        raise ConfigurationError(
            f"covariance must be symmetric, got {matrix[row, column]:g} at [{row}, {column}] and "
            f"{matrix[column, row]:g} at [{column}, {row}]"
        )
    eigenvalues, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    smallest, largest = float(eigenvalues[0]), float(np.abs(eigenvalues).max())
    if smallest < -TOLERANCE * largest:
        raise ConfigurationError(f"covariance must be positive semidefinite, got an eigenvalue of {smallest:g}")
    if definite and smallest <= TOLERANCE * largest:
        raise ConfigurationError(
            f"covariance must be positive definite here, got eigenvalues from {smallest:g} to {largest:g}"
        )
    root: npt.NDArray[np.float64] = (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T
    return root
