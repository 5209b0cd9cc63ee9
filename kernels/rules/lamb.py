"""Lamb."""

import math
from typing import NamedTuple

from ..compile._jit import callee
from ..maths import mean_square, plus_share, sqrt
from ..registry import scalars_for, two_phase_rule

_SLOTS = "momentum", "velocity"


class LambSettings(NamedTuple):
    """Hyper-parameters of `lamb`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float


class LambScalars(NamedTuple):
    """What the phases of Lamb receive."""

    learning_rate: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    momentum_weight: float  # 1 / (1 − β₁ᵗ)
    velocity_weight: float  # 1 / (1 − β₂ᵗ)
    epsilon: float


@scalars_for(LambSettings)
def lamb_scalars(s, t):
    """Both means start at zero; their weights make up for it."""
    learning_rate, beta_1, beta_2, epsilon = s
    momentum_weight, velocity_weight = 1.0 / (1.0 - beta_1**t), 1.0 / (1.0 - beta_2**t)
    return LambScalars(learning_rate, 1.0 - beta_1, 1.0 - beta_2, momentum_weight, velocity_weight, epsilon)


def lamb(param, grad, slots, s):
    """Lamb, first phase: the moments of Adam, and the squares of parameter and update.

    m, v as Adam;  u = m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε);  p ← p − η (‖p‖ / ‖u‖) u, norms over the whole parameter;
    the ratio is 1 where a norm is 0 or not finite

    Source: You et al. 2019, https://arxiv.org/abs/1904.00962, algorithm 2, with φ the identity. As in Keras, weight
    decay is decoupled and comes first, so the norm is that of the decayed parameter; the paper has it inside u.
    """
    momentum, velocity = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    direction = _direction(momentum, velocity, s)
    return (param * param, direction * direction), (momentum, velocity)


@callee
def _direction(momentum, velocity, s):
    return momentum * s.momentum_weight / (sqrt(velocity * s.velocity_weight) + s.epsilon)


def trust_ratio(sums, n, s):
    """Norm of the parameter over norm of its update; 1 where either is zero or not finite."""
    if 0 < sums[0] < math.inf and 0 < sums[1] < math.inf:
        return sqrt(sums[0]) / sqrt(sums[1])
    return 1.0


def lamb_second(param, grad, slots, extra, s):
    """Lamb, second phase: move by the update times the trust ratio."""
    momentum, velocity = slots
    return param - extra * s.learning_rate * _direction(momentum, velocity, s)


two_phase_rule(LambScalars, lamb, trust_ratio, lamb_second, terms=2, slots=_SLOTS)


class CoupledLambSettings(NamedTuple):
    """Hyper-parameters of `coupled_lamb`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float
    bias_correction: float  # whether weights make up for means that start at zero


class CoupledLambScalars(NamedTuple):
    """What the phases of `coupled_lamb` receive."""

    learning_rate: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    momentum_weight: float
    velocity_weight: float
    epsilon: float
    weight_decay: float


@scalars_for(CoupledLambSettings)
def coupled_lamb_scalars(s, t):
    """Compute `lamb_scalars`, if the means are to be corrected."""
    momentum_weight = 1.0 / (1.0 - s.beta_1**t) if s.bias_correction else 1.0
    velocity_weight = 1.0 / (1.0 - s.beta_2**t) if s.bias_correction else 1.0
    shares = 1.0 - s.beta_1, 1.0 - s.beta_2, momentum_weight, velocity_weight
    return CoupledLambScalars(s.learning_rate, *shares, s.epsilon, s.weight_decay)


def coupled_lamb(param, grad, slots, s):
    """`lamb` with weight decay inside the update, as in the paper and in PyTorch's packages: u ← u + λ p."""
    momentum, velocity = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    direction = plus_share(_direction(momentum, velocity, s), param, s.weight_decay)
    return (param * param, direction * direction), (momentum, velocity)


def coupled_lamb_second(param, grad, slots, extra, s):
    """`coupled_lamb`, second phase."""
    momentum, velocity = slots
    direction = plus_share(_direction(momentum, velocity, s), param, s.weight_decay)
    return param - extra * s.learning_rate * direction


two_phase_rule(
    CoupledLambScalars, coupled_lamb, trust_ratio, coupled_lamb_second, terms=2, slots=("momentum", "velocity")
)
