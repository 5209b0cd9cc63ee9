"""A stand-in for CuPy upon a `RunningDriver`: streams that are current in a thread, and an allocator like CuPy's.

An array that dies gives its memory back to the stream that it was made on: there it is filled with NaN, and used again,
in the order of that stream.
"""

import contextlib
import ctypes
import functools
import math
import threading
import types
import weakref
from collections import defaultdict

import numpy as np

from fastopt.device.strides import c_strides


class Stream:
    """A stream, current inside ``with``."""

    def __init__(self, cupy, ordinal=0):
        self._cupy, self.ordinal = cupy, ordinal
        with cupy.gpu(ordinal):
            self.ptr = int(cupy.driver.cuStreamCreate(cupy.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)[1])

    def __enter__(self):
        self._before = self._cupy.current(self.ordinal)
        self._cupy.local.streams[self.ordinal] = self.ptr
        return self

    def __exit__(self, *exception):
        self._cupy.local.streams[self.ordinal] = self._before

    def wait(self, other):
        """Let what follows here wait for what is enqueued on another stream."""
        driver = self._cupy.driver
        with self._cupy.gpu(self.ordinal):
            _, event = driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
            driver.cuEventRecord(event, other)
            driver.cuStreamWaitEvent(self.ptr, event, 0)

    def destroy(self):
        """As CuPy does with a stream that nobody refers to."""
        self._cupy.driver.destroy(self.ptr)


class Array:
    """What fastopt uses of ``cupy.ndarray``, and arithmetic."""

    def __init__(self, shape, dtype, data, strides=None):
        self.shape, self.dtype, self.data = tuple(shape), np.dtype(dtype), data
        self.strides = strides or c_strides(self.shape, self.dtype.itemsize)
        self.cupy, self.device = data.mem.cupy, types.SimpleNamespace(id=data.mem.ordinal)

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.shape[0])
        return Array((stop - start,), self.dtype, Pointer(self.data.mem, start * self.dtype.itemsize))

    def reshape(self, shape):
        return Array(shape, self.dtype, self.data)

    def astype(self, dtype):
        """A copy in another dtype."""
        return self._new(dtype, lambda numbers: numbers)

    def __mul__(self, other):
        return self._new(self.dtype, lambda numbers: numbers * (other.numbers() if isinstance(other, Array) else other))

    def _new(self, dtype, compute):
        with self.cupy.cuda.Device(self.device.id):
            new = self.cupy.empty(self.shape, dtype)
        self.cupy.enqueue(self.device.id, lambda: new.write(compute(self.numbers())))
        return new

    def set(self, values):
        """Write numbers, in the current stream."""
        values = np.array(values, self.dtype)
        self.cupy.enqueue(self.device.id, lambda: self.write(values))

    def write(self, values):
        """Replace the numbers at once."""
        numbers = self.numbers()
        np.copyto(numbers, values)
        self.cupy.driver.note_writing(self.data.ptr, numbers.nbytes)

    def get(self):
        """A NumPy copy, once the current stream is done."""
        return self.cupy.finished(self.device.id, lambda: self.numbers().copy())

    def numbers(self):
        """What is in memory now, as NumPy's array."""
        interface = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}
        interface |= {"strides": self.strides}
        return np.asarray(types.SimpleNamespace(__array_interface__=interface))


class Pointer:
    """Where in some memory an array begins."""

    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.address + offset


class Unowned:
    """Memory that somebody else has allocated."""

    def __init__(self, cupy, address, nbytes, owner, ordinal):
        self.cupy, self.address, self.ordinal = cupy, address, ordinal


class Owned:
    """Memory from the allocator."""

    def __init__(self, cupy, ordinal, nbytes):
        self.cupy, self.ordinal, stream = cupy, ordinal, cupy.current(ordinal)
        self.address = cupy.taken(ordinal, stream, nbytes)
        weakref.finalize(self, cupy.give_back, ordinal, stream, self.address, nbytes).atexit = False


class CuPy(types.ModuleType):
    """The module."""

    def __init__(self, driver):
        super().__init__("cupy")
        self.driver, self.local, self._pools = driver, _Local(), defaultdict(list)
        self.ndarray = Array
        self.cuda = types.SimpleNamespace(
            Device=self._using,
            get_current_stream=self._current_stream,
            UnownedMemory=functools.partial(Unowned, self),
            MemoryPointer=Pointer,
        )

    def empty(self, shape, dtype, strides=None):
        """An array on the GPU in use, not initialised."""
        shape = (shape,) if isinstance(shape, int) else shape
        nbytes = max(math.prod(shape), 1) * np.dtype(dtype).itemsize
        return Array(shape, dtype, Pointer(Owned(self, self.local.ordinal, -(-nbytes // 512) * 512), 0), strides)

    def array(self, values, ordinal=0):
        """The numbers of a dense NumPy array, in its order, written in the current stream."""
        with self._using(ordinal):
            array = self.empty(values.shape, values.dtype, values.strides)
        array.set(values)
        return array

    def stream(self, ordinal=0):
        """A new `Stream`."""
        return Stream(self, ordinal)

    def current(self, ordinal):
        """Handle of the current stream of a GPU in this thread."""
        return self.local.streams[ordinal]

    @contextlib.contextmanager
    def gpu(self, ordinal):
        """That GPU's context, alone with the driver."""
        with self.driver.alone():
            self.driver.contexts.append(self.driver.context_of(ordinal))
            try:
                yield
            finally:
                self.driver.contexts.pop()

    def enqueue(self, ordinal, run, stream=None):
        """Have something done in a stream, the current one if none is named."""
        with self.gpu(ordinal):
            self.driver.enqueue(self.current(ordinal) if stream is None else stream, run)

    def finished(self, ordinal, read):
        """What ``read`` returns when all before it in the current stream is done."""
        with self.gpu(ordinal):
            self.driver.finish(self.driver.stream_at(self.current(ordinal)))
            return read()

    def taken(self, ordinal, stream, nbytes):
        """The address of memory that was given back to a stream, or of new memory."""
        with self.gpu(ordinal):
            pool = self._pools[ordinal, stream, nbytes]
            return pool.pop() if pool else int(self.driver.cuMemAlloc(nbytes)[1])

    def give_back(self, ordinal, stream, address, nbytes):
        """Let memory be used again, once what is in its stream is done; at once if that is gone."""
        if stream and stream not in self.driver.streams:
            self._spoil(address, nbytes)
        else:
            self.enqueue(ordinal, lambda: self._spoil(address, nbytes), stream)
        self._pools[ordinal, stream, nbytes].append(address)

    def _spoil(self, address, nbytes):
        ctypes.memset(address, 0xFF, nbytes)
        self.driver.note_writing(address, nbytes, undone=True)

    @contextlib.contextmanager
    def _using(self, ordinal):
        before, self.local.ordinal = self.local.ordinal, ordinal
        try:
            yield
        finally:
            self.local.ordinal = before

    def _current_stream(self):
        return types.SimpleNamespace(ptr=self.current(self.local.ordinal))


class _Local(threading.local):
    def __init__(self):
        self.ordinal, self.streams = 0, defaultdict(int)
