"""What the memory allows: plain loops that read and write as many arrays as a step does, with next to no arithmetic.

`cpu` is held against these, so nothing of it is used here: no chunks, no tables of scalars, no options. They have the
signature of `cpu`, for elements ``first`` to ``last``, and are launched as it is.
"""

import functools
from typing import Any

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS
from ..compile.intrinsics import array_at, arrays_at, load, store, table_at
from . import launch

# Replaced in each specialisation.
DTYPE = np.float32
ROWS: Any = ()


def add_to_all(first, last, handle, options):
    """Add the first of the arrays whose addresses are at ``handle`` to the others, in place."""
    addresses = table_at(handle, 1 + len(ROWS), 1, np.int64)
    addend = array_at(addresses[0, 0], first, last - first, DTYPE)
    arrays = arrays_at(ROWS, addresses, 0, first, last - first, DTYPE)
    for i in range(addend.size):
        store(arrays, i, increased(load(arrays, i), addend[i]))


def read(first, last, handle, options):
    """Read the array whose address is at ``handle``, as integers: sums of these can be split."""
    addresses = array_at(handle, 0, 1, np.int64)
    words = array_at(addresses[0], first, last - first, DTYPE)
    digest = DTYPE(0)
    for i in range(words.size):
        digest ^= words[i]
    if first == last:
        addresses[0] = digest  # never, but the loop must not be left out


def increased(values, addend):
    """Each of a tuple of numbers plus ``addend``."""
    return tuple(value + addend for value in values)


@overload(increased, jit_options=FLAGS)
def _increased(values, addend):
    if len(values) == 0:
        return lambda values, addend: ()
    return lambda values, addend: (values[0] + addend, *increased(values[1:], addend))


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
        self._addresses = np.array([[array.ctypes.data] for array in self._arrays], np.int64)
        self.handle, self.elements, self.count = self._addresses.ctypes.data, source.size, source.size
        self._bins = {}
        kernel = _compiled(function, len(targets), source.dtype)
        run = functools.partial(kernel.run, 0, self.count, self.handle, 0)
        self._run = run if launch.is_serial(self) else functools.partial(launch.launch, kernel, self, 0)

    def bins(self, threads):
        """Boundaries of equal shares of the elements."""
        if threads not in self._bins:
            self._bins[threads] = self.count * np.arange(threads + 1) // threads
        return self._bins[threads]

    def __call__(self):
        """Run over all elements once."""
        self._run()


@functools.cache
def _compiled(function, targets, dtype):
    """The loop, compiled for so many targets."""
    name = f"{function.__name__}_{targets}_{dtype.name}"
    return launch.compiled(function, {"DTYPE": dtype.type, "ROWS": tuple(range(1, 1 + targets))}, name, name)
