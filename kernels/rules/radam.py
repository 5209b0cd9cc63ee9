"""RAdam."""

import math
from collections import namedtuple
from typing import NamedTuple

from ..compile._jit import callee
from ..maths import mean_square, plus_share, sqrt, where
from ..registry import rule, scalars_for

RAdamSettings = namedtuple("RAdamSettings", "learning_rate beta_1 beta_2 epsilon")


class RAdamScalars(NamedTuple):
    """What `radam` receives. ρ∞ = 2 / (1 − β₂) − 1 and ρₜ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)."""

    alpha: float  # η / (1 − β₁ᵗ), where ρₜ > 5 times √(1 − β₂ᵗ) √((ρₜ − 4)(ρₜ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₜ))
    one_minus_beta_1: float
    one_minus_beta_2: float
    epsilon: float
    is_rectified: float  # 1 where ρₜ > 5, else 0


@scalars_for(RAdamSettings)
@callee
def radam_scalars(s, t):
    """Correct what the first means lack; as long as the second ones vary too much, steps do without them."""
    correction = 1.0 - s.beta_2**t
    limit = 2.0 / (1.0 - s.beta_2) - 1.0
    length = limit - 2.0 * t * s.beta_2**t / correction
    alpha, is_rectified = s.learning_rate / (1.0 - s.beta_1**t), 0.0
    if length > 5.0:
        ratio = (length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)
        alpha, is_rectified = alpha * math.sqrt(correction * ratio), 1.0
    return RAdamScalars(alpha, 1.0 - s.beta_1, 1.0 - s.beta_2, s.epsilon, is_rectified)


@rule(RAdamScalars, slots=("momentum", "velocity"), squares=("velocity",))
@callee
def radam(param, grad, slots, s):
    """RAdam: Adam, whose first steps go by the mean of gradients alone, and the next by a rectified scale.

    m, v as Adam;  p ← p − α m / (√v + ε);  while ρₜ ≤ 5  p ← p − α m

    Source: Liu et al. 2019, https://arxiv.org/abs/1908.03265, algorithm 2, which has no ε, and 4 for 5; both are as in
    torch, https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html. Keras has none.
    """
    momentum, velocity = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    step = s.alpha * momentum
    return param - where(s.is_rectified > 0, step / (sqrt(velocity) + s.epsilon), step), (momentum, velocity)


CoupledRAdamSettings = namedtuple("CoupledRAdamSettings", "learning_rate beta_1 beta_2 epsilon weight_decay")


class CoupledRAdamScalars(NamedTuple):
    """What `coupled_radam` receives."""

    alpha: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    epsilon: float
    is_rectified: float
    weight_decay: float


@scalars_for(CoupledRAdamSettings)
def coupled_radam_scalars(s, t):
    """The same as `radam_scalars`."""
    own = radam_scalars(RAdamSettings(s.learning_rate, s.beta_1, s.beta_2, s.epsilon), t)
    shares = own.one_minus_beta_1, own.one_minus_beta_2
    return CoupledRAdamScalars(own.alpha, *shares, own.epsilon, own.is_rectified, s.weight_decay)


@rule(CoupledRAdamScalars, slots=("momentum", "velocity"), squares=("velocity",))
def coupled_radam(param, grad, slots, s):
    """`radam` with weight decay in the gradient, as in torch: g ← g + λ p."""
    return radam(param, plus_share(grad, param, s.weight_decay), slots, s)
