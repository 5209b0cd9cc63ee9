"""bfloat16 and float16, rounded to the nearest number or at random; as bit patterns, which any processor knows.

Rounding at random takes the upper of two neighbours with the probability of how near it is, so that what is expected of
it is exact: steps far below the distance of two neighbours are not lost, and small decays are not either.
"""

import numpy as np

from ..compile._jit import inlined_callee
from ..compile.tuples import bits_of, number_of, where
from .registry import add

SIZE, INFINITY, SMALLEST = 0x7FFFFFFF, 0x7F800000, 0x00800000
"""Bits of a float32: all but the sign, infinity, the smallest normal number."""


@inlined_callee
def bits32(number):
    """The bit pattern of a float32, not negative."""
    return np.uint32(bits_of(np.float32(number)))


@inlined_callee
def float_of(bits):
    """The float32 of a bit pattern."""
    return number_of(bits, np.float32(0))


@inlined_callee
def float_of_bfloat16(bits):
    """The float32 that a bfloat16 is."""
    return float_of(np.uint32(bits) << np.uint32(16))


@inlined_callee
def bfloat16_of(number):
    """The nearest bfloat16, of two the even one; NaN stays NaN."""
    return np.uint16(where(number == number, np.uint32(_nearest(number) >> np.uint32(16)), np.uint32(0x7FC0)))


@inlined_callee
def _nearest(number):
    """A bit pattern whose upper half is the nearest bfloat16, of two the even one."""
    bits = bits32(number)
    even = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(bits + np.uint32(0x7FFF) + even)


@inlined_callee
def decode_bfloat16(stored, scale):
    """The float32 itself."""
    return float_of_bfloat16(stored[0])


@inlined_callee
def encode_bfloat16(number, scale, noise):
    """The nearest."""
    return (bfloat16_of(number),)


@inlined_callee
def encode_random_bfloat16(number, scale, noise):
    """One of the two nearest. Infinity and what is a bfloat16 already stay what they are."""
    bits = np.uint32(bits32(number) + np.uint32(noise))
    return (np.uint16(where(number == number, np.uint32(bits >> np.uint32(16)), np.uint32(0x7FC0))),)


# A NaN with all bits of the upper half set, which no arithmetic gives, would become a number if it were rounded up. In
# a slot that does not matter: the parameter is NaN then, too, and to tell them apart takes a quarter of a step.


@inlined_callee
def encode_bfloat16_slot(number, scale, noise):
    """The nearest, of a slot."""
    return (np.uint16(_nearest(number) >> np.uint32(16)),)


@inlined_callee
def encode_random_bfloat16_slot(number, scale, noise):
    """One of the two nearest, of a slot."""
    return (np.uint16(np.uint32(bits32(number) + np.uint32(noise)) >> np.uint32(16)),)


add("bfloat16", ["u2"], decode_bfloat16, encode_bfloat16)
add("bfloat16 at random", ["u2"], decode_bfloat16, encode_random_bfloat16, noisy=True)
add("bfloat16 slot", ["u2"], decode_bfloat16, encode_bfloat16_slot)
add("bfloat16 slot at random", ["u2"], decode_bfloat16, encode_random_bfloat16_slot, noisy=True)


# float16 has 5 bits of exponent, whose bias is 15: 112 less than that of float32, and 13 bits less of the fraction.

_LEAST_NORMAL = 113 << 23
_REBIAS = 112 << 23
_HALF = 0x3F000000
_OVERFLOWS = 0x477FF000
"""Bits of 65520, which is rounded to infinity."""


@inlined_callee
def float_of_float16(bits):
    """The float32 that a float16 is."""
    size = np.uint32((np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13))
    finite = bits32(float_of(size) * np.float32(2.0**112))
    size = where(size >= np.uint32(0x7C00 << 13), np.uint32(size | np.uint32(INFINITY)), finite)
    return float_of(np.uint32(size | np.uint32((np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16))))


@inlined_callee
def _float16_of(number, normal, tiny):
    """Sign, infinity and NaN, around what a number is if it is normal, or too small for that."""
    bits = bits32(number)
    size = np.uint32(bits & np.uint32(SIZE))
    found = where(size < np.uint32(_LEAST_NORMAL), tiny, np.uint32(normal >> np.uint32(13)))
    found = where(size >= np.uint32(_OVERFLOWS), np.uint32(0x7C00), found)
    found = where(size > np.uint32(INFINITY), np.uint32(0x7E00), found)
    return np.uint16(found | np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000)))


@inlined_callee
def float16_of(number):
    """The nearest float16, of two the even one; NaN stays NaN."""
    size = np.uint32(bits32(number) & np.uint32(SIZE))
    even = np.uint32((size >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(size + even + np.uint32(0xFFF - _REBIAS))
    tiny = bits32(float_of(size) + np.float32(0.5))  # the sum is rounded where float16 is
    return _float16_of(number, normal, np.uint32(tiny - np.uint32(_HALF)))


@inlined_callee
def decode_float16(stored, scale):
    """The float32 itself."""
    return float_of_float16(stored[0])


@inlined_callee
def encode_float16(number, scale, noise):
    """The nearest."""
    return (float16_of(number),)


@inlined_callee
def encode_random_float16(number, scale, noise):
    """One of the two nearest."""
    size = np.uint32(bits32(number) & np.uint32(SIZE))
    normal = np.uint32(size + np.uint32(np.uint32(noise) >> np.uint32(3)) - np.uint32(_REBIAS))
    tiny = float_of(size) * np.float32(2.0**24) + np.float32(np.int32(noise)) * np.float32(2.0**-16)
    return (_float16_of(number, normal, np.uint32(np.int32(tiny))),)


add("float16", ["u2"], decode_float16, encode_float16)
add("float16 at random", ["u2"], decode_float16, encode_random_float16, noisy=True)
add("float16 slot", ["u2"], decode_float16, encode_float16)
add("float16 slot at random", ["u2"], decode_float16, encode_random_float16, noisy=True)
