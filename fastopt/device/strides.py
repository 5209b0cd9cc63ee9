"""How the elements of an array follow one another in memory, from its shape and strides alone."""

from __future__ import annotations

from typing import Any

import numpy as np

AnyArray = Any
"""A NumPy array or a `CudaArray`: they share the attributes that the front end looks at."""


def c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-ordered array without gaps."""
    strides = []
    for extent in reversed(shape):
        strides.append(itemsize)
        itemsize *= extent
    return tuple(reversed(strides))


def memory_order(array: AnyArray) -> tuple[int, ...]:
    """The array's axes as they lie in memory, slowest first."""
    if array.flags.c_contiguous:
        return tuple(range(array.ndim))
    return tuple(sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], -array.shape[axis], axis)))


def is_dense(array: AnyArray) -> bool:
    """Whether the elements fill one piece of memory, in any order of the axes."""
    if array.size == 0:
        return True
    expected = array.itemsize
    for axis in reversed(memory_order(array)):
        if array.shape[axis] > 1 and array.strides[axis] != expected:
            return False
        expected *= array.shape[axis]
    return True


def overlaps_itself(array: AnyArray) -> bool:
    """Whether two elements have a byte in common."""
    axes = sorted(
        (abs(stride), extent) for stride, extent in zip(array.strides, array.shape, strict=True) if extent > 1
    )
    if array.size == 0 or not axes:
        return False
    reach = array.itemsize
    for stride, extent in axes:
        if stride < reach:
            return _overlaps_closely(axes, array)
        reach += stride * (extent - 1)
    return False


def _overlaps_closely(axes: list[tuple[int, int]], array: AnyArray) -> bool:
    """`overlaps_itself` where a step along one axis, ``(stride, extent)``, is shorter than another axis is long."""
    span = array.itemsize + sum(stride * (extent - 1) for stride, extent in axes)
    if axes[0][0] < array.itemsize or span < array.size * array.itemsize:
        return True
    starts = sum(np.ix_(*(stride * np.arange(extent) for stride, extent in axes)))
    return bool(np.any(np.diff(np.sort(starts, axis=None)) < array.itemsize))


def lies_alike(one: AnyArray, other: AnyArray) -> bool:
    """Whether arrays of the same shape, of any dtypes, have their elements in the same places of memory."""
    if one.itemsize == other.itemsize:
        return same_strides(one, other)
    lengths = zip(one.shape, one.strides, other.strides, strict=True)
    return one.size == 0 or all(n == 1 or a * other.itemsize == b * one.itemsize for n, a, b in lengths)


def same_strides(one: AnyArray, other: AnyArray) -> bool:
    """Whether two arrays of one shape have their elements in the same order and distance."""
    return all(extent <= 1 or a == b for extent, a, b in zip(one.shape, one.strides, other.strides, strict=True))


def byte_range(address: int, array: AnyArray) -> tuple[int, int]:
    """First byte of an array whose first element is at ``address``, and the byte after its last."""
    if array.size == 0:
        return address, address
    reach = [stride * (extent - 1) for stride, extent in zip(array.strides, array.shape, strict=True)]
    low, high = (sum(r for r in reach if r < 0), sum(r for r in reach if r > 0))
    return address + low, address + high + array.itemsize
