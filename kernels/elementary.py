"""Exponentials, logarithms and powers in plain arithmetic, so that loops over them vectorise.

The compiler has no vector form of ``math.exp``: it calls that for one element after the other, many times slower. For
compiled code, through `maths`. Results do not depend on the C library, or on the device. All keep the type of their
argument and NaN, and have the right limits at infinity.

Errors in units in the last place, at most, as the tests measure them for both types: `exp` 1.2, `expm1` 2.5, `log` 2.8,
`log1p` 3.3, `tanh` 2.8, `power` 1.7, `erf` 8 (float32 alone; float64's is the C library's).

Method: reduction of the argument by ln 2, Taylor polynomials for the exponentials, the series of 2 artanh for
logarithms; see Muller, Elementary Functions, chapter 11.
"""

import math
from fractions import Fraction

import numpy as np
from numba.extending import overload

from .compile._jit import INLINED_FLAGS, inlined_callee
from .compile.tuples import bits_of, number_of, selected


def _polynomial(x, coefficients):
    if len(coefficients) == 1:
        return coefficients[0]
    return coefficients[0] + x * _polynomial(x, coefficients[1:])


@overload(_polynomial, jit_options=INLINED_FLAGS)
def _horner(x, coefficients):
    if len(coefficients) == 1:
        return lambda x, coefficients: coefficients[0]
    return lambda x, coefficients: coefficients[0] + x * _polynomial(x, coefficients[1:])


class Format:
    """What the algorithms need to know of a floating-point type."""

    def __init__(self, dtype, exp_terms, log_terms):
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
        self.least_normal = number((info.minexp + 1) * math.log(2))  # by a factor of two above where results get small
        self.tiny = number(info.smallest_normal)
        self.lift = number(2.0**info.nmant)
        self.splitter = number(2.0 ** (info.nmant // 2 + 1) + 1)  # halves a number's digits: Dekker, Veltkamp
        self.exponentials = tuple(number(1 / math.factorial(k)) for k in range(1, exp_terms))
        self.logarithms = tuple(number(2 / (2 * k + 1)) for k in range(log_terms))
        self.zero, self.half, self.one, self.two, self.inf, self.nan, self.root = (
            number(value) for value in (0, 0.5, 1, 2, math.inf, math.nan, math.sqrt(2))
        )


FORMATS = {32: Format(np.dtype(np.float32), 8, 6), 64: Format(np.dtype(np.float64), 14, 12)}


def exp_for(bits):
    """e^x for a type of so many bits."""
    f = FORMATS[bits]
    largest, smallest, shifter, inverse, high, low = f.largest, f.smallest, f.shifter, f.inverse, f.high, f.low
    half, one, terms = f.half, f.one, f.exponentials
    power = _power_of_two_for(bits)

    def exp(x):
        x = selected(x < smallest, smallest, selected(x > largest, largest, x))
        k = (x * inverse + shifter) - shifter
        r = (x - k * high) - k * low
        rough = (k * half + shifter) - shifter  # two factors: one alone would overflow early
        return (one + r * _polynomial(r, terms)) * power(rough) * power(k - rough)

    return exp


def exp_decreasing_for(bits):
    """e^x for x <= 0 and a type of so many bits; 0 where it is below twice the smallest normal number."""
    f = FORMATS[bits]
    least, shifter, inverse, high, low = f.least_normal, f.shifter, f.inverse, f.high, f.low
    zero, one, terms = f.zero, f.one, f.exponentials
    power = _power_of_two_for(bits)

    def exp_decreasing(x):
        bounded = selected(x < least, least, x)
        k = (bounded * inverse + shifter) - shifter
        r = (bounded - k * high) - k * low
        return selected(x < least, zero, (one + r * _polynomial(r, terms)) * power(k))

    return exp_decreasing


def expm1_for(bits):
    """e^x − 1 for a type of so many bits."""
    f = FORMATS[bits]
    largest, shifter, inverse, high, low = f.largest, f.shifter, f.inverse, f.high, f.low
    half, one, two, terms = f.half, f.one, f.two, f.exponentials
    least = type(f.one)(-bits)  # where it has long been -1
    power = _power_of_two_for(bits)

    def expm1(x):
        x = selected(x < least, least, selected(x > largest, largest, x))
        k = (x * inverse + shifter) - shifter
        r = (x - k * high) - k * low
        scale = power(k - one)  # half of it, which does not overflow
        return (scale * (r * _polynomial(r, terms)) + (scale - half)) * two

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
        lifted = selected(x < tiny, x * lift, x)
        pattern = bits_of(lifted)
        exponent = number((pattern >> mantissa) - bias) - selected(x < tiny, lifted_by, zero)
        m = number_of((pattern & mask) | one_bits, x)
        exponent = selected(m > root, exponent + one, exponent)
        return exponent, selected(m > root, m * half, m)

    return parts


def log_for(bits):
    """Natural logarithm for a type of so many bits."""
    f = FORMATS[bits]
    high, low, zero, one, inf, nan, terms = f.high, f.low, f.zero, f.one, f.inf, f.nan, f.logarithms
    parts = _parts_for(bits)

    def log(x):
        exponent, m = parts(x)
        s = (m - one) / (m + one)
        value = exponent * high + (s * _polynomial(s * s, terms) + exponent * low)
        value = selected(x == inf, x, value)
        value = selected(x == zero, -inf, value)
        return selected(x != x, x, selected(x < zero, nan, value))

    return log


def power_for(bits):
    """x^y for x >= 0 and a type of so many bits: y log x with twice the digits, then its exponential.

    For y from -16 to 16 the digits are as said; for larger ones the last few of the product are lost.
    """
    f = FORMATS[bits]
    high, low, zero, one, inf, nan = f.high, f.low, f.zero, f.one, f.inf, f.nan
    terms, limit = f.logarithms[1:], -f.smallest
    exp, parts, product = inlined_callee(exp_for(bits)), _parts_for(bits), _exact_product_for(bits)

    def power(x, exponent):
        scale, m = parts(x)
        # log m = 2 s + 2/3 s^3 + …; s and its rounding error
        above, below = m - one, m + one
        lost = m - (below - one)
        s = above / below
        p, q = product(s, below)
        s_low = (((above - p) - q) - s * lost) / below
        square = s * s
        tail = s * square * _polynomial(square, terms)
        # log x, and its rounding error
        a, b = scale * high, s + s
        whole = a + b
        part = whole - a
        rest = ((a - (whole - part)) + (b - part)) + (scale * low + (s_low + s_low + tail))
        p, q = product(whole, exponent)
        q = selected(abs(p) < limit, q + rest * exponent, zero)
        sum_ = p + q
        value = exp(sum_)
        value = selected((abs(sum_) < limit) & (value != inf), value + value * (q - (sum_ - p)), value)
        value = selected(x == zero, selected(exponent < zero, inf, zero), value)
        value = selected(x == inf, selected(exponent < zero, zero, inf), value)
        value = selected(x < zero, nan, value)
        value = selected(x != x, x, selected(exponent != exponent, exponent, value))
        return selected(exponent == zero, one, value)

    return power


def _exact_product_for(bits):
    splitter = FORMATS[bits].splitter

    @inlined_callee
    def halves(x):
        scaled = x * splitter
        upper = scaled - (scaled - x)
        return upper, x - upper

    @inlined_callee
    def product(x, y):
        """The rounded product, and its rounding error."""
        rounded = x * y
        (a, b), (c, d) = halves(x), halves(y)
        return rounded, ((a * c - rounded) + a * d + b * c) + b * d

    return product


def log1p_for(bits):
    """log(1 + x) for a type of so many bits."""
    f = FORMATS[bits]
    zero, one, inf = f.zero, f.one, f.inf
    log = inlined_callee(log_for(bits))

    def log1p(x):
        rounded = one + x
        lost = (x - (rounded - one)) / rounded  # what the sum has lost
        return log(rounded) + selected((rounded == inf) | (rounded == zero), zero, lost)

    return log1p


def tanh_for(bits):
    """tanh x for a type of so many bits."""
    f = FORMATS[bits]
    zero, two = f.zero, f.two
    limit = type(f.one)(bits // 2)  # where it has long been 1
    expm1 = inlined_callee(expm1_for(bits))

    def tanh(x):
        size = abs(x)
        size = selected(size > limit, limit, size)
        grown = expm1(size + size)
        value = grown / (grown + two)
        return selected(x < zero, -value, value)

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
        x = selected(x < -limit, -limit, selected(x > limit, limit, x))
        square = x * x
        return x * _polynomial(square, above) / _polynomial(square, below)

    return erf
