"""Arrays: NumPy's, in memory that stays where it is, and views of a GPU's memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .strides import byte_range, c_strides

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes that flat memory starts at a multiple of: a cache line."""


def aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """A 1-D array of zeros that starts at a multiple of `ALIGNMENT` bytes, in memory that nobody can resize."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    _UNRESIZABLE[id(raw)] = raw
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


_UNRESIZABLE: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
"""NumPy resizes no array that is weakly referenced, whatever its ``refcheck``: kernels know the address."""

Stream = Callable[[], int]
"""Gives the handle of the stream on which somebody works at the time of the call; 0 is the legacy default stream."""


def default_stream() -> int:
    """The `Stream` of those who name none."""
    return 0


class Flags(NamedTuple):
    """Like those of a NumPy array."""

    c_contiguous: bool
    writeable: bool
    aligned: bool


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CudaArray:
    """A view of an array in the memory of a GPU.

    ``torch.as_tensor``, ``cupy.asarray`` and ``numba.cuda.as_cuda_array`` take it without a copy. It is never copied to
    the host unless `copy_to_host` is called.

    Attributes
    ----------
    address : int
        Of the first element.
    shape, strides : tuple of int
        Strides in bytes.
    dtype : numpy.dtype
    device : int
        Number of the GPU.
    owner : object
        Keeps the memory alive.
    stream : function
        Gives the stream on which the contents are worked on.
    writeable : bool
    holds : str
        What bit patterns, uint16, are, where NumPy has no such dtype: "bfloat16".
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: Any
    stream: Stream = default_stream
    writeable: bool = True
    holds: str = ""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def flags(self) -> Flags:
        """Return the flags that NumPy would give the same array."""
        plain = c_strides(self.shape, self.itemsize)
        axes = [axis for axis, extent in enumerate(self.shape) if extent > 1]
        return Flags(
            c_contiguous=self.size == 0 or all(self.strides[axis] == plain[axis] for axis in axes),
            writeable=self.writeable,
            aligned=not any(
                number % self.itemsize for number in (self.address, *(self.strides[axis] for axis in axes))
            ),
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.size else 0, not self.writeable),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": self.stream() or 1,  # the interface's name for the legacy default stream
            "version": 3,
        }

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        raise TypeError("a CudaArray is in GPU memory: call copy_to_host() for a NumPy array")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a CudaArray is a view of GPU memory and can be neither copied nor pickled: use copy_to_host()")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> CudaArray:
        """Part of a 1-D array."""
        if self.ndim != 1 or not isinstance(part, slice):
            raise TypeError("a CudaArray takes a slice of its only axis: use torch.as_tensor or cupy.asarray for more")
        start, stop, step = part.indices(self.shape[0])
        extent = len(range(start, stop, step))
        address = self.address + start * self.strides[0]
        return replace(self, address=address, shape=(extent,), strides=(step * self.strides[0],))

    def view(self, dtype: Any) -> CudaArray:
        """The same memory as another dtype of as many bytes."""
        if np.dtype(dtype).itemsize != self.itemsize:
            raise ValueError(f"cannot view {self.dtype} as {np.dtype(dtype)}: its elements have other sizes")
        return replace(self, dtype=np.dtype(dtype), holds="")

    def reshape(self, shape: Sequence[int]) -> CudaArray:
        """A C-ordered array without gaps in another shape of as many elements."""
        if math.prod(shape) != self.size or not self.flags.c_contiguous:
            raise ValueError(f"cannot view shape {self.shape}, strides {self.strides} in shape {tuple(shape)}")
        return replace(self, shape=tuple(shape), strides=c_strides(tuple(shape), self.itemsize))

    def transpose(self, axes: Sequence[int]) -> CudaArray:
        """The axes in another order."""
        return replace(
            self, shape=tuple(self.shape[axis] for axis in axes), strides=tuple(self.strides[axis] for axis in axes)
        )

    def copy_to_host(self) -> Array:
        """A NumPy array with the same elements; waits for the GPU."""
        from ..kernels.cuda import gpu

        low, high = byte_range(self.address, self)
        memory = np.empty(high - low, np.uint8)
        if self.size:
            gpu.device(self.device).download(memory, low, self.stream())
        return np.ndarray(self.shape, self.dtype, memory, self.address - low, self.strides).copy()

    def __repr__(self) -> str:
        return f"CudaArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"
