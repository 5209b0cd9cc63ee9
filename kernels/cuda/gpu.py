"""GPUs: memory, copies, streams, launches. Addresses and streams are plain integers.

A stream is a ``CUstream`` handle, 0 the legacy default stream. Whatever is asynchronous happens in the order of its
stream, and memory must live until then.
"""

import ctypes
import threading
import weakref
from collections import deque
from contextlib import suppress

import numpy as np

from .driver import Current, attribute, bindings, call, capability_of, fail, name_of
from .errors import CudaError, CudaUnavailable
from .staging import Staging, bytes_of, require_fillable

_devices: dict = {}
_lock = threading.Lock()


def device(ordinal):
    """The `Device` of that number, always the same object.

    Raises
    ------
    CudaUnavailable
        If there is no such GPU, no driver, or no package to reach it with.
    """
    with _lock:
        if ordinal not in _devices:
            _devices[ordinal] = Device(ordinal)
        return _devices[ordinal]


class Device:
    """One GPU, in its primary context, which it shares with torch, CuPy and numba.cuda.

    Every method may be called from any thread, and makes the context current while it needs it. `Kernel.launch` alone
    leaves that to its caller: ``with device.current():`` around a step does it for all of its launches.
    """

    def __init__(self, ordinal):
        count = call("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise CudaUnavailable(f"there is no GPU {ordinal}: CUDA sees {count} of them, numbered from 0")
        self.ordinal = ordinal
        handle = call("cuDeviceGet", ordinal)
        self.name, self.capability = name_of(handle), capability_of(handle)
        self.multiprocessors = attribute("MULTIPROCESSOR_COUNT", handle)
        self._context = call("cuDevicePrimaryCtxRetain", handle)
        self._kernels = {}
        self._lock = threading.Lock()
        self._words = iter(())
        self.spare: deque[tuple] = deque()  # page-locked memory of an `Outbox` that is gone, what tells if it is in use
        with self.current(), _CapturePermitting():
            self._stream = self.new_stream()
            self._event = _new_event()
        self._staging = Staging(self._staging_buffer)

    def current(self):
        """A context manager inside which this GPU's context is current in this thread. Reentrant, quick if it is so."""
        return Current(self._context)

    def allocate(self, nbytes, zeroed=False):
        """`Memory` of the GPU, 256-byte aligned, undefined unless ``zeroed``. Frees itself when it is collected."""
        memory = Memory(self, nbytes)
        if zeroed:
            with _CapturePermitting():
                self.clear(memory.address, nbytes, self._stream)
                self.synchronise(self._stream)
        return memory

    def pinned(self, nbytes):
        """Zeroed page-locked memory of the host, as a uint8 array. The GPU knows it by the same address."""
        driver = bindings()
        flags = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
        with self.current(), _CapturePermitting():
            address = int(call("cuMemHostAlloc", max(nbytes, 1), flags))
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        weakref.finalize(memory, self._discard, "cuMemFreeHost", address).atexit = False
        ctypes.memset(address, 0, nbytes)
        return np.frombuffer(memory, np.uint8)

    def word(self):
        """An int64 of page-locked memory, as an array. Never given back: a step may write to it to the very end."""
        with self._lock:
            word = next(self._words, None)
            if word is None:
                page = self.pinned(4096).view(np.int64)
                self._words = iter(page.reshape(-1, 1))
                word = next(self._words)
        return word

    def _discard(self, function, handle):
        """Give something back, in whatever thread collects garbage.

        Errors are no news: after a fault in any kernel each call reports that fault again; nor that there is no driver
        any more.
        """
        with suppress(CudaError, CudaUnavailable), self.current(), _CapturePermitting():
            call(function, handle)

    def upload(self, address, array, stream):
        """Copy an array of the host to the GPU. The array may change as soon as this returns; the copy is asynchronous.

        Returns without waiting for anything that was enqueued lately.
        """
        self.refuse_capture("upload", stream)
        content = bytes_of(array)
        with self.current():
            for first in range(0, content.size, Staging.LARGEST):
                piece = content[first : first + Staging.LARGEST]
                with self._staging.holding(piece) as buffer:
                    call("cuMemcpyHtoDAsync", address + first, buffer.address, piece.size, stream)
                    call("cuEventRecord", buffer.event, stream)

    def send(self, address, host_address, nbytes, stream):
        """Copy page-locked memory to the GPU, asynchronously, on a stream that is not being captured.

        The memory must not change until that is done.
        """
        with self.current():
            call("cuMemcpyHtoDAsync", address, host_address, nbytes, stream)

    def write(self, address, array):
        """Copy an array of the host to the GPU at once, beside all streams; also while one is being captured."""
        content = bytes_of(array)
        with self.current(), _CapturePermitting():
            if content.size:
                call("cuMemcpyHtoDAsync", address, content.ctypes.data, content.size, self._stream)
            call("cuStreamSynchronize", self._stream)

    def read(self, array, address):
        """Fill a contiguous array of the host with memory of the GPU as it now is, beside all streams."""
        with self.current(), _CapturePermitting():
            if array.nbytes:
                call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
            call("cuStreamSynchronize", self._stream)

    def _staging_buffer(self, nbytes):
        with self.current(), _CapturePermitting():
            return _StagingBuffer(self.pinned(nbytes), _new_event())

    def download(self, array, address, stream):
        """Fill a contiguous array of the host with memory of the GPU, once what is enqueued on ``stream`` is done."""
        self.refuse_capture("download", stream)
        require_fillable(array)
        with self.current():
            if array.nbytes:
                call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)
            call("cuStreamSynchronize", stream)

    def refuse_capture(self, action, stream):
        """Raise `RuntimeError` if what is enqueued on a stream goes to a graph."""
        if self.is_capturing(stream):
            raise RuntimeError(
                f"cannot {action} while the stream is being captured to a graph: do it before or after the capture"
            )

    def copy(self, target, source, nbytes, stream):
        """Copy memory of this GPU to elsewhere on it, asynchronously."""
        if nbytes:
            with self.current():
                call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def clear(self, address, nbytes, stream):
        """Set memory to zero, asynchronously."""
        if nbytes:
            with self.current():
                call("cuMemsetD8Async", address, 0, nbytes, stream)

    def fill(self, address, number, count, dtype, stream):
        """Set ``count`` elements of a ``dtype`` of 4 or 8 bytes to a number, asynchronously."""
        words = np.array([number], dtype).view(np.uint32).tolist()
        if not count:
            return
        with self.current():
            if len(set(words)) == 1:
                call("cuMemsetD32Async", address, words[0], count * len(words), stream)
                return
            for k, word in enumerate(words):  # as columns of a table of 4-byte words
                call("cuMemsetD2D32Async", address + 4 * k, 4 * len(words), word, 1, count, stream)

    def synchronise(self, stream):
        """Wait until all that is enqueued on a stream is done."""
        with self.current():
            call("cuStreamSynchronize", stream)

    def synchronise_all(self):
        """Wait until all that is enqueued on any stream of this GPU is done."""
        with self.current():
            call("cuCtxSynchronize")

    def wait(self, stream, other):
        """Let what is enqueued on ``stream`` from now on wait for what is enqueued on ``other`` so far."""
        if stream == other:
            return
        with self.current(), self._lock:  # a wait refers to the last record of the event: the next may follow at once
            call("cuEventRecord", self._event, other)
            call("cuStreamWaitEvent", stream, self._event, 0)

    def mark(self):
        """A new `Mark`."""
        with self.current(), _CapturePermitting():
            return Mark(self, _new_event())

    def is_capturing(self, stream):
        """Whether what is enqueued on a stream goes to a graph instead of the GPU."""
        with self.current():
            status = call("cuStreamIsCapturing", stream)
        return status != bindings().CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE

    def new_stream(self):
        """A stream that nobody else uses, and that waits for no other."""
        with self.current(), _CapturePermitting():
            return int(call("cuStreamCreate", bindings().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def begin_capture(self, stream):
        """Have what is enqueued on a stream from now on go to a graph. Libraries may allocate meanwhile."""
        with self.current():
            call("cuStreamBeginCapture", stream, bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)

    def end_capture(self, stream):
        """The `Graph` of what was enqueued since `begin_capture`."""
        with self.current():
            return Graph(self, call("cuStreamEndCapture", stream))

    def load(self, program):
        """The `Kernel` of a `Program` that was compiled for this GPU's capability; always the same."""
        key = program.name, program.image
        with self._lock:
            if key not in self._kernels:
                with self.current(), _CapturePermitting():
                    self._kernels[key] = Kernel(program, self.multiprocessors)
            return self._kernels[key]


def _new_event():
    return call("cuEventCreate", bindings().CUevent_flags.CU_EVENT_DISABLE_TIMING)


class _CapturePermitting:
    """Memory and events can be managed inside although a stream of this process is being captured to a graph.

    They concern no captured work. Without this the driver would refuse, and break off the capture.
    """

    __slots__ = ("_mode",)

    def __enter__(self):
        relaxed = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._mode = call("cuThreadExchangeStreamCaptureMode", relaxed)

    def __exit__(self, *_):
        call("cuThreadExchangeStreamCaptureMode", self._mode)


class Memory:
    """So many bytes of a GPU at an address, until it is collected. What uses it asynchronously is waited for then."""

    def __init__(self, device, nbytes):
        self.nbytes = nbytes
        with device.current(), _CapturePermitting():
            self.address = int(call("cuMemAlloc", max(nbytes, 1)))
        weakref.finalize(self, device._discard, "cuMemFree", self.address).atexit = False


class Mark:
    """A point in the work of some stream: streams and the host can wait for it, whatever becomes of that stream."""

    def __init__(self, device, event):
        self._device, self._event = device, event
        weakref.finalize(self, device._discard, "cuEventDestroy", event).atexit = False

    def record(self, stream):
        """Let it be what is enqueued on a stream so far."""
        with self._device.current():
            call("cuEventRecord", self._event, stream)

    def hold(self, stream):
        """Let what is enqueued on a stream from now on wait for it."""
        with self._device.current():
            call("cuStreamWaitEvent", stream, self._event, 0)

    def wait(self):
        """Wait for it here."""
        with self._device.current(), _CapturePermitting():
            call("cuEventSynchronize", self._event)

    def is_done(self):
        """Whether it has been reached."""
        with self._device.current(), _CapturePermitting():
            return _has_happened(self._event)


def _has_happened(event):
    driver = bindings()
    (error,) = driver.cuEventQuery(event)
    if error and error != driver.CUresult.CUDA_ERROR_NOT_READY:
        fail("cuEventQuery", error)
    return not error


class _StagingBuffer:
    """Pinned memory, and the event that tells when the last copy out of it is done."""

    def __init__(self, memory, event):
        self.memory = memory
        self.address = memory.ctypes.data
        self.event = event

    def is_free(self):
        """Whether the copy out of it is done."""
        with _CapturePermitting():
            return _has_happened(self.event)

    def wait(self):
        """Wait until the copy out of it is done."""
        with _CapturePermitting():
            call("cuEventSynchronize", self.event)


class Kernel:
    """A `Program` on the GPU whose context was current when it was loaded."""

    def __init__(self, program, multiprocessors):
        self._multiprocessors, self._resident = multiprocessors, {}
        count = program.arguments
        try:
            self._library = call("cuLibraryLoadData", program.image, [], [], 0, [], [], 0)
            handle = call("cuLibraryGetKernel", self._library, program.name.encode())
            self._function = call("cuKernelGetFunction", handle)  # loads it now: not in the first launch
        except CudaError as error:
            version = call("cuDriverGetVersion")
            raise CudaUnavailable(
                f"the driver, made for CUDA {version // 1000}.{version % 1000 // 10}, does not load what the installed "
                f"CUDA toolkit compiled: update the driver, or install fastopt[cuda{version // 1000}] ({error})"
            ) from error
        self._launch = bindings().cuLaunchKernel
        self._numbers = (ctypes.c_int64 * count)()
        first, width = ctypes.addressof(self._numbers), ctypes.sizeof(ctypes.c_int64)
        self._addresses = (ctypes.c_void_p * count)(*range(first, first + count * width, width))
        self._packed = ctypes.addressof(self._addresses)
        self._lock = threading.Lock()  # the driver has read the numbers when a launch returns, and not before

    def blocks(self, tasks, threads):
        """Blocks of so many threads to launch for so many tasks of a block: no more than run at a time."""
        if threads not in self._resident:
            per_multiprocessor = call("cuOccupancyMaxActiveBlocksPerMultiprocessor", self._function, threads, 0)
            self._resident[threads] = max(1, per_multiprocessor * self._multiprocessors)
        return max(1, min(tasks, self._resident[threads]))

    def launch(self, blocks, threads, stream, *numbers):
        """Enqueue it for so many blocks of so many threads, with its int64 arguments. Requires a current context."""
        with self._lock:
            self._numbers[:] = numbers
            (error,) = self._launch(self._function, blocks, 1, 1, threads, 1, 1, 0, stream, self._packed, 0)
        if error:
            fail("cuLaunchKernel", error)


class Graph:
    """Launches that were captured, to be enqueued again and again."""

    def __init__(self, device, graph):
        self._device = device
        self._graph = call("cuGraphInstantiate", graph, 0)
        call("cuGraphDestroy", graph)
        weakref.finalize(self, device._discard, "cuGraphExecDestroy", self._graph).atexit = False

    def launch(self, stream):
        """Enqueue them on a stream."""
        with self._device.current():
            call("cuGraphLaunch", self._graph, stream)
