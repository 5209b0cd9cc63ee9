"""Adamax."""

from typing import NamedTuple

from ..maths import maximum, plus_share
from ..registry import rule, scalars_for


class AdamaxSettings(NamedTuple):
    """Hyper-parameters of `adamax`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float


class AdamaxScalars(NamedTuple):
    """What `adamax` receives."""

    alpha: float  # learning_rate / (1 - beta_1**t)
    one_minus_beta_1: float
    beta_2: float
    epsilon: float


@scalars_for(AdamaxSettings)
def adamax_scalars(s, t):
    """The mean starts at zero; alpha makes up for it."""
    learning_rate, beta_1, beta_2, epsilon = s
    return AdamaxScalars(learning_rate / (1.0 - beta_1**t), 1.0 - beta_1, beta_2, epsilon)


@rule(AdamaxScalars, slots=("momentum", "norm"), squares=("norm",))
def adamax(param, grad, slots, s):
    """Adamax: Adam under the infinity norm.

    m ← m + (g − m)(1 − β₁);  u ← max(β₂ u, |g|);  p ← p − α m / (u + ε)

    Source: Kingma & Ba 2014, section 7.1, https://arxiv.org/abs/1412.6980. The paper has no ε; torch puts it into |g|.
    """
    momentum, norm = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    norm = maximum(s.beta_2 * norm, abs(grad))
    return param - s.alpha * momentum / (norm + s.epsilon), (momentum, norm)


class CoupledAdamaxSettings(NamedTuple):
    """Hyper-parameters of `coupled_adamax`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float


class CoupledAdamaxScalars(NamedTuple):
    """What `coupled_adamax` receives."""

    alpha: float
    one_minus_beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float


@scalars_for(CoupledAdamaxSettings)
def coupled_adamax_scalars(s, t):
    """Compute `adamax_scalars`."""
    alpha = s.learning_rate / (1.0 - s.beta_1**t)
    return CoupledAdamaxScalars(alpha, 1.0 - s.beta_1, s.beta_2, s.epsilon, s.weight_decay)


@rule(CoupledAdamaxScalars, slots=("momentum", "norm"), squares=("norm",))
def coupled_adamax(param, grad, slots, s):
    """Adamax as in torch, ε inside the norm: g ← g + λ p;  m as `adamax`;  u ← max(β₂ u, |g| + ε);  p ← p − α m / u.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html.
    """
    momentum, norm = slots
    grad = plus_share(grad, param, s.weight_decay)
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    norm = maximum(s.beta_2 * norm, abs(grad) + s.epsilon)
    return param - s.alpha * momentum / norm, (momentum, norm)
