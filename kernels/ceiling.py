"""What the memory allows: plain loops that read and write as many arrays as a step does, with next to no arithmetic.

`cpu` is held against these, so nothing of it is used here: no chunks, no tables of scalars, no options. Threads start
as they do for a step.
"""

import functools
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from ._jit import FLAGS, entry_point, specialise
from .intrinsics import array_at, arrays_at, load, store
from .launch import PARALLEL_FROM, exclusively, get_num_threads

# Replaced in each specialisation.
DTYPE = np.float32
ROWS: Any = ()
rows: Any = None


def add_to_all(first, last, source, targets):
    """Add the array at ``source[0]`` to those at ``targets[:, 0]``, in place: elements ``first`` to ``last``."""
    addend = array_at(source[0], first, last - first, DTYPE)
    arrays = arrays_at(ROWS, targets, 0, first, last - first, DTYPE)
    for i in range(addend.size):
        store(arrays, i, increased(load(arrays, i), addend[i]))


def read(first, last, source, targets):
    """Read elements ``first`` to ``last`` of the array at ``source[0]``, as integers: sums of these can be split."""
    words = array_at(source[0], first, last - first, DTYPE)
    digest = DTYPE(0)
    for i in range(words.size):
        digest ^= words[i]
    if first == last:
        source[0] = digest  # never, but the loop must not be left out


def increased(values, addend):
    """Each of a tuple of numbers plus ``addend``."""
    return tuple(value + addend for value in values)


@overload(increased, jit_options=FLAGS)
def _increased(values, addend):
    if len(values) == 0:
        return lambda values, addend: ()
    return lambda values, addend: (values[0] + addend, *increased(values[1:], addend))


def spread(size, threads, source, targets):
    """Run the loop ``rows`` over equal shares of the elements, in parallel."""
    for b in prange(threads):
        rows(b * size // threads, (b + 1) * size // threads, source, targets)


class Loop:
    """One of the loops above over given arrays.

    Parameters
    ----------
    function : function
        `add_to_all` or `read`.
    source : array
        1-D, contiguous. Its dtype is that of the loop.
    targets : sequence of arrays
        Like ``source``; changed by `add_to_all`.
    """

    def __init__(self, function, source, targets=()):
        self._arrays = source, *targets  # addresses keep nothing alive
        self._source = np.array([source.ctypes.data], np.int64)
        self._targets = np.array([[target.ctypes.data] for target in targets], np.int64).reshape(-1, 1)
        self._size = source.size
        self._serial, self._parallel = _compiled(function, len(targets), source.dtype)

    def __call__(self):
        """Run over all elements once."""
        threads = get_num_threads()
        if self._size < PARALLEL_FROM or threads == 1:
            self._serial(0, self._size, self._source, self._targets)
        else:
            with exclusively:
                self._parallel(self._size, threads, self._source, self._targets)


@functools.cache
def _compiled(function, targets, dtype):
    """Serial and parallel form of a loop."""
    number, addresses = types.int64, types.Array(types.int64, 1, "C")
    signature = types.void(number, number, addresses, types.Array(types.int64, 2, "C"))
    name = f"{function.__name__}_{targets}_{dtype.name}"
    serial = specialise(function, name, signature, {"DTYPE": dtype.type, "ROWS": tuple(range(targets))}, key=name)
    parallel = specialise(spread, name, signature, {"rows": serial}, parallel=True, key=f"{function.__name__} {name}")
    return entry_point(serial), entry_point(parallel)
