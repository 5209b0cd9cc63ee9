"""Sorting the places of gradients for some rows, on a GPU, and finding out which rows they touch.

Bitonic: no two keys are equal, so any sort keeps the order of the places of a row. Rows are then moved together by
sorting once more, the numbers of each row's first key.
"""

import functools

import numpy as np
from numba import cuda

from ..compile._jit import callee
from ..compile.intrinsics import array_at, scalars_at
from ..compile.tuples import numbers_at
from ._cuda_jit import cuda_program
from .lanes import one
from .row_tables import PLACE, RowTable, row_tables_at, table_of
from .threads import block_barrier, count_in

THREADS = 256
TILE = 2048
"""Keys that a block sorts in its shared memory."""

LAST = np.iinfo(np.int64).max
"""Comes after all keys."""


def fill_keys(handle):
    """Write the keys, ``row << bits | place``; counts the indices that are out of range."""
    size = row_tables_at(handle).header.size
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        _fill_key(row_tables_at(handle), i)


@callee
def _fill_key(r, i):
    if i >= r.header.places:
        r.keys[i] = LAST
        return
    table = scalars_at(RowTable, r.tables, table_of(r, PLACE, i), 0)
    index = _index_at(table.indices + (i - table.place) * table.index_stride, table.index_size)
    if not 0 <= index < table.height:
        count_in(r.found, 0, 1)
        index = 0
    r.keys[i] = (table.row + index) << r.header.bits | i


@callee
def _index_at(address, size):
    if size == 4:
        return np.int64(numbers_at(address, one(np.int32))[0])
    return numbers_at(address, one(np.int64))[0]


def find_firsts(handle):
    """Write the number of each key that is the first of its row among sorted ones, `LAST` for others; count rows."""
    size = row_tables_at(handle).header.size
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        r = row_tables_at(handle)
        r.firsts[i] = i if _is_first(r, i) else LAST


@callee
def _is_first(r, i):
    bits = r.header.bits
    if i >= r.header.places or (i > 0 and r.keys[i - 1] >> bits == r.keys[i] >> bits):
        return False
    place = r.keys[i] & ((1 << bits) - 1)
    count_in(r.found, 1 + table_of(r, PLACE, place), 1)
    return True


# -- sorting -----------------------------------------------------------------------------------------------------------


def sort_tiles(keys, size, first, last):
    """Those passes of a bitonic sort that stay within tiles: of the runs of ``first`` to ``last`` keys."""
    tile = cuda.shared.array(TILE, np.int64)
    thread, threads, length = cuda.threadIdx.x, cuda.blockDim.x, min(size, TILE)
    for start in range(cuda.blockIdx.x * TILE, size, cuda.gridDim.x * TILE):
        own = array_at(keys, start, length, np.int64)
        for i in range(thread, length, threads):
            tile[i] = own[i]
        run = first
        while run <= last:
            distance = min(run, length) // 2
            while distance:
                block_barrier()
                for pair in range(thread, length // 2, threads):
                    _exchange(tile, pair, distance, start, run)
                distance //= 2
            run *= 2
        block_barrier()
        for i in range(thread, length, threads):  # each thread those that it loaded: the next tile need not wait
            own[i] = tile[i]


def sort_pass(keys, size, run, distance):
    """One pass of a bitonic sort, of runs of so many keys: compares those that are so far from each other."""
    for pair in range(cuda.grid(1), size // 2, cuda.gridsize(1)):
        _exchange(array_at(keys, 0, size, np.int64), pair, distance, 0, run)


@callee
def _exchange(keys, pair, distance, start, run):
    """Put a pair of keys in order: descending in every second run. ``start`` is the number of the first key."""
    i = (pair & -distance) << 1 | (pair & (distance - 1))
    one, other = keys[i], keys[i + distance]
    if (one > other) == ((start + i) & run == 0):
        keys[i], keys[i + distance] = other, one


def sort(device, keys, size, stream):
    """Sort so many int64 at an address, a power of two; asynchronously. Requires a current context."""
    tiles, each = program(device, sort_tiles, 4), program(device, sort_pass, 4)
    blocks = tiles.blocks(-(-size // TILE), THREADS)
    tiles.launch(blocks, THREADS, stream, keys, size, 2, min(size, TILE))
    run = 2 * TILE
    while run <= size:
        distance = run // 2
        while distance >= TILE:
            each.launch(each.blocks(size // 2 // THREADS, THREADS), THREADS, stream, keys, size, run, distance)
            distance //= 2
        tiles.launch(blocks, THREADS, stream, keys, size, run, run)
        run *= 2


@functools.cache
def program(device, function, arguments):
    """A kernel that knows neither rule nor dtype."""
    return device.load(cuda_program(function, "rows", arguments, {}, device.capability, "no rule"))
