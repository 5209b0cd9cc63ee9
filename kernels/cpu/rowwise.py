"""Kernels over arrays that every call brings along, losses and activations: how they are compiled and started.

They have the signature of the kernels in `loops`, so that `launch` starts them: serially when small, else in contiguous
ranges on threads. A range is counted in items, rows or blocks, whose results never depend on one another.
"""

import functools
from array import array
from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, table_at
from . import launch
from .exchange import place_arrays

BLOCK = 2048
"""Elements that are worked on at a time: intermediate results of so many stay within a core's first cache."""

GRADIENT, WEIGHTED = 1, 2
"""Bits of a launch's options: write the gradient; multiply by a weight per row."""


class Nothing(NamedTuple):
    """The scalars of a formula that has none."""


class Work:
    """The arrays of one call, and how its items are shared among threads.

    Parameters
    ----------
    arrays : arrays
        C-contiguous, of any shape, in the order in which the kernel expects them. They are kept alive.
    elements : int
        All there is to do: decides between serial and parallel.
    count : int
        Items.
    """

    def __init__(self, arrays, elements, count):
        self._arrays = arrays = tuple(arrays)
        self._places = array("q", [number for each in arrays for number in (0, *_shape(each))])
        place_arrays(arrays, self._places)
        self.handle, _ = self._places.buffer_info()
        self.elements = elements
        self.count = count

    def bins(self, threads):
        """Boundaries that split the items into ``threads`` ranges of nearly equal size."""
        return bins_of(self.count, threads)


def _shape(array):
    """Rows and columns: one row, unless there are two axes."""
    if not array.flags.c_contiguous:
        raise ValueError("a kernel's arrays must be C-contiguous")
    return array.shape if array.ndim == 2 else (1, array.size)


@functools.lru_cache
def bins_of(count, threads):
    """Boundaries that split so many items into ``threads`` ranges of nearly equal size."""
    return count * np.arange(threads + 1) // threads


def scalars_table(scalars, dtype):
    """Scalars as a table of one row, which nobody may write to."""
    return _scalars_table(array("d", scalars).tobytes(), dtype)  # 0.0 and -0.0 are equal, and their bytes are not


@functools.lru_cache
def _scalars_table(content, dtype):
    return np.append(np.frombuffer(content), 0).astype(dtype).reshape(1, -1)


@callee
def table_of(handle, k, dtype):
    """Array number ``k`` of a `Work`, [rows, columns]."""
    row = array_at(handle, 3 * k, 3, np.int64)
    return table_at(row[0], row[1], row[2], dtype)


@callee
def elements_of(handle, k, dtype):
    """Array number ``k`` of a `Work`, all elements side by side."""
    row = array_at(handle, 3 * k, 3, np.int64)
    return array_at(row[0], 0, row[1] * row[2], dtype)


@callee
def row_of(handle, k, dtype):
    """Array number ``k`` of a `Work`, [columns]."""
    row = array_at(handle, 3 * k, 3, np.int64)
    return array_at(row[0], 0, row[2], dtype)


@callee
def apart(result, given, scratch):
    """Choose where to write what is worked out of ``given``: ``result``, or scratch if they are the same memory.

    A loop whose result may be its input is vectorised only for the case that it is not. `copy_back` comes after it.
    """
    return scratch[: result.size] if result.ctypes.data == given.ctypes.data else result


@callee
def copy_back(target, result):
    """Copy from scratch, if that is what `apart` gave."""
    if target.ctypes.data != result.ctypes.data:
        for i in range(result.size):
            result[i] = target[i]


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
