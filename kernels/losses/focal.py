"""Focal crossentropies: those of elementwise.py and rows.py times (1 − p)^γ, p the probability of what is true."""

from typing import NamedTuple

from ..compile._jit import inlined_callee
from ..maths import constant, log, maximum, power, sigmoid
from .elementwise import product, zero_or_nan
from .rows import RowLoss, prediction_itself


class BinaryFocal(NamedTuple):
    """The scalars of `binary_focal_crossentropy`."""

    epsilon: float
    gamma: float
    less: float  # γ − 1
    negative: float  # (−1)^γ, NaN where that is no real number
    of_one: float  # weight of class 1
    of_zero: float


class CategoricalFocal(NamedTuple):
    """The scalars of `categorical_focal_crossentropy`."""

    epsilon: float
    gamma: float
    alpha: float


@inlined_callee
def binary_focal_crossentropy(target, prediction, s):
    """w (1 − p_t)^γ times the binary crossentropy, p_t = t p + (1 − t) (1 − p), of which p is not clipped."""
    one = constant(1, prediction)
    high = one - s.epsilon
    p = high if prediction > high else maximum(prediction, s.epsilon)
    return _binary_focal(target, prediction, one - prediction, p, one - p, s)


@inlined_callee
def binary_focal_crossentropy_of_logit(target, prediction, s):
    """`binary_focal_crossentropy` of sigmoid(p); 1 − sigmoid(p) is sigmoid(−p), which does not cancel."""
    share, rest = sigmoid(prediction), sigmoid(-prediction)
    value, derivative = _binary_focal(target, share, rest, maximum(share, s.epsilon), maximum(rest, s.epsilon), s)
    return value, derivative * (share * rest)


@inlined_callee
def _binary_focal(target, prediction, rest, p, q, s):
    """Compute the loss, and its derivative, from a probability and the rest of it, and both of them clipped."""
    one, zero = constant(1, prediction), constant(0, prediction)
    other = one - target
    loss = -(target * log(p) + other * log(q))
    clipped = p != prediction or q != rest
    slope = zero_or_nan(loss) if clipped else (other * p - target * q) / (p * q)
    wrong = target * rest + other * prediction  # 1 − p_t
    size = abs(wrong)
    sign = s.negative if wrong < zero else one
    factor = sign * power(size, s.gamma)
    steepness = sign * (-s.gamma if wrong < zero else s.gamma) * power(size, s.less)
    slope_of_factor = zero if s.gamma == zero else steepness * (other - target)
    weight = target * s.of_one + other * s.of_zero
    return weight * factor * loss, weight * (product(slope, factor) + slope_of_factor * loss)


@inlined_callee
def focal_terms(target, prediction, anchor, s):
    """−α t (1 − p)^γ log p, and its derivative by the share times the share, where p was not clipped."""
    zero = constant(0, prediction)
    if target == zero:
        return zero, zero, zero
    share = prediction / anchor
    low, high = s.epsilon, constant(1, prediction) - s.epsilon
    p = high if share > high else maximum(share, low)
    value = -s.alpha * target * power(constant(1, prediction) - p, s.gamma) * log(p)
    return value, zero if share < low or share > high else share * _slope(target, share, s), zero


@inlined_callee
def _slope(target, p, s):
    """α t (γ (1 − p)^(γ − 1) log p − (1 − p)^γ / p)"""
    rest = constant(1, p) - p
    factor = power(rest, s.gamma)
    return s.alpha * target * (s.gamma * (factor / rest) * log(p) - factor / p)


@inlined_callee
def focal_between(sums, anchor, s):
    """The value, and what the division by the sum takes from every derivative."""
    return sums[0], sums[1], 0.0


@inlined_callee
def focal_derivative(target, prediction, anchor, moving, unused, s):
    """(slope − moving) / Σq, the first part only where p was not clipped."""
    share = prediction / anchor
    clipped = target == constant(0, prediction) or share < s.epsilon or share > constant(1, prediction) - s.epsilon
    return ((zero_or_nan(target) if clipped else _slope(target, share, s)) - moving) / anchor


categorical_focal_crossentropy = RowLoss(focal_terms, focal_between, focal_derivative, anchor=prediction_itself)
