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

from ._jit import callee, specialise
from .intrinsics import array_at
from .layout import ADDRESS, DIRECT, LAYOUT

_HEAD = object.__basicsize__
_TYPE = _HEAD - 8
_DATA, _AXES, _EXTENTS, _STRIDES, _DESCR, _FLAGS = (_HEAD + 8 * k for k in (0, 1, 2, 3, 5, 6))
_ITEMS = _HEAD + 8
_ALIGNED, _WRITEABLE = 0x0100, 0x0400


def read_addresses(sequence, is_list, start, flags, kind, descrs, expected, starts, occupied, gradients):
    """Fill the gradient table from a list or tuple of arrays; the GIL is held.

    Requires ``sequence``, the address of a list (``is_list`` 1) or tuple (0) of ``gradients.shape[1]`` objects.
    ``flags`` must be set in each array's flags, ``kind`` is the address of `numpy.ndarray`, ``descrs[i]`` that of the
    expected dtype, ``expected[starts[i]:]`` the number of axes, bytes, extents and strides, and ``occupied`` the sorted
    disjoint ranges of addresses that no gradient may touch.

    Writes both rows of ``gradients`` from ``start`` on, up to the first object that is anything else. Returns its
    number.
    """
    count = gradients.shape[1]
    items = sequence + _ITEMS
    if is_list:
        items = array_at(items, 0, 1, np.int64)[0]
    pointers = array_at(items, 0, count, np.int64)
    for i in range(start, count):
        head = array_at(pointers[i], 0, 9, np.int64)
        if head[_TYPE // 8] != kind:
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
        if _touches(occupied, address, address + size):
            return i
        gradients[ADDRESS, i] = address
        gradients[LAYOUT, i] = DIRECT
    return count


@callee
def _touches(occupied, start, end):
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
    """`read_addresses`, compiled; or None where this interpreter's objects are not laid out as it expects."""
    if not _layout_is_known():
        return None
    integers = types.Array(types.int64, 1, "C")
    table = types.Array(types.int64, 2, "C")
    number = types.int64
    signature = number(number, number, number, number, number, integers, integers, integers, table, table)
    return specialise(read_addresses, "numpy", signature, {}, nogil=False, key=f"{_HEAD} {np.__version__}")


KIND = id(np.ndarray)


def required_flags(writeable):
    """Bits that must be set in an array's flags: aligned, and writeable if it is to be zeroed."""
    return _ALIGNED | _WRITEABLE if writeable else _ALIGNED


def _layout_is_known():
    if sys.implementation.name != "cpython" or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    probe = np.zeros((5, 7, 3), np.float32)[1:, ::2]
    words = (ctypes.c_int64 * 9).from_address(id(probe))
    extents = (ctypes.c_int64 * 3).from_address(words[_EXTENTS // 8])
    strides = (ctypes.c_int64 * 3).from_address(words[_STRIDES // 8])
    as_list, as_tuple = [probe], (probe,)
    in_list = ctypes.c_int64.from_address(ctypes.c_int64.from_address(id(as_list) + _ITEMS).value).value
    in_tuple = ctypes.c_int64.from_address(id(as_tuple) + _ITEMS).value
    return (
        words[_TYPE // 8] == KIND
        and words[_DATA // 8] == probe.ctypes.data
        and words[_AXES // 8] & 0xFFFFFFFF == probe.ndim
        and words[_DESCR // 8] == id(np.dtype(np.float32))
        and words[_FLAGS // 8] & 0xFFFF == probe.flags.num
        and (tuple(extents), tuple(strides)) == (probe.shape, probe.strides)
        and in_list == in_tuple == id(probe)
    )
