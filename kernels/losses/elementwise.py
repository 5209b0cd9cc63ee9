"""Losses that are a sum or mean over elements: each a function of one target, one prediction and the scalars.

It returns the element's value and its derivative by the prediction. Loops that need only one of the two drop the other
when they are compiled. The derivative is zero where a clip holds the prediction back, and NaN where an argument is.
"""

from typing import NamedTuple

from ..compile._jit import inlined_callee
from ..maths import constant, exp_decreasing, log, log1p_of_share, maximum, sigmoid, sign, tanh, where


class Epsilon(NamedTuple):
    """What keeps logarithms and quotients finite, Keras's ``epsilon()``."""

    epsilon: float


class Exponent(NamedTuple):
    """The scalars of the generalised crossentropy."""

    q: float


class Delta(NamedTuple):
    """The scalars of `huber`."""

    delta: float


@inlined_callee
def zero_or_nan(x):
    """Zero; NaN if x is."""
    return constant(0, x) if x == x else x


@inlined_callee
def product(factor, x):
    """factor · x; 0 where the factor is 0, whatever x is: what counts for nothing costs nothing."""
    zero = constant(0, x)
    return where(factor == zero, zero, factor * x)


@inlined_callee
def squared_error(target, prediction, s):
    """(p − t)²"""
    error = prediction - target
    return error * error, error + error


@inlined_callee
def absolute_error(target, prediction, s):
    """|p − t|; derivative 0 where they are equal."""
    error = prediction - target
    return abs(error), sign(error)


@inlined_callee
def absolute_percentage_error(target, prediction, s):
    """100 |t − p| / max(|t|, ε)"""
    scale = constant(100, target) / maximum(abs(target), s.epsilon)
    error = prediction - target
    return abs(error) * scale, sign(error) * scale


@inlined_callee
def squared_logarithmic_error(target, prediction, s):
    """(log(max(p, ε) + 1) − log(max(t, ε) + 1))²"""
    one = constant(1, prediction)
    shifted = maximum(prediction, s.epsilon) + one
    error = log(shifted) - log(maximum(target, s.epsilon) + one)
    return error * error, zero_or_nan(error) if prediction < s.epsilon else (error + error) / shifted


@inlined_callee
def hinge(target, prediction, s):
    """max(1 − t p, 0); derivative 0 at the kink."""
    zero = constant(0, prediction)
    margin = constant(1, prediction) - target * prediction
    return maximum(margin, zero), -target if margin > zero else zero_or_nan(margin)


@inlined_callee
def squared_hinge(target, prediction, s):
    """max(1 − t p, 0)²"""
    zero = constant(0, prediction)
    margin = maximum(constant(1, prediction) - target * prediction, zero)
    return margin * margin, -target * (margin + margin)


@inlined_callee
def huber(target, prediction, s):
    """e² / 2 for |e| ≤ δ, else δ |e| − δ² / 2, where e = p − t."""
    half = constant(0.5, prediction)
    error = prediction - target
    size = abs(error)
    if size <= s.delta:
        return half * error * error, error
    return s.delta * size - half * s.delta * s.delta, s.delta * sign(error)


@inlined_callee
def log_cosh(target, prediction, s):
    """log(cosh(p − t)), written so that nothing overflows."""
    error = prediction - target
    size = abs(error)
    tail = log1p_of_share(exp_decreasing(-(size + size)))
    return size + tail - constant(0.6931471805599453, prediction), tanh(error)


@inlined_callee
def kl_divergence(target, prediction, s):
    """t log(t / p), both clipped to [ε, 1]."""
    one = constant(1, prediction)
    t = one if target > one else maximum(target, s.epsilon)
    p = one if prediction > one else maximum(prediction, s.epsilon)
    return t * log(t / p), zero_or_nan(t) if prediction < s.epsilon or prediction > one else -t / p


@inlined_callee
def poisson(target, prediction, s):
    """p − t log(p + ε); without its second part where t is 0, also for an infinite p."""
    zero = constant(0, prediction)
    shifted = prediction + s.epsilon
    logarithm = target * log(shifted)
    counted = zero if target == zero and shifted > zero else logarithm
    return prediction - counted, constant(1, prediction) - target / shifted


@inlined_callee
def binary_crossentropy(target, prediction, s):
    """−t log p − (1 − t) log(1 − p), p clipped to [ε, 1 − ε]."""
    one = constant(1, prediction)
    high = one - s.epsilon
    p = high if prediction > high else maximum(prediction, s.epsilon)
    value = -(target * log(p) + (one - target) * log(one - p))
    clipped = prediction < s.epsilon or prediction > high
    return value, zero_or_nan(value) if clipped else (p - target) / (p * (one - p))


@inlined_callee
def binary_crossentropy_of_logit(target, prediction, s):
    """Binary crossentropy of sigmoid(p): (1 − t) max(p, 0) + t max(−p, 0) + log(1 + e^−|p|).

    A target that an infinite logit hits costs nothing.
    """
    one, zero = constant(1, prediction), constant(0, prediction)
    above = product(one - target, maximum(prediction, zero))
    below = product(target, maximum(-prediction, zero))
    return above + below + log1p_of_share(exp_decreasing(-abs(prediction))), sigmoid(prediction) - target
