"""What counts as a number in an option: Python's and NumPy's, never a bool."""

from __future__ import annotations

import numbers
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether it is an integer; `True`, which Python counts as 1, is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is an integer or a float; `True`, which Python counts as 1, is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
