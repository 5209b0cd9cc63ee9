"""Streams: how a step reads and writes the numbers of one kind, of a parameter, its average or a slot, in a format."""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import array_at
from ..compile.tuples import bits_of
from ..formats.half import SIZE
from ..formats.kept import PARTS, column_of
from ..formats.noise import noise_at
from ..formats.registry import BLOCK
from ..formats.scale import scale_from


class Stream(NamedTuple):
    """Functions that compiled code calls.

    ``open(parts, segment, offset, size, staged)`` gives what the others take: arrays of so many elements.
    ``load(arrays, i)`` gives a number, ``store(arrays, i, number, noise)`` writes one, ``close(arrays)`` ends that.
    """

    open: Any
    load: Any
    store: Any
    close: Any


def stream_of(format, stream, dtype):
    """The stream with a number, in a format; None: in the compute dtype."""
    if format is None:
        return _native(stream, dtype)
    if format.scaled:
        return _scaled(format, stream, dtype)
    return _of_one_part(format, stream, dtype) if len(format.parts) == 1 else _of_two_parts(format, stream, dtype)


@callee
def _close_nothing(arrays):
    """Do nothing."""


def _native(stream, dtype):
    first = PARTS * stream

    @inlined_callee
    def open_native(parts, segment, offset, size, staged):
        return (array_at(parts[first, segment], offset, size, dtype),)

    @inlined_callee
    def load_native(arrays, i):
        return arrays[0][i]

    @inlined_callee
    def store_native(arrays, i, number, noise):
        arrays[0][i] = number

    return Stream(open_native, load_native, store_native, _close_nothing)


def _of_one_part(format, stream, dtype):
    first, decode, encode, (kind,) = PARTS * stream, format.decode, format.encode, _kinds(format)

    @inlined_callee
    def open_one(parts, segment, offset, size, staged):
        return (array_at(parts[first, segment], offset, size, kind),)

    @inlined_callee
    def load_one(arrays, i):
        return dtype(decode((arrays[0][i],), np.float32(1)))

    @inlined_callee
    def store_one(arrays, i, number, noise):
        arrays[0][i] = encode(np.float32(number), np.float32(1), noise_at(noise, i, stream))[0]

    return Stream(open_one, load_one, store_one, _close_nothing)


def _of_two_parts(format, stream, dtype):
    first, decode, encode, (kind, other) = PARTS * stream, format.decode, format.encode, _kinds(format)

    @inlined_callee
    def open_two(parts, segment, offset, size, staged):
        beside = array_at(parts[first + 1, segment], offset, size, other)
        return array_at(parts[first, segment], offset, size, kind), beside

    @inlined_callee
    def load_two(arrays, i):
        return dtype(decode((arrays[0][i], arrays[1][i]), np.float32(1)))

    @inlined_callee
    def store_two(arrays, i, number, noise):
        stored = encode(np.float32(number), np.float32(1), noise_at(noise, i, stream))
        arrays[0][i], arrays[1][i] = stored

    return Stream(open_two, load_two, store_two, _close_nothing)


def _scaled(format, stream, dtype):
    """A stream whose numbers are staged until the largest of a block is known: opened for one block at a time."""
    first, decode, encode, (kind,) = PARTS * stream, format.decode, format.encode, _kinds(format)

    @inlined_callee
    def open_scaled(parts, segment, offset, size, staged):
        scale = array_at(parts[first + 2, segment], offset // BLOCK, 1, np.float32)
        return array_at(parts[first, segment], offset, size, kind), staged[stream, :size], scale, scale[0]

    @inlined_callee
    def load_scaled(arrays, i):
        return dtype(decode((arrays[0][i],), arrays[3]))

    @inlined_callee
    def store_scaled(arrays, i, number, noise):
        arrays[1][i] = number

    @inlined_callee
    def close_scaled(arrays):
        codes, numbers = arrays[0], arrays[1]
        scale = scale_of(numbers)
        arrays[2][0] = scale
        for i in range(numbers.size):
            codes[i] = encode(numbers[i], scale, np.uint32(0))[0]

    return Stream(open_scaled, load_scaled, store_scaled, close_scaled)


def addresses_of(format, parts):
    """Addresses of the arrays of a format, as `column_of` has them."""
    return column_of(format, (array.__array_interface__["data"][0] for array in parts))


def _kinds(format):
    return tuple(part.type for part in format.parts)


@callee
def scale_of(numbers):
    """The largest size, a normal number unless all are zero, of what is infinite the greatest; NaN if one is NaN."""
    largest = np.int32(0)  # bit patterns are ordered as sizes are, and integers need not be taken in order
    for i in range(numbers.size):
        largest = max(largest, np.int32(bits_of(numbers[i]) & np.int32(SIZE)))
    return scale_from(largest)


def together(streams):
    """Several streams as one, whose numbers and arrays are tuples."""
    one = streams[0]
    if len(streams) == 1:

        @inlined_callee
        def open_last(parts, segment, offset, size, staged):
            return (one_open(parts, segment, offset, size, staged),)

        @inlined_callee
        def load_last(arrays, i):
            return (one_load(arrays[0], i),)

        @inlined_callee
        def store_last(arrays, i, numbers, noise):
            one_store(arrays[0], i, numbers[0], noise)

        @inlined_callee
        def close_last(arrays):
            one_close(arrays[0])

        one_open, one_load, one_store, one_close = one
        return Stream(open_last, load_last, store_last, close_last)
    one_open, one_load, one_store, one_close = one
    rest_open, rest_load, rest_store, rest_close = together(streams[1:])

    @inlined_callee
    def open_each(parts, segment, offset, size, staged):
        return (one_open(parts, segment, offset, size, staged), *rest_open(parts, segment, offset, size, staged))

    @inlined_callee
    def load_each(arrays, i):
        return (one_load(arrays[0], i), *rest_load(arrays[1:], i))

    @inlined_callee
    def store_each(arrays, i, numbers, noise):
        one_store(arrays[0], i, numbers[0], noise)
        rest_store(arrays[1:], i, numbers[1:], noise)

    @inlined_callee
    def close_each(arrays):
        one_close(arrays[0])
        rest_close(arrays[1:])

    return Stream(open_each, load_each, store_each, close_each)
