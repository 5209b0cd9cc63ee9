"""What a GPU run ran on, as JSON; or one sentence that says why this machine cannot, and exit status 1."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys

PACKAGES = (
    "cuda-bindings", "cuda-core", "cupy-cuda12x", "cupy-cuda13x", "jax", "llvmlite", "numba", "numba-cuda", "numpy",
    "nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-nvvm", "optax", "pytest", "torch",
)  # fmt: skip


def of_gpu():
    """Name, memory, driver of GPU 0, and how many there are."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "torch finds no CUDA GPU on this machine: make gpu needs one, and a torch that was built for it"
        )
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda_of_torch": torch.version.cuda,
        "driver": driver_version(),
    }


def driver_version():
    """As nvidia-smi tells it, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


def try_a_step(device):
    """One step of fastopt: whatever is missing (libNVVM, nvJitLink, a matching toolkit), fastopt says it here."""
    import torch
    from gpu_machine import machine_of

    import fastopt

    machine = machine_of(device)
    param, grad = (torch.ones(8, device=machine.device) for _ in range(2))
    optimizer = fastopt.SGD(0.5)
    optimizer.build([machine.as_array(param)])
    optimizer.apply([machine.as_array(grad)])
    machine.wait()
    if not bool((param == 0.5).all()):
        raise RuntimeError(f"a first step gave {param.tolist()} instead of 0.5: this GPU's results cannot be trusted")


def report(device):
    """Everything; raises where the machine cannot do a step."""
    gpu = of_gpu() if device == "cuda" else None
    try_a_step(device)
    from fastopt.kernels.compile import cache

    import fastopt
    from fastopt.bench.surroundings import versions_of

    versions = {"fastopt": fastopt.__version__, "python": platform.python_version(), **versions_of(PACKAGES)}
    return {
        "gpu": gpu,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "fastopt_sources": (cache.build_key() or "")[:16],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    try:
        print(json.dumps(report(parser.parse_args().device)))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", " "))


if __name__ == "__main__":
    main()
