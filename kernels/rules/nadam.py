"""Nadam."""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import mean_square, plus_share, sqrt
from ..registry import rule, scalars_for


class NadamSettings(NamedTuple):
    """Hyper-parameters of `nadam`, and Πₜ₋₁, which Keras calls ``u_product``."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    schedule_decay: float
    u_product: float = 1.0


class NadamScalars(NamedTuple):
    """What `nadam` receives. μₜ = β₁ (1 − 0.96^(t ψ) / 2), ψ the schedule's decay, and Πₜ = μ₁ … μₜ."""

    learning_rate: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    momentum_weight: float  # μₜ₊₁ / (1 − Πₜ₊₁)
    grad_weight: float  # (1 − μₜ) / (1 − Πₜ)
    velocity_weight: float  # 1 / (1 − β₂ᵗ)
    epsilon: float


@callee
def nadam_momentum(s, t):
    """μₜ, the warmed-up momentum."""
    return s.beta_1 * (1.0 - 0.5 * 0.96 ** (t * s.schedule_decay))


@callee
def nadam_product(s, t):
    """Πₜ."""
    return s.u_product * nadam_momentum(s, t)


@scalars_for(NadamSettings, running=nadam_product)
@callee
def nadam_scalars(s, t):
    """Momentum and gradient are weighed as if all momenta so far had been those of a mean."""
    now, ahead = nadam_momentum(s, t), nadam_momentum(s, t + 1)
    product = s.u_product * now
    return NadamScalars(
        s.learning_rate,
        1.0 - s.beta_1,
        1.0 - s.beta_2,
        ahead / (1.0 - product * ahead),
        (1.0 - now) / (1.0 - product),
        1.0 / (1.0 - s.beta_2**t),
        s.epsilon,
    )


@rule(NadamScalars, slots=("momentum", "velocity"), squares=("velocity",))
@callee
def nadam(param, grad, slots, s):
    """Adam with Nesterov's momentum.

    m, v as Adam;  p ← p − η (w_m m + w_g g) / (√(w_v v) + ε)

    Source: Dozat 2016, https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ. Keras's μₜ; torch has 0.96^(0.004 t) there.
    """
    momentum, velocity = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    ahead = s.momentum_weight * momentum + s.grad_weight * grad
    return param - s.learning_rate * ahead / (sqrt(s.velocity_weight * velocity) + s.epsilon), (momentum, velocity)


class CoupledNadamSettings(NamedTuple):
    """Hyper-parameters of `coupled_nadam`, and Πₜ₋₁, which torch calls ``mu_product``."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float
    schedule_decay: float  # torch's momentum_decay
    u_product: float = 1.0


class CoupledNadamScalars(NamedTuple):
    """What `coupled_nadam` receives. μₜ = β₁ (1 − 0.96^(t ψ) / 2), ψ the momentum decay, and Πₜ = μ₁ … μₜ."""

    learning_rate: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    momentum_weight: float  # μₜ₊₁ / (1 − Πₜ₊₁)
    grad_weight: float  # (1 − μₜ) / (1 − Πₜ)
    velocity_weight: float  # 1 / (1 − β₂ᵗ)
    epsilon: float
    weight_decay: float


@scalars_for(CoupledNadamSettings, running=nadam_product)
def coupled_nadam_scalars(s, t):
    """The same as `nadam_scalars`."""
    own = nadam_scalars(NadamSettings(s.learning_rate, s.beta_1, s.beta_2, s.epsilon, s.schedule_decay, s.u_product), t)
    shares = own.one_minus_beta_1, own.one_minus_beta_2
    weights = own.momentum_weight, own.grad_weight, own.velocity_weight
    return CoupledNadamScalars(own.learning_rate, *shares, *weights, own.epsilon, s.weight_decay)


@rule(CoupledNadamScalars, slots=("momentum", "velocity"), squares=("velocity",))
def coupled_nadam(param, grad, slots, s):
    """`nadam` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html.
    """
    return nadam(param, plus_share(grad, param, s.weight_decay), slots, s)
