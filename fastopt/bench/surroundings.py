"""What a run ran on: no names of machines, users or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..kernels.cpu import threads
from ..kernels.cpu.launch import get_num_threads

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "optax", "jax", "keras", "deepspeed", "tbb")


def surroundings() -> dict[str, Any]:
    """Processor, threads, versions, settings."""
    import fastopt

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": get_num_threads(),
        "threading_layer": threading_layer(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"fastopt": fastopt.__version__, "python": platform.python_version(), **versions_of(PACKAGES)},
    }


def processor() -> str:
    """Model and LLVM's name for it."""
    from llvmlite import binding

    return f"{_model_name()} ({binding.get_host_cpu_name()})"


def _model_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def threading_layer() -> str:
    """Return what threads steps are run on, if one has been."""
    try:
        return threads.layer()
    except ValueError:
        return "not started"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
