"""A CUDA driver that is not there: what `fastopt.kernels.cuda` calls of ``cuda.bindings.driver``, in host memory.

Device memory is the host's; `RunningDriver` adds what is done in streams. Constants and handles are the real module's,
which also says how many arguments each function takes and, where no driver is installed, judges their types.
"""

import ctypes
import functools
import itertools
import re
from collections import Counter

import numpy as np
from cuda import pathfinder
from cuda.bindings import driver as real

CODE = real.CUresult
GPUS = 2
PRIMARY = 10  # a GPU's handle is PRIMARY + its number
ATTRIBUTES = {
    real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: 9,
    real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: 0,
    real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 132,
}
NO_CONTEXT_NEEDED = re.compile("cu(Init|Device|Driver|Ctx|Get|Thread|Pointer|Library)")


@functools.cache
def _number_of_arguments(name):
    inside = getattr(real, name).__doc__.partition("\n")[0].removeprefix(f"{name}(").rpartition(")")[0]
    return len(re.sub(r"\[.*?\]+", "", inside).split(",")) if inside else 0


@functools.cache
def _returns_value(name):
    """Whether the function returns more than its status: then None where it fails."""
    lines = getattr(real, name).__doc__.partition("Returns\n-------\n")[2].partition("\n\n")[0].splitlines()
    return sum(not line.startswith(" ") for line in lines) > 1


def _require_types(name, arguments):
    """The real function converts its arguments, then finds no driver."""
    try:
        pathfinder.load_nvidia_dynamic_lib("cuda")
    except pathfinder.DynamicLibNotFoundError:
        try:
            getattr(real, name)(*arguments)
        except pathfinder.DynamicLibNotFoundError:
            return
        raise AssertionError(f"{name} found a driver") from None


def numbers_at(packed, count):
    """The int64 arguments of a launch."""
    pointers = (ctypes.c_void_p * count).from_address(packed)
    return tuple(ctypes.c_int64.from_address(pointer).value for pointer in pointers)


_contexts = itertools.count(1000, 100)


class FakeDriver:
    """Takes the place of the module ``cuda.bindings.driver``.

    ``errors`` maps a function's name to the error that it is to return.
    """

    def __init__(self):
        self.calls, self.errors = [], {}
        self.contexts, self.mode = [], real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        self.memory, self.handles = {}, 5000
        self._checked = set()
        self._first_context = next(_contexts)

    def context_of(self, ordinal):
        """The context of a GPU: no other driver has it."""
        return self._first_context + ordinal

    def __getattr__(self, name):
        if not re.match("cu[A-Z]", name):
            return getattr(real, name)

        return functools.partial(self._call, name)

    def _call(self, name, *arguments):
        assert len(arguments) == _number_of_arguments(name), (name, arguments)
        if name not in self._checked:
            _require_types(name, arguments)
            self._checked.add(name)
        self.calls.append(name)
        error, value = self.errors.get(name, self._refusal(name)), None
        if not error:
            value = getattr(self, f"_{name}")(*arguments)
            error, value = value if isinstance(value, tuple) else (CODE.CUDA_SUCCESS, value)
        return (CODE(error), value) if _returns_value(name) else (CODE(error),)

    def _refusal(self, name):
        if not NO_CONTEXT_NEEDED.match(name) and not self.contexts:
            return CODE.CUDA_ERROR_INVALID_CONTEXT
        return CODE.CUDA_SUCCESS

    def count(self, name):
        """How often a function was called."""
        return Counter(self.calls)[name]

    def _new_handle(self, kind):
        self.handles += 1
        return kind(self.handles)

    # -- devices and contexts ------------------------------------------------------------------------------------------

    def _cuInit(self, flags):
        return None

    def _cuGetErrorString(self, error):
        return None if error == CODE.CUDA_ERROR_UNKNOWN else f"text of {error.name}".encode()

    def _cuDriverGetVersion(self):
        return 12080

    def _cuDeviceGetCount(self):
        return GPUS

    def _cuDeviceGet(self, ordinal):
        return real.CUdevice(PRIMARY + ordinal)

    def _cuDeviceGetName(self, length, device):
        return b"Fake GPU".ljust(length, b"\0")

    def _cuDeviceGetAttribute(self, attribute, device):
        return ATTRIBUTES[attribute]

    def _cuDevicePrimaryCtxRetain(self, device):
        return real.CUcontext(self.context_of(int(device) - PRIMARY))

    def _cuCtxGetCurrent(self):
        return real.CUcontext(self.contexts[-1] if self.contexts else 0)

    def _cuCtxPushCurrent(self, context):
        if int(context) not in range(self._first_context, self._first_context + GPUS):
            return CODE.CUDA_ERROR_INVALID_CONTEXT, None
        self.contexts.append(int(context))

    def _cuCtxPopCurrent(self):
        return real.CUcontext(self.contexts.pop())

    # -- streams and events --------------------------------------------------------------------------------------------

    def _cuThreadExchangeStreamCaptureMode(self, mode):
        self.mode, before = mode, self.mode
        return before

    def _cuStreamCreate(self, flags):
        return self._new_handle(real.CUstream)

    def _cuEventCreate(self, flags):
        assert flags == real.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return self._new_handle(real.CUevent)

    # -- memory --------------------------------------------------------------------------------------------------------

    def _allocated(self, nbytes):
        memory = np.full(nbytes + 256, 0xFF, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self.memory[address] = memory
        return address

    def _cuMemAlloc(self, nbytes):
        return real.CUdeviceptr(self._allocated(nbytes))

    def _cuMemHostAlloc(self, nbytes, flags):
        assert flags == real.CU_MEMHOSTALLOC_PORTABLE | real.CU_MEMHOSTALLOC_DEVICEMAP
        return self._allocated(nbytes)

    def _cuMemFree(self, address):
        del self.memory[int(address)]

    _cuMemFreeHost = _cuMemFree

    def _cuMemcpyHtoDAsync(self, target, source, nbytes, stream):
        ctypes.memmove(int(target), int(source), nbytes)

    _cuMemcpyDtoHAsync = _cuMemcpyDtoDAsync = _cuMemcpyHtoDAsync

    def _cuMemsetD8Async(self, address, value, count, stream):
        ctypes.memset(int(address), value, count)

    def _cuMemsetD32Async(self, address, value, count, stream):
        self._cuMemsetD2D32Async(address, 4, value, 1, count, stream)

    def _cuMemsetD2D32Async(self, address, pitch, value, width, height, stream):
        for row in range(height):
            ctypes.memmove(int(address) + row * pitch, np.full(width, value, np.uint32).tobytes(), 4 * width)

    # -- kernels -------------------------------------------------------------------------------------------------------

    def _cuLibraryLoadData(self, code, *options):
        assert options == ([], [], 0, [], [], 0)
        return self._new_handle(real.CUlibrary)

    def _cuLibraryGetKernel(self, library, name):
        assert isinstance(name, bytes)
        return self._new_handle(real.CUkernel)

    def _cuKernelGetFunction(self, kernel):
        return self._new_handle(real.CUfunction)
