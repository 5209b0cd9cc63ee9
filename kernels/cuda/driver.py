"""GPUs as an engine sees them, real or simulated: memory, copies, streams and launches.

A *device* has an ``ordinal``, a ``name``, a compute ``capability`` (major, minor) and so many ``multiprocessors``. Real
ones are of `gpu`, the simulator's of `simulator`; both do the same with the same names. Addresses and streams are plain
integers: a stream is a ``CUstream`` handle, 0 the legacy default stream. Whatever is asynchronous happens in the order
of its stream, and memory must live until then.
"""

import threading

from . import gpu, simulator
from ._cuda_jit import is_simulated
from .errors import CudaError, CudaUnavailable

__all__ = ["CudaError", "CudaUnavailable", "device", "is_simulated", "ordinal_of"]

_devices: dict = {}
_lock = threading.Lock()


def device(ordinal):
    """The GPU of that number, always the same object.

    Raises
    ------
    CudaUnavailable
        If there is no such GPU, no driver, or no package to reach it with.
    """
    with _lock:
        if ordinal not in _devices:
            _devices[ordinal] = (simulator if is_simulated() else gpu).Device(ordinal)
        return _devices[ordinal]


def ordinal_of(address):
    """The number of the GPU that owns the memory at an address; `ValueError` if none does."""
    return (simulator if is_simulated() else gpu).ordinal_of(address)
