"""Memory for the arrays of a case: each begins a cache line, and large ones lie where those of the case before did.

Where caches hold all arrays, those that begin within a line, as NumPy's do by chance, take up to a third longer. What
libraries allocate themselves lies where they put it. A virtual machine may take seconds to find a gigabyte of new
pages, half of the time of a large case.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from ..device import aligned_zeros

Array = npt.NDArray[np.floating]

BYTE = np.dtype(np.uint8)

LARGE = 1 << 20
"""Bytes of arrays that are worth it."""


class Memory:
    """Blocks of memory, for one array each. They come back when nothing refers to the array any more."""

    def __init__(self) -> None:
        self._idle: list[npt.NDArray[np.uint8]] = []

    @property
    def idle_bytes(self) -> int:
        """Return the bytes that are kept for arrays to come."""
        return sum(block.size for block in self._idle)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array of anything."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < LARGE:
            return aligned_zeros(size, BYTE).view(dtype).reshape(shape)
        fitting = [k for k, block in enumerate(self._idle) if block.size == size]
        block = self._idle.pop(fitting[-1]) if fitting else aligned_zeros(size, BYTE)
        loan = _Loan(block)
        weakref.finalize(loan, self._idle.append, block)
        array: Array = np.asarray(loan).view(dtype).reshape(shape)
        return array

    def copy(self, array: Array) -> Array:
        """A copy of an array in C order."""
        copied = self.empty(array.shape, array.dtype)
        copied[...] = array
        return copied

    def keep_only(self, sizes: Collection[int]) -> None:
        """Give back what is of no use for arrays of so many bytes."""
        self._idle[:] = [block for block in self._idle if block.size in sizes]


class _Loan:
    """What every array in a block keeps alive, and nothing else."""

    def __init__(self, block: npt.NDArray[np.uint8]) -> None:
        self.__array_interface__ = block.__array_interface__


MEMORY = Memory()
"""Of this process."""
