"""The tables of a launch over touched rows, on a GPU: gradients for some rows of parameters, of a whole plan at once.

A *place* is a row of values, numbered through all gradients. Sorted, with its row, it is one number: the *key*.
"""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, scalars_at, table_at


class Rows(NamedTuple):
    """A gradient for some rows of a parameter, checked but for the range of its indices, where it lies in memory."""

    places: int  # rows of values
    width: int  # elements of each
    height: int  # rows of the parameter
    indices: int  # address of the first row number
    index_stride: int  # bytes from one to the next
    index_size: int  # bytes of each
    values: int  # address
    record: int  # start of the values' record in the layouts table, `DIRECT`: they lie as the parameter's rows do
    refuse: Any  # function of the indices, as a NumPy array, that raises what is wrong with them
    held: Any  # the indices, as a `CudaArray`


class RowTable(NamedTuple):
    """What a launch knows of one parameter and its `Rows`, int64."""

    segment: int
    width: int
    height: int
    indices: int
    index_stride: int
    index_size: int
    values: int
    record: int
    place: int  # its first place
    row: int  # its first row, numbered through all parameters
    touched: int = 0  # its first touched row, numbered through all parameters
    merged: int = 0  # address of the gradient of its first touched row


FIELDS = len(RowTable._fields)
SEGMENT, PLACE, TOUCHED, MERGED = map(RowTable._fields.index, ("segment", "place", "touched", "merged"))


class Header(NamedTuple):
    """The numbers that the tables of a launch begin with, int64."""

    plan: int  # address of the plan's handle
    tables: int  # how many follow
    places: int
    size: int  # keys, with what fills them up to a power of two
    bits: int  # of a key, for the place
    keys: int  # address, int64
    firsts: int  # address of the number, among sorted keys, of the first one of each touched row, int64
    found: int  # address: indices out of range, then how many rows of each table are touched, int64
    touched: int = 0  # rows in all
    team: int = 1  # threads for each of them
    sums: int = 0  # address, float64 [2, touched]


HEADER = len(Header._fields)


class RowTables(NamedTuple):
    """What a launch over touched rows works on."""

    header: Header
    tables: Any  # int64 [parameters, fields of RowTable]
    keys: Any
    firsts: Any
    found: Any
    sums: Any


@callee
def row_tables_at(handle):
    """The tables at an address: a header, then one `RowTable` after the other."""
    header = scalars_at(Header, table_at(handle, 1, HEADER, np.int64), 0, 0)
    return RowTables(
        header,
        table_at(handle + 8 * HEADER, header.tables, FIELDS, np.int64),
        array_at(header.keys, 0, header.size, np.int64),
        array_at(header.firsts, 0, header.size, np.int64),
        array_at(header.found, 0, 1 + header.tables, np.int64),
        table_at(header.sums, 2, header.touched, np.float64),
    )


class Touched(NamedTuple):
    """A touched row."""

    table: RowTable
    row: Any  # of its parameter
    first: Any  # among the sorted keys
    end: Any
    merged: Any  # address of its gradient, once that has been added up


@callee
def table_of(r, column, number):
    """The table that a place belongs to, or a touched row: the last that begins, by that column, at it or before."""
    k = r.header.tables - 1
    while r.tables[k, column] > number:
        k -= 1
    return k


@callee
def touched_row(r, u, itemsize):
    """Touched row ``u``, of elements of so many bytes."""
    table = scalars_at(RowTable, r.tables, table_of(r, TOUCHED, u), 0)
    first, end = r.firsts[u], r.header.places
    if u + 1 < r.header.touched:
        end = r.firsts[u + 1]
    row = (r.keys[first] >> r.header.bits) - table.row
    return Touched(table, row, first, end, table.merged + (u - table.touched) * table.width * itemsize)
