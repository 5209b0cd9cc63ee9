"""Ftrl: follow the regularised leader."""

from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..maths import clip, power, sqrt
from ..registry import Slot, rule, scalars_for

_SLOTS = {"accumulator": Slot(starts_as="initial_accumulator_value", squares=True), "linear": Slot()}


class FtrlSettings(NamedTuple):
    """Hyper-parameters of `ftrl`."""

    learning_rate: float
    learning_rate_power: float
    l1_regularization_strength: float
    l2_regularization_strength: float
    l2_shrinkage_regularization_strength: float
    beta: float


class PowerFtrlSettings(FtrlSettings):
    """Hyper-parameters of `power_ftrl`."""


class FtrlScalars(NamedTuple):
    """What the Ftrl rules receive; `ftrl` ignores the power."""

    one_over_learning_rate: float
    minus_power: float  # -learning_rate_power
    l1: float
    two_l2: float  # 2 (l2 + beta / (2 learning_rate))
    two_shrinkage: float


@rule(FtrlScalars, slots=_SLOTS)
def ftrl(param, grad, slots, s):
    """Ftrl-proximal at learning_rate_power −1/2, its usual value.

    n' = n + g²;  z ← z + g + 2 λₛ p − (√n' − √n) / η · p;  p ← (clip(z, −λ₁, λ₁) − z) / (√n' / η + 2 λ₂)

    Source: McMahan et al. 2013, https://research.google.com/pubs/archive/41159.pdf; shrinkage and β as in Keras.
    """
    accumulator, linear = slots
    grown = accumulator + grad * grad
    old_root, new_root = sqrt(accumulator), sqrt(grown)
    return _follow(param, grad, grown, linear, old_root, new_root, s)


@scalars_for(FtrlSettings)
def ftrl_scalars(s):
    """Strengths and rate as the formula has them.

    Raises
    ------
    ValueError
        If the learning rate is not positive.
    """
    rate, minus_power = s.learning_rate, -s.learning_rate_power
    if np.any(rate <= 0):
        raise ValueError(f"Ftrl divides by the learning rate, which must be positive, got {rate}")
    two_l2 = 2.0 * s.l2_regularization_strength + s.beta / rate
    two_shrinkage = 2.0 * s.l2_shrinkage_regularization_strength
    return FtrlScalars(1.0 / rate, minus_power, s.l1_regularization_strength, two_l2, two_shrinkage)


class PowerFtrlScalars(FtrlScalars):
    """What `power_ftrl` receives."""


@scalars_for(PowerFtrlSettings)
def power_ftrl_scalars(s):
    """The same as `ftrl_scalars`."""
    return PowerFtrlScalars(*ftrl_scalars(s))


@rule(PowerFtrlScalars, slots=_SLOTS)
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
