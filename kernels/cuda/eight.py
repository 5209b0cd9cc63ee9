"""Eight elements side by side, those that a thread takes at a time where numbers are kept in storage formats.

Eight of 16 bits are what the widest load brings; of 8 bits they are half of one, of 32 bits two. Numbers of less than
32 bits go through words of 32.
"""

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import numbers_at, put_numbers
from .lanes import VECTOR, size_of

EIGHT = 8

_UNSIGNED = {8: np.uint8, 16: np.uint16}
"""Bits of a number → the integer that its bits are."""


def bits_apart(address, like):
    """Bits that are zero where `whole_at` and `put_whole` may be used."""


@overload(bits_apart, jit_options=FLAGS)
def _bits_apart(address, like):
    times = max(VECTOR * 8 // (len(like) * like.dtype.bitwidth), 1)
    return lambda address, like: address * times % VECTOR


def whole_at(address, like):
    """As many numbers as the tuple ``like`` has, of its type, side by side at an aligned address."""


@overload(whole_at, jit_options=FLAGS)
def _whole_at(address, like):
    if like.dtype.bitwidth < 32:
        words = (np.uint32(0),) * (len(like) * like.dtype.bitwidth // 32)
        return lambda address, like: _unpacked(numbers_at(address, words), like)
    if len(like) * like.dtype.bitwidth <= 8 * VECTOR:
        return lambda address, like: numbers_at(address, like)
    half = len(like) // 2

    def in_halves(address, like):
        return whole_at(address, like[:half]) + whole_at(address + half * size_of(like), like[half:])

    return in_halves


def put_whole(address, numbers):
    """Write what `whole_at` reads."""


@overload(put_whole, jit_options=FLAGS)
def _put_whole(address, numbers):
    if numbers.dtype.bitwidth < 32:
        return lambda address, numbers: put_numbers(address, _packed(numbers))
    if len(numbers) * numbers.dtype.bitwidth <= 8 * VECTOR:
        return lambda address, numbers: put_numbers(address, numbers)
    half = len(numbers) // 2

    def in_halves(address, numbers):
        put_whole(address, numbers[:half])
        put_whole(address + half * size_of(numbers), numbers[half:])

    return in_halves


def _unpacked(words, like):
    """The numbers, of the type of ``like``, that lie in words of 32 bits."""


@overload(_unpacked, jit_options=FLAGS)
def _unpacked_overload(words, like):
    if len(words) > 1:
        half, middle = len(words) // 2, len(like) // 2
        return lambda words, like: _unpacked(words[:half], like[:middle]) + _unpacked(words[half:], like[middle:])
    kind = np.dtype(like.dtype.name).type
    if like.dtype.bitwidth == 16:
        return lambda words, like: (kind(words[0]), kind(words[0] >> np.uint32(16)))

    def four(words, like):
        word = words[0]
        return kind(word), kind(word >> np.uint32(8)), kind(word >> np.uint32(16)), kind(word >> np.uint32(24))

    return four


def _packed(numbers):
    """The words of 32 bits that numbers fill."""


@overload(_packed, jit_options=FLAGS)
def _packed_overload(numbers):
    width = numbers.dtype.bitwidth
    bits = _UNSIGNED[width]
    if len(numbers) * width > 32:
        half = len(numbers) // 2
        return lambda numbers: _packed(numbers[:half]) + _packed(numbers[half:])
    if width == 16:
        return lambda numbers: (_joined(bits(numbers[0]), bits(numbers[1]), np.uint32(16)),)

    def four(numbers):
        low = _joined(bits(numbers[0]), bits(numbers[1]), np.uint32(8))
        return (_joined(low, _joined(bits(numbers[2]), bits(numbers[3]), np.uint32(8)), np.uint32(16)),)

    return four


@callee
def _joined(low, high, shift):
    """A word of 32 bits: a sum of such would be one of 64."""
    return np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << shift))


def some_at(address, like, count):
    """`whole_at` an address that is aligned to one number, of ``count`` of them; the others are those of ``like``."""


@overload(some_at, jit_options=FLAGS)
def _some_at(address, like, count):
    if len(like) == 1:
        return lambda address, like, count: numbers_at(address, like) if count > 0 else like

    def one_by_one(address, like, count):
        return some_at(address, like[:1], count) + some_at(address + size_of(like), like[1:], count - 1)

    return one_by_one


def put_some(address, numbers, count):
    """Write what `some_at` reads."""


@overload(put_some, jit_options=FLAGS)
def _put_some(address, numbers, count):
    if len(numbers) == 1:

        def last(address, numbers, count):
            if count > 0:
                put_numbers(address, numbers)

        return last

    def one_by_one(address, numbers, count):
        put_some(address, numbers[:1], count)
        put_some(address + size_of(numbers), numbers[1:], count - 1)

    return one_by_one


@callee
def eight_at(address, like, count, whole):
    """Numbers from an address on: `whole_at`, or if they are not ``whole``, `some_at`."""
    return whole_at(address, like) if whole else some_at(address, like, count)


@callee
def put_eight(address, numbers, count, whole):
    """Write what `eight_at` reads."""
    if whole:
        put_whole(address, numbers)
    else:
        put_some(address, numbers, count)
