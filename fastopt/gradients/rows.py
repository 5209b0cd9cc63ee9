"""Gradients for some rows of a parameter: checked, and found in memory."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..device import HOST, Array
from ..kernels.cpu.row_tables import Rows
from ..parameters import Parameter
from ..row_gradient import check_range, check_sizes

_BITS = 63
"""A row and a place in the list are sorted as one number of so many bits."""


def find_rows(name: str, parameter: Parameter, indices: Array, values: Array) -> Rows:
    """Check a gradient, of a name, for rows of a parameter; copy what kernels cannot read as it lies.

    Whether indices are in range is checked where each is read once, when they are sorted.

    Raises
    ------
    TypeError, ValueError
        If it does not fit the parameter, or the parameter's rows do not lie side by side.
    """
    array = parameter.array
    check_sizes(name, indices, values, array.shape)
    height, count, width = array.shape[0], len(indices), math.prod(array.shape[1:])
    require_whole_rows(name, parameter)
    check_counts(name, height, count)
    flags, refuse = indices.flags, partial(check_range, name, height)
    if not width:
        refuse(indices)
    if indices.dtype != np.int64 or not (flags.c_contiguous and flags.aligned):
        indices = np.array(indices, np.int64)
    if len(parameter.axes) > 2:
        values = values.transpose(axes_of_rows(parameter))
    if values.dtype != array.dtype or not _rows_are_dense(values):
        with np.errstate(over="ignore"):
            values = values.astype(array.dtype, order="C")
    return Rows(count if width else 0, width, indices, HOST.address(values), values.strides[0], height, refuse, values)


def require_whole_rows(name: str, parameter: Parameter) -> None:
    """Refuse a parameter whose rows do not lie side by side."""
    array = parameter.array
    if parameter.axes[0] != 0 and array.shape[0] > 1 and array.size > array.shape[0]:
        raise ValueError(
            f"{name}: a row of the parameter does not lie in one piece (strides {array.strides}): build with a "
            "parameter in C order, or pass its whole gradient"
        )


def check_counts(name: str, height: int, count: int) -> None:
    """Refuse more indices into so many rows than can be sorted."""
    if max(height - 1, 0).bit_length() + max(count - 1, 0).bit_length() > _BITS:
        raise ValueError(f"{name}: {count} indices into {height} rows are too many: split them")


def axes_of_rows(parameter: Parameter) -> tuple[int, ...]:
    """The axes of rows of values, in the order in which the elements of a row of the parameter lie in memory."""
    return 0, *(axis for axis in parameter.axes if axis != 0)


def _rows_are_dense(values: Array) -> bool:
    """Whether the elements of each row lie side by side, aligned."""
    flags = values.flags
    return flags.aligned and (flags.c_contiguous or bool(len(values) and values[0].flags.c_contiguous))
