"""The tables of a launch, and how one small array hands them all to a kernel.

A call that passes one array of addresses costs half of one that passes seven arrays.
"""

from typing import Any, NamedTuple

import numpy as np

from .compile._jit import callee
from .compile.intrinsics import array_at, table_at
from .layout import SEGMENT


class Tables(NamedTuple):
    """What a launch works on; columns, rows and bits as `layout` names them."""

    chunks: Any  # int64 [chunks, columns]
    addresses: Any  # int64 [SLOTS + slots, segments]
    gradients: Any  # int64 [2, segments]
    layouts: Any  # int64 [numbers]
    factors: Any  # compute dtype [2, segments]
    table: Any  # compute dtype [groups, fields]
    sums: Any  # float64 [terms, chunks]


TABLES = len(Tables._fields)


def handle_of(tables):
    """Address, rows and columns of each table, int64 [7, 3]; it keeps none of them alive."""
    if not all(array.flags.c_contiguous for array in tables):
        raise ValueError("a launch's tables must be C-contiguous")
    shapes = [array.shape if array.ndim == 2 else (1, *array.shape) for array in tables]
    addresses = [array.ctypes.data for array in tables]
    return np.array([(where, *shape) for where, shape in zip(addresses, shapes, strict=True)], np.int64)


@callee
def tables_at(handle, dtype):
    """The tables that a handle, at an address, points to."""
    return tables_of(table_at(handle, TABLES, 3, np.int64), dtype)


@callee
def tables_of(rows, dtype):
    """The tables whose addresses, rows and columns the rows of an array say."""
    return Tables(
        table_at(rows[0, 0], rows[0, 1], rows[0, 2], np.int64),
        table_at(rows[1, 0], rows[1, 1], rows[1, 2], np.int64),
        table_at(rows[2, 0], rows[2, 1], rows[2, 2], np.int64),
        array_at(rows[3, 0], 0, rows[3, 2], np.int64),
        table_at(rows[4, 0], rows[4, 1], rows[4, 2], dtype),
        table_at(rows[5, 0], rows[5, 1], rows[5, 2], dtype),
        table_at(rows[6, 0], rows[6, 1], rows[6, 2], np.float64),
    )


@callee
def end_of_segment(chunks, first):
    """The chunk after the last one of the segment that chunk ``first`` begins."""
    k = first + 1
    while k < chunks.shape[0] and chunks[k, SEGMENT] == chunks[first, SEGMENT]:
        k += 1
    return k
