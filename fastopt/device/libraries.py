"""Whose arrays lie on GPUs: how each library says where an array is, and how it provides new ones.

The only place that knows foreign arrays. No library is imported here before the user has: an array of a library that
has not been imported does not exist.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..kernels.cuda import _numba_cuda
from . import dlpack
from .array import CudaArray, Stream, default_stream
from .interface import Interface, Library, dtype_named, normal_stream
from .strides import c_strides


class Torch(Library):
    """CUDA tensors of torch."""

    name = "torch"
    copyable = True

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        return _is_torch(array) and array.device.type == "cuda"

    def ordinal(self, array: Any) -> int:
        """See `Library.ordinal`."""
        return array.device.index

    def stream(self, array: Any) -> Stream:
        """See `Library.stream`: torch's current one on the array's GPU."""
        return functools.partial(_torch_stream, array.device.index)

    def view(self, name: str, array: Any, stream: int) -> CudaArray:
        """See `Library.view`."""
        if str(array.layout) != "torch.strided":
            raise TypeError(f"{name}: has the layout {array.layout}: pass tensor.to_dense()")
        if array.is_neg() or array.is_conj():
            raise ValueError(f"{name}: stands for numbers that are not in memory: pass tensor.resolve_neg()")
        dtype, holds = dtype_named(name, str(array.dtype).removeprefix("torch."))
        strides = tuple(stride * dtype.itemsize for stride in array.stride())
        # A tensor of our own: assigning to the user's .data must not free memory that kernels have the address of.
        owner = array.detach()
        return CudaArray(
            array.data_ptr(), tuple(array.shape), strides, dtype, array.device.index, owner, self.stream(array), True,
            holds,
        )  # fmt: skip

    def signatures(self, arrays: Iterable[Any]) -> list[object]:
        """See `Library.signatures`; a call per array would cost as much again."""
        torch = sys.modules["torch"]
        tensor, strided = torch.Tensor, torch.strided
        return [
            (array.dtype, array.shape, array.stride(), array.device, array.is_neg())
            if isinstance(array, tensor) and array.layout is strided
            else None
            for array in arrays
        ]

    def addresses(self, arrays: Iterable[Any]) -> list[int]:
        """See `Library.addresses`."""
        return list(map(sys.modules["torch"].Tensor.data_ptr, arrays))

    def times(self, value: Any, number: CudaArray) -> Any:
        """See `Library.times`."""
        if not self.owns(value):
            return super().times(value, number)
        return (value * sys.modules["torch"].as_tensor(number, device=value.device)).to(value.dtype)

    def empty(self, ordinal: int, size: int, dtype: np.dtype[Any]) -> Any:
        """See `Library.empty`."""
        torch = importlib.import_module("torch")
        name = dtype.name if dtype.kind == "f" else f"int{8 * dtype.itemsize}"  # few of its functions know others
        return torch.empty(size, dtype=getattr(torch, name), device=f"cuda:{ordinal}")


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _torch_stream(ordinal: int) -> int:
    return sys.modules["torch"].cuda.current_stream(ordinal).cuda_stream


class CuPy(Library):
    """Arrays of CuPy."""

    name = "cupy"
    copyable = True

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, cupy.ndarray)

    def ordinal(self, array: Any) -> int:
        """See `Library.ordinal`."""
        return array.device.id

    def stream(self, array: Any) -> Stream:
        """See `Library.stream`: CuPy's current one on the array's GPU."""
        return functools.partial(_cupy_stream, array.device.id)

    def view(self, name: str, array: Any, stream: int) -> CudaArray:
        """See `Library.view`."""
        return CudaArray(
            array.data.ptr, array.shape, array.strides, array.dtype, array.device.id, array, self.stream(array)
        )

    def _signature(self, array: Any) -> object:
        if not isinstance(array, sys.modules["cupy"].ndarray):
            return None
        return array.dtype, array.shape, array.strides, array.device.id

    def _address(self, array: Any) -> int:
        return array.data.ptr

    def times(self, value: Any, number: CudaArray) -> Any:
        """See `Library.times`."""
        if not self.owns(value):
            return super().times(value, number)
        cupy = sys.modules["cupy"]  # whose asarray waits for the stream that an array names
        memory = cupy.cuda.UnownedMemory(number.address, number.nbytes, number.owner, number.device)
        return value * cupy.ndarray((), "f8", cupy.cuda.MemoryPointer(memory, 0)).astype(value.dtype)

    def empty(self, ordinal: int, size: int, dtype: np.dtype[Any]) -> Any:
        """See `Library.empty`."""
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(ordinal):
            return cupy.empty(size, dtype)


def _cupy_stream(ordinal: int) -> int:
    cuda = sys.modules["cupy"].cuda
    with cuda.Device(ordinal):
        return cuda.get_current_stream().ptr


class Numba(Interface):
    """Numba's device arrays."""

    name = "numba"

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        return _numba_cuda.is_device_array(array)

    def stream(self, array: Any) -> Stream:
        """See `Library.stream`: the one that the array is bound to, or Numba's default."""
        number = int(array.stream)
        return functools.partial(normal_stream, number) if number else default_stream

    def _signature(self, array: Any) -> object:
        if not self.owns(array):
            return None
        return array.dtype, array.shape, array.strides, int(array.stream), _numba_cuda.ordinal_of(array)

    def _address(self, array: Any) -> int:
        return _numba_cuda.address_of(array)

    def empty(self, ordinal: int, size: int, dtype: np.dtype[Any]) -> Any:
        """See `Library.empty`."""
        cuda = importlib.import_module("numba.cuda")
        with cuda.gpus[ordinal]:
            return cuda.device_array(size, dtype)


class DLPack(Library):
    """Any other library that follows DLPack. From before DLPack 1.0 arrays are read-only: they could not say so."""

    name = "dlpack"

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        if _is_torch(array) or not hasattr(type(array), "__dlpack_device__"):
            return False
        return array.__dlpack_device__()[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED)

    def ordinal(self, array: Any) -> int:
        """See `Library.ordinal`."""
        return array.__dlpack_device__()[1]

    def stream(self, array: Any) -> Stream:
        """See `Library.stream`: the protocol names none, and has ours wait instead."""
        return default_stream

    def view(self, name: str, array: Any, stream: int) -> CudaArray:
        """See `Library.view`."""
        try:
            found = dlpack.export(array, stream)
        except (BufferError, TypeError, ValueError) as reason:
            raise TypeError(f"{name}: cannot be shared through DLPack: {reason}") from reason
        dtype, holds = dtype_named(name, found.dtype)
        strides = found.strides or c_strides(found.shape, 1)
        strides = tuple(stride * dtype.itemsize for stride in strides)
        complete_on = functools.partial(int, stream)
        return CudaArray(
            found.address, found.shape, strides, dtype, found.device, found.owner, complete_on, found.writeable, holds
        )

    def _signature(self, array: Any) -> object:
        return None

    def _address(self, array: Any) -> int:
        return 0


class Jax(DLPack):
    """JAX's arrays: read-only. Their ``__cuda_array_interface__`` does not say in which stream they are complete."""

    name = "jax"

    def owns(self, array: Any) -> bool:
        """See `Library.owns`."""
        return type(array).__module__.partition(".")[0] in ("jax", "jaxlib") and super().owns(array)


# The first that owns an array counts.
LIBRARIES = {library.name: library for library in (Library(), Torch(), CuPy(), Numba(), Jax(), Interface(), DLPack())}


def library_of(array: Any) -> Library | None:
    """The library of an array on a GPU; None for anything else."""
    if isinstance(array, np.ndarray):
        return None
    return next((library for library in LIBRARIES.values() if library.owns(array)), None)
