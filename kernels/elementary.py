"""Exponentials, logarithms and powers in plain arithmetic, so that loops over them vectorise.

The compiler has no vector form of ``math.exp``: it calls that for one element after the other, many times slower. For
compiled code, through `maths`. Results do not depend on the C library, or on the device. All keep the type of their
argument and NaN, and have the right limits at infinity.

Products are added with one rounding, `fused`: half as many operations, and fewer errors. Processors that cannot (x86
before 2013) call the C library for it: the same bits, and much slower.

Errors in units in the last place, at most, as the tests measure them for both types: `exp` 0.95, `expm1` 2.5,
`log` 2.1, `log1p` 2.5, `log1p_of_share` 2, `tanh` 3.2, `power` 1.7, `erf` 8 (float32 alone; float64's
is the C library's).

Method: reduction of the argument by ln 2, Taylor polynomials for the exponentials, the series of 2 artanh for
logarithms; see Muller, Elementary Functions, chapter 11.
"""

import math
from fractions import Fraction

import numpy as np
from numba.extending import overload

from .compile._jit import INLINED_FLAGS, inlined_callee
from .compile.tuples import bits_of, fused, number_of, where


def _polynomial(x, coefficients):
    if len(coefficients) == 1:
        return coefficients[0]
    return fused(x, _polynomial(x, coefficients[1:]), coefficients[0])


@overload(_polynomial, jit_options=INLINED_FLAGS)
def _horner(x, coefficients):
    if len(coefficients) == 1:
        return lambda x, coefficients: coefficients[0]
    return lambda x, coefficients: fused(x, _polynomial(x, coefficients[1:]), coefficients[0])


class Format:
    """What the algorithms need to know of a floating-point type."""

    def __init__(self, dtype, exp_terms, log_terms, log1p_terms):
        number, info = dtype.type, np.finfo(dtype)
        self.mantissa = np.int64(info.nmant)
        self.bias = np.int64(info.maxexp - 1)
        self.one_bits = self.bias << self.mantissa
        self.mask = (np.int64(1) << self.mantissa) - np.int64(1)
        self.shifter = number(1.5 * 2.0**info.nmant)  # added and taken away again, it rounds to a whole number
        self.inverse = number(1 / math.log(2))
        # ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
        few = info.nmant - 11
        self.high = number(math.floor(math.log(2) * 2.0**few) / 2.0**few)
        exact = Fraction("0.693147180559945309417232121458176568075500134360255254120680009")
        self.low = number(float(exact - Fraction(float(self.high))))
        self.largest = number(math.log(float(info.max)) + 1)
        self.smallest = number(math.log(float(info.smallest_subnormal)) - 1)
        self.tiny = number(info.smallest_normal)
        self.lift = number(2.0**info.nmant)
        self.exponentials = tuple(number(1 / math.factorial(k)) for k in range(exp_terms))
        self.logarithms = tuple(number(2 / (2 * k + 1)) for k in range(max(log_terms, log1p_terms)))
        self.log_terms = log_terms
        self.zero, self.half, self.one, self.two, self.inf, self.nan, self.root = (
            number(value) for value in (0, 0.5, 1, 2, math.inf, math.nan, math.sqrt(2))
        )


FORMATS = {32: Format(np.dtype(np.float32), 8, 6, 8), 64: Format(np.dtype(np.float64), 14, 12, 17)}


def _reduced_for(bits):
    f = FORMATS[bits]
    shifter, inverse, high, low = f.shifter, f.inverse, f.high, f.low

    @inlined_callee
    def reduced(x):
        """k and r of x = k ln 2 + r, k a whole number and r from -½ ln 2 to ½ ln 2."""
        k = fused(x, inverse, shifter) - shifter
        return k, fused(k, -low, fused(k, -high, x))

    return reduced


def exp_for(bits):
    """e^x for a type of so many bits."""
    f = FORMATS[bits]
    largest, smallest, shifter, half, terms = f.largest, f.smallest, f.shifter, f.half, f.exponentials
    reduced, power = _reduced_for(bits), _power_of_two_for(bits)

    def exp(x):
        x = where(x < smallest, smallest, where(x > largest, largest, x))
        k, r = reduced(x)
        rough = fused(k, half, shifter) - shifter  # two factors: one alone would overflow early
        return _polynomial(r, terms) * power(rough) * power(k - rough)

    return exp


def exp_decreasing_for(bits):
    """e^x for x <= 0 and a type of so many bits."""
    f = FORMATS[bits]
    smallest, terms = f.smallest, f.exponentials
    raised = type(f.one)(4 * bits - 64)  # a normal power of two, and one rounding where the result is subnormal
    lowered = type(f.one)(2.0 ** -float(raised))
    reduced, power = _reduced_for(bits), _power_of_two_for(bits)

    def exp_decreasing(x):
        k, r = reduced(where(x < smallest, smallest, x))
        return _polynomial(r, terms) * power(k + raised) * lowered

    return exp_decreasing


def expm1_for(bits):
    """e^x − 1 for a type of so many bits."""
    f = FORMATS[bits]
    largest, half, one, two, terms = f.largest, f.half, f.one, f.two, f.exponentials[1:]
    least = type(f.one)(-bits)  # where it has long been -1
    reduced, power = _reduced_for(bits), _power_of_two_for(bits)

    def expm1(x):
        k, r = reduced(where(x < least, least, where(x > largest, largest, x)))
        scale = power(k - one)  # half of it, which does not overflow
        return fused(scale, r * _polynomial(r, terms), scale - half) * two

    return expm1


def _power_of_two_for(bits):
    f = FORMATS[bits]
    shifter, mantissa, one_bits = f.shifter, f.mantissa, f.one_bits

    @inlined_callee
    def power(k):
        return number_of((bits_of(k + shifter) << mantissa) + one_bits, k)

    return power


def _parts_for(bits):
    f = FORMATS[bits]
    mantissa, mask, bias, one_bits, root = f.mantissa, f.mask, f.bias, f.one_bits, f.root
    zero, half, one, tiny, lift = f.zero, f.half, f.one, f.tiny, f.lift
    number, lifted_by = type(f.one), type(f.one)(f.mantissa)

    @inlined_callee
    def parts(x):
        """Exponent and mantissa of a positive number, the mantissa from √½ to √2."""
        lifted = where(x < tiny, x * lift, x)
        pattern = bits_of(lifted)
        exponent = number((pattern >> mantissa) - bias) - where(x < tiny, lifted_by, zero)
        m = number_of((pattern & mask) | one_bits, x)
        exponent = where(m > root, exponent + one, exponent)
        return exponent, where(m > root, m * half, m)

    return parts


def log_for(bits):
    """Natural logarithm for a type of so many bits."""
    f = FORMATS[bits]
    high, low, zero, one, inf, nan, terms = f.high, f.low, f.zero, f.one, f.inf, f.nan, f.logarithms[1 : f.log_terms]
    parts = _parts_for(bits)

    def log(x):
        exponent, m = parts(x)
        s = (m - one) / (m + one)
        square = s * s
        value = fused(exponent, high, fused(s, square * _polynomial(square, terms), fused(exponent, low, s + s)))
        value = where(x == inf, x, value)
        value = where(x == zero, -inf, value)
        return where(x != x, x, where(x < zero, nan, value))

    return log


def power_for(bits):
    """x^y for x >= 0 and a type of so many bits: y log x with twice the digits, then its exponential.

    For y from -16 to 16 the digits are as said; for larger ones the last few of the product are lost.
    """
    f = FORMATS[bits]
    high, low, zero, one, inf, nan = f.high, f.low, f.zero, f.one, f.inf, f.nan
    terms, limit = f.logarithms[1 : f.log_terms], -f.smallest
    exp, parts = inlined_callee(exp_for(bits)), _parts_for(bits)

    def power(x, exponent):
        scale, m = parts(x)
        # log m = 2 s + 2/3 s^3 + …; s and its rounding error
        above, below = m - one, m + one
        lost = m - (below - one)
        s = above / below
        s_low = (fused(-s, below, above) - s * lost) / below
        square = s * s
        tail = s * square * _polynomial(square, terms)
        # log x, and its rounding error
        a, b = scale * high, s + s
        whole = a + b
        part = whole - a
        rest = ((a - (whole - part)) + (b - part)) + fused(scale, low, s_low + s_low + tail)
        p = whole * exponent
        q = fused(whole, exponent, -p)
        q = where(abs(p) < limit, fused(rest, exponent, q), zero)
        sum_ = p + q
        value = exp(sum_)
        value = where((abs(sum_) < limit) & (value != inf), fused(value, q - (sum_ - p), value), value)
        value = where(x == zero, where(exponent < zero, inf, zero), value)
        value = where(x == inf, where(exponent < zero, zero, inf), value)
        value = where(x < zero, nan, value)
        value = where(x != x, x, where(exponent != exponent, exponent, value))
        return where(exponent == zero, one, value)

    return power


def log1p_for(bits):
    """log(1 + x) for a type of so many bits."""
    f = FORMATS[bits]
    zero, one, inf = f.zero, f.one, f.inf
    log = inlined_callee(log_for(bits))

    def log1p(x):
        rounded = one + x
        lost = (x - (rounded - one)) / rounded  # what the sum has lost
        return log(rounded) + where((rounded == inf) | (rounded == zero), zero, lost)

    return log1p


def log1p_of_share_for(bits):
    """log(1 + x) for 0 <= x <= 1 and a type of so many bits."""
    f = FORMATS[bits]
    two, terms = f.two, f.logarithms[1:]

    def log1p_of_share(x):
        s = x / (two + x)
        square = s * s
        return fused(s, square * _polynomial(square, terms), s + s)

    return log1p_of_share


def tanh_for(bits):
    """tanh x for a type of so many bits."""
    f = FORMATS[bits]
    zero, one, two, terms = f.zero, f.one, f.two, f.exponentials[1:]
    limit = type(f.one)(bits // 2)  # where it has long been 1
    reduced, power = _reduced_for(bits), _power_of_two_for(bits)

    def tanh(x):
        size = abs(x)
        size = where(size > limit, limit, size)
        k, r = reduced(size + size)
        scale = power(k)
        grown = fused(scale, r * _polynomial(r, terms), scale - one)  # e^2x − 1
        value = grown / (grown + two)
        return where(x < zero, -value, value)

    return tanh


_ERF_ABOVE = (
    -1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05, -2.10102402082508e-06,
    2.77068142495902e-08, -2.72614225801306e-10,
)  # fmt: skip
_ERF_BELOW = (
    -1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04, -1.45660718464996e-05,
)  # fmt: skip


def erf_for(bits):
    """The error function; for float32 an odd rational approximation on [-4, 4], the one that Eigen and XLA use."""
    if bits == 64:
        return lambda x: math.erf(x)
    limit = np.float32(4)
    above, below = (tuple(map(np.float32, terms)) for terms in (_ERF_ABOVE, _ERF_BELOW))

    def erf(x):
        x = where(x < -limit, -limit, where(x > limit, limit, x))
        square = x * x
        return x * _polynomial(square, above) / _polynomial(square, below)

    return erf
