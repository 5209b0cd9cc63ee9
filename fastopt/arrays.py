"""Arrays that a call brings along: what is accepted as input and as output."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import check_array

Array = npt.NDArray[Any]

_FLOATS = np.dtype(np.float32), np.dtype(np.float64)


def floating(name: str, value: Any) -> Array:
    """``value`` as a float32 or float64 array; lists, numbers and integers of all kinds become float64, as in NumPy.

    Raises
    ------
    TypeError
        If it is on another device or of another dtype.
    """
    if type(value) is np.ndarray and value.dtype in _FLOATS:
        return value
    array = numbers(name, value)
    if array.dtype.kind in "bui":
        array = array.astype(np.float64)
    if array.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected float32 or float64, got {array.dtype}: convert it with astype")
    return array


def numbers(name: str, value: Any) -> Array:
    """``value`` as an array of any dtype of real numbers.

    Raises
    ------
    TypeError, ValueError
        If it is on another device, of another dtype, or no array at all.
    """
    if isinstance(value, (list, tuple, int, float, np.generic)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name}: not an array: {error}") from None
    check_array(f"array {name}", value)
    if value.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected numbers, got dtype {value.dtype}")
    return value


def check_axis(axis: Any, ndim: int) -> int:
    """``axis`` counted from 0, of an array of ``ndim`` axes."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise ValueError(f"axis must be an int, got {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be in [{-ndim}, {ndim}) for an array of {ndim} axes, got {axis}")
    return int(axis) % ndim


def check_axes(axes: Any, ndim: int) -> tuple[int, ...]:
    """Axes counted from 0: one or several, or all of them for None."""
    if axes is None:
        return tuple(range(ndim))
    if not isinstance(axes, (tuple, list)):
        return (check_axis(axes, ndim),)
    checked = tuple(check_axis(axis, ndim) for axis in axes)
    if len(set(checked)) < len(checked):
        raise ValueError(f"axis: expected each axis once, got {axes}")
    return checked


def axes_last(array: Array, axes: tuple[int, ...]) -> Array:
    """A view with ``axes`` moved to the end, in their order."""
    return np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))


def rows_and_columns(moved: Array, columns: int) -> tuple[int, int]:
    """Numbers of elements of all axes but the last ``columns``, and of those."""
    split = moved.ndim - columns
    return math.prod(moved.shape[:split]), math.prod(moved.shape[split:])


def check_output(out: Any, shape: tuple[int, ...], dtype: Any, like: str) -> None:
    """Refuse what a result cannot be written to."""
    check_array("array out", out)
    if out.dtype != dtype:
        raise TypeError(f"out must have the dtype of {like}, {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have the shape of {like}, {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if overlaps_itself(out):
        raise ValueError("out holds elements that share memory, as broadcasting makes them: pass another array")


def is_same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same elements in the same order."""
    one_start, other_start = one.__array_interface__["data"][0], other.__array_interface__["data"][0]
    return one_start == other_start and (one.shape, one.strides, one.dtype) == (other.shape, other.strides, other.dtype)


def overlaps_itself(array: Array) -> bool:
    """Whether two elements of an array may share memory: whether an axis is shorter than all that lies within it."""
    if array.flags.c_contiguous:
        return False
    within = array.itemsize
    for stride, length in sorted(
        (abs(stride), length) for stride, length in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1 and stride < within:
            return array.size > 0
        within += stride * (length - 1)
    return False


def overlaps(one: Array, other: Array) -> bool:
    """Whether two arrays may share memory."""
    if not np.may_share_memory(one, other):
        return False
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
