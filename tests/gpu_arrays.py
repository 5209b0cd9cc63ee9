"""Arrays of every kind of library that say they are on GPU 0, over host memory: see `RunningDriver.adopt`."""

import contextlib
import ctypes
import functools
import sys
import types

import numpy as np
import pytest
from fastopt.kernels.compile.intrinsics import table_at
from running_driver import adopt, adopt_storage

from fastopt.device import CudaArray, aligned_zeros, dlpack


def undefined(size, dtype):
    """A new array that nobody has written to: all bits are ones, NaN."""
    array = aligned_zeros(size, dtype)
    array.view(np.uint8)[:] = 0xFF
    return array


class Interface:
    """An array of a library that nobody knows, with ``__cuda_array_interface__``; entries can be changed."""

    def __init__(self, array, **changes):
        self.memory = array
        self.changes = changes

    @property
    def __cuda_array_interface__(self):
        array = self.memory
        adopt(array)
        interface = {
            "shape": array.shape,
            "strides": None if array.flags.c_contiguous else array.strides,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, not array.flags.writeable),
            "version": 3,
        }
        return {key: value for key, value in (interface | self.changes).items() if value is not ...}


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


_EXPORTED = []
"""What was exported: it outlives whoever exported it, for whoever imported it may call its deleter at any time."""


class DLPack:
    """An array of a library that only speaks DLPack, from before its version 1.0 or after."""

    def __init__(self, array, device=(dlpack.CUDA, 0), versioned=True, read_only=False, **changes):
        self.memory, self.device, self.versioned, self.read_only = array, device, versioned, read_only
        adopt(array)
        self.changes = changes
        self.streams, self.deleted, self._kept = [], 0, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None, **options):
        if options and not self.versioned:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        managed = dlpack._NAMES[name]()
        self._describe(managed.tensor)
        deleter = dlpack._DELETER(self._delete)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p)
        if self.versioned:
            managed.major, managed.minor, managed.flags = 1, 0, int(self.read_only)
        for key, value in self.changes.items():
            setattr(managed if hasattr(managed, key) else managed.tensor, key, value)
        _EXPORTED.append((self, managed, deleter, name))
        return _new_capsule(ctypes.addressof(managed), name, None)

    def _delete(self, pointer):
        self.deleted += 1

    def _describe(self, tensor):
        array = self.memory
        numbers = ctypes.c_int64 * max(array.ndim, 1)
        shape, strides = numbers(*array.shape), numbers(*(stride // array.itemsize for stride in array.strides))
        self._kept += [shape, strides]
        tensor.data, tensor.byte_offset = array.ctypes.data, 0
        tensor.device_type, tensor.device_id = self.device
        tensor.ndim, tensor.shape, tensor.strides = array.ndim, shape, strides
        tensor.code, tensor.bits, tensor.lanes = {"f": 2, "i": 0, "u": 1}[array.dtype.kind], array.itemsize * 8, 1


def interface(array, patch):
    """See `Interface`."""
    return Interface(array)


def exported(array, patch):
    """See `DLPack`."""
    return DLPack(array)


@functools.cache
def tensor_class():
    """Tensors of torch that say they are on a GPU."""
    torch = pytest.importorskip("torch")

    class OnGpu(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda", 0)

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.to and kwargs:  # it is there already
                kwargs = {name: value for name, value in kwargs.items() if name != "device"}
            return adopted(super().__torch_function__(function, types, args, kwargs))

        def __deepcopy__(self, memo):
            return self.detach().clone()

    return OnGpu


def adopted(value):
    """A value of torch's; if it is a tensor, its memory is adopted for good: nobody knows what shares it."""
    import torch

    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        with torch._C.DisableTorchFunctionSubclass():
            adopt_storage(value)
    return value


def tensors_of_addresses(patch):
    """Let `torch.as_tensor` make tensors, that say they are on a GPU, of numbers that fastopt keeps there."""
    torch = pytest.importorskip("torch")
    as_tensor = torch.as_tensor

    def on_gpu(value, *args, **options):
        if not isinstance(value, CudaArray):
            return as_tensor(value, *args, **options)
        memory = table_at(value.address, 1, 1, value.dtype.type).reshape(())
        return torch.from_numpy(memory).as_subclass(tensor_class())

    patch.setattr(torch, "as_tensor", on_gpu)


def tensor(array, patch):
    """A tensor of torch that says it is on a GPU."""
    torch = pytest.importorskip("torch")

    empty = torch.empty

    def empty_on_gpu(*size, device=None, **options):
        made = empty(*size, **options)
        return made if device is None else made.as_subclass(tensor_class())

    patch.setattr(torch, "empty", empty_on_gpu)
    patch.setattr(torch.cuda, "current_stream", lambda ordinal: types.SimpleNamespace(cuda_stream=70 + ordinal))
    adopt(array)
    return torch.from_numpy(array).as_subclass(tensor_class())


def cupy_array(array, patch):
    """An array of a stand-in for CuPy with what fastopt uses of it."""
    if "cupy" not in sys.modules:
        patch.setitem(sys.modules, "cupy", _cupy())
    return sys.modules["cupy"].ndarray(array)


def _cupy():
    module = types.ModuleType("cupy")

    class Array:
        def __init__(self, memory):
            self.memory, self.device = memory, types.SimpleNamespace(id=0)
            adopt(memory)
            self.shape, self.strides, self.dtype = memory.shape, memory.strides, memory.dtype
            self.data = types.SimpleNamespace(ptr=memory.ctypes.data)

        def __getitem__(self, part):
            return Array(self.memory[part])

        def reshape(self, shape):
            return Array(self.memory.reshape(shape))

    module.ndarray = Array
    module.empty = lambda size, dtype: Array(undefined(size, dtype))
    module.cuda = types.SimpleNamespace(
        Device=lambda ordinal: contextlib.nullcontext(),
        get_current_stream=lambda: types.SimpleNamespace(ptr=80),
    )
    return module


class DeviceNDArray(Interface):
    """What fastopt uses of Numba's device arrays."""

    def __init__(self, memory, stream=0):
        super().__init__(memory, stream=stream or None)
        adopt(memory)
        self.shape, self.strides, self.dtype, self.stream = memory.shape, memory.strides, memory.dtype, stream
        self.device_ctypes_pointer = ctypes.c_void_p(memory.ctypes.data if memory.size else None)
        context = types.SimpleNamespace(device=types.SimpleNamespace(id=0))
        self.gpu_data = types.SimpleNamespace(context=context)

    def __getitem__(self, part):
        return DeviceNDArray(self.memory[part], self.stream)

    def reshape(self, shape):
        return DeviceNDArray(self.memory.reshape(shape), self.stream)


def numba_array(array, patch, stream=0):
    """See `DeviceNDArray`."""
    from numba import cuda

    patch.setattr(cuda.cudadrv.devicearray, "DeviceNDArray", DeviceNDArray, raising=False)
    patch.setattr(cuda, "gpus", [contextlib.nullcontext()])
    patch.setattr(cuda, "device_array", lambda size, dtype: DeviceNDArray(undefined(size, dtype)))
    return DeviceNDArray(array, stream)


KINDS = {
    "interface": interface,
    "dlpack": exported,
    "torch": tensor,
    "cupy": cupy_array,
    "numba": numba_array,
}
"""Kind → function of a NumPy array and pytest's monkeypatch that gives such an array over the same memory."""

STREAMS = {"interface": 0, "dlpack": 0, "torch": 70, "cupy": 80, "numba": 0}
"""The stream in which each is worked on."""
