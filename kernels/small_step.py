"""A step of a small array in one call: gradients are read, the scalars follow the count, the rule runs.

Calls from Python cost more than such an array. What is as at the last step is not handed over again: one array of
numbers, the task, holds it.
"""

import functools
import math

import numpy as np
from numba import types

from . import reader
from ._jit import c_address, entry_point, fingerprint, specialise
from .intrinsics import array_at, call_for_number, call_kernel, call_kernel_without_gil, scalars_at, table_at
from .layout import Control
from .registry import SCALARS, scalars_of

LONG = 16_384
"""Elements from which on other Python threads may run meanwhile. Letting go of the GIL costs as much as hundreds do."""

CONTROLS = len(Control._fields)

# Replaced in each specialisation.
SETTINGS = Control
FIELDS = 0  # of the settings
DTYPE = np.float32


def small_step(task, arrays, t, options):
    """Read gradients and, if they are as usual, do update ``t``.

    Requires the address of a ``task`` of `Task`, that of a tuple of an object per parameter, and the GIL. Returns
    whether the step has been done; if not, nothing but tables has been written.
    """
    handle, write, settings, row, kernel, chunks, work, long = array_at(task, 0, 8, np.int64)
    handle = array_at(handle, 0, reader.HANDLE, np.int64)
    if reader.read_addresses(arrays, 0, 0, reader.ALIGNED, handle) < handle[reader.COUNT]:
        return False
    if write != 0 and call_for_number(write, settings, row, t, 0) == 0:
        return False
    if long:
        call_kernel_without_gil(kernel, 0, chunks, work, options)
    else:
        call_kernel(kernel, 0, chunks, work, options)
    return True


def write_scalars(settings, row, t, unused):
    """Work out a row of scalars from settings, both at addresses; whether all fit the dtype."""
    numbers = table_at(settings, 1, FIELDS, np.float64)
    scalars = scalars_of(scalars_at(SETTINGS, numbers, 0, 0), np.float64(t))
    for k in range(len(scalars)):
        if math.isinf(DTYPE(scalars[k])) and not math.isinf(scalars[k]):
            return 0
    own = array_at(row, CONTROLS, len(scalars), DTYPE)
    for k in range(len(scalars)):
        own[k] = scalars[k]
    return 1


class SmallStep:
    """`small_step`, for an optimizer with one plan, and that under one group of hyper-parameters.

    Parameters
    ----------
    handle : int64 array
        The reader's, see `reader.handle_of`.
    kernel : launch.Kernel
        Does the whole step.
    work : launch.Work
        What it works on.
    settings : NamedTuple class or None
        What the rule's scalars follow from, see `registry.scalars_for`; None: the row is as it must be.

    Attributes
    ----------
    run : function
        ``(arrays, t, options)``: see `small_step`.
    writes : bool
        Whether it writes the row of scalars, from the settings that it has been given to `take`.
    """

    def __init__(self, handle, kernel, work, settings):
        self.writes = settings is not None
        self._settings = np.zeros(len(settings._fields) if self.writes else 0)
        write = _writer(settings, work.table.dtype) if self.writes else 0
        where = handle.ctypes.data, write, self._settings.ctypes.data, work.table.ctypes.data
        self._task = np.array([*where, kernel.address, work.count, work.handle, work.elements >= LONG], np.int64)
        self._kept = handle, work
        self.run = functools.partial(_compiled(), self._task.ctypes.data)

    def take(self, settings):
        """Have the scalars follow from other settings of the same class."""
        self._settings[:] = settings


@functools.cache
def _compiled():
    number = types.int64
    signature = types.boolean(number, number, number, number)
    return entry_point(specialise(small_step, "numpy", signature, {}, nogil=False, key=reader.LAYOUT_KEY))


@functools.cache
def _writer(settings, dtype):
    """Address of `write_scalars` for a class of settings and a dtype."""
    bindings = {"SETTINGS": settings, "FIELDS": len(settings._fields), "DTYPE": dtype.type}
    number = types.int64
    name, key = f"{settings.__name__}_{dtype.name}", fingerprint(SCALARS[settings])
    key = key and f"{key} {settings._fields}"
    return c_address(specialise(write_scalars, name, number(number, number, number, number), bindings, key=key))
