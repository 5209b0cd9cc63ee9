"""Parameters in 16 bits that lose nothing: beside each lies what the rounding took away; and float32 with a copy.

What is beside a parameter is worth something only as long as the parameter is what was written with it: what a user
writes there holds.
"""

import numpy as np

from ..compile._jit import inlined_callee
from ..compile.tuples import where
from .half import INFINITY, SIZE, bfloat16_of, bits32, float16_of, float_of, float_of_bfloat16, float_of_float16
from .registry import add


@inlined_callee
def decode_bfloat16_master(stored, scale):
    """The master, if the parameter is the bfloat16 that is nearest to it; else the parameter."""
    return where(bfloat16_of(stored[1]) == stored[0], stored[1], float_of_bfloat16(stored[0]))


@inlined_callee
def encode_bfloat16_master(number, scale, noise):
    """The nearest bfloat16, and the number."""
    return bfloat16_of(number), np.float32(number)


@inlined_callee
def decode_float16_master(stored, scale):
    """The same with float16."""
    return where(float16_of(stored[1]) == stored[0], stored[1], float_of_float16(stored[0]))


@inlined_callee
def encode_float16_master(number, scale, noise):
    """The nearest float16, and the number."""
    return float16_of(number), np.float32(number)


@inlined_callee
def decode_split(stored, scale):
    """Put the halves of a float32 together. A lower half of 2**15 and more had the upper one rounded up.

    The parameter alone where that is zero or infinite, and the halves do not give it: a user wrote it.
    """
    lower, seen = np.uint32(stored[1]), np.uint32(stored[0])
    upper = np.uint32(seen - np.uint32(lower >> np.uint32(15)))
    bits = np.uint32(np.uint32(upper << np.uint32(16)) | lower)
    again = np.uint32(np.uint32(bits + np.uint32(0x8000)) >> np.uint32(16))
    held = (again == seen) & (np.uint32(bits & np.uint32(SIZE)) <= np.uint32(INFINITY))
    return float_of(where(held, bits, np.uint32(seen << np.uint32(16))))


@inlined_callee
def encode_split(number, scale, noise):
    """The nearest bfloat16, of two the one farther from zero, and the lower half of the number's bits."""
    bits = where(number == number, bits32(number), np.uint32(0x7FC00000))
    return np.uint16(np.uint32(bits + np.uint32(0x8000)) >> np.uint32(16)), np.uint16(bits)


@inlined_callee
def decode_bfloat16_kahan(stored, scale):
    """The sum of parameter and compensation, if rounding may have taken away that much; else the parameter."""
    return _sum_of(float_of_bfloat16(stored[0]), float_of_bfloat16(stored[1]), np.float32(2.0**-8))


@inlined_callee
def encode_bfloat16_kahan(number, scale, noise):
    """The nearest bfloat16, and the one nearest to what the rounding took away."""
    nearest = bfloat16_of(number)
    return nearest, bfloat16_of(_rest(number, float_of_bfloat16(nearest)))


@inlined_callee
def decode_float16_kahan(stored, scale):
    """The same with float16."""
    return _sum_of(float_of_float16(stored[0]), float_of_float16(stored[1]), np.float32(2.0**-11))


@inlined_callee
def _sum_of(parameter, compensation, most):
    return where(abs(compensation) <= abs(parameter) * most, parameter + compensation, parameter)


@inlined_callee
def encode_float16_kahan(number, scale, noise):
    """The nearest float16, and the one nearest to what the rounding took away."""
    nearest = float16_of(number)
    return nearest, float16_of(_rest(number, float_of_float16(nearest)))


@inlined_callee
def _rest(number, nearest):
    """The difference, 0 where that is not finite."""
    rest = np.float32(number) - nearest
    return where(rest - rest == np.float32(0), rest, np.float32(0))


@inlined_callee
def decode_copied(stored, scale):
    """The float32 itself."""
    return stored[0]


@inlined_callee
def encode_bfloat16_copy(number, scale, noise):
    """The number, and the bfloat16 that is nearest to it."""
    return np.float32(number), bfloat16_of(number)


@inlined_callee
def encode_float16_copy(number, scale, noise):
    """The number, and the float16 that is nearest to it."""
    return np.float32(number), float16_of(number)


add("bfloat16 master", ["u2", "f4"], decode_bfloat16_master, encode_bfloat16_master)
add("float16 master", ["u2", "f4"], decode_float16_master, encode_float16_master)
add("bfloat16 split", ["u2", "u2"], decode_split, encode_split)
add("bfloat16 kahan", ["u2", "u2"], decode_bfloat16_kahan, encode_bfloat16_kahan)
add("float16 kahan", ["u2", "u2"], decode_float16_kahan, encode_float16_kahan)
add("float32 bfloat16 copy", ["f4", "u2"], decode_copied, encode_bfloat16_copy)
add("float32 float16 copy", ["f4", "u2"], decode_copied, encode_float16_copy)
