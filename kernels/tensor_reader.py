"""Where torch's CPU tensors lie: the addresses of hundreds of parameters and gradients in one compiled call.

Like `reader` for NumPy arrays: it reads what it needs from the tensor objects themselves, and stops at the first that
is not exactly as expected, for the front end to judge. Where things are in these objects is found out by the front end,
which knows torch, and handed over as a `Layout`.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import types

from ._jit import callee, entry_point, specialise
from .intrinsics import array_at, table_at
from .layout import ADDRESS
from .object_reader import word_at as _word
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


class CounterLayout(NamedTuple):
    """Offsets in bytes of what counts how often a tensor was written to."""

    tensor: int  # of the C++ object's address in the Python object
    counter: int  # of the counter's address in the C++ object
    version: int  # of the number, 32 bits, in the counter


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
        if _word(gradients[i] + TYPE) != kind:
            return i
        own, grad, itemsize = _word(parameters[i] + tensor), _word(gradients[i] + tensor), expected[i, 2]
        if not (
            _is_like(own, keys, dtype, axes, plain, expected[i])
            and _is_like(grad, keys, dtype, axes, plain, expected[i])
        ):
            return i
        if _address(own, storage, start, data, itemsize) != expected[i, 0]:
            return i
        if expected[i, 3] > 0 and _word(_word(grad + storage) + data) == 0:
            return i
        address = _address(grad, storage, start, data, itemsize)
        if touches(occupied, address, address + expected[i, 3]):
            return i
        table[ADDRESS, i] = address
    return count


def find_exchanged(tensors, handle):
    """The number of the first of a list of tensors that is not the object it was, or has its data elsewhere.

    Requires the address of a list of as many tensors as there were, and a ``handle`` from `handle_of_held`; the GIL is
    held. Returns the number of tensors if there is none.
    """
    count, held = handle[0], table_at(handle[5], handle[0], 3, np.int64)
    tensors = array_at(_word(tensors + ITEMS), 0, count, np.int64)
    for i in range(count):
        if tensors[i] != held[i, 0]:
            return i
    return find_moved(handle)


@callee
def find_moved(handle):
    """The number of the first of the tensors of a `handle_of_held` that has its data elsewhere; theirs if none has."""
    count, tensor, storage, start, data = handle[0], handle[1], handle[2], handle[3], handle[4]
    held = table_at(handle[5], count, 3, np.int64)
    for i in range(count):
        if _address(_word(held[i, 0] + tensor), storage, start, data, held[i, 2]) != held[i, 1]:
            return i
    return count


def count_up(tensors, count, tensor, counter, version):
    """Add one to the version of each tensor of a list; False, and nothing, if one has none. The GIL is held."""
    tensors = array_at(_word(tensors + ITEMS), 0, count, np.int64)
    for i in range(count):
        if _word(_word(tensors[i] + tensor) + counter) == 0:
            return False
    for i in range(count):
        address = _word(_word(tensors[i] + tensor) + counter) + version
        array_at(address, 0, 1, np.uint32)[0] += np.uint32(1)
    return True


def read_versions(tensors, count, tensor, counter, version, found):
    """Write the version of each tensor of a list into the int64 array ``found``; False if one has none."""
    tensors = array_at(_word(tensors + ITEMS), 0, count, np.int64)
    for i in range(count):
        address = _word(_word(tensors[i] + tensor) + counter)
        if address == 0:
            return False
        found[i] = array_at(address + version, 0, 1, np.uint32)[0]
    return True


@callee
def _is_like(tensor, keys, dtype, axes, plain, expected):
    """Whether a C++ object is a dense tensor in CPU memory, of the dtype, extents and strides expected."""
    if _word(tensor + keys) != plain or array_at(tensor + dtype, 0, 1, np.uint16)[0] != expected[1]:
        return False
    return _is_laid_out(array_at(tensor + axes, 0, 1 + 2 * AXES, np.int64), expected[4:])


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


def handle_of_held(layout, held):
    """What `find_exchanged` needs to know, in one array; it does not keep ``held`` alive.

    Parameters
    ----------
    layout : Layout
    held : int64 array [tensors, 3]
        Address of the Python object, address of the data, bytes of an element.
    """
    offsets = (layout.tensor, layout.storage, layout.start, layout.data)
    return np.array([len(held), *offsets, held.ctypes.data], np.int64)


@functools.cache
def compiled():
    """`read_tensors`, compiled."""
    number = types.int64
    signature = number(number, number, types.Array(number, 1, "C"))
    return entry_point(specialise(read_tensors, "torch", signature, {}, nogil=False, key="tensors"))


@functools.cache
def compiled_for_held():
    """`find_exchanged` and `find_moved`, compiled."""
    number, handle = types.int64, types.Array(types.int64, 1, "C")
    signatures = {find_exchanged: number(number, handle), find_moved: number(handle)}
    return _compiled(signatures, "held")


@functools.cache
def compiled_for_counters():
    """`count_up` and `read_versions`, compiled."""
    numbers = [types.int64] * 5
    signatures = {
        count_up: types.boolean(*numbers),
        read_versions: types.boolean(*numbers, types.Array(types.int64, 1, "C")),
    }
    return _compiled(signatures, "counters")


def _compiled(signatures, key):
    return [
        entry_point(specialise(function, "torch", signature, {}, nogil=False, key=key))
        for function, signature in signatures.items()
    ]
