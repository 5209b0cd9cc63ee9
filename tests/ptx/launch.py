"""What generated code and the machine share: a record for each launch, and words for each thread, its *frame*."""

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

PLACE, STATE, THREAD, BLOCK, NUMBER, SHARED, LINE, FLAGS, HEAD = range(9)
"""Words of a frame: where to go on, what the thread does, its number in the block, the block's, its own in the grid,
address of the block's shared memory, address of the flags which of that was written; so many they are."""

RUNNING, AT_BLOCK, AT_WARP, ENDED, FAULTY = range(5)
"""What a thread does."""

FINE, OUT_OF_BOUNDS, MISALIGNED, UNWRITTEN, STUCK, DIVERGED, RACE, TOO_MANY = range(8)
FAULTS = (
    "fine", "out of bounds", "misaligned", "nobody wrote what is read", "threads wait for others that never come",
    "threads of a warp wait at different barriers", "race", "more than `races.ROWS` words are shared"
)  # fmt: skip

IN_ORDER, BACKWARDS, AT_RANDOM = range(3)

LOAD, STORE, ATOMIC = range(3)
GLOBAL, SHARED_ONLY, GENERIC = range(3)

WARP = 32

LAUNCH = np.dtype(
    [
        (name, np.int64)
        for name in (
            "params", "check", "fence", "synchronise",  # addresses, the last three of functions
            "blocks", "threads", "resident", "order", "seed", "races", "grain",
            "ranges", "range_count", "last", "shared_bytes",
            "error", "error_line", "error_thread", "error_other", "error_other_line", "error_address", "race_count",
            "loads", "stores", "wide_loads", "wide_stores", "atomics", "switches",
            "total", "clocks", "released", "acquired", "cells", "rows", "row_count", "row_limit", "shared_cells",
            "shared_start",
        )
    ]
)  # fmt: skip
"""What a launch works on, and what it found; see `kernel.Kernel.launch`."""


@intrinsic
def memory_at(typing, address):
    """An address as a pointer, for `carray`."""

    def make(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), make


@njit
def launch_at(address):
    """The record of a launch."""
    return carray(memory_at(address), 1, LAUNCH)[0]


@njit
def words_at(address, count):
    """So many int64 at an address."""
    return carray(memory_at(address), (count,), np.int64)


@njit
def fail(launch, error, line, thread, address):
    """Note the first fault; a race gives way to others."""
    if launch.error == FINE or (launch.error == RACE and error != RACE):
        launch.error, launch.error_line = error, line
        launch.error_thread, launch.error_address = thread, address
