"""Ftrl: follow the regularised leader."""

from typing import NamedTuple

from .._jit import callee
from ..maths import clip, power, sqrt
from ..registry import rule


class FtrlScalars(NamedTuple):
    """What the Ftrl rules receive; `ftrl` ignores the power."""

    one_over_learning_rate: float
    minus_power: float  # -learning_rate_power
    l1: float
    two_l2: float  # 2 (l2 + beta / (2 learning_rate))
    two_shrinkage: float


@rule(FtrlScalars)
def ftrl(param, grad, slots, s):
    """Ftrl-proximal at learning_rate_power −1/2, its usual value.

    n' = n + g²;  z ← z + g + 2 λₛ p − (√n' − √n) / η · p;  p ← (clip(z, −λ₁, λ₁) − z) / (√n' / η + 2 λ₂)

    Source: McMahan et al. 2013, https://research.google.com/pubs/archive/41159.pdf; shrinkage and β as in Keras.
    """
    accumulator, linear = slots
    grown = accumulator + grad * grad
    old_root, new_root = sqrt(accumulator), sqrt(grown)
    return _follow(param, grad, grown, linear, old_root, new_root, s)


class PowerFtrlScalars(FtrlScalars):
    """What `power_ftrl` receives."""


@rule(PowerFtrlScalars)
def power_ftrl(param, grad, slots, s):
    """`ftrl` at any learning_rate_power ≤ 0. A power per element: bound by arithmetic, not by memory."""
    accumulator, linear = slots
    grown = accumulator + grad * grad
    old_root, new_root = power(accumulator, s.minus_power), power(grown, s.minus_power)
    return _follow(param, grad, grown, linear, old_root, new_root, s)


@callee
def _follow(param, grad, grown, linear, old_root, new_root, s):
    sigma = (new_root - old_root) * s.one_over_learning_rate
    linear = linear + (grad + s.two_shrinkage * param) - sigma * param
    quadratic = new_root * s.one_over_learning_rate + s.two_l2
    return (clip(linear, -s.l1, s.l1) - linear) / quadratic, (grown, linear)
