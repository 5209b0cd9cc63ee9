"""Which devices exist, and whose array is where: nothing else knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .array import ALIGNMENT, Array, CudaArray, aligned_zeros
from .checks import check_array, is_array
from .cuda import Gpu
from .host import HOST
from .interface import Library
from .libraries import library_of
from .place import Place
from .strides import AnyArray

__all__ = [
    "ALIGNMENT", "HOST", "AnyArray", "Array", "CudaArray", "Gpu", "Place", "aligned_zeros", "check_array", "engine",
    "is_array", "place_of",
]  # fmt: skip


def place_of(names: Sequence[str], arrays: Sequence[Any]) -> Place:
    """Find where all arrays live: the host, if none is on a GPU.

    Parameters
    ----------
    names : list of str
        Names the arrays in messages, as "parameter w".
    arrays : list
        What was given.

    Raises
    ------
    TypeError
        If some are on a GPU and some are not, or they are of several libraries.
    ValueError
        If they are on several GPUs, or worked on in several streams.
    RuntimeError
        If there is no way to reach their GPU.
    """
    libraries = [library_of(array) for array in arrays]
    found = [(name, array, library) for name, array, library in zip(names, arrays, libraries, strict=True) if library]
    if not found:
        return HOST
    if len(found) < len(arrays):
        elsewhere = names[libraries.index(None)]
        raise TypeError(
            f"{found[0][0]} is on a CUDA device, and {elsewhere} is not: all must be in one place; "
            "make an optimizer per device"
        )
    _, first, library = found[0]
    _check_alike(found)
    ordinals = [library.ordinal(array) for array in arrays]
    ordinal = next((number for number in ordinals if number is not None), 0)
    for name, number in zip(names, ordinals, strict=True):
        if number not in (None, ordinal):
            here = names[ordinals.index(ordinal)]
            raise ValueError(
                f"{here} is on GPU {ordinal}, and {name} on GPU {number}: all must be in one place; "
                "make an optimizer per GPU"
            )
    return Gpu(ordinal, library, library.stream(first))


def _check_alike(found: list[tuple[str, Any, Library]]) -> None:
    first_name, first, library = found[0]
    stream = library.stream(first)()
    for name, array, other in found:
        if other is not library:
            raise TypeError(
                f"{first_name} is an array of {library.name}, and {name} of {other.name}: their streams and allocators "
                "differ; convert one of them, which copies nothing (torch.as_tensor, cupy.asarray)"
            )
        if other.stream(array)() != stream:
            raise ValueError(f"{first_name} and {name} are bound to different streams: bind both to one")


def engine(plan: Any) -> Any:
    """The engine that does the steps of a `Plan`."""
    return (_engine_on_gpu if plan.place.on_gpu else _engine_on_host)(plan)


def _engine_on_gpu(plan: Any) -> Any:
    from ..kernels.cuda.engine import engine_for
    from ..kernels.cuda.formatted import FormattedEngine

    return FormattedEngine(plan) if plan.kept is not None else engine_for(plan.scalars)(plan)


def _engine_on_host(plan: Any) -> Any:
    from ..kernels.cpu.engines import engine_for
    from ..kernels.cpu.formatted import FormattedEngine

    return FormattedEngine(plan) if plan.kept is not None else engine_for(plan.scalars)(plan)
