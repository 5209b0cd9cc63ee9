"""`fastopt warmup`: compile now, so that no later process has to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fastopt import Optimizer


class Precisions(StrEnum):
    """Which dtypes to compile for."""

    float32 = "float32"
    float64 = "float64"
    all = "all"


class Counts(NamedTuple):
    """Kernels that this process has made ready so far."""

    compiled: int
    loaded: int


def warmup(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Optimizers; none means all.")] = None,
    dtype: Annotated[Precisions, typer.Option(help="Of the parameters.")] = Precisions.all,
) -> None:
    """Compile optimizers ahead of time, in all their variants, into the cache on disk.

    All of them take minutes. After Ctrl-C the variant at hand is finished, and the exit status is 130.
    """
    from fastopt.kernels.compile.cache import cache_folder

    from .report import make_console
    from .runs import UsageError, kind_of, offered
    from .training import INTERRUPTED, interruptible

    try:
        kinds = [kind_of(name) for name in names or offered()]
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    dtypes = [Precisions.float32, Precisions.float64] if dtype is Precisions.all else [dtype]
    began = time.perf_counter()
    with interruptible() as stopped:
        finished = _warm_up(kinds, dtypes, make_console(), stopped)
    compiled, loaded = count_kernels()
    seconds = time.perf_counter() - began
    typer.echo(f"{compiled} kernels compiled, {loaded} loaded from the cache, in {seconds:.1f} s")
    typer.echo(f"cache folder: {cache_folder() or 'none can be written, nothing is kept'}")
    if not finished:
        raise typer.Exit(INTERRUPTED)


def _warm_up(
    kinds: Sequence[type[Optimizer]], dtypes: Sequence[str], console: Console, stopped: Callable[[], bool]
) -> bool:
    """Whether all was compiled before the user stopped it."""
    from fastopt.kernels.compile._aside import be_silent

    from .progress import counting_bars

    if console.is_terminal:
        be_silent()
    jobs = [(kind, arguments, dtype) for kind in kinds for arguments in variants(kind) for dtype in dtypes]
    with counting_bars(console) as bars:
        task = bars.add_task("", total=len(jobs))
        for kind, arguments, dtype in jobs:
            if stopped():
                return False
            bars.update(task, description=f"{kind.__name__} {dtype}")
            compile_kernels(kind(**arguments), dtype)
            bars.advance(task)
        bars.update(task, description="done")
    return True


def variants(kind: type[Optimizer]) -> Iterator[dict[str, Any]]:
    """Arguments that between them select all kernels of an optimizer: its switches, and momentum, off and on."""
    import inspect
    import itertools

    from fastopt.signatures import COMMON, FORMAT

    choices: dict[str, tuple[Any, ...]] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name == "learning_rate_power":
            choices[name] = (-0.5, -0.4)  # Ftrl has a kernel with a root and one with a power
        elif name not in (*COMMON, *FORMAT) and isinstance(parameter.default, bool):
            choices[name] = (False, True)
        elif name == "momentum":
            choices[name] = (0.0, 0.9)
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def compile_kernels(optimizer: Optimizer, dtype: str) -> None:
    """Make ready whatever steps and evaluations of an optimizer may need."""
    import numpy as np

    from .training import averaged

    optimizer.build([np.zeros(shape, dtype) for shape in ((2, 2), (2,))])
    for plan in optimizer._plans:
        plan.engine.prepare()
    with averaged(optimizer):
        pass


def count_kernels() -> Counts:
    """Kernels compiled, and loaded from the cache, by this process."""
    from fastopt.kernels.compile import _jit

    return Counts(_jit.compilations, _jit.loads)
