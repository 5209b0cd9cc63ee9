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


def add_to_rows(first, last, handle, options):
    """Add to some rows of all arrays the sum of their rows of values: the touched rows ``first`` to ``last``.

    ``handle`` leads to addresses: of values, of the places in them by row, of each touched row's first place among
    these, of the touched rows' numbers, then of the arrays; and first of all to the elements of a row.
    """
    given = array_at(handle, 0, 5, np.int64)
    width, arrays = given[0], table_at(handle + 40, len(ROWS), 1, np.int64)
    places, starts = array_at(given[2], 0, 1 << 40, np.int64), array_at(given[3], 0, last + 1, np.int64)
    rows, total = array_at(given[4], 0, last, np.int64), np.empty(width, DTYPE)
    for u in range(first, last):
        total[:] = 0
        for k in range(starts[u], starts[u + 1]):
            values = array_at(given[1], places[k] * width, width, DTYPE)
            for i in range(width):
                total[i] += values[i]
        targets = arrays_at(ROWS, arrays, 0, rows[u] * width, width, DTYPE)
        for i in range(width):
            store(targets, i, increased(load(targets, i), total[i]))


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


class RowLoop:
    """`add_to_rows` over given arrays.

    Parameters
    ----------
    indices : int64 array [n]
    values : array [n, width]
        C-contiguous.
    targets : sequence of arrays [rows, width]
        Of the same dtype; changed.
    """

    def __init__(self, indices, values, targets):
        places = np.argsort(indices, kind="stable")
        rows, starts = np.unique(indices[places], return_index=True)
        starts = np.append(starts, len(indices))
        self._arrays = values, places, starts, rows, *targets
        addresses = [array.ctypes.data for array in self._arrays]
        self._handle = np.array([values.shape[1], *addresses], np.int64)
        self.handle, self.elements, self.count = self._handle.ctypes.data, values.size, len(rows)
        self._starts = starts + len(targets) * np.arange(len(starts))
        self._kernel = _compiled(add_to_rows, len(targets), values.dtype, first=0)

    def bins(self, threads):
        """Boundaries of equal shares of the work: values read, and rows of arrays."""
        return np.searchsorted(self._starts, self._starts[-1] * np.arange(threads + 1) // threads)

    def __call__(self):
        """Run over all touched rows once."""
        launch.launch(self._kernel, self, 0)


@functools.cache
def _compiled(function, targets, dtype, first=1):
    """The loop, compiled for so many targets, the first of them in such a row of addresses."""
    name = f"{function.__name__}_{targets}_{dtype.name}"
    return launch.compiled(function, {"DTYPE": dtype.type, "ROWS": tuple(range(first, first + targets))}, name, name)
