"""Gradients where they lie in a GPU's memory: numbers side by side in one load, others one by one."""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import divided, numbers_at, put_numbers
from ..layout import ADDRESS, DIRECT, FLOAT32, LAYOUT
from ..maths import constant
from .lanes import numbers_from, one, put_numbers_to, size_of


class Gradient(NamedTuple):
    """Where a segment's gradient lies, read once per chunk."""

    address: Any
    record: Any  # address of its record in the layouts table, 0 if it is read as it lies


@callee
def gradient_of(t, layouts, segment):
    """The gradient of a segment; its address is 0 if there is none. ``layouts`` is the address of the layouts table."""
    record = t.gradients[LAYOUT, segment]
    return Gradient(t.gradients[ADDRESS, segment], layouts + 8 * record if record != DIRECT else 0)


@callee
def entry(gradient, index):
    """Return a number of the gradient's record."""
    return numbers_at(gradient.record + 8 * index, one(np.int64))[0]


@callee
def is_plain(gradient):
    """Whether it is read as it lies."""
    return gradient.record == 0


def numbers_of(gradient, i, like, how):
    """Elements ``i`` and on of a gradient, as many as the tuple ``like`` has, as numbers of its type.

    Requires a gradient that `is_plain` where these are several; ``how`` is as `numbers_from` takes it.
    """


@overload(numbers_of, jit_options=FLAGS)
def _numbers_of(gradient, i, like, how):
    if gradient.instance_class is not Gradient:
        return None
    if len(like) == 1:
        return lambda gradient, i, like, how: (_number_of(gradient, i, like),)
    return lambda gradient, i, like, how: numbers_from(gradient.address + i * size_of(like), like, how)


@callee
def _number_of(gradient, i, like):
    where = address_of(gradient, i, size_of(like))
    if gradient.record == 0:
        return numbers_at(where, like)[0]
    if entry(gradient, 0) == FLOAT32:
        return constant(numbers_at(where, one(np.float32))[0], like[0])
    return constant(numbers_at(where, one(np.float64))[0], like[0])


@callee
def address_of(gradient, i, size):
    """Return the address of element ``i`` of a gradient; ``size`` is that of the parameter's elements, in bytes.

    Requires fewer than 2**32 elements of a gradient that is not read as it lies.
    """
    if gradient.record == 0:
        return gradient.address + i * size
    where = gradient.address
    axes = entry(gradient, 1)
    axis = axes - 1
    while axis >= 0:
        i, place = divided(i, entry(gradient, 2 + axis))
        where += place * entry(gradient, 2 + axes + axis)
        axis -= 1
    return where


def clear(gradient, i, like, how):
    """Zero as many elements of a gradient as there are zeros in ``like``, from ``i`` on; as `numbers_of`."""


@overload(clear, jit_options=FLAGS)
def _clear(gradient, i, like, how):
    if gradient.instance_class is not Gradient:
        return None
    if len(like) == 1:
        return lambda gradient, i, like, how: clear_one(gradient, i, like)
    return lambda gradient, i, like, how: put_numbers_to(gradient.address + i * size_of(like), like, how)


@callee
def clear_one(gradient, i, like):
    """Zero one element."""
    where = address_of(gradient, i, size_of(like))
    if gradient.record == 0:
        put_numbers(where, like)
    elif entry(gradient, 0) == FLOAT32:
        put_numbers(where, one(np.float32))
    else:
        put_numbers(where, one(np.float64))
