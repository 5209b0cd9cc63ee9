"""What threads of a kernel do together."""

from numba import cuda

from ..compile._jit import callee

TEAM = 32
"""Threads of a warp."""

THREADS = 128
"""Threads of a block, at most, of kernels that do steps."""


@callee
def block_barrier():
    """Wait for all threads of the block; what they have written is then seen by each."""
    cuda.syncthreads()


@callee
def barrier(team):
    """Wait for the ``team`` threads that work together: a warp, or the whole block."""
    if team == TEAM:
        cuda.syncwarp()
    else:
        cuda.syncthreads()


@callee
def fence():
    """Have what this thread has written seen before what it writes from now on, by every thread of the GPU."""
    cuda.threadfence()


@callee
def count_in(counters, index, number):
    """Add a number to a counter, atomically; what it was before."""
    return cuda.atomic.add(counters, index, number)
