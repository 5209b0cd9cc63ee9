"""Losses of how far two sets overlap: quotients of sums over a row. I = Σ t p."""

from typing import NamedTuple

from ..compile._jit import inlined_callee
from ..maths import constant
from .rows import RowLoss


class Weights(NamedTuple):
    """The scalars of `tversky`."""

    epsilon: float
    alpha: float
    beta: float


@inlined_callee
def dice_terms(target, prediction, anchor, s):
    """t p, t and p."""
    return target * prediction, target, prediction


@inlined_callee
def dice_between(sums, anchor, s):
    """1 − 2 I / D, D = Σ t + Σ p + ε; what a target is multiplied by, and what all derivatives have."""
    whole = sums[1] + sums[2] + s.epsilon
    share = 2.0 * sums[0] / whole
    return 1.0 - share, 2.0 / whole, share / whole


@inlined_callee
def dice_derivative(target, prediction, anchor, factor, common, s):
    """2 I / D² − 2 t / D"""
    return common - target * factor


@inlined_callee
def tversky_terms(target, prediction, anchor, s):
    """t p, t (1 − p) and p (1 − t)."""
    one = constant(1, prediction)
    return target * prediction, target * (one - prediction), prediction * (one - target)


@inlined_callee
def tversky_between(sums, anchor, s):
    """1 − I / D, D = I + α Σ t (1 − p) + β Σ p (1 − t) + ε; 1 / D and I / D²."""
    whole = sums[0] + s.alpha * sums[1] + s.beta * sums[2] + s.epsilon
    share = sums[0] / whole
    return 1.0 - share, 1.0 / whole, share / whole


@inlined_callee
def tversky_derivative(target, prediction, anchor, factor, common, s):
    """I / D² (t (1 − α) + β (1 − t)) − t / D"""
    one = constant(1, prediction)
    return common * (target * (one - s.alpha) + s.beta * (one - target)) - target * factor


dice = RowLoss(dice_terms, dice_between, dice_derivative, fold="none")
tversky = RowLoss(tversky_terms, tversky_between, tversky_derivative, fold="none")
