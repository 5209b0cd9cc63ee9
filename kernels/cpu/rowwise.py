"""Kernels over arrays that every call brings along, losses and activations: how they are compiled and started.

They have the signature of the kernels in `loops`, so that `launch` starts them: serially when small, else in contiguous
ranges on threads. A range is counted in items, rows or blocks, whose results never depend on one another.
"""

import functools
from typing import NamedTuple

import numpy as np

from ..compile._jit import callee, fingerprint
from ..compile.intrinsics import array_at, table_at
from ..tables import handle_of
from . import launch

BLOCK = 2048
"""Elements that are worked on at a time: intermediate results of so many stay within a core's first cache."""

SIDE_BY_SIDE = 32
"""Maxima that are kept side by side, a power of two."""

GRADIENT, WEIGHTED = 1, 2
"""Bits of a launch's options: write the gradient; multiply by a weight per row."""


class Nothing(NamedTuple):
    """The scalars of a formula that has none."""


class Work:
    """The arrays of one call, and how its items are shared among threads.

    Parameters
    ----------
    arrays : arrays [rows, columns] or [columns]
        C-contiguous, in the order in which the kernel expects them. They are kept alive.
    elements : int
        All there is to do: decides between serial and parallel.
    count : int
        Items.
    """

    def __init__(self, arrays, elements, count):
        self._arrays = arrays
        self._tables = handle_of(arrays)
        self.handle = self._tables.ctypes.data
        self.elements = elements
        self.count = count

    def bins(self, threads):
        """Boundaries that split the items into ``threads`` ranges of nearly equal size."""
        return np.linspace(0, self.count, threads + 1).astype(np.int64)


@callee
def table_of(handle, k, dtype):
    """Array number ``k`` of a `Work`, [rows, columns]."""
    row = array_at(handle, 3 * k, 3, np.int64)
    return table_at(row[0], row[1], row[2], dtype)


@callee
def row_of(handle, k, dtype):
    """Array number ``k`` of a `Work`, [columns]."""
    row = array_at(handle, 3 * k, 3, np.int64)
    return array_at(row[0], 0, row[2], dtype)


@functools.cache
def kernel(function, dtype, scalars, **formulas):
    """The kernel ``function``, compiled for a dtype and the formulas that it names.

    Parameters
    ----------
    function : function
        With the common signature.
    dtype : numpy.dtype
        float32 or float64.
    scalars : NamedTuple class
        Of the formulas' last argument.
    formulas : functions
        Global name in the kernel's module → function made a `callee`.
    """
    digest = fingerprint(*formulas.values())
    name = "_".join([*(formula.__name__ for formula in list(formulas.values())[:1]), dtype.name])
    key = digest and f"{digest} {sorted(formulas)} {scalars._fields}"
    return launch.compiled(function, {"DTYPE": dtype.type, "SCALARS": scalars, **formulas}, name, key)


def run(kernel, work, options):
    """Run a kernel over all items of ``work``."""
    if work.elements:
        launch.launch(kernel, work, options)
