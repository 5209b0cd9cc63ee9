"""Where gradients lie: the addresses of hundreds of NumPy arrays in one compiled call.

Asking NumPy for an address costs close to a microsecond per array. This reads it from the array object itself, checks
all that a kernel relies on, and stops at the first object that is not exactly what was expected, for the front end to
judge. The offsets inside CPython's and NumPy's objects are tested once; where they differ, nothing is read this way.
"""

import ctypes
import functools
import sys

import numpy as np
from numba import types

from ._jit import callee, entry_point, is_interpreted, specialise
from .intrinsics import array_at, table_at
from .layout import ADDRESS, DIRECT, LAYOUT

_HEAD = object.__basicsize__
TYPE = _HEAD - 8
_DATA, _AXES, _EXTENTS, _STRIDES, _DESCR, _FLAGS = (_HEAD + 8 * k for k in (0, 1, 2, 3, 5, 6))
SIZE, ITEMS = _HEAD, _HEAD + 8
"""Offsets in lists and tuples: of the number of items; of the items of a tuple, and of their address of a list."""

ALIGNED, WRITEABLE = 0x0100, 0x0400
"""Flags of arrays."""

HANDLE, COUNT = 10, 7
"""Numbers in a handle; which of them is the number of parameters."""

OBJECT, DATA, NEEDED = range(3)
"""Rows of the table of parameters, int64 ``[3, parameters]``: addresses of the array object and of its first element,
and flags that must still be set."""

LAYOUT_KEY = f"{_HEAD} {np.__version__}"
"""What compiled code depends on that looks into objects."""


@callee
def read_addresses(sequence, is_list, start, flags, handle):
    """Fill the gradient table from a list or tuple of arrays; the GIL is held.

    If ``start`` is 0, first looks whether the parameters are what they were.

    Requires ``sequence``, the address of a list (``is_list`` 1) or tuple (0) of an object per parameter, and a
    ``handle`` from `handle_of`. ``flags`` must be set in each array's flags.

    Writes both rows of the gradient table from ``start`` on, up to the first object that is no array of the expected
    dtype, shape and strides, or touches occupied memory. Returns that object's number, or that of a parameter that is
    not what it was.
    """
    kind, descrs, expected, starts, occupied, gradients, parameters = _unpack(handle)
    count = gradients.shape[1]
    if start == 0:
        changed = _first_changed(parameters)
        if changed < count:
            return changed
    items = sequence + ITEMS
    if is_list:
        items = array_at(items, 0, 1, np.int64)[0]
    pointers = array_at(items, 0, count, np.int64)
    for i in range(start, count):
        head = array_at(pointers[i], 0, 9, np.int64)
        if head[TYPE // 8] != kind:
            return i
        axes = head[_AXES // 8] & 0xFFFFFFFF
        record = starts[i]
        if axes != expected[record] or head[_DESCR // 8] != descrs[i] or (head[_FLAGS // 8] & flags) != flags:
            return i
        extents = array_at(head[_EXTENTS // 8], 0, axes, np.int64)
        strides = array_at(head[_STRIDES // 8], 0, axes, np.int64)
        size = expected[record + 1]
        for axis in range(axes):
            extent = expected[record + 2 + axis]
            if extents[axis] != extent or (extent > 1 and strides[axis] != expected[record + 2 + axes + axis]):
                return i
        address = head[_DATA // 8]
        if touches(occupied, address, address + size):
            return i
        gradients[ADDRESS, i] = address
        gradients[LAYOUT, i] = DIRECT
    return count


@callee
def _unpack(handle):
    count = handle[COUNT]
    return (
        handle[0],
        array_at(handle[1], 0, count, np.int64),
        array_at(handle[2], 0, handle[8], np.int64),
        array_at(handle[3], 0, count, np.int64),
        table_at(handle[4], handle[9], 2, np.int64),
        table_at(handle[5], 2, count, np.int64),
        table_at(handle[6], 3, count, np.int64),
    )


def first_changed(handle):
    """The number of the first parameter that has moved, or lost a flag; theirs if none has. The GIL is held."""
    return _first_changed(table_at(handle[6], 3, handle[COUNT], np.int64))


@callee
def _first_changed(parameters):
    for i in range(parameters.shape[1]):
        head = array_at(parameters[OBJECT, i], 0, 9, np.int64)
        needed = parameters[NEEDED, i]
        if head[_DATA // 8] != parameters[DATA, i] or (head[_FLAGS // 8] & needed) != needed:
            return i
    return parameters.shape[1]


def handle_of(descrs, expected, starts, occupied, gradients, parameters):
    """What `read_addresses` needs to know of the parameters, in one array; it keeps none of the arrays alive.

    Parameters
    ----------
    descrs : int64 array [parameters]
        Address of each one's dtype object.
    expected : int64 array
        Records of number of axes, bytes, extents and strides.
    starts : int64 array [parameters]
        Start of each one's record.
    occupied : int64 array [ranges, 2]
        Sorted disjoint ranges of addresses that no gradient may touch.
    gradients : int64 array [2, parameters]
        The gradient table.
    parameters : int64 array [3, parameters]
        The table of parameters, whose objects live as long as the handle is used.
    """
    arrays = (descrs, expected, starts, occupied, gradients, parameters)
    sizes = (gradients.shape[1], len(expected), len(occupied))
    return np.array([id(np.ndarray), *(array.ctypes.data for array in arrays), *sizes], np.int64)


@callee
def touches(occupied, start, end):
    """Whether any of the sorted disjoint ranges meets ``[start, end)``."""
    low, high = 0, occupied.shape[0]
    while low < high:
        middle = (low + high) // 2
        if occupied[middle, 1] <= start:
            low = middle + 1
        else:
            high = middle
    return low < occupied.shape[0] and occupied[low, 0] < end


@functools.cache
def compiled():
    """`read_addresses` and `first_changed`, compiled; or None where this interpreter's objects lie in another way."""
    if not layout_is_known():
        return None
    number, handle = types.int64, types.Array(types.int64, 1, "C")
    signatures = {read_addresses: number(number, number, number, number, handle), first_changed: number(handle)}
    return [
        entry_point(specialise(function, "numpy", signature, {}, nogil=False, key=LAYOUT_KEY))
        for function, signature in signatures.items()
    ]


def required_flags(writeable):
    """Bits that must be set in an array's flags: aligned, and writeable if it is to be zeroed."""
    return ALIGNED | WRITEABLE if writeable else ALIGNED


@functools.cache
def layout_is_known():
    """Whether this interpreter's objects, arrays among them, are laid out as they are read, by compiled code."""
    if is_interpreted():
        return False
    if sys.implementation.name != "cpython" or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    probe = np.zeros((5, 7, 3), np.float32)[1:, ::2]
    words = (ctypes.c_int64 * 9).from_address(id(probe))
    extents = (ctypes.c_int64 * 3).from_address(words[_EXTENTS // 8])
    strides = (ctypes.c_int64 * 3).from_address(words[_STRIDES // 8])
    as_list, as_tuple = [probe], (probe,)
    in_list = ctypes.c_int64.from_address(ctypes.c_int64.from_address(id(as_list) + ITEMS).value).value
    in_tuple = ctypes.c_int64.from_address(id(as_tuple) + ITEMS).value
    return (
        words[TYPE // 8] == id(np.ndarray)
        and words[_DATA // 8] == probe.ctypes.data
        and words[_AXES // 8] & 0xFFFFFFFF == probe.ndim
        and words[_DESCR // 8] == id(np.dtype(np.float32))
        and words[_FLAGS // 8] & 0xFFFF == probe.flags.num
        and (tuple(extents), tuple(strides)) == (probe.shape, probe.strides)
        and in_list == in_tuple == id(probe)
        and all(ctypes.c_int64.from_address(id(each) + SIZE).value == 1 for each in (as_list, as_tuple))
    )
