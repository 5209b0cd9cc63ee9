"""The host: NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from .array import Array, aligned_zeros
from .checks import check_array


class Host:
    """The `Place` where NumPy arrays live."""

    on_gpu = False
    copyable = True

    def __reduce__(self) -> str:
        return "HOST"

    def view(self, name: str, array: Any) -> Array:
        """See `Place.view`: here the very same, unless it is of a subclass, whose attributes may say anything."""
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
        if array.flags.c_contiguous:
            start = self.address(array)
            return start, start + array.nbytes
        return byte_bounds(array)

    def shares_memory(self, one: Array, other: Array) -> bool:
        """See `Place.shares_memory`."""
        try:
            return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True


HOST = Host()
