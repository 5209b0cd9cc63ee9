"""Slots in 8 bits: a root of each number's share of the largest one in its block.

Roots spread the codes as the numbers are spread, over orders of magnitude: the fourth for means of gradients, the
eighth for means of squares. They are taken of the bit pattern, which is a logarithm but for what lies between two
powers of two, where it is a straight line: an exponent divided by 4 or 8. So nothing is divided, and no root is worked
out; and what decodes undoes just what encodes does. A mean of squares that is not zero keeps a code that is not zero,
or a step would be divided by nothing; zero stays zero exactly. A block with a NaN is NaN; of what is infinite the
greatest number is kept.

Every operation here is one that a step of a block waits for, so there are few: signs and zeros come from the code
itself, limited to one from above and below.

Evidence: Dettmers et al. 2021, https://arxiv.org/abs/2110.02861, for 8 bits and blocks; Li et al. 2023,
https://arxiv.org/abs/2309.01507, for a second moment without a zero; tests/test_formats.py for these roots.
"""

import numpy as np

from ..compile._jit import inlined_callee
from ..compile.tuples import bits_of, where
from .half import SIZE, float_of
from .registry import add

FOURTH, EIGHTH = np.int32(2), np.int32(3)
"""By how many bits a logarithm is shifted."""

MOST, MOST_SQUARES = np.int32(0x42FE0000), np.int32(0x437F0000)
"""Bits of 127 and 255, the codes of a block's largest number."""

LEAST = np.float32(2.0**-95)
"""What scales of signed numbers are at least: the code of zero rounds to zero, and code 1 stays a normal number."""

SIGN = -0x80000000
"""Bits of the sign."""


@inlined_callee
def _root(size, scale, shift, most):
    """The root of a share of the scale, times ``most``: of bit patterns, a float32."""
    logarithm = np.int32(np.int32(size - np.int32(bits_of(scale))) >> shift)
    return float_of(np.int32(logarithm + most))


@inlined_callee
def _power(root, scale, shift, most):
    """Bits of what has such a root, a float32 whose sign is of no account: it is shifted out at the top."""
    logarithm = np.int32(np.int32(bits_of(root)) << shift)
    return np.int32(logarithm + np.int32(np.int32(bits_of(scale)) - np.int32(most << shift)))


@inlined_callee
def _one(scale):
    """1, or NaN if the scale is."""
    return np.float32(1) + (scale - scale)


@inlined_callee
def _at_least(scale):
    return where(scale < LEAST, LEAST, scale)


@inlined_callee
def decode_signed(stored, scale):
    """± the fourth power."""
    root, one = np.float32(stored[0]), _one(scale)
    sign = where(root < one, root, one)
    sign = where(sign < np.float32(-1), np.float32(-1), sign)
    return float_of(_power(root, _at_least(scale), FOURTH, MOST)) * sign


@inlined_callee
def encode_signed(number, scale, noise):
    """± the fourth root."""
    bits = np.int32(bits_of(number))
    root = _root(np.int32(bits & np.int32(SIZE)), _at_least(scale), FOURTH, MOST)
    signed = float_of(np.int32(np.int32(bits_of(root)) | np.int32(bits & np.int32(SIGN))))
    return (np.int8(bits_of(signed + np.float32(1.5 * 2.0**23))),)  # the sum is rounded to a whole number


@inlined_callee
def decode_squares(stored, scale):
    """The eighth power."""
    root, one = np.float32(stored[0]), _one(scale)
    size = _power(root, scale, EIGHTH, MOST_SQUARES)
    return float_of(where(size < np.int32(1), np.int32(1), size)) * where(root < one, root, one)


@inlined_callee
def encode_squares(number, scale, noise):
    """The eighth root, at least 1 if the number is not zero."""
    size = np.int32(np.int32(bits_of(number)) & np.int32(SIZE))
    root = _root(size, scale, EIGHTH, MOST_SQUARES)
    root = where(root < np.float32(1), np.float32(1), root)
    code = np.int32(bits_of(root + np.float32(2.0**23)))
    return (np.uint8(where(size == np.int32(0), np.int32(0), code)),)


add("8bit", ["i1"], decode_signed, encode_signed, scaled=True)
add("8bit squares", ["u1"], decode_squares, encode_squares, scaled=True)
