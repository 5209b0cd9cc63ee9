"""Where torch's CPU tensors lie: the addresses of hundreds of parameters and gradients in one compiled call.

Like `reader` for NumPy arrays: it reads what it needs from the tensor objects themselves, and stops at the first that
is not exactly as expected, for the front end to judge. Where things are in these objects is found out by the front end,
which knows torch, and handed over as a `Layout`.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import types

from ._jit import callee, specialise
from .intrinsics import array_at, table_at
from .layout import ADDRESS
from .reader import ITEMS, TYPE, touches

AXES = 5
"""Most axes of a tensor that has its extents and strides within itself."""


class Layout(NamedTuple):
    """Offsets in bytes, and values."""

    tensor: int  # of the C++ object's address in the Python object
    storage: int  # of the storage's address in the C++ object,
    start: int  # of the first element's number in the storage,
    axes: int  # of the number of axes, which extents and then strides follow, `AXES` each,
    keys: int  # of the dispatch keys,
    dtype: int  # and of the dtype's number, 16 bits
    data: int  # of the data's address in the storage
    kind: int  # address of the class torch.Tensor
    plain: int  # the dispatch keys of a dense tensor in CPU memory


class Expected(NamedTuple):
    """One row of the int64 table of what is expected of a parameter and its gradient."""

    address: int  # of the parameter's data
    dtype: int  # the number of its dtype
    itemsize: int
    nbytes: int
    axes: int
    # Extents and strides follow, `AXES` each.


COLUMNS = len(Expected._fields) + 2 * AXES


def read_tensors(parameters, gradients, handle):
    """Fill the gradient table's addresses from two lists of tensors; the GIL is held.

    Requires the addresses of two lists of as many tensors as there are parameters, and a ``handle`` from `handle_of`.
    Returns the number of the first parameter that is not where it was, or whose gradient is not as expected; the number
    of parameters if there is none.
    """
    count, tensor, storage, start, axes, keys, dtype, data, kind, plain, expected, occupied, table = _unpack(handle)
    parameters = array_at(_word(parameters + ITEMS), 0, count, np.int64)
    gradients = array_at(_word(gradients + ITEMS), 0, count, np.int64)
    for i in range(count):
        itemsize = expected[i, 2]
        own, grad = _word(parameters[i] + tensor), gradients[i]
        if _address(own, storage, start, data, itemsize) != expected[i, 0] or _word(grad + TYPE) != kind:
            return i
        grad = _word(grad + tensor)
        if _word(grad + keys) != plain or array_at(grad + dtype, 0, 1, np.uint16)[0] != expected[i, 1]:
            return i
        if not _is_laid_out(array_at(grad + axes, 0, 1 + 2 * AXES, np.int64), expected[i, 4:]):
            return i
        address = _address(grad, storage, start, data, itemsize)
        if touches(occupied, address, address + expected[i, 3]):
            return i
        table[ADDRESS, i] = address
    return count


@callee
def _word(address):
    return array_at(address, 0, 1, np.int64)[0]


@callee
def _address(tensor, storage, start, data, itemsize):
    """Of the first element."""
    return _word(_word(tensor + storage) + data) + _word(tensor + start) * itemsize


@callee
def _is_laid_out(found, expected):
    """Whether number of axes, extents and strides are as expected; strides count where there is more than one."""
    axes = expected[0]
    if found[0] != axes:
        return False
    for axis in range(1, axes + 1):
        extent = expected[axis]
        if found[axis] != extent or (extent > 1 and found[AXES + axis] != expected[AXES + axis]):
            return False
    return True


@callee
def _unpack(handle):
    count = handle[9]
    return (
        count,
        handle[0],
        handle[1],
        handle[2],
        handle[3],
        handle[4],
        handle[5],
        handle[6],
        handle[7],
        handle[8],
        table_at(handle[10], count, COLUMNS, np.int64),
        table_at(handle[11], handle[12], 2, np.int64),
        table_at(handle[13], 2, count, np.int64),
    )


def handle_of(layout, expected, occupied, gradients):
    """What `read_tensors` needs to know, in one array; it keeps none of the arrays alive.

    Parameters
    ----------
    layout : Layout
    expected : int64 array [parameters, COLUMNS]
    occupied : int64 array [ranges, 2]
        Sorted disjoint ranges of addresses that no gradient may touch.
    gradients : int64 array [2, parameters]
        The gradient table.
    """
    tables = (expected.ctypes.data, occupied.ctypes.data, len(occupied), gradients.ctypes.data)
    return np.array([*layout, len(expected), *tables], np.int64)


@functools.cache
def compiled():
    """`read_tensors`, compiled."""
    number = types.int64
    signature = number(number, number, types.Array(number, 1, "C"))
    return specialise(read_tensors, "torch", signature, {}, nogil=False, key="tensors")
