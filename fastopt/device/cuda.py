"""One GPU: what is done with whole arrays there. Nothing here waits unless it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from .array import Array, CudaArray, Stream
from .host import HOST
from .interface import Library
from .libraries import LIBRARIES, library_of
from .strides import byte_range, c_strides, is_dense, same_strides


class Gpu:
    """A GPU and the library whose arrays live there: a `Place`.

    Parameters
    ----------
    ordinal : int
        Number of the GPU.
    library : Library
        Whose arrays the parameters are: its allocator provides all memory.
    stream : Stream
        Where the parameters' users work: everything is enqueued there.

    Raises
    ------
    RuntimeError
        If there is no such GPU, or no way to reach it.
    """

    on_gpu = True

    def __init__(self, ordinal: int, library: Library, stream: Stream) -> None:
        from ..kernels.cuda import gpu

        self.ordinal, self.library, self._stream = ordinal, library, stream
        self.capturing: int | None = None  # fastopt's own stream, while a step is captured on it
        self.device = gpu.device(ordinal)

    def __reduce__(self) -> tuple[Any, ...]:
        return _gpu_of, (self.library.name, self.ordinal)

    def stream(self) -> int:
        """Return the stream on which everything is enqueued."""
        return self._stream() if self.capturing is None else self.capturing

    @property
    def copyable(self) -> bool:
        """See `Place.copyable`."""
        return self.library.copyable

    def view(self, name: str, array: Any) -> CudaArray:
        """See `Place.view`; also refuses what has no memory any more."""
        library = library_of(array)
        if library is None:
            kind = "a NumPy array" if isinstance(array, np.ndarray) else f"an object of type {type(array).__name__}"
            raise TypeError(f"{name}: is {kind}, and an array on GPU {self.ordinal} is needed here: copy it there")
        view = library.view(name, array, self.stream())
        if view.size and not view.address:
            raise ValueError(f"{name}: has no memory: it was freed, or never allocated")
        if view.size and view.device != self.ordinal:
            raise ValueError(f"{name}: is on GPU {view.device}, the others are on GPU {self.ordinal}: copy it there")
        return view

    def flat(self, size: int, dtype: np.dtype[Any]) -> Any:
        """See `Place.flat`: an array of the parameters' library."""
        array = self.library.empty(self.ordinal, size, dtype)
        self.fill(self.view("flat", array), 0.0)
        return array

    def zeros(self, size: int, dtype: np.dtype[Any]) -> CudaArray:
        """See `Place.zeros`."""
        array = self._empty(size, dtype)
        self.fill(array, 0.0)
        return array

    def _empty(self, size: int, dtype: np.dtype[Any]) -> CudaArray:
        array = self.view("state", self.library.empty(self.ordinal, size, dtype))
        return replace(array.view(dtype), stream=self.stream)

    def scalar(self, address: int, dtype: type[np.generic] = np.float64) -> CudaArray:
        """A number that fastopt keeps at an address."""
        return CudaArray(address, (), (), np.dtype(dtype), self.ordinal, None, self.stream)

    def fill(self, array: CudaArray, number: float) -> None:
        """See `Place.fill`."""
        if not array.size:
            return
        if not is_dense(array):
            self._copy_strided(array, self._broadcast(number, array))
        elif number:
            self.device.fill(array.address, number, array.size, array.dtype, self.stream())
        else:
            self.device.clear(array.address, array.nbytes, self.stream())

    def _broadcast(self, number: float, like: CudaArray) -> CudaArray:
        one = self._empty(1, like.dtype)
        self.fill(one, number)
        return replace(one, shape=like.shape, strides=(0,) * like.ndim)

    def copy(self, target: CudaArray, source: CudaArray) -> None:
        """See `Place.copy`."""
        if not target.size:
            return
        if is_dense(target) and same_strides(target, source):
            self.device.copy(target.address, source.address, target.nbytes, self.stream())
        else:
            self._copy_strided(target, source)

    def _copy_strided(self, target: CudaArray, source: CudaArray) -> None:
        from ..kernels.cuda.strided import copy_strided

        copy_strided(self.device, target, source, self.stream())

    def copying(self, target: CudaArray, source: CudaArray) -> Callable[[], None]:
        """See `Place.copying`."""
        return partial(self.copy, target, source)

    def filling(self, array: CudaArray, number: float) -> Callable[[], None]:
        """See `Place.filling`."""
        return partial(self.fill, array, number)

    def clone(self, array: CudaArray) -> CudaArray:
        """See `Place.clone`: it lies as the original does."""
        return self._copy_with(array, array.strides)

    def in_c_order(self, array: CudaArray) -> CudaArray:
        """See `Place.in_c_order`."""
        return self._copy_with(array, c_strides(array.shape, array.itemsize))

    def _copy_with(self, array: CudaArray, strides: tuple[int, ...]) -> CudaArray:
        copy = replace(self._empty(array.size, array.dtype), shape=array.shape, strides=strides)
        self.copy(copy, array)
        return copy

    def to_host(self, array: CudaArray) -> Array:
        """See `Place.to_host`."""
        return replace(array, stream=self.stream).copy_to_host()

    def from_host(self, array: CudaArray, values: Array) -> None:
        """See `Place.from_host`."""
        if not array.size:
            return
        memory = np.empty(array.nbytes, np.uint8)
        np.ndarray(array.shape, array.dtype, memory, 0, array.strides)[...] = values
        self.device.upload(array.address, memory, self.stream())

    def address(self, array: CudaArray) -> int:
        """See `Place.address`."""
        return array.address

    def byte_range(self, array: CudaArray) -> tuple[int, int]:
        """See `Place.byte_range`."""
        return byte_range(array.address, array)

    def shares_memory(self, one: CudaArray, other: CudaArray) -> bool:
        """See `Place.shares_memory`."""
        return HOST.shares_memory(_same_addresses(one), _same_addresses(other))


def _gpu_of(library_name: str, ordinal: int) -> Gpu:
    """The GPU for new arrays of a library, where that works by default."""
    library = LIBRARIES[library_name]
    return Gpu(ordinal, library, library.stream(library.empty(ordinal, 0, np.dtype(np.float32))))


def _same_addresses(array: CudaArray) -> Array:
    """A NumPy array at a GPU's addresses: to be reasoned about, never to be read."""
    interface = {
        "shape": array.shape, "typestr": array.dtype.str, "data": (array.address, True), "strides": array.strides,
        "version": 3,
    }  # fmt: skip
    return np.asarray(SimpleNamespace(__array_interface__=interface))
