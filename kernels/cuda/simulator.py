"""A GPU played by the host: device memory is NumPy's, kernels are Python functions that Numba's simulator runs.

Everything has happened when a call returns, so streams mean nothing here.
"""

import contextlib
import ctypes

import numpy as np

from ._cuda_jit import simulated
from .errors import CudaUnavailable
from .simulated_threads import launch
from .staging import bytes_of, require_fillable

MOST_BLOCKS = 3
MOST_THREADS = 32  # of a block: each is a thread of Python
ALIGNMENT = 256


def ordinal_of(address):
    """All memory is that of the only device."""
    return 0


class Memory:
    """So many bytes at an address, until it is collected."""

    def __init__(self, nbytes, zeroed):
        self.nbytes = nbytes
        # Bytes of ones: a kernel that reads what nobody wrote finds NaN.
        self._bytes = np.full(nbytes + ALIGNMENT, 0 if zeroed else 0xFF, np.uint8)
        self.address = -(-self._bytes.ctypes.data // ALIGNMENT) * ALIGNMENT


class Device:
    """See `driver`, and `gpu.Device` for what its methods promise."""

    name = "CUDA simulator"
    capability = (9, 0)
    multiprocessors = MOST_BLOCKS

    def __init__(self, ordinal):
        if ordinal != 0:
            raise CudaUnavailable(f"there is no GPU {ordinal}: the CUDA simulator has one, of number 0")
        self.ordinal = ordinal
        self._captured = {}

    def current(self):
        return contextlib.nullcontext()

    def allocate(self, nbytes, zeroed=False):
        return Memory(nbytes, zeroed)

    def pinned(self, nbytes):
        return np.zeros(nbytes, np.uint8)

    def upload(self, address, array, stream):
        self._refuse_capture("upload", stream)
        self.write(address, array)

    def word(self):
        return np.zeros(1, np.int64)

    def write(self, address, array):
        array = bytes_of(array)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, array, address):
        require_fillable(array)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def mark(self):
        return Mark(self)

    def download(self, array, address, stream):
        self._refuse_capture("download", stream)
        self.read(array, address)

    def _refuse_capture(self, action, stream):
        if self.is_capturing(stream):
            raise RuntimeError(f"cannot {action} while the stream is being captured to a graph")

    def copy(self, target, source, nbytes, stream):
        self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes))

    def clear(self, address, nbytes, stream):
        self.enqueue(stream, lambda: ctypes.memset(address, 0, nbytes))

    def fill(self, address, number, count, dtype, stream):
        self.enqueue(stream, lambda: self.write(address, np.full(count, number, dtype)))

    def enqueue(self, stream, action):
        """Do it, or keep it for the graph."""
        if self.is_capturing(stream):
            self._captured[stream].append(action)
        else:
            action()

    def synchronise(self, stream):
        self._refuse_capture("wait", stream)

    def synchronise_all(self):
        for stream in self._captured:
            self._refuse_capture("wait", stream)

    def wait(self, stream, other):
        if self.is_capturing(stream) != self.is_capturing(other):
            raise RuntimeError("a stream that is being captured to a graph and one that is not cannot wait for another")

    def new_stream(self):
        return id(self)

    def is_capturing(self, stream):
        return stream in self._captured

    def begin_capture(self, stream):
        self._captured[stream] = []

    def end_capture(self, stream):
        return Graph(self._captured.pop(stream))

    def load(self, program):
        return Kernel(program, self)


class Mark:
    """A point in the work of some stream: here it has always been reached."""

    def __init__(self, device):
        self._device = device

    def record(self, stream):
        self._device._refuse_capture("mark", stream)

    def hold(self, stream):
        self._device._refuse_capture("hold", stream)

    def wait(self):
        return None

    def is_done(self):
        return True


class Kernel:
    """A `Program` that can be launched."""

    def __init__(self, program, device):
        self._kernel = simulated(program.function)
        self._device = device

    def blocks(self, tasks, threads):
        return max(1, min(tasks, MOST_BLOCKS))

    def launch(self, blocks, threads, stream, *numbers):
        """Run it with fewer blocks and threads than asked for; an error that a thread raises comes out."""
        blocks, threads = min(blocks, MOST_BLOCKS), min(threads, MOST_THREADS)
        self._device.enqueue(stream, lambda: launch(self._kernel, blocks, threads, *numbers))


class Graph:
    """What was captured."""

    def __init__(self, actions):
        self._actions = actions

    def launch(self, stream):
        """Do it."""
        for action in self._actions:
            action()
