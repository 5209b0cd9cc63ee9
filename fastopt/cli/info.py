"""`fastopt info`: what a report of a problem should contain; and what a model takes, see `memory`."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import metadata
from typing import Annotated, Any

import typer

Dtype = StrEnum("Dtype", ["float32", "float64", "bfloat16", "float16"])

OPTIONAL_PACKAGES = ("scikit-learn", "matplotlib", "torch", "keras", "tbb", "numba-cuda")

SIMD_BITS = {"avx512f": 512, "avx2": 256, "avx": 256, "sse2": 128, "neon": 128}
"""Width of a vector register by the feature that brings it, the widest first."""


def info(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|SHAPES|N|FILE", help="As gpt2; 50257x768,12*768x3072; 7B; file.safetensors or .npz."
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="For the model; without one, common choices are compared.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the model's parameters and gradients.")] = None,
    slot_dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Of the optimizer's state: float32, bfloat16, float16, 8bit.")
    ] = None,
    master_weights: Annotated[
        str | None, typer.Option(metavar="float32|split", help="Kept beside parameters of 16 bits.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, processor, threads, cache and devices; or what a model takes.

    With --model: the bytes of its parameters, gradients and state, of which
    nothing is made. Every hyper-parameter of the optimizer is a flag, too:

      fastopt info --model gpt2
      fastopt info --model 7B --dtype bfloat16
      fastopt info --model gpt2 --optimizer adamw --slot-dtype 8bit --use-ema
    """
    formats = {"--slot-dtype": slot_dtype, "--master-weights": master_weights}
    typed = [part for flag, value in formats.items() if value is not None for part in (flag, value)]
    if model is not None:
        _show_memory(model, optimizer, dtype, [*context.args, *typed], as_json)
        return
    strays = ["--optimizer"] * (optimizer is not None) + ["--dtype"] * (dtype is not None) + typed + context.args
    if strays:
        raise typer.BadParameter(f"{strays[0]} goes with a model, and none is named: say --model gpt2, for example")
    _show_facts(as_json)


def _show_memory(model: str, optimizer: str | None, dtype: str | None, typed: Sequence[str], as_json: bool) -> None:
    import json

    from . import memory
    from .report import make_console
    from .runs import UsageError, plan_run, read_flags
    from .shapes import shapes_of

    try:
        shapes, flags = shapes_of(model), read_flags(typed)
        if optimizer is None and not flags:
            choices = memory.compared(shapes, dtype)
        else:
            choices = [memory.counted(shapes, dtype or "float32", plan_run(optimizer or "adam", flags))]
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        found = {"model": model, "parameters": choices[0].memory.elements, "arrays": len(shapes)}
        typer.echo(json.dumps({**found, "choices": [choice.to_json() for choice in choices]}, indent=2))
        return
    memory.show(make_console(), choices, len(shapes))


def _show_facts(as_json: bool) -> None:
    import json

    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from .report import make_console, two_columns

    make_console().print(two_columns({name.replace("_", " "): _shown(fact) for name, fact in facts.items()}))


def collect() -> dict[str, Any]:
    """All facts by name; one that cannot be found out says why, and never fails."""
    return {name: _try(find) for name, find in FACTS.items()}


def _try(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {error})"


def _shown(fact: Any) -> str:
    if isinstance(fact, dict) and "bytes" in fact:
        return f"{fact['folder']}: {fact['files']} files, {fact['bytes'] / 1e6:.1f} MB"
    if isinstance(fact, dict):
        return ", ".join(f"{name} {value}" for name, value in fact.items()) or "none"
    return str(fact)


def _versions() -> dict[str, str]:
    from fastopt import __version__

    packages = {name: metadata.version(name) for name in ("numba", "llvmlite", "numpy")}
    return {"fastopt": __version__, "python": platform.python_version(), **packages}


def _processor() -> str:
    from fastopt.bench.surroundings import processor

    return processor()


def _simd_bits() -> int | None:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return next((bits for feature, bits in SIMD_BITS.items() if features.get(feature)), None)


def _numba_threads() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)


def _threading_layer() -> str:
    """It is chosen at the first parallel launch: hence a step that is large enough for one."""
    import numpy as np

    import fastopt
    from fastopt.kernels.cpu import threads
    from fastopt.kernels.cpu.launch import PARALLEL_FROM

    if fastopt.get_num_threads() == 1:
        return "none: with one thread steps run serially"
    params = np.zeros(2 * PARALLEL_FROM, np.float32)
    optimizer = fastopt.SGD()
    optimizer.build([params])
    optimizer.apply([params])
    return threads.layer()


def _reading() -> dict[str, str]:
    """Say how steps find out where hundreds of arrays lie: in one compiled call, or one by one, and then why."""
    from fastopt.kernels.cpu import exchange

    obstacles = {"NumPy": exchange.obstacle()}
    if importlib.util.find_spec("torch") is not None:
        obstacles["torch"] = importlib.import_module("fastopt.torch.reading").obstacle()
    return {name: f"in Python: {reason}" if reason else "compiled" for name, reason in obstacles.items()}


def _thread_cap() -> int:
    from fastopt import get_num_threads

    return get_num_threads()


def _cache() -> dict[str, Any]:
    from fastopt.kernels.compile.cache import cache_folder

    folder = cache_folder()
    if folder is None:
        return {"folder": None, "files": 0, "bytes": 0}
    sizes = [file.stat().st_size for file in folder.glob("*.fastopt")]
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes)}


def _devices() -> dict[str, str]:
    return {"CPU": "yes", "CUDA": _try(_cuda)}


def _cuda() -> str:
    """Say what was found, which is not yet that it works: no kernel is launched."""
    from fastopt.kernels.cuda.driver import inventory
    from fastopt.kernels.cuda.errors import CudaError, CudaUnavailable

    try:
        (major, minor), gpus = inventory()
    except (CudaUnavailable, CudaError) as reason:
        return f"not found: {reason}"
    names = [f"GPU {k}: {name} (compute capability {x}.{y})" for k, (name, (x, y)) in enumerate(gpus)]
    return f"found, not tried: driver for CUDA {major}.{minor}, {', '.join(names)}"


def _optional_packages() -> dict[str, str]:
    found = {}
    for name in OPTIONAL_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


FACTS: dict[str, Callable[[], Any]] = {
    "versions": _versions,
    "operating_system": platform.platform,
    "processor": _processor,
    "simd_bits": _simd_bits,
    "numba_threads": _numba_threads,
    "threading_layer": _threading_layer,
    "thread_cap": _thread_cap,
    "reading": _reading,
    "cache": _cache,
    "devices": _devices,
    "optional_packages": _optional_packages,
}
