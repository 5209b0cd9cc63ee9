"""What threads of a kernel do together. Each has a plain Python body, which the CUDA simulator runs."""

import threading
from typing import Any

from numba import cuda
from numba.extending import overload

from ..compile._jit import FLAGS

TEAM = 32
"""Threads of a warp."""

_lock = threading.Lock()


def _wait_in_python():
    thread: Any = threading.current_thread()  # one of the simulator's
    thread.syncthreads()


def block_barrier():
    """Wait for all threads of the block; what they have written is then seen by each."""
    _wait_in_python()


@overload(block_barrier, jit_options=FLAGS)
def _block_barrier():
    return lambda: cuda.syncthreads()


def warp_barrier():
    """Wait for all threads of the warp. In the simulator a block is one warp."""
    _wait_in_python()


@overload(warp_barrier, jit_options=FLAGS)
def _warp_barrier():
    return lambda: cuda.syncwarp()


def barrier(team):
    """Wait for the ``team`` threads that work together: a warp, or the whole block."""
    _wait_in_python()


@overload(barrier, jit_options=FLAGS)
def _barrier(team):
    def wait(team):
        if team == TEAM:
            cuda.syncwarp()
        else:
            cuda.syncthreads()

    return wait


def fence():
    """Have what this thread has written seen before what it writes from now on, by every thread of the GPU."""


@overload(fence, jit_options=FLAGS)
def _fence():
    return lambda: cuda.threadfence()


def count_in(counters, index):
    """Add one to a counter, atomically; how many had come before."""
    with _lock:
        before = counters[index]
        counters[index] = before + 1
    return before


@overload(count_in, jit_options=FLAGS)
def _count_in(counters, index):
    return lambda counters, index: cuda.atomic.add(counters, index, 1)
