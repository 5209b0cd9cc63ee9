"""Gradients of 16 bits in a GPU's memory, beside others: those of parameters that are kept in 16 bits."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import numbers_at, put_numbers, where
from ..formats.half import float_of_bfloat16, float_of_float16
from ..layout import ACCUMULATED, ACCUMULATOR, BFLOAT16, DIRECT, FLOAT16, FLOAT32
from ..maths import constant
from .eight import put_whole, some_at, whole_at
from .gradient import Gradient, address_of, clear, clear_one, entry, is_plain, numbers_of
from .lanes import ACCUMULATES, VECTOR, one, size_of
from .norms import Squares, measure
from .step import Chunk, chunk_of
from .tables import control_of

HALF = 2
"""Bytes of such a number."""


class HalfGradient(NamedTuple):
    """A `Gradient` that may be of 16 bits; without a record where these lie side by side."""

    address: Any
    record: Any
    kind: Any  # BFLOAT16 or FLOAT16, the parameter's, of such numbers side by side, else DIRECT


@functools.cache
def half_chunk_of(kind):
    """`chunk_of` for a `HalfGradient` of this kind, or another."""

    @callee
    def open_chunk(t, k):
        chunk = chunk_of(t, k)
        gradient = chunk.gradient
        half = HalfGradient(gradient.address, gradient.record, DIRECT)
        if gradient.record != 0 and entry(gradient, 1) == 0:  # side by side: their record has no axes
            half = HalfGradient(gradient.address, gradient.record * 0, kind)
        return Chunk(chunk.segment, chunk.first, chunk.size, half)

    return open_chunk


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

    def several(gradient, i, like, how):
        place = _place_of(gradient, i, like)
        if gradient.kind == DIRECT:
            return numbers_at(place, like)
        return floats_of(whole_at(place, halves(like)), gradient.kind, like)

    return several


@callee
def _number_of(gradient, i, like):
    place, kind = _place_of(gradient, i, like), _kind_of(gradient)
    if kind == DIRECT:
        return numbers_at(place, like)[0]
    if kind == FLOAT32:
        return constant(numbers_at(place, one(np.float32))[0], like[0])
    if kind in (BFLOAT16, FLOAT16):
        return floats_of(numbers_at(place, one(np.uint16)), kind, like)[0]
    return constant(numbers_at(place, one(np.float64))[0], like[0])


@overload(clear, jit_options=FLAGS)
def _clear(gradient, i, like, how):
    if gradient.instance_class is not HalfGradient:
        return None
    return lambda gradient, i, like, how: _clear_one(gradient, i, like)


@callee
def _clear_one(gradient, i, like):
    place, kind = _place_of(gradient, i, like), _kind_of(gradient)
    if kind in (BFLOAT16, FLOAT16):
        put_numbers(place, one(np.uint16))
    elif kind == DIRECT:
        put_numbers(place, like)
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
                return _some_of(gradient, i, like, count)
            place = _place_of(gradient, i, like)
            if gradient.kind == DIRECT:
                return whole_at(place, like)
            return floats_of(whole_at(place, halves(like)), gradient.kind, like)

        return of_either

    def of_one(gradient, i, like, count, whole):
        return whole_at(gradient.address + i * size_of(like), like) if whole else _some_of(gradient, i, like, count)

    return of_one


@callee
def _some_of(gradient, i, like, count):
    """`eight_of` those that are not whole."""
    if is_plain(gradient):
        return _side_by_side(gradient, i, like, count)
    numbers = like
    for k in range(count):
        numbers = with_kth(numbers, numbers_of(gradient, i + k, like[:1], 0)[0], k)
    return numbers


def _side_by_side(gradient, i, like, count):
    """`_some_of` a gradient that `is_plain`."""


@overload(_side_by_side, jit_options=FLAGS)
def _side_by_side_overload(gradient, i, like, count):
    if gradient.instance_class is Gradient:
        return lambda gradient, i, like, count: some_at(gradient.address + i * size_of(like), like, count)

    def of_either(gradient, i, like, count):
        place = _place_of(gradient, i, like)
        if gradient.kind == DIRECT:
            return some_at(place, like, count)
        return floats_of(some_at(place, halves(like), count), gradient.kind, like)

    return of_either


def with_kth(numbers, number, k):
    """The tuple ``numbers`` with another one in place ``k``."""


@overload(with_kth, jit_options=FLAGS)
def _with_kth(numbers, number, k):
    if len(numbers) == 1:
        return lambda numbers, number, k: (where(k == 0, number, numbers[0]),)
    half = len(numbers) // 2

    def both(numbers, number, k):
        return with_kth(numbers[:half], number, k) + with_kth(numbers[half:], number, k - half)

    return both


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


# -- norms -------------------------------------------------------------------------------------------------------------


@functools.cache
def measure_halves(kind):
    """`norms.measure_chunk` for a `HalfGradient` of this kind, or another."""
    open_chunk = half_chunk_of(kind)

    @callee
    def measure_chunk(t, program, k, lanes, thread, dtype):
        chunk = open_chunk(t, k)
        if chunk.gradient.address == 0:
            if thread == 0:
                t.common.sums[0, k], t.common.sums[1, k] = 0.0, 0.0
        elif chunk.gradient.kind == DIRECT:  # constants, so that no branch comes between loads
            _measure(t, program, k, chunk, DIRECT, lanes, thread, dtype)
        else:
            _measure(t, program, k, chunk, kind, lanes, thread, dtype)

    return measure_chunk


@callee
def _measure(t, program, k, chunk, kind, lanes, thread, dtype):
    gradient = HalfGradient(chunk.gradient.address, chunk.gradient.record, kind)
    chunk = Chunk(chunk.segment, chunk.first, chunk.size, gradient)
    accumulator = t.common.addresses[ACCUMULATOR, chunk.segment]
    aligned = is_plain(gradient) and (gradient.address | accumulator) % VECTOR == 0
    work = Squares(chunk, accumulator, aligned, program.options, control_of(t, program, k), False, (0,))
    how = ACCUMULATES if program.options & ACCUMULATED else 0
    measure(work, how, lanes, thread, t.common.sums, k, dtype)
