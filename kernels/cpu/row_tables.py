"""The tables of a launch over touched rows, and how one small array hands them all to a kernel."""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, table_at
from .rowwise import bins_of


class Rows(NamedTuple):
    """A gradient for some rows of a parameter, checked, where it lies in memory."""

    places: int  # rows of values
    width: int  # elements of each
    indices: Any  # the row numbers, an int64 array in one piece
    values: int  # address of the first row of values, in the parameter's dtype
    stride: int  # bytes from one row of values to the next
    height: int  # rows of the parameter
    refuse: Any  # function of indices that raises, if one is out of range
    held: Any  # array that must live as long


class RowTable(NamedTuple):
    """What a launch knows of one parameter and its `Rows`, or of a part of its rows; int64."""

    segment: int
    group: int
    width: int
    places: int  # of all its rows
    indices: int
    values: int
    stride: int
    keys: int  # address of the sorted places, int64, ``row - lowest row << bits | place``
    spare: int  # address of as much memory
    bits: int
    start: int  # first line of ``touched``
    averaging: int  # address of a `row_averages.Averaging`, 0: no average is kept
    end: int  # the row after its last one
    lowest: int = 0  # row of this part
    is_part: int = 0  # whether there are others for the same parameter: then all indices are in range
    own: int = 0  # places of its rows; `merge` moves keys and start to where they begin
    touched: int = 0  # rows found; negative: an index is out of range, see `row_gradients.merge`


FIELDS = len(RowTable._fields)
SEGMENT, WIDTH, KEYS, START, OWN, TOUCHED = map(
    RowTable._fields.index, ("segment", "width", "keys", "start", "own", "touched")
)

TABLE, ROW, FIRST, LAST = range(4)
"""Columns of ``touched``, int64: number of the `RowTable`, row, first and last of its places among the sorted ones."""


class RowTables(NamedTuple):
    """What a launch over touched rows works on."""

    plan: int  # handle of the plan's `Tables`
    tables: Any  # int64 [parameters, fields of RowTable]
    touched: Any  # int64 [places, 4], a line for each touched row
    sums: Any  # float64 [2, places]
    bins: Any  # int64: boundaries of what each thread does


@callee
def row_tables_at(handle):
    """The tables that a handle, at an address, points to."""
    own = array_at(handle, 0, 8, np.int64)
    return RowTables(
        own[0],
        table_at(own[1], own[2], FIELDS, np.int64),
        table_at(own[3], own[4], LAST + 1, np.int64),
        table_at(own[5], 2, own[4], np.float64),
        array_at(own[6], 0, own[7], np.int64),
    )


def address_of(array):
    """Address of the first element."""
    return array.__array_interface__["data"][0]


class Memory:
    """Addresses of memory for so many places, that steps use one after the other."""

    def __init__(self, places):
        numbers = (places,), (places,), (places, LAST + 1), (2, places)
        self.places, self._arrays = places, [np.empty(shape, np.int64) for shape in numbers]
        self.keys, self.spare, self.touched, self.sums = (array.ctypes.data for array in self._arrays)


class RowWork:
    """The tables of one step's touched rows, and how these are shared among threads; see `launch.Work`.

    Parameters
    ----------
    plan : int
        Handle of the plan's `Tables`.
    tables : list of RowTable
    memory : Memory
    elements : int
        Of all values.
    threads : int
        Ranges to share the touched rows among.

    Attributes
    ----------
    count : int
        Touched rows, once they are known.
    """

    def __init__(self, plan, tables, memory, elements, threads):
        self._tables, self._memory = np.array(tables, np.int64), memory
        self.elements, self.count = elements, 0
        self._bins = np.empty(threads + 1, np.int64)
        own = plan, self._tables.ctypes.data, len(tables), memory.touched, memory.places, memory.sums
        self._handle = np.array([*own, self._bins.ctypes.data, self._bins.size], np.int64)
        self.handle = self._handle.ctypes.data

    def bins(self, threads):
        """Boundaries of ranges of nearly equal work, for as many threads as there may be; some have no rows."""
        return self._bins


class Sorting:
    """The sorting of a `RowWork`, a parameter, or a part of one, at a time; see `launch.Work`."""

    def __init__(self, work, tables, elements):
        self.handle, self.count, self.elements = work.handle, tables, elements

    def bins(self, threads):
        """Boundaries that split them into ``threads`` ranges."""
        return bins_of(self.count, threads)
