"""What a run ran on: versions, machine, threads, kernel backends."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import synaptome
from synaptome.kernels import backends

PACKAGES = ("torch", "numpy", "safetensors", "msgspec", "tyro", "rich", "matplotlib", "scikit-learn", "pooch")


def describe_environment() -> dict[str, Any]:
    """Everything about this process that could change a result, as JSON."""
    return {
        "synaptome": synaptome.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "blas": blas(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "kernels": {name: backends.choose(name, "cpu").backend for name in backends.operations()},
        "command": sys.argv[1:],
    }


def blas() -> str:
    """The library behind torch's dense products."""
    for line in torch.__config__.show().splitlines():
        for name in ("Math Kernel Library", "OpenBLAS", "Accelerate"):
            if name in line:
                return line.strip(" -")
    return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """The commit of a source checkout, with `+` if it was changed; None for an installed package."""
    source = Path(__file__).parents[3]
    if not (source / ".git").exists():
        return None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return f"{commit}+" if _git(source, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def peak_megabytes() -> float:
    """The most memory that this process has had, in MB of 10^6 bytes.

    On Linux from VmHWM: `ru_maxrss` there also counts the parent before the exec, and so hides a child smaller than it.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
