"""Numbers that each lie in memory of their own, hundreds of them, read and written in one compiled call."""

import functools

import numpy as np
from numba import types

from ..compile._jit import callee, entry_point, specialise
from ..compile.intrinsics import array_at, table_at

DTYPES = {"float32": 0, "float64": 1, "int32": 2, "int64": 3}
"""What a number may be kept as → what the table of places says of it."""
_FLOAT32, _FLOAT64, _INT32, _INT64 = DTYPES.values()


def write(handle):
    """Write to every place whose number is wanted. The GIL is held. Requires the address of a `handle_of`."""
    places, coming, wanted, _, _ = _unpack(array_at(handle, 0, 7, np.int64))
    for i in range(places.shape[0]):
        number = places[i, 2]
        if wanted[number]:
            _store(places[i, 0], places[i, 1], coming[number])


def read(handle):
    """Fill ``found`` with what lies in every place; whether that is what is known.

    The GIL is held. Requires the address of a `handle_of`.
    """
    places, _, _, known, found = _unpack(array_at(handle, 0, 7, np.int64))
    are_known = True
    for i in range(places.shape[0]):
        value, expected = _load(places[i, 0], places[i, 1]), known[places[i, 2]]
        found[i] = value
        are_known &= value == expected or (np.isnan(value) and np.isnan(expected))
    return are_known


@callee
def _unpack(handle):
    places, numbers = handle[0], handle[1]
    return (
        table_at(handle[2], places, 3, np.int64),
        array_at(handle[3], 0, numbers, np.float64),
        array_at(handle[4], 0, numbers, np.int64),
        array_at(handle[5], 0, numbers, np.float64),
        array_at(handle[6], 0, places, np.float64),
    )


@callee
def _load(address, kind):
    if kind == _FLOAT32:
        return np.float64(array_at(address, 0, 1, np.float32)[0])
    if kind == _FLOAT64:
        return array_at(address, 0, 1, np.float64)[0]
    if kind == _INT32:
        return np.float64(array_at(address, 0, 1, np.int32)[0])
    return np.float64(array_at(address, 0, 1, np.int64)[0])


@callee
def _store(address, kind, value):
    if kind == _FLOAT32:
        array_at(address, 0, 1, np.float32)[0] = value
    elif kind == _FLOAT64:
        array_at(address, 0, 1, np.float64)[0] = value
    elif kind == _INT32:
        array_at(address, 0, 1, np.int32)[0] = value
    else:
        array_at(address, 0, 1, np.int64)[0] = value


def handle_of(places, coming, wanted, known, found):
    """Put what `write` and `read` need to know into one array; it keeps none of the arrays alive.

    Parameters
    ----------
    places : int64 array [places, 3]
        Address, one of `DTYPES`, and which number belongs there.
    coming : float64 array [numbers]
        What `write` writes,
    wanted : int64 array [numbers]
        where this is not 0.
    known : float64 array [numbers]
        What `read` expects.
    found : float64 array [places]
        What `read` finds.
    """
    arrays = (places, coming, wanted, known, found)
    return np.array([len(places), len(known), *(array.ctypes.data for array in arrays)], np.int64)


@functools.cache
def compiled():
    """`write` and `read`, compiled."""
    signatures = {write: types.void(types.int64), read: types.boolean(types.int64)}
    return [
        entry_point(specialise(function, "counters", signature, {}, nogil=False, key="counters"))
        for function, signature in signatures.items()
    ]
