"""The tables of a launch, and how one small array hands them all to a kernel.

A call that passes one array of addresses costs half of one that passes seven arrays.
"""

from typing import Any, NamedTuple

import numpy as np

from ._jit import callee
from .intrinsics import array_at, table_at
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


def handle_of(tables):
    """Address, rows and columns of each table, int64 [7, 3]; it keeps none of them alive."""
    if not all(array.flags.c_contiguous for array in tables):
        raise ValueError("a launch's tables must be C-contiguous")
    shapes = [array.shape if array.ndim == 2 else (1, *array.shape) for array in tables]
    addresses = [array.ctypes.data for array in tables]
    return np.array([(where, *shape) for where, shape in zip(addresses, shapes, strict=True)], np.int64)


@callee
def tables_at(handle, dtype):
    """The tables that a handle points to."""
    return Tables(
        table_at(handle[0, 0], handle[0, 1], handle[0, 2], np.int64),
        table_at(handle[1, 0], handle[1, 1], handle[1, 2], np.int64),
        table_at(handle[2, 0], handle[2, 1], handle[2, 2], np.int64),
        array_at(handle[3, 0], 0, handle[3, 2], np.int64),
        table_at(handle[4, 0], handle[4, 1], handle[4, 2], dtype),
        table_at(handle[5, 0], handle[5, 1], handle[5, 2], dtype),
        table_at(handle[6, 0], handle[6, 1], handle[6, 2], np.float64),
    )


@callee
def end_of_segment(chunks, first):
    """The chunk after the last one of the segment that chunk ``first`` begins."""
    k = first + 1
    while k < chunks.shape[0] and chunks[k, SEGMENT] == chunks[first, SEGMENT]:
        k += 1
    return k
