"""A GPU played by the host: device memory is NumPy's, kernels are Python functions that Numba's simulator runs.

Everything has happened when a call returns, so streams mean nothing here.
"""

import contextlib
import ctypes
import sys
import threading

import numpy as np

from .._cuda_jit import simulated
from .errors import CudaUnavailable
from .staging import bytes_of, require_fillable

MOST_BLOCKS = 3
MOST_THREADS = 32  # of a block: each is a thread of Python
ALIGNMENT = 256

_launching = threading.Lock()  # the simulator runs one kernel at a time


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
        array = bytes_of(array)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def word(self):
        return np.zeros(1, np.int64)

    def write(self, address, array):
        self.upload(address, array, 0)

    def read(self, array, address):
        self.download(array, address, 0)

    def mark(self):
        return Mark()

    def download(self, array, address, stream):
        require_fillable(array)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target, source, nbytes, stream):
        ctypes.memmove(target, source, nbytes)

    def clear(self, address, nbytes, stream):
        ctypes.memset(address, 0, nbytes)

    def fill(self, address, number, count, dtype, stream):
        self.upload(address, np.full(count, number, dtype), stream)

    def synchronise(self, stream):
        return None

    def synchronise_all(self):
        return None

    def wait(self, stream, other):
        return None

    def new_stream(self):
        return id(self)

    def is_capturing(self, stream):
        return stream in self._captured

    def begin_capture(self, stream):
        self._captured[stream] = []

    def end_capture(self, stream):
        return Graph(self._captured.pop(stream))

    def load(self, program):
        return Kernel(program, self._captured)


class Mark:
    """A point in the work of some stream: here it has always been reached."""

    def record(self, stream):
        return None

    def hold(self, stream):
        return None

    def wait(self):
        return None

    def is_done(self):
        return True


class Kernel:
    """A `Program` that can be launched."""

    def __init__(self, program, captured):
        self._kernel = simulated(_Silent(program.function))
        self._captured = captured

    def blocks(self, tasks, threads):
        return max(1, min(tasks, MOST_BLOCKS))

    def launch(self, blocks, threads, stream, *numbers):
        """Run it with fewer blocks and threads than asked for; an error that a thread raises comes out."""
        if stream in self._captured:
            self._captured[stream].append((self, blocks, threads, numbers))
            return
        with _launching, _quick_switches():
            self._kernel[min(blocks, MOST_BLOCKS), min(threads, MOST_THREADS)](*numbers)


class Graph:
    """Launches that were captured."""

    def __init__(self, launches):
        self._launches = launches

    def launch(self, stream):
        """Run them."""
        for kernel, blocks, threads, numbers in self._launches:
            kernel.launch(blocks, threads, stream, *numbers)


@contextlib.contextmanager
def _quick_switches():
    """While threads run: the simulator waits for them in a loop that each has to wrest the interpreter from."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class _Silent:
    """A kernel whose arithmetic, like a GPU's, warns of nothing. NumPy's setting is one per thread."""

    def __init__(self, function):
        self._function = function
        self.__globals__ = function.__globals__  # where the simulator looks for numba.cuda
        self.__name__ = function.__name__

    def __call__(self, *numbers):
        with np.errstate(all="ignore"):
            self._function(*numbers)
