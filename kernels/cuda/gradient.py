"""Gradients where they lie in a GPU's memory: numbers side by side in one load, others one by one."""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from .._jit import FLAGS, callee
from ..intrinsics import numbers_at, put_numbers
from ..layout import ADDRESS, DIRECT, FLOAT32, LAYOUT
from ..maths import constant
from .lanes import VECTOR, one, size_of


class Gradient(NamedTuple):
    """Where a segment's gradient lies, read once per chunk."""

    address: Any
    record: Any  # in the layouts table; or DIRECT
    layouts: Any


@callee
def gradient_of(t, segment):
    """The gradient of a segment; its address is 0 if there is none."""
    return Gradient(t.gradients[ADDRESS, segment], t.gradients[LAYOUT, segment], t.layouts)


@callee
def is_plain(gradient):
    """Whether the widest load can take it."""
    return gradient.record == DIRECT and gradient.address % VECTOR == 0


def numbers_of(gradient, i, like):
    """Elements ``i`` and on of a gradient, as many as the tuple ``like`` has, as numbers of its type.

    Requires a gradient that `is_plain` where these are several.
    """
    if len(like) == 1:
        return (_number_of(gradient, i, like),)
    return numbers_at(gradient.address + i * size_of(like), like)


@overload(numbers_of, jit_options=FLAGS)
def _numbers_of(gradient, i, like):
    if len(like) == 1:
        return lambda gradient, i, like: (_number_of(gradient, i, like),)
    return lambda gradient, i, like: numbers_at(gradient.address + i * size_of(like), like)


@callee
def _number_of(gradient, i, like):
    where = _address_of(gradient, i, size_of(like))
    if gradient.record == DIRECT:
        return numbers_at(where, like)[0]
    if gradient.layouts[gradient.record] == FLOAT32:
        return constant(numbers_at(where, one(np.float32))[0], like[0])
    return constant(numbers_at(where, one(np.float64))[0], like[0])


@callee
def _address_of(gradient, i, size):
    """Where element ``i`` of a gradient lies; ``size`` is that of the parameter's elements, in bytes."""
    if gradient.record == DIRECT:
        return gradient.address + i * size
    where = gradient.address
    axes = gradient.layouts[gradient.record + 1]
    for axis in range(axes - 1, -1, -1):
        extent = gradient.layouts[gradient.record + 2 + axis]
        where += i % extent * gradient.layouts[gradient.record + 2 + axes + axis]
        i //= extent
    return where


def clear(gradient, i, like):
    """Zero as many elements of a gradient as there are zeros in ``like``, from ``i`` on; as `numbers_of`."""
    if len(like) == 1:
        _clear_one(gradient, i, like)
    else:
        put_numbers(gradient.address + i * size_of(like), like)


@overload(clear, jit_options=FLAGS)
def _clear(gradient, i, like):
    if len(like) == 1:
        return lambda gradient, i, like: _clear_one(gradient, i, like)
    return lambda gradient, i, like: put_numbers(gradient.address + i * size_of(like), like)


@callee
def _clear_one(gradient, i, like):
    where = _address_of(gradient, i, size_of(like))
    if gradient.record == DIRECT:
        put_numbers(where, like)
    elif gradient.layouts[gradient.record] == FLOAT32:
        put_numbers(where, one(np.float32))
    else:
        put_numbers(where, one(np.float64))
