"""Gradients of 16 bits in a GPU's memory, beside others: those of parameters that are kept in 16 bits."""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import numbers_at, put_numbers
from ..formats.half import float_of_bfloat16, float_of_float16
from ..layout import BFLOAT16, DIRECT, FLOAT16, FLOAT32
from ..maths import constant
from .eight import put_whole, some_at, whole_at
from .gradient import Gradient, address_of, clear, clear_one, entry, numbers_of
from .lanes import APART, numbers_from, one, size_of
from .step import Chunk, chunk_of

HALF = 2
"""Bytes of such a number."""


class HalfGradient(NamedTuple):
    """A `Gradient` that may be of 16 bits; without a record where these lie side by side."""

    address: Any
    record: Any
    kind: Any  # BFLOAT16 or FLOAT16 of such numbers side by side, else DIRECT


@callee
def half_chunk_of(t, k):
    """`chunk_of`, with a `HalfGradient`."""
    chunk = chunk_of(t, k)
    return Chunk(chunk.segment, chunk.first, chunk.size, _half_gradient(chunk.gradient))


@callee
def _half_gradient(gradient):
    """The record of numbers side by side has no axes."""
    if gradient.record == 0 or entry(gradient, 1) != 0:
        return HalfGradient(gradient.address, gradient.record, DIRECT)
    return HalfGradient(gradient.address, gradient.record * 0, entry(gradient, 0))


@callee
def _kind_of(gradient):
    """What its numbers are; DIRECT: of the compute dtype."""
    return gradient.kind if gradient.record == 0 else entry(gradient, 0)


@callee
def _place_of(gradient, i, like):
    """Return the address of element ``i``."""
    return address_of(gradient, i, size_of(like) if gradient.kind == DIRECT else HALF)


def halves(like):
    """As many zeros of 16 bits as the tuple ``like`` has members."""


@overload(halves, jit_options=FLAGS)
def _halves(like):
    zeros = (np.uint16(0),) * len(like)
    return lambda like: zeros


def floats_of(bits, kind, like):
    """The numbers, of the type of ``like``, that bit patterns of 16 bits are: BFLOAT16, or else FLOAT16."""


@overload(floats_of, jit_options=FLAGS)
def _floats_of(bits, kind, like):
    if len(bits) > 1:
        half = len(bits) // 2

        def both(bits, kind, like):
            return floats_of(bits[:half], kind, like[:half]) + floats_of(bits[half:], kind, like[half:])

        return both

    def last(bits, kind, like):
        number = float_of_bfloat16(bits[0]) if kind == BFLOAT16 else float_of_float16(bits[0])
        return (constant(number, like[0]),)

    return last


@overload(numbers_of, jit_options=FLAGS)
def _numbers_of(gradient, i, like, how):
    if gradient.instance_class is not HalfGradient:
        return None
    if len(like) == 1:
        return lambda gradient, i, like, how: (_number_of(gradient, i, like),)
    count = len(like)

    def several(gradient, i, like, how):
        where = _place_of(gradient, i, like)
        if gradient.kind == DIRECT:
            return numbers_from(where, like, how)
        bits = some_at(where, halves(like), count) if how & APART else whole_at(where, halves(like))
        return floats_of(bits, gradient.kind, like)

    return several


@callee
def _number_of(gradient, i, like):
    where, kind = _place_of(gradient, i, like), _kind_of(gradient)
    if kind == DIRECT:
        return numbers_at(where, like)[0]
    if kind == FLOAT32:
        return constant(numbers_at(where, one(np.float32))[0], like[0])
    if kind == BFLOAT16 or kind == FLOAT16:
        return floats_of(numbers_at(where, one(np.uint16)), kind, like)[0]
    return constant(numbers_at(where, one(np.float64))[0], like[0])


@overload(clear, jit_options=FLAGS)
def _clear(gradient, i, like, how):
    if gradient.instance_class is not HalfGradient:
        return None
    return lambda gradient, i, like, how: _clear_one(gradient, i, like)


@callee
def _clear_one(gradient, i, like):
    where, kind = _place_of(gradient, i, like), _kind_of(gradient)
    if kind == BFLOAT16 or kind == FLOAT16:
        put_numbers(where, one(np.uint16))
    elif kind == DIRECT:
        put_numbers(where, like)
    else:
        clear_one(Gradient(gradient.address, gradient.record), i, like)


# -- eight at a time ---------------------------------------------------------------------------------------------------


def eight_of(gradient, i, like, count, whole):
    """``count`` elements from ``i`` on, as numbers of the type of ``like``, which has eight; see `eight.eight_at`.

    Requires a gradient that `is_plain` where they are ``whole``.
    """


@overload(eight_of, jit_options=FLAGS)
def _eight_of(gradient, i, like, count, whole):
    if gradient.instance_class is HalfGradient:

        def of_either(gradient, i, like, count, whole):
            if not whole:
                return _one_by_one(gradient, i, like, count)
            where = _place_of(gradient, i, like)
            if gradient.kind == DIRECT:
                return whole_at(where, like)
            return floats_of(whole_at(where, halves(like)), gradient.kind, like)

        return of_either

    def of_one(gradient, i, like, count, whole):
        return whole_at(gradient.address + i * size_of(like), like) if whole else _one_by_one(gradient, i, like, count)

    return of_one


def _one_by_one(gradient, i, like, count):
    """`eight_of` those that are not whole."""


@overload(_one_by_one, jit_options=FLAGS)
def _one_by_one_overload(gradient, i, like, count):
    if len(like) == 1:
        return lambda gradient, i, like, count: numbers_of(gradient, i, like, 0) if count > 0 else like

    def each(gradient, i, like, count):
        return _one_by_one(gradient, i, like[:1], count) + _one_by_one(gradient, i + 1, like[1:], count - 1)

    return each


def clear_eight(gradient, i, like, count, whole):
    """Zero what `eight_of` reads."""


@overload(clear_eight, jit_options=FLAGS)
def _clear_eight(gradient, i, like, count, whole):
    if gradient.instance_class is HalfGradient:

        def of_either(gradient, i, like, count, whole):
            if not whole:
                for k in range(count):
                    clear(gradient, i + k, like[:1], 0)
            elif gradient.kind == DIRECT:
                put_whole(_place_of(gradient, i, like), like)
            else:
                put_whole(_place_of(gradient, i, like), halves(like))

        return of_either

    def of_one(gradient, i, like, count, whole):
        if whole:
            put_whole(gradient.address + i * size_of(like), like)
        else:
            for k in range(count):
                clear(gradient, i + k, like[:1], 0)

    return of_one
