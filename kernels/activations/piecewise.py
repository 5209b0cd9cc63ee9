"""Formulas of activations that are lines, or parabolas, between kinks. At a kink the derivative is that of one side."""

from typing import NamedTuple

from ..compile._jit import inlined_callee
from ..maths import clip, constant
from .loops import Activation


class ReluScalars(NamedTuple):
    """The scalars of `relu`."""

    negative_slope: float
    max_value: float  # NaN for none: nothing is above it
    min_value: float  # 0 where there is a maximum, else -inf
    threshold: float


class Slope(NamedTuple):
    """The scalars of `hard_sigmoid`."""

    slope: float


class Limit(NamedTuple):
    """The scalars of `hard_shrink` and `soft_shrink`."""

    limit: float


class Threshold(NamedTuple):
    """The scalars of `threshold`."""

    limit: float
    default: float


@inlined_callee
def one_or_nan(x):
    """One; NaN if x is."""
    return constant(1, x) if x == x else x


@inlined_callee
def linear(x, s):
    """x"""
    return x


@inlined_callee
def linear_derivative(x, y, s):
    """1"""
    return constant(1, y)


@inlined_callee
def relu(x, s):
    """x above the threshold θ, else 0; limited to [0, max]; minus slope · max(θ − x, 0)."""
    zero = constant(0, x)
    below = s.threshold - x
    y = clip(zero if x <= s.threshold else x, s.min_value, s.max_value)
    return y - (s.negative_slope * below if below > zero and s.negative_slope != zero else zero)


@inlined_callee
def relu_derivative(x, y, s):
    """1 between θ and max, slope up to θ, 0 from max on, NaN for NaN."""
    zero = constant(0, x)
    if x <= s.threshold:
        return s.negative_slope
    return zero if x >= s.max_value or x < s.min_value else (constant(1, x) if x == x else x)


@inlined_callee
def hard_sigmoid(x, s):
    """slope · x + 0.5, limited to [0, 1]."""
    return clip(x * s.slope + constant(0.5, x), constant(0, x), constant(1, x))


@inlined_callee
def hard_sigmoid_derivative(x, y, s):
    """slope inside the limits, else 0, NaN for NaN."""
    return constant(0, y) if y <= constant(0, y) or y >= constant(1, y) else (s.slope if y == y else y)


@inlined_callee
def hard_tanh(x, s):
    """x limited to [−1, 1]."""
    return clip(x, constant(-1, x), constant(1, x))


@inlined_callee
def hard_tanh_derivative(x, y, s):
    """1 inside the limits, else 0, NaN for NaN."""
    return constant(0, y) if y <= constant(-1, y) or y >= constant(1, y) else one_or_nan(y)


@inlined_callee
def hard_silu(x, s):
    """x · hard_sigmoid(x); 0 at -inf."""
    share = clip(x * constant(1 / 6, x) + constant(0.5, x), constant(0, x), constant(1, x))
    return constant(0, x) if x <= constant(-3, x) else x * share


@inlined_callee
def hard_silu_derivative(x, y, s):
    """x / 3 + 1/2 between −3 and 3, 0 up to there, 1 from there on."""
    if x <= constant(-3, x):
        return constant(0, x)
    return constant(1, x) if x >= constant(3, x) else x * constant(1 / 3, x) + constant(0.5, x)


@inlined_callee
def hard_shrink(x, s):
    """x where |x| is above the limit, else 0."""
    return constant(0, x) if abs(x) <= s.limit else x


@inlined_callee
def shrink_derivative(x, y, s):
    """1 where |x| is above the limit, else 0, NaN for NaN."""
    return constant(0, x) if abs(x) <= s.limit else one_or_nan(x)


@inlined_callee
def soft_shrink(x, s):
    """x moved towards 0 by the limit, 0 within it."""
    if abs(x) <= s.limit:
        return constant(0, x)
    return x + s.limit if x < constant(0, x) else x - s.limit


@inlined_callee
def threshold(x, s):
    """x above the limit, else the default."""
    return s.default if x <= s.limit else x


@inlined_callee
def threshold_derivative(x, y, s):
    """1 above the limit, else 0, NaN for NaN."""
    return constant(0, x) if x <= s.limit else one_or_nan(x)


@inlined_callee
def sparse_plus(x, s):
    """0 up to −1, (x + 1)² / 4 up to 1, then x."""
    half = (x + constant(1, x)) * constant(0.5, x)
    if x <= constant(-1, x):
        return constant(0, x)
    return half * half if x < constant(1, x) else x


@inlined_callee
def sparse_plus_derivative(x, y, s):
    """(x + 1) / 2, limited to [0, 1]."""
    return clip((x + constant(1, x)) * constant(0.5, x), constant(0, x), constant(1, x))


LINEAR = Activation(linear, linear_derivative)
RELU = Activation(relu, relu_derivative, ReluScalars, "x")
HARD_SIGMOID = Activation(hard_sigmoid, hard_sigmoid_derivative, Slope)
HARD_TANH = Activation(hard_tanh, hard_tanh_derivative)
HARD_SILU = Activation(hard_silu, hard_silu_derivative, reads="x")
HARD_SHRINK = Activation(hard_shrink, shrink_derivative, Limit, "x")
SOFT_SHRINK = Activation(soft_shrink, shrink_derivative, Limit, "x")
THRESHOLD = Activation(threshold, threshold_derivative, Threshold, "x")
SPARSE_PLUS = Activation(sparse_plus, sparse_plus_derivative, reads="x")
