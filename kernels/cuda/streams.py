"""Streams on a GPU: how a step reads and writes the numbers of one kind in a format, as `cpu.streams`, eight at a time.

Memory and formats are apart: all that a step reads is loaded before anything is decoded, and threads of a warp, which
find the scale of a block together, do so whether or not their elements are there.
"""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.tuples import bits_of, numbers_at, put_numbers, where
from ..formats.half import SIZE
from ..formats.kept import PARTS
from ..formats.noise import noise_at
from ..formats.registry import BLOCK
from ..formats.scale import scale_from
from .eight import EIGHT, bits_apart, eight_at, put_eight
from .lanes import one
from .threads import TEAM, barrier

ROOM = 2 * TEAM
"""Numbers of 32 bits that a warp needs to find a scale."""


class Stream(NamedTuple):
    """Functions that compiled code calls, of eight elements from ``i`` on, of which ``count`` are there.

    ``open(parts, segment)`` gives the places of a segment that the others take. ``apart(places)`` has bits set where
    ``whole`` must be false. ``get(places, i, count, whole)`` gives what is stored, ``decode(stored)`` eight numbers of
    that. ``encode(numbers, count, noise, room)`` gives what to store, for ``put(places, i, count, whole, stored)``.
    """

    open: Any
    apart: Any
    get: Any
    decode: Any
    encode: Any
    put: Any


class Noise(NamedTuple):
    """What the noise of eight elements follows from."""

    start: Any  # of their block
    i: Any  # of the first of them, in the block


class Room(NamedTuple):
    """Where the threads of a warp meet."""

    numbers: Any  # int32, shared
    lane: Any


def stream_of(format, stream, dtype):
    """The stream with a number, in a format; None: in the compute dtype."""
    if format is None:
        return _native(stream, dtype)
    if format.scaled:
        return _scaled(format, stream, dtype)
    return _of_one_part(format, stream, dtype) if len(format.parts) == 1 else _of_two_parts(format, stream, dtype)


def _native(stream, dtype):
    first, like = PARTS * stream, (dtype(0),) * EIGHT

    @inlined_callee
    def open_native(parts, segment):
        return (parts[first, segment],)

    @inlined_callee
    def apart_native(places):
        return bits_apart(places[0], like)

    @inlined_callee
    def get_native(places, i, count, whole):
        return eight_at(places[0] + i * size, like, count, whole)

    @inlined_callee
    def decode_native(stored):
        return stored

    @inlined_callee
    def encode_native(numbers, count, noise, room):
        return numbers

    @inlined_callee
    def put_native(places, i, count, whole, stored):
        put_eight(places[0] + i * size, stored, count, whole)

    size = np.dtype(dtype).itemsize
    return Stream(open_native, apart_native, get_native, decode_native, encode_native, put_native)


def _of_one_part(format, stream, dtype):
    first, decode, encode, (kind,) = PARTS * stream, format.decode, format.encode, _kinds(format)
    like, size = (kind(0),) * EIGHT, np.dtype(kind).itemsize

    @inlined_callee
    def open_one(parts, segment):
        return (parts[first, segment],)

    @inlined_callee
    def apart_one(places):
        return bits_apart(places[0], like)

    @inlined_callee
    def get_one(places, i, count, whole):
        return eight_at(places[0] + i * size, like, count, whole)

    @inlined_callee
    def number_of(stored):
        return dtype(decode((stored,), np.float32(1)))

    @inlined_callee
    def stored_of(number, k, noise):
        return kind(encode(np.float32(number), np.float32(1), noise_at(noise.start, noise.i + k, stream))[0])

    @inlined_callee
    def decode_one(stored):
        return _each(number_of, stored)

    @inlined_callee
    def encode_one(numbers, count, noise, room):
        return _each_with_noise(stored_of, numbers, noise)

    @inlined_callee
    def put_one(places, i, count, whole, stored):
        put_eight(places[0] + i * size, stored, count, whole)

    return Stream(open_one, apart_one, get_one, decode_one, encode_one, put_one)


def _of_two_parts(format, stream, dtype):
    first, decode, encode, (kind, other) = PARTS * stream, format.decode, format.encode, _kinds(format)
    like, beside = (kind(0),) * EIGHT, (other(0),) * EIGHT
    size, size_beside = np.dtype(kind).itemsize, np.dtype(other).itemsize

    @inlined_callee
    def open_two(parts, segment):
        return parts[first, segment], parts[first + 1, segment]

    @inlined_callee
    def apart_two(places):
        return bits_apart(places[0], like) | bits_apart(places[1], beside)

    @inlined_callee
    def get_two(places, i, count, whole):
        found = eight_at(places[0] + i * size, like, count, whole)
        return found, eight_at(places[1] + i * size_beside, beside, count, whole)

    @inlined_callee
    def number_of(stored, other):
        return dtype(decode((stored, other), np.float32(1)))

    @inlined_callee
    def stored_of(number, k, noise):
        stored = encode(np.float32(number), np.float32(1), noise_at(noise.start, noise.i + k, stream))
        return kind(stored[0]), other(stored[1])

    @inlined_callee
    def decode_two(stored):
        return _each_pair(number_of, stored[0], stored[1])

    @inlined_callee
    def encode_two(numbers, count, noise, room):
        return _columns(_each_with_noise(stored_of, numbers, noise))

    @inlined_callee
    def put_two(places, i, count, whole, stored):
        put_eight(places[0] + i * size, stored[0], count, whole)
        put_eight(places[1] + i * size_beside, stored[1], count, whole)

    return Stream(open_two, apart_two, get_two, decode_two, encode_two, put_two)


def _scaled(format, stream, dtype):
    """A stream of blocks with scales: all threads of a warp call its functions for one block."""
    first, decode, encode, (kind,) = PARTS * stream, format.decode, format.encode, _kinds(format)
    like, size = (kind(0),) * EIGHT, np.dtype(kind).itemsize

    @inlined_callee
    def open_scaled(parts, segment):
        return parts[first, segment], parts[first + 2, segment]

    @inlined_callee
    def apart_scaled(places):
        return bits_apart(places[0], like)

    @inlined_callee
    def get_scaled(places, i, count, whole):
        scale = numbers_at(places[1] + 4 * (i // BLOCK), one(np.float32))[0]
        return eight_at(places[0] + i * size, like, count, whole), scale

    @inlined_callee
    def number_of(stored, scale):
        return dtype(decode((stored,), scale))

    @inlined_callee
    def stored_of(number, scale):
        return kind(encode(np.float32(number), scale, np.uint32(0))[0])

    @inlined_callee
    def decode_scaled(stored):
        return _each_of(number_of, stored[0], stored[1])

    @inlined_callee
    def encode_scaled(numbers, count, noise, room):
        scale = scale_from(_largest_in_warp(room, _largest(numbers, count)))
        return _each_of(stored_of, numbers, scale), scale

    @inlined_callee
    def put_scaled(places, i, count, whole, stored):
        put_eight(places[0] + i * size, stored[0], count, whole)
        if i % BLOCK == 0:
            put_numbers(places[1] + 4 * (i // BLOCK), (stored[1],))

    return Stream(open_scaled, apart_scaled, get_scaled, decode_scaled, encode_scaled, put_scaled)


def _kinds(format):
    return tuple(part.type for part in format.parts)


@inlined_callee
def _each(function, a):
    return (
        function(a[0]), function(a[1]), function(a[2]), function(a[3]),
        function(a[4]), function(a[5]), function(a[6]), function(a[7]),
    )  # fmt: skip


@inlined_callee
def _each_pair(function, a, b):
    return (
        function(a[0], b[0]), function(a[1], b[1]), function(a[2], b[2]), function(a[3], b[3]),
        function(a[4], b[4]), function(a[5], b[5]), function(a[6], b[6]), function(a[7], b[7]),
    )  # fmt: skip


@inlined_callee
def _each_of(function, a, b):
    return (
        function(a[0], b), function(a[1], b), function(a[2], b), function(a[3], b),
        function(a[4], b), function(a[5], b), function(a[6], b), function(a[7], b),
    )  # fmt: skip


@inlined_callee
def _each_with_noise(function, a, noise):
    return (
        function(a[0], 0, noise), function(a[1], 1, noise), function(a[2], 2, noise), function(a[3], 3, noise),
        function(a[4], 4, noise), function(a[5], 5, noise), function(a[6], 6, noise), function(a[7], 7, noise),
    )  # fmt: skip


@inlined_callee
def _columns(a):
    """Tuples of the first and of the second of each of eight pairs."""
    return (
        (a[0][0], a[1][0], a[2][0], a[3][0], a[4][0], a[5][0], a[6][0], a[7][0]),
        (a[0][1], a[1][1], a[2][1], a[3][1], a[4][1], a[5][1], a[6][1], a[7][1]),
    )


@inlined_callee
def _largest(numbers, count):
    """The bit pattern of the largest size among the first ``count`` of eight numbers, int32."""
    sizes = _each(_size, numbers)
    largest = np.int32(0)
    for k in range(EIGHT):
        largest = max(largest, where(k < count, sizes[k], np.int32(0)))
    return largest


@inlined_callee
def _size(number):
    return np.int32(np.int32(bits_of(np.float32(number))) & np.int32(SIZE))


@callee
def _largest_in_warp(room, number):
    """The largest of a number of each thread of a warp, not negative, for all of them.

    Four threads find the same of four numbers, then all of eight. What was there has been read by each thread before it
    came to the barrier after which others write there anew.
    """
    numbers, lane = room.numbers, room.lane
    numbers[lane] = number
    barrier(TEAM)
    first = lane & ~3
    four = max(max(numbers[first], numbers[first + 1]), max(numbers[first + 2], numbers[first + 3]))
    numbers[TEAM + lane] = four
    barrier(TEAM)
    largest = np.int32(0)
    for k in range(TEAM, 2 * TEAM, 4):
        largest = max(largest, numbers[k])
    return largest


def together(streams):
    """Several streams as one, whose places, stored things and numbers are tuples."""
    if len(streams) == 1:
        return _alone(streams[0])
    one_open, one_apart, one_get, one_decode, one_encode, one_put = streams[0]
    rest_open, rest_apart, rest_get, rest_decode, rest_encode, rest_put = together(streams[1:])

    @inlined_callee
    def open_each(parts, segment):
        return (one_open(parts, segment), *rest_open(parts, segment))

    @inlined_callee
    def apart_each(places):
        return one_apart(places[0]) | rest_apart(places[1:])

    @inlined_callee
    def get_each(places, i, count, whole):
        return (one_get(places[0], i, count, whole), *rest_get(places[1:], i, count, whole))

    @inlined_callee
    def decode_each(stored):
        return (one_decode(stored[0]), *rest_decode(stored[1:]))

    @inlined_callee
    def encode_each(numbers, count, noise, room):
        return (one_encode(numbers[0], count, noise, room), *rest_encode(numbers[1:], count, noise, room))

    @inlined_callee
    def put_each(places, i, count, whole, stored):
        one_put(places[0], i, count, whole, stored[0])
        rest_put(places[1:], i, count, whole, stored[1:])

    return Stream(open_each, apart_each, get_each, decode_each, encode_each, put_each)


def _alone(stream):
    """`together` of one stream."""
    one_open, one_apart, one_get, one_decode, one_encode, one_put = stream

    @inlined_callee
    def open_last(parts, segment):
        return (one_open(parts, segment),)

    @inlined_callee
    def apart_last(places):
        return one_apart(places[0])

    @inlined_callee
    def get_last(places, i, count, whole):
        return (one_get(places[0], i, count, whole),)

    @inlined_callee
    def decode_last(stored):
        return (one_decode(stored[0]),)

    @inlined_callee
    def encode_last(numbers, count, noise, room):
        return (one_encode(numbers[0], count, noise, room),)

    @inlined_callee
    def put_last(places, i, count, whole, stored):
        one_put(places[0], i, count, whole, stored[0])

    return Stream(open_last, apart_last, get_last, decode_last, encode_last, put_last)
