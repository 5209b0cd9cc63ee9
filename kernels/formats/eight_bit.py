"""Slots in 8 bits: a root of each number's share of the largest one in its block.

Roots spread the codes as the numbers are spread, over orders of magnitude: the fourth for means of gradients, the
eighth for means of squares. They are taken of the bit pattern, which is a logarithm but for what lies between two
powers of two, where it is a straight line: an exponent divided by 4 or 8. So nothing is divided, and no root is worked
out; and what decodes undoes just what encodes does. A mean of squares that is not zero keeps a code that is not zero,
or a step would be divided by nothing; zero stays zero exactly. A block with a NaN is NaN; of what
is infinite the greatest number is kept.

Evidence: Dettmers et al. 2021, https://arxiv.org/abs/2110.02861, for 8 bits and blocks; Li et al. 2023,
https://arxiv.org/abs/2309.01507, for a second moment without a zero; tests/test_formats.py for these roots.
"""

import numpy as np

from ..compile._jit import inlined_callee
from ..compile.tuples import bits_of, where
from .half import SIZE, float_of
from .registry import add

ONE = 0x3F800000
"""Bits of 1."""

FOURTH, EIGHTH = np.int32(2), np.int32(3)
"""By how many bits a logarithm is shifted."""


@inlined_callee
def _root(number, scale, shift, most, least):
    """The code of a number in [least, most]: ``most`` times a root of its share; 0 if it is zero."""
    size = np.int32(np.int32(bits_of(number)) & np.int32(SIZE))
    logarithm = np.int32(np.int32(size - np.int32(bits_of(scale))) >> shift)
    root = float_of(np.int32(logarithm + np.int32(ONE))) * most
    root = where(root < least, least, root)
    code = np.int32(np.int32(bits_of(root + np.float32(2.0**23))) & np.int32(0xFF))  # rounded to a whole number
    return where(size == np.int32(0), np.int32(0), code)


@inlined_callee
def _power(code, scale, shift, most):
    """What has such a code."""
    root = np.float32(code) * (np.float32(1) / most)
    logarithm = np.int32(np.int32(bits_of(root)) - np.int32(ONE))
    size = np.int32(np.int32(logarithm << shift) + np.int32(bits_of(scale)))
    number = float_of(where(size < np.int32(1), np.int32(1), size))
    return where(code == np.int32(0), np.float32(0), number) + (scale - scale)


@inlined_callee
def decode_signed(stored, scale):
    """± the fourth power."""
    code = np.int32(stored[0])
    size = _power(abs(code), scale, FOURTH, np.float32(127))
    return where(code < np.int32(0), -size, size)


@inlined_callee
def encode_signed(number, scale, noise):
    """± the fourth root."""
    code = _root(number, scale, FOURTH, np.float32(127), np.float32(0))
    return (np.int8(where(number < np.float32(0), np.int32(-code), code)),)


@inlined_callee
def decode_squares(stored, scale):
    """The eighth power."""
    return _power(np.int32(stored[0]), scale, EIGHTH, np.float32(255))


@inlined_callee
def encode_squares(number, scale, noise):
    """The eighth root, at least 1 if the number is not zero."""
    return (np.uint8(_root(number, scale, EIGHTH, np.float32(255), np.float32(1))),)


add("8bit", ["i1"], decode_signed, encode_signed, scaled=True)
add("8bit squares", ["u1"], decode_squares, encode_squares, scaled=True)
