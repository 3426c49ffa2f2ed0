"""Processes that torchrun has started for one run."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.parallel.groups import leave_at_exit


def processes() -> int:
    """How many processes work at this run: 1 unless torchrun, or what sets the same variables, has started more."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs that of its number on this machine, LOCAL_RANK.

    Processes share GPUs where there are fewer than processes.
    """
    if device.type != "cuda" or processes() == 1:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank())) % torch.cuda.device_count())
    torch.cuda.set_device(own)  # nccl is of the current one
    return own


def backend(device: torch.device) -> str:
    """What processes talk over: gloo, and nccl for tensors on GPUs where every process has one of its own."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
    apart = device.type == "cuda" and here <= torch.cuda.device_count()  # nccl refuses processes that share a GPU
    return "cpu:gloo,cuda:nccl" if apart else "gloo"


def joined(timeout: float, device: torch.device | None = None) -> None:
    """Meet the other processes, as the environment says: MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.

    Args:
        timeout: seconds to wait for them.
        device: where this process computes, which decides what they talk over; the CPU if None.

    Raises:
        ConfigurationError: the port is taken, or a variable is missing.
        WorkerLostError: they did not all come in time.
    """
    if distributed.is_initialized():
        return
    leave_at_exit()
    try:
        over = backend(device or torch.device("cpu"))
        distributed.init_process_group(over, timeout=timedelta(seconds=timeout))
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
