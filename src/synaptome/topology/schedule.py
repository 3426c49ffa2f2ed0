"""How the fraction of connections that is replaced falls over training.

`t` is the share of training that is done, in [0, 1). Source: Evci et al. 2020, section 3 and appendix G.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# The share of the initial fraction that is left.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t: 1 - t,
    "inverse-power": lambda t: (1 - t) ** 3,
}
