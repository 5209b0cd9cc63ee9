"""AdaBelief."""

import math
from collections import namedtuple
from typing import NamedTuple

from ..maths import mean_square, sqrt
from ..registry import rule, scalars_for

AdaBeliefSettings = namedtuple("AdaBeliefSettings", "learning_rate beta_1 beta_2 epsilon")


class AdaBeliefScalars(NamedTuple):
    """What `adabelief` receives."""

    learning_rate: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    momentum_weight: float  # 1 / (1 − β₁ᵗ)
    root_weight: float  # 1 / √(1 − β₂ᵗ)
    epsilon: float


@scalars_for(AdaBeliefSettings)
def adabelief_scalars(s, t):
    """Both means start at zero; their weights make up for it."""
    weights = 1.0 / (1.0 - s.beta_1**t), 1.0 / math.sqrt(1.0 - s.beta_2**t)
    return AdaBeliefScalars(s.learning_rate, 1.0 - s.beta_1, 1.0 - s.beta_2, *weights, s.epsilon)


@rule(AdaBeliefScalars, slots=("momentum", "belief"), squares=("belief",))
def adabelief(param, grad, slots, s):
    """AdaBelief: Adam, whose steps are scaled by how far gradients are from their running mean.

    m ← m + (g − m)(1 − β₁);  s ← β₂ s + (1 − β₂)(g − m)² + ε;  p ← p − η m / (1 − β₁ᵗ) / (√(s / (1 − β₂ᵗ)) + ε)

    Source: Zhuang et al. 2020, https://arxiv.org/abs/2010.07468, algorithm 2, with ε in both places. Keras has none.
    """
    momentum, belief = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    belief = mean_square(belief, grad - momentum, s.one_minus_beta_2) + s.epsilon
    step = s.learning_rate * s.momentum_weight * momentum / (s.root_weight * sqrt(belief) + s.epsilon)
    return param - step, (momentum, belief)
