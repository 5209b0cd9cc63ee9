"""What a library says of its arrays, and those that say it by ``__cuda_array_interface__``."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .array import CudaArray, Stream, default_stream
from .strides import c_strides


class Library:
    """One kind of array. This one is fastopt's own.

    Attributes
    ----------
    name : str
    copyable : bool
        Whether its arrays can be deep-copied and pickled.
    """

    name = "fastopt"
    copyable = False

    def owns(self, array: Any) -> bool:
        """Whether an object is such an array, on a GPU."""
        return isinstance(array, CudaArray)

    def ordinal(self, array: Any) -> int | None:
        """Number of the GPU; None where an array has no memory."""
        return array.device

    def stream(self, array: Any) -> Stream:
        """Return what gives the stream that the array is worked on; it does not keep the array alive."""
        return array.stream

    def view(self, name: str, array: Any, stream: int) -> CudaArray:
        """A view of the same memory, which what follows on ``stream`` may use if it waits for the view's stream.

        Raises
        ------
        TypeError, ValueError
            If there cannot be one. ``name`` begins the message.
        """
        return array

    def signatures(self, arrays: Iterable[Any]) -> list[object]:
        """Equal for arrays that differ in nothing but their address; None for those that must be viewed each time.

        A step asks for those of all gradients.
        """
        return list(map(self._signature, arrays))

    def addresses(self, arrays: Iterable[Any]) -> list[int]:
        """Return addresses of this library's arrays; a step asks for those of all parameters and gradients."""
        return list(map(self._address, arrays))

    def _signature(self, array: Any) -> object:
        if not self.owns(array):
            return None
        return array.dtype, array.shape, array.strides, array.device, array.writeable

    def _address(self, array: Any) -> int:
        return array.address

    def times(self, value: Any, number: CudaArray) -> Any:
        """A value times a number on the GPU; without waiting for it where the library can."""
        return value * float(number.copy_to_host())

    def empty(self, ordinal: int, size: int, dtype: np.dtype[Any]) -> Any:
        """A new 1-D array of this library, at a multiple of 64 bytes, not initialised."""
        from ..kernels.cuda import gpu

        memory = gpu.device(ordinal).allocate(max(size, 1) * dtype.itemsize)
        return CudaArray(memory.address, (size,), (dtype.itemsize,), dtype, ordinal, memory)


class Interface(Library):
    """Any library that follows ``__cuda_array_interface__``, version 2 or 3.

    Source: https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html
    """

    name = "__cuda_array_interface__"

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        return getattr(array, "__cuda_array_interface__", None) is not None

    def ordinal(self, array: Any) -> int | None:
        """See `Library.ordinal`. Empty arrays may have any address, and are nowhere."""
        from ..kernels.cuda import driver

        address, shape = self._address(array), _entry(array.__cuda_array_interface__, "shape", ())
        is_empty = isinstance(shape, tuple) and 0 in shape
        return driver.ordinal_of(address) if address and not is_empty else None

    def stream(self, array: Any) -> Stream:
        """See `Library.stream`; the interface's 0 is refused by `view`."""
        number = _entry(array.__cuda_array_interface__, "stream", None)
        return default_stream if number is None else functools.partial(normal_stream, number)

    def view(self, name: str, array: Any, stream: int) -> CudaArray:
        """See `Library.view`."""
        interface = array.__cuda_array_interface__
        _check_interface(name, interface)
        dtype, _ = dtype_named(name, interface["typestr"])
        shape = tuple(interface["shape"])
        strides = interface.get("strides") or c_strides(shape, dtype.itemsize)
        address, read_only = interface["data"]
        ordinal = self.ordinal(array) if address else 0
        return CudaArray(
            address or 0, shape, tuple(strides), dtype, ordinal or 0, array, self.stream(array), not read_only
        )

    def _signature(self, array: Any) -> object:
        return None

    def _address(self, array: Any) -> int:
        return _entry(array.__cuda_array_interface__, "data", (0, False))[0] or 0


def _entry(interface: Any, key: str, default: Any) -> Any:
    return interface.get(key, default) if isinstance(interface, Mapping) else default


def _check_interface(name: str, interface: Any) -> None:
    missing = [key for key in ("shape", "typestr", "data", "version") if _entry(interface, key, None) is None]
    if missing:
        raise TypeError(f"{name}: its __cuda_array_interface__ does not say {missing[0]!r}")
    shape, strides, data = interface["shape"], _entry(interface, "strides", None), interface["data"]
    stream = _entry(interface, "stream", None)
    if not (
        _are_ints(shape)
        and (strides is None or (_are_ints(strides) and len(strides) == len(shape)))
        and (isinstance(data, tuple) and len(data) == 2)
        and (stream is None or isinstance(stream, int))
    ):
        raise TypeError(f"{name}: its __cuda_array_interface__ does not follow the protocol: {dict(interface)}")
    if interface["version"] not in (2, 3):
        raise TypeError(f"{name}: its __cuda_array_interface__ has version {interface['version']}, expected 2 or 3")
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: has a mask, which fastopt cannot observe: pass the array without it")
    if interface.get("stream") == 0:
        raise ValueError(
            f"{name}: its __cuda_array_interface__ names stream 0, which is ambiguous: 1 is the legacy default stream, "
            "2 that of the thread"
        )


def _are_ints(numbers: Any) -> bool:
    return isinstance(numbers, (tuple, list)) and all(isinstance(number, (int, np.integer)) for number in numbers)


def normal_stream(number: int) -> int:
    """The driver's handle of what the interface calls a stream: its legacy default stream, 1, is the driver's 0 too."""
    return 0 if number == 1 else number


def dtype_named(name: str, dtype: str) -> tuple[np.dtype[Any], str]:
    """NumPy's dtype of a name, where NumPy has it; and what it ``holds``, see `CudaArray`."""
    if dtype == "bfloat16":
        return np.dtype(np.uint16), dtype
    try:
        return np.dtype(dtype), ""
    except TypeError:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {dtype}: cast it first") from None
