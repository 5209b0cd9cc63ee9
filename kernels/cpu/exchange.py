"""Where arrays and tensors lie: hundreds of them in one compiled call, by interfaces that their makers promise to keep.

Items of tuples and values of dicts come from CPython's stable ABI, called by address. Of an array the fields of
``PyArrayObject`` are read, NumPy's public C ABI. A tensor is described by its own library, through DLPack's C exchange
API. All is checked that a kernel relies on; the first object that is not exactly what was expected ends the reading,
for the front end to judge.

Sources: https://docs.python.org/3/c-api/stable.html,
https://numpy.org/doc/stable/reference/c-api/types-and-structures.html, https://dmlc.github.io/dlpack/latest/c_api.html
"""

import ctypes
import functools
import sys
from typing import NamedTuple

import numpy as np
from numba import types

from ..compile._jit import callee, entry_point, is_interpreted, specialise
from ..compile.intrinsics import array_at, call_for_number, scalars_at, table_at
from ..layout import ADDRESS, DIRECT, LAYOUT

WRITEABLE = 0x0400
"""The flag of arrays that may be written to, of NumPy's C ABI."""

_TYPE, _DATA, _AXES, _EXTENTS, _STRIDES, _DTYPE, _FLAGS = 1, 2, 3, 4, 5, 7, 8
"""Words of a ``PyArrayObject``; the first is every object's."""

_KIND = 3
"""Word of a ``PyArray_Descr``: characters of kind, type and byte order; flags, not looked at; number of the type."""

_CPU = 1
"""The device of a DLTensor: kind 1, number 0."""


class Expected(NamedTuple):
    """One row of the int64 table of what is expected."""

    object: int = 0  # its own address; 0: that of any object
    holder: int = 0  # where values of dicts are read, number of the dict that holds it,
    name: int = 0  # address of its key there,
    end: int = 0  # and 1 if it is the first of it, 2 the last, 3 both
    kind: int = 0  # address of its class; 0: of any, and nothing of what follows is looked at
    dtype: int = 0  # of an array what `dtype_of` gives, of a tensor what a DLDataType consists of
    flags: int = 0  # that must be set, of arrays
    address: int = 0  # of the first element; 0: any that is not occupied
    itemsize: int = 1
    nbytes: int = 0
    axes: int = 0
    record: int = 0  # where extents, and then strides, begin in the table of records


class Handle(NamedTuple):
    """What is read with, int64, mostly addresses."""

    objects: int  # how many
    expected: int
    records: int
    recorded: int
    occupied: int  # sorted disjoint ranges that no object may touch, int64 [ranges, 2]
    ranges: int
    found: int  # the gradient table, see `layout`: addresses are written there
    tuple_item: int  # functions of the stable ABI
    next_item: int
    clear_error: int
    describe: int  # ``dltensor_from_py_object_no_sync`` of the tensors' library, or 0
    tensor: int  # memory of a DLTensor
    place: int  # memory of a place in a dict, a key and a value


COLUMNS, WORDS, TENSOR_WORDS = len(Expected._fields), len(Handle._fields), 6


@callee
def _read(objects, flags, handle, item_of, describe):
    """The loop over all objects, with a way to find each one and a way to describe it."""
    own = scalars_at(Handle, table_at(handle, 1, WORDS, np.int64), 0, 0)
    expected = table_at(own.expected, own.objects, COLUMNS, np.int64)
    records = array_at(own.records, 0, own.recorded, np.int64)
    occupied = table_at(own.occupied, own.ranges, 2, np.int64)
    found = table_at(own.found, 2, own.objects, np.int64)
    for i in range(own.objects):
        row = scalars_at(Expected, expected, i, 0)
        item = item_of(objects, i, row, own)
        if item == 0 or (row.object != 0 and item != row.object):
            return i
        if row.kind == 0:
            continue
        if array_at(item, 0, 2, np.int64)[_TYPE] != row.kind:
            return i
        is_known, dtype, set_flags, axes, extents, strides, address = describe(item, own)
        needed = row.flags | flags
        if not is_known or dtype != row.dtype or axes != row.axes or (set_flags & needed) != needed:
            return i
        if not _is_laid_out(extents, strides, axes, records, row.record, row.nbytes):
            return i
        if row.address != 0:
            if address != row.address:
                return i
        elif row.nbytes > 0 and not _is_usable(address, row, occupied):
            return i
        found[ADDRESS, i], found[LAYOUT, i] = address, DIRECT
    return own.objects


@callee
def _item_of_tuple(objects, i, row, own):
    return call_for_number(own.tuple_item, (objects, i))


@callee
def _value_in_dicts(dicts, i, row, own):
    """The next value of a dict, 0 if that has another key, or more follow than are expected."""
    place, holder = array_at(own.place, 0, 3, np.int64), call_for_number(own.tuple_item, (dicts, row.holder))
    if row.end & 1:
        place[0] = 0
    where = (holder, own.place, own.place + 8, own.place + 16)
    if call_for_number(own.next_item, where) & 0xFFFFFFFF == 0 or place[1] != row.name:
        return 0
    value = place[2]
    if row.end & 2 and call_for_number(own.next_item, where) & 0xFFFFFFFF != 0:
        return 0
    return value


@callee
def _describe_array(item, own):
    head = array_at(item, 0, _FLAGS + 1, np.int64)
    dtype = array_at(head[_DTYPE], 0, _KIND + 1, np.int64)[_KIND] & ~0xFF000000
    return True, dtype, head[_FLAGS], head[_AXES] & 0xFFFFFFFF, head[_EXTENTS], head[_STRIDES], head[_DATA]


@callee
def _describe_tensor(item, own):
    if call_for_number(own.describe, (item, own.tensor)) & 0xFFFFFFFF != 0:
        call_for_number(own.clear_error, ())
        return False, 0, 0, 0, 0, 0, 0
    data, device, kind, extents, strides, offset = array_at(own.tensor, 0, TENSOR_WORDS, np.int64)
    axes = kind & 0xFFFFFFFF
    is_known = device == _CPU and (axes == 0 or strides != 0)
    return is_known, kind >> 32, 0, axes, extents, strides, data + offset


@callee
def _is_laid_out(extents, strides, axes, records, start, nbytes):
    """Whether extents and strides are those of a record; strides count where they lead to another element."""
    extents, strides = array_at(extents, 0, axes, np.int64), array_at(strides, 0, axes, np.int64)
    for axis in range(axes):
        extent = records[start + axis]
        stride = records[start + axes + axis]
        if extents[axis] != extent or (extent > 1 and nbytes > 0 and strides[axis] != stride):
            return False
    return True


@callee
def _is_usable(address, row, occupied):
    """Whether an address is not null, aligned, and outside of the occupied ranges."""
    return address != 0 and address % row.itemsize == 0 and not touches(occupied, address, address + row.nbytes)


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


@callee
def read_arrays(objects, flags, handle):
    """Read NumPy arrays, items of a tuple; see `Reader.read`. Requires addresses of tuple and handle, and the GIL."""
    return _read(objects, flags, handle, _item_of_tuple, _describe_array)


def read_tensors(objects, flags, handle):
    """The same of tensors."""
    return _read(objects, flags, handle, _item_of_tuple, _describe_tensor)


def read_tensors_in_dicts(dicts, flags, handle):
    """The same of tensors that are the values in a tuple of dicts."""
    return _read(dicts, flags, handle, _value_in_dicts, _describe_tensor)


@functools.cache
def _compiled(read, name):
    number = types.int64
    return entry_point(specialise(read, name, number(number, number, number), {}, nogil=False, key="exchange"))


def write_addresses(arrays, count, places, tuple_item):
    """Write where NumPy arrays, items of a tuple, lie: an address to the first of every three words of ``places``.

    Requires addresses of tuple, words and ``PyTuple_GetItem``, and the GIL.
    """
    words = array_at(places, 0, 3 * count, np.int64)
    for i in range(count):
        item = call_for_number(tuple_item, (arrays, i))
        words[3 * i] = array_at(item, 0, _FLAGS + 1, np.int64)[_DATA]
    return count


@functools.cache
def _address_writer():
    number = types.int64
    signature = number(number, number, number, number)
    return entry_point(specialise(write_addresses, "addresses", signature, {}, nogil=False, key="exchange"))


def place_arrays(arrays, places):
    """Write where NumPy arrays, a tuple, lie: to the first of every three numbers of an `array.array` of int64."""
    if obstacle():
        places[::3] = type(places)("q", [array.ctypes.data for array in arrays])
    else:
        _address_writer()(id(arrays), len(arrays), places.buffer_info()[0], _functions()["tuple_item"])


class Reader:
    """Reads where objects lie, as long as they are what is expected.

    Parameters
    ----------
    rows : list of (Expected, extents, strides)
        What is expected. Strides are in bytes for arrays, in elements for tensors. Objects, classes and keys that it
        names must live as long as this.
    found : int64 array [2, objects], optional
        The gradient table, to be written to.
    occupied : int64 array [ranges, 2], optional
        Sorted disjoint ranges of addresses that no object may touch.
    describe : int
        Address of ``dltensor_from_py_object_no_sync``, for tensors; 0: they are arrays.
    in_dicts : bool
        Whether they are all values of dicts, dict by dict.

    Attributes
    ----------
    handle : int
        Address of what `read_arrays` and the others need. It lives as long as this.
    count : int
        Objects.
    """

    def __init__(self, rows, found=None, occupied=None, describe=0, in_dicts=False):
        self.count = len(rows)
        found = np.zeros((2, self.count), np.int64) if found is None else found
        occupied = np.zeros((0, 2), np.int64) if occupied is None else np.ascontiguousarray(occupied)
        records = np.array([number for _, *record in rows for numbers in record for number in numbers], np.int64)
        ends = np.cumsum([2 * row.axes for row, _, _ in rows], dtype=np.int64)
        expected = np.array([row for row, _, _ in rows], np.int64).reshape(-1, COLUMNS)
        expected[1:, Expected._fields.index("record")] = ends[:-1]
        tensor, place = np.zeros(TENSOR_WORDS, np.int64), np.zeros(3, np.int64)
        handle = Handle(
            objects=self.count,
            expected=expected.ctypes.data,
            records=records.ctypes.data,
            recorded=len(records),
            occupied=occupied.ctypes.data,
            ranges=len(occupied),
            found=found.ctypes.data,
            **_functions(),
            describe=describe,
            tensor=tensor.ctypes.data,
            place=place.ctypes.data,
        )
        self._kept = np.array(handle, np.int64), expected, records, occupied, found, tensor, place
        self.handle = self._kept[0].ctypes.data
        if in_dicts:
            self._read = _compiled(read_tensors_in_dicts, "dicts")
        else:
            self._read = _compiled(read_tensors, "tensors") if describe else _compiled(read_arrays, "arrays")

    def read(self, objects, flags=0):
        """The number of the first object that is not as expected; `count` if there is none.

        Parameters
        ----------
        objects : tuple
            As many as are expected; or of the dicts that hold them.
        flags : int
            What must be set in every array's flags, beside what its row says.
        """
        return self._read(id(objects), flags, self.handle)


def expected_array(array, **known):
    """A row for arrays like one, and its record; ``known`` are fields of `Expected`, of the very array."""
    row = Expected(
        kind=id(type(array)),
        dtype=dtype_of(array.dtype),
        itemsize=array.itemsize,
        nbytes=array.nbytes,
        axes=array.ndim,
    )
    return row._replace(**known), array.shape, array.strides


def dtype_of(dtype):
    """Return what tells dtypes apart, as in memory. Equal ones need not be the same object: unpickled ones are not."""
    return ord(dtype.kind) | ord(dtype.char) << 8 | ord(dtype.byteorder) << 16 | dtype.num << 32


@functools.cache
def _functions():
    """Addresses of CPython's functions."""
    names = {"tuple_item": "PyTuple_GetItem", "next_item": "PyDict_Next", "clear_error": "PyErr_Clear"}
    return {key: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for key, name in names.items()}


@functools.cache
def obstacle():
    """Why compiled code cannot read this interpreter's objects; empty if it can."""
    if is_interpreted():
        return "NUMBA_DISABLE_JIT is set"
    if sys.implementation.name != "cpython" or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return "it takes CPython on a little-endian machine with addresses of 64 bits"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without the GIL"
    probe = np.zeros((5, 7, 3), np.float32)[1:, ::2]
    found = np.zeros((2, 1), np.int64)
    if Reader([expected_array(probe, object=id(probe))], found).read((probe,), WRITEABLE) != 1:
        return f"NumPy {np.__version__} lays its arrays out in another way"
    return "" if found[ADDRESS, 0] == probe.ctypes.data else f"NumPy {np.__version__} keeps addresses elsewhere"
