"""The vocabulary that rules are written in: scalar functions that keep the type of their argument.

Each has a plain Python body (used by tests and for float64 oracles) and, where the compiled form differs, an overload
for compiled code. Two properties matter everywhere: a float32 argument never becomes float64 (a bare Python literal in
compiled code would do that and halve the speed), and a NaN argument is never lost (a clip that turns NaN into a number
hides a broken gradient).
"""

import math

import numpy as np
from numba.extending import overload

from . import elementary
from .compile._jit import FLAGS, INLINED_FLAGS, callee, inlined_callee
from .compile.tuples import constant as constant
from .compile.tuples import greatest as greatest
from .compile.tuples import where as where


def sqrt(x):
    """Square root of ``x >= 0``, correctly rounded in the type of ``x``."""
    return np.sqrt(x)


@overload(sqrt, jit_options=FLAGS)
def _sqrt(x):
    return lambda x: math.sqrt(x)


def exp(x):
    """e to the power of ``x``; inf where that overflows."""
    return np.exp(x)


@overload(exp, jit_options=INLINED_FLAGS)
def _exp(x):
    return elementary.exp_for(x.bitwidth)


def exp_decreasing(x):
    """``exp(x)`` for ``x <= 0``, quicker."""
    return np.exp(x)


@overload(exp_decreasing, jit_options=INLINED_FLAGS)
def _exp_decreasing(x):
    return elementary.exp_decreasing_for(x.bitwidth)


def expm1(x):
    """``exp(x) - 1`` without cancellation near zero."""
    return np.expm1(x)


@overload(expm1, jit_options=INLINED_FLAGS)
def _expm1(x):
    return elementary.expm1_for(x.bitwidth)


def log(x):
    """Natural logarithm; -inf for zero, NaN for ``x < 0``."""
    return np.log(x)


@overload(log, jit_options=INLINED_FLAGS)
def _log(x):
    return elementary.log_for(x.bitwidth)


def log1p(x):
    """``log(1 + x)`` without cancellation near zero."""
    return np.log1p(x)


@overload(log1p, jit_options=INLINED_FLAGS)
def _log1p(x):
    return elementary.log1p_for(x.bitwidth)


def log1p_of_share(x):
    """``log(1 + x)`` for ``0 <= x <= 1``, quicker."""
    return np.log1p(x)


@overload(log1p_of_share, jit_options=INLINED_FLAGS)
def _log1p_of_share(x):
    return elementary.log1p_of_share_for(x.bitwidth)


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


@overload(tanh, jit_options=INLINED_FLAGS)
def _tanh(x):
    return elementary.tanh_for(x.bitwidth)


def erf(x):
    """Error function."""
    return type(x)(math.erf(x))


@overload(erf, jit_options=INLINED_FLAGS)
def _erf(x):
    return elementary.erf_for(x.bitwidth)


@callee
def maximum(x, y):
    """The larger of two numbers; NaN if either is NaN."""
    return y if y > x or y != y else x


@callee
def minimum(x, y):
    """The smaller of two numbers; NaN if either is NaN."""
    return y if y < x or y != y else x


@callee
def decayed(param, decay):
    """``param - decay * param``; without a decay, or where it is infinite, the parameter as it is."""
    rest = param - param * decay
    return where(decay != constant(0, decay), where(rest == rest, rest, param), param)


@callee
def plus_share(x, y, share):
    """``x + share * y``; ``x`` alone where the share is zero, were ``y`` infinite."""
    return where(share != constant(0, share), x + share * y, x)


@callee
def mean_square(mean, x, share):
    """A running mean of squares, ``mean + (x² - mean) * share``. Once infinite it stays so.

    Ordered as in torch, where the share of a square may be finite though the square is not.
    """
    lost, most = mean * share, greatest(mean)
    return mean + (share * x * x - where(lost < most, lost, most))


@callee
def clip(x, low, high):
    """``x`` limited to ``[low, high]``; a NaN stays NaN."""
    x = high if x > high else x
    return low if x < low else x


def power(x, exponent):
    """``x ** exponent`` for ``x >= 0``, both of one type. Some 10 times as long as a square root."""
    x, exponent = np.asarray(x)[()], np.asarray(exponent)[()]
    return elementary.power_for(8 * x.itemsize)(x, exponent)


@overload(power, jit_options=INLINED_FLAGS)
def _power(x, exponent):
    return elementary.power_for(x.bitwidth)


def sign(x):
    """-1, 0 or 1 in the type of ``x``; NaN stays NaN."""
    return np.sign(x)


@overload(sign, jit_options=FLAGS)
def _sign(x):
    one, zero = (np.float32(1), np.float32(0)) if x.bitwidth == 32 else (np.float64(1), np.float64(0))
    return lambda x: one if x > 0 else (-one if x < 0 else x + zero)


@inlined_callee
def sigmoid(x):
    """``1 / (1 + exp(-x))``; neither form overflows."""
    one = constant(1, x)
    small = exp_decreasing(-abs(x))
    return where(x < constant(0, x), small, one) / (one + small)


@inlined_callee
def softplus(x):
    """``log(1 + exp(x))``, close to ``x`` where that is large, and to ``exp(x)`` where it is small."""
    return where(x < constant(0, x), constant(0, x), x) + log1p_of_share(exp_decreasing(-abs(x)))
