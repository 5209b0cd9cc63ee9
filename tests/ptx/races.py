"""Data races, by vector clocks over all threads of a grid; fences and atomics order as C11's do.

Each thread has a clock, and knows how far it has heard of the others'. An access races with an earlier one to the same
four bytes, or fewer in kernels that access fewer, one of the two a write, unless its thread has heard of that one: by a
barrier, or by a fence before an atomic operation of the one, and a fence after a later atomic operation on the same
address of the other.
"""

import numpy as np
from numba import carray, njit

from ptx.launch import ATOMIC, FINE, LOAD, RACE, TOO_MANY, fail, memory_at

CELL = 12
(
    WRITER, WRITER_CLOCK, WRITER_LINE, READER, READER_CLOCK, READER_LINE, READERS, ATOMICS, ATOMIC_THREAD, ATOMIC_LINE,
    SYNCHRONISED,
) = range(11)  # fmt: skip
"""Numbers of a cell, what is known of four bytes: threads, and rows of clocks, from 1 on, with 0 for none. The last
one to write; one that read since then; or a row with the clock of each that did, and of each that did so atomically,
and the last of these; and a row of what an atomic operation there passes on."""

ROWS = 1 << 20
"""Rows of clocks, at most: for words that several threads read without having heard of each other, and for atomics."""


@njit
def _clocks(launch, address):
    return carray(memory_at(address), (launch.total, launch.total), np.int32)


@njit
def _cell(launch, index):
    return carray(memory_at(launch.cells + 4 * CELL * index), (CELL,), np.int32)


@njit
def _row(launch, number):
    return carray(memory_at(launch.rows + 4 * launch.total * (number - 1)), (launch.total,), np.int32)


@njit
def _new_row(launch, line, thread):
    """The number of a row of zeros."""
    if launch.row_count == launch.row_limit:
        fail(launch, TOO_MANY, line, thread, 0)
        return 1
    launch.row_count += 1
    return launch.row_count


@njit
def _race(launch, thread, line, address, other, other_line):
    launch.race_count += 1
    if launch.error == FINE:
        launch.error_other, launch.error_other_line = other, other_line
    fail(launch, RACE, line, thread, address)


@njit
def _race_with_any(launch, thread, line, address, row, known, other_line):
    """Compare the clocks of a row with what a thread has heard of."""
    clocks = _row(launch, row)
    for other in range(launch.total):
        if other != thread and clocks[other] > known[other]:
            _race(launch, thread, line, address, other, other_line)


@njit
def touch(launch, thread, line, index, address, kind):
    """Look for races of an access with earlier ones to the same four bytes, and note it."""
    cell, known = _cell(launch, index), _clocks(launch, launch.clocks)[thread]
    writer, reader = cell[WRITER] - 1, cell[READER] - 1
    if writer >= 0 and writer != thread and cell[WRITER_CLOCK] > known[writer]:
        _race(launch, thread, line, address, writer, cell[WRITER_LINE])
    # A thread's own atomic operation saw those before it: coherence orders what it does there afterwards.
    if kind != ATOMIC and cell[ATOMICS] and cell[ATOMIC_THREAD] != thread + 1:
        _race_with_any(launch, thread, line, address, cell[ATOMICS], known, cell[ATOMIC_LINE])
    if kind != LOAD:
        if cell[READERS]:
            _race_with_any(launch, thread, line, address, cell[READERS], known, cell[READER_LINE])
        elif reader >= 0 and reader != thread and cell[READER_CLOCK] > known[reader]:
            _race(launch, thread, line, address, reader, cell[READER_LINE])
    if kind == LOAD:
        _note_load(launch, thread, line, cell, known)
    elif kind == ATOMIC:
        if not cell[ATOMICS]:
            cell[ATOMICS] = _new_row(launch, line, thread)
        _row(launch, cell[ATOMICS])[thread] = known[thread]
        cell[ATOMIC_THREAD], cell[ATOMIC_LINE] = thread + 1, line
    else:
        cell[WRITER], cell[WRITER_CLOCK], cell[WRITER_LINE] = thread + 1, known[thread], line
        cell[READER] = cell[READERS] = cell[ATOMICS] = 0


@njit
def _note_load(launch, thread, line, cell, known):
    reader = cell[READER] - 1
    if cell[READERS]:
        _row(launch, cell[READERS])[thread] = known[thread]
    elif reader < 0 or reader == thread or cell[READER_CLOCK] <= known[reader]:
        cell[READER], cell[READER_CLOCK] = thread + 1, known[thread]
    else:
        cell[READERS] = _new_row(launch, line, thread)
        readers = _row(launch, cell[READERS])
        readers[reader], readers[thread] = cell[READER_CLOCK], known[thread]
    cell[READER_LINE] = line


@njit
def _join(into, other):
    for k in range(into.size):
        into[k] = max(into[k], other[k])


@njit
def pass_fence(launch, thread):
    """What a thread did is passed on by its later atomics, and what its earlier ones were told is now known to it."""
    known = _clocks(launch, launch.clocks)[thread]
    _join(known, _clocks(launch, launch.acquired)[thread])
    _clocks(launch, launch.released)[thread][:] = known
    known[thread] += 1


@njit
def pass_atomic(launch, thread, line, index):
    """An atomic operation is told what those before it at its address passed on, and adds to that."""
    cell = _cell(launch, index)
    if not cell[SYNCHRONISED]:
        cell[SYNCHRONISED] = _new_row(launch, line, thread)
    passed = _row(launch, cell[SYNCHRONISED])
    _join(_clocks(launch, launch.acquired)[thread], passed)
    _join(passed, _clocks(launch, launch.released)[thread])


@njit
def pass_barrier(launch, threads):
    """All of these threads know what each of them did."""
    clocks = _clocks(launch, launch.clocks)
    everything = np.zeros(launch.total, np.int32)
    for thread in threads:
        _join(everything, clocks[thread])
    for thread in threads:
        clocks[thread][:] = everything
        clocks[thread][thread] += 1


@njit
def forget(launch, first, count):
    """Cells of memory that others use from now on."""
    for index in range(first, first + count):
        _cell(launch, index)[:] = 0
