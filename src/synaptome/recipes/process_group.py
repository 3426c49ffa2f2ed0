"""Processes that torchrun has started for one run."""

from __future__ import annotations

import os
from datetime import timedelta

from torch import distributed

from synaptome.errors import ConfigurationError, WorkerLostError


def processes() -> int:
    """How many processes work at this run: 1 unless torchrun, or what sets the same variables, has started more."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def joined(timeout: float) -> None:
    """Meet the other processes, over gloo, as the environment says: MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.

    Args:
        timeout: seconds to wait for them.

    Raises:
        ConfigurationError: the port is taken, or a variable is missing.
        WorkerLostError: they did not all come in time.
    """
    if distributed.is_initialized():
        return
    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    except ValueError as error:
        raise ConfigurationError(f"processes cannot meet: {error}; start them with torchrun") from None
    except (RuntimeError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        said = str(error).splitlines()[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigurationError(
                f"the port of {where}, where processes meet, is taken; choose another with torchrun --master-port"
            ) from None
        raise WorkerLostError(
            f"{processes()} processes were to meet at {where} within {timeout:g} s, and did not ({said})"
        ) from None
