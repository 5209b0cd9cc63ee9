"""The host: NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes that flat memory starts at a multiple of: a cache line."""


class Host:
    """Where NumPy arrays live. A *place* offers this, and `cuda.Gpu` is the other one."""

    on_gpu = False

    def __reduce__(self) -> str:
        return "HOST"

    copyable = True  # whether arrays that live here can be deep-copied and pickled

    def view(self, name: str, array: Any) -> Array:
        """The array as fastopt works with it: here the very same.

        Raises
        ------
        TypeError
            If it is none, or lives elsewhere. ``name`` begins the message.
        """
        from . import check_array

        check_array(name, array)
        return array

    def flat(self, size: int, dtype: np.dtype[Any]) -> Any:
        """A 1-D array of zeros as users know them, at a multiple of `ALIGNMENT` bytes."""
        return aligned_zeros(size, dtype)

    def zeros(self, size: int, dtype: np.dtype[Any]) -> Array:
        """The same, as fastopt works with it."""
        return aligned_zeros(size, dtype)

    def fill(self, array: Array, number: float) -> None:
        """Set every element."""
        array.fill(number)

    def copy(self, target: Array, source: Array) -> None:
        """Copy the elements of an array of the same shape."""
        target[...] = source

    def clone(self, array: Array) -> Array:
        """A copy that nobody else knows."""
        return array.copy()

    def in_c_order(self, array: Array) -> Array:
        """A C-ordered copy."""
        return np.array(array, order="C")

    def to_host(self, array: Array) -> Array:
        """A copy as a NumPy array."""
        return array.copy()

    def from_host(self, array: Array, values: Array) -> None:
        """Copy the elements of a NumPy array of the same shape and dtype."""
        array[...] = values

    def address(self, array: Array) -> int:
        """Where the first element is."""
        return array.__array_interface__["data"][0]

    def byte_range(self, array: Array) -> tuple[int, int]:
        """First byte of an array, and the byte after its last."""
        return byte_bounds(array)

    def shares_memory(self, one: Array, other: Array) -> bool:
        """Whether two arrays may share memory; whether they do, where that can be found out quickly."""
        try:
            return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """A 1-D array of zeros that starts at a multiple of `ALIGNMENT` bytes."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


HOST = Host()
