"""Adan."""

import math
from collections import namedtuple
from typing import NamedTuple

from ..maths import constant, mean_square, sqrt, where
from ..registry import rule, scalars_for

AdanSettings = namedtuple("AdanSettings", "learning_rate beta_1 beta_2 beta_3 epsilon")


class AdanScalars(NamedTuple):
    """What `adan` receives."""

    alpha: float  # η √(1 − β₃ᵗ) / (1 − β₁ᵗ)
    gamma: float  # η √(1 − β₃ᵗ) β₂ / (1 − β₂ᵗ)
    one_minus_beta_1: float
    beta_2: float
    one_minus_beta_2: float
    one_minus_beta_3: float
    epsilon: float  # ε √(1 − β₃ᵗ)
    has_previous: float  # 0 at the first update, else 1


@scalars_for(AdanSettings)
def adan_scalars(s, t):
    """All means start at zero; alpha, gamma and epsilon make up for it."""
    rate, beta_1, beta_2, beta_3, epsilon = s
    root = math.sqrt(1.0 - beta_3**t)
    alpha, gamma = rate * root / (1.0 - beta_1**t), rate * root * beta_2 / (1.0 - beta_2**t)
    has_previous = 1.0 if t > 1 else 0.0
    shares = 1.0 - beta_1, beta_2, 1.0 - beta_2, 1.0 - beta_3
    return AdanScalars(alpha, gamma, *shares, epsilon * root, has_previous)


@rule(AdanScalars, slots=("momentum", "difference", "velocity", "previous_gradient"), squares=("velocity",))
def adan(param, grad, slots, s):
    """Adan: Nesterov's momentum from the differences of gradients, scaled as in Adam.

    d = g − g₋₁ (0 at first);  m ← m + (g − m)(1 − β₁);  v ← v + (d − v)(1 − β₂);  n ← n + ((g + β₂ d)² − n)(1 − β₃)
    p ← p − η (m / (1 − β₁ᵗ) + β₂ v / (1 − β₂ᵗ)) / (√(n / (1 − β₃ᵗ)) + ε)

    Source: Xie et al. 2022, https://arxiv.org/abs/2208.06677, algorithm 1, whose β are 1 minus these; the corrections
    are those of the authors' code, https://github.com/sail-sg/Adan. Keras has none.
    """
    momentum, difference, velocity, previous = slots
    change = where(s.has_previous > 0, grad - previous, constant(0.0, grad))
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    difference = difference + (change - difference) * s.one_minus_beta_2
    velocity = mean_square(velocity, grad + s.beta_2 * change, s.one_minus_beta_3)
    step = s.alpha * momentum + s.gamma * difference
    return param - step / (sqrt(velocity) + s.epsilon), (momentum, difference, velocity, grad)
