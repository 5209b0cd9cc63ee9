"""Elements side by side: what a thread takes with one load, as tuples; and the same work on each of them.

A *lane* is one of these elements. How many there are is the length of a tuple: `wide`, what a load of 16 bytes brings,
or `one`.
"""

from typing import Any

from numba.extending import overload

from ..compile._jit import FLAGS
from ..compile.tuples import numbers_at, put_numbers
from ..maths import constant

VECTOR = 16
"""Bytes of the widest load."""

ACCUMULATES, APART = 1, 2
"""Bits that say how elements are loaded: the accumulator's too; those of parameter and gradient one by one, as these do
not both begin at a multiple of `VECTOR`. Loops over vectors are given constants, so that no branch comes between loads.
Adafactor knows no `APART`: rows that begin anywhere go element by element there."""


def one(dtype):
    """A tuple of one zero."""


@overload(one, jit_options=FLAGS)
def _one(dtype):
    return lambda dtype: (dtype(0),)


def wide(dtype):
    """A tuple of as many zeros as one load brings."""


@overload(wide, jit_options=FLAGS)
def _wide(dtype):
    if dtype.dtype.bitwidth == 32:
        return lambda dtype: (dtype(0), dtype(0), dtype(0), dtype(0))
    return lambda dtype: (dtype(0), dtype(0))


def size_of(numbers):
    """Bytes of each number of a tuple."""


@overload(size_of, jit_options=FLAGS)
def _size_of(numbers):
    size = numbers.dtype.bitwidth // 8
    return lambda numbers: size


def cast(values, like):
    """The values, a tuple, in the type of the number ``like``."""


@overload(cast, jit_options=FLAGS)
def _cast(values, like):
    if len(values) == 0:
        return lambda values, like: ()
    return lambda values, like: (constant(values[0], like), *cast(values[1:], like))


def cast_each(columns, like):
    """`cast` of each of a tuple of tuples."""


@overload(cast_each, jit_options=FLAGS)
def _cast_each(columns, like):
    if len(columns) == 0:
        return lambda columns, like: ()
    return lambda columns, like: (cast(columns[0], like), *cast_each(columns[1:], like))


def first_of(columns, counted):
    """Return as many of the columns as ``counted`` has members."""


@overload(first_of, jit_options=FLAGS)
def _first_of(columns, counted):
    count = len(counted)
    return lambda columns, counted: columns[:count]


def rest_of(columns, counted):
    """The columns that `first_of` leaves out."""


@overload(rest_of, jit_options=FLAGS)
def _rest_of(columns, counted):
    count = len(counted)
    if len(columns) == count:
        return lambda columns, counted: ()
    return lambda columns, counted: columns[count:]


LANES: dict[type, Any] = {}
"""Class of a work, a NamedTuple, → function ``(work, numbers) -> numbers``, what it does in one lane."""


def in_lane(work, numbers):
    """Return what ``work`` makes of one lane's numbers."""


@overload(in_lane, jit_options=FLAGS, strict=False)
def _in_lane(work, numbers):
    return LANES[work.instance_class]


def in_lanes(work, lanes):
    """`in_lane` for each lane."""


@overload(in_lanes, jit_options=FLAGS)
def _in_lanes(work, lanes):
    if len(lanes) == 1:
        return lambda work, lanes: (in_lane(work, lanes[0]),)
    if len(lanes) == 2:
        return lambda work, lanes: (in_lane(work, lanes[0]), in_lane(work, lanes[1]))
    if len(lanes) == 8:
        return lambda work, lanes: in_lanes(work, lanes[:4]) + in_lanes(work, lanes[4:])

    def four(work, lanes):
        return in_lane(work, lanes[0]), in_lane(work, lanes[1]), in_lane(work, lanes[2]), in_lane(work, lanes[3])

    return four


def column_of(rows, addresses, segment):
    """The addresses in ``rows`` of the address table, of one segment, as a tuple."""


@overload(column_of, jit_options=FLAGS)
def _column_of(rows, addresses, segment):
    if len(rows) == 0:
        return lambda rows, addresses, segment: ()
    return lambda rows, addresses, segment: (addresses[rows[0], segment], *column_of(rows[1:], addresses, segment))


def union(addresses):
    """The bits that are set in any of the addresses."""


@overload(union, jit_options=FLAGS)
def _union(addresses):
    if len(addresses) == 0:
        return lambda addresses: 0
    return lambda addresses: addresses[0] | union(addresses[1:])


def load_each(arrays, byte, like):
    """`numbers_at` a byte of each array, a tuple of tuples."""


@overload(load_each, jit_options=FLAGS)
def _load_each(arrays, byte, like):
    if len(arrays) == 0:
        return lambda arrays, byte, like: ()
    return lambda arrays, byte, like: (numbers_at(arrays[0] + byte, like), *load_each(arrays[1:], byte, like))


def store_each(arrays, byte, columns):
    """Write what `load_each` reads."""


@overload(store_each, jit_options=FLAGS)
def _store_each(arrays, byte, columns):
    if len(arrays) != len(columns):
        raise TypeError(f"the rule has {len(arrays)} slots but returned {len(columns)}")
    if len(arrays) == 0:
        return lambda arrays, byte, columns: None

    def every(arrays, byte, columns):
        put_numbers(arrays[0] + byte, columns[0])
        store_each(arrays[1:], byte, columns[1:])

    return every


def numbers_from(address, like, how):
    """`numbers_at` an address, or if ``how`` says `APART`, one by one."""


@overload(numbers_from, jit_options=FLAGS)
def _numbers_from(address, like, how):
    if len(like) == 1:
        return lambda address, like, how: numbers_at(address, like)
    half = len(like) // 2

    def load(address, like, how):
        if how & APART:
            beyond = address + half * size_of(like)
            return numbers_from(address, like[:half], how) + numbers_from(beyond, like[half:], how)
        return numbers_at(address, like)

    return load


def put_numbers_to(address, numbers, how):
    """`put_numbers` at an address, or if ``how`` says `APART`, one by one."""


@overload(put_numbers_to, jit_options=FLAGS)
def _put_numbers_to(address, numbers, how):
    if len(numbers) == 1:
        return lambda address, numbers, how: put_numbers(address, numbers)
    half = len(numbers) // 2

    def store(address, numbers, how):
        if how & APART:
            put_numbers_to(address, numbers[:half], how)
            put_numbers_to(address + half * size_of(numbers), numbers[half:], how)
        else:
            put_numbers(address, numbers)

    return store
