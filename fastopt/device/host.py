"""The host: NumPy arrays."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes that flat memory starts at a multiple of: a cache line."""


class Host:
    """The `Place` where NumPy arrays live."""

    on_gpu = False
    copyable = True

    def __reduce__(self) -> str:
        return "HOST"

    def view(self, name: str, array: Any) -> Array:
        """See `Place.view`: here the very same, unless it is of a subclass, whose attributes may say anything."""
        from . import check_array

        check_array(name, array)
        return array if type(array) is np.ndarray else np.ndarray.view(array, np.ndarray)

    def flat(self, size: int, dtype: np.dtype[Any]) -> Array:
        """See `Place.flat`."""
        return aligned_zeros(size, dtype)

    def zeros(self, size: int, dtype: np.dtype[Any]) -> Array:
        """See `Place.zeros`."""
        return aligned_zeros(size, dtype)

    def fill(self, array: Array, number: float) -> None:
        """See `Place.fill`."""
        array.fill(number)

    def copy(self, target: Array, source: Array) -> None:
        """See `Place.copy`."""
        target[...] = source

    def copying(self, target: Array, source: Array) -> Callable[[], Any]:
        """See `Place.copying`: here one C function."""
        return partial(np.ndarray.__setitem__, target, Ellipsis, source)

    def filling(self, array: Array, number: float) -> Callable[[], Any]:
        """See `Place.filling`: here one C function."""
        return partial(np.ndarray.fill, array, number)

    def clone(self, array: Array) -> Array:
        """See `Place.clone`."""
        return array.copy()

    def in_c_order(self, array: Array) -> Array:
        """See `Place.in_c_order`."""
        return np.array(array, order="C")

    def to_host(self, array: Array) -> Array:
        """See `Place.to_host`."""
        return array.copy()

    def from_host(self, array: Array, values: Array) -> None:
        """See `Place.from_host`."""
        array[...] = values

    def address(self, array: Array) -> int:
        """See `Place.address`."""
        return array.__array_interface__["data"][0]

    def byte_range(self, array: Array) -> tuple[int, int]:
        """See `Place.byte_range`."""
        return byte_bounds(array)

    def shares_memory(self, one: Array, other: Array) -> bool:
        """See `Place.shares_memory`."""
        try:
            return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """A 1-D array of zeros that starts at a multiple of `ALIGNMENT` bytes, in memory that nobody can resize."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    _UNRESIZABLE[id(raw)] = raw
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


_UNRESIZABLE: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
"""NumPy resizes no array that is weakly referenced, whatever its ``refcheck``: kernels know the address."""

HOST = Host()
