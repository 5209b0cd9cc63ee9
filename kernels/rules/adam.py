"""Adam and AMSGrad."""

import math
from typing import NamedTuple

from ..compile._jit import callee
from ..maths import maximum, mean_square, plus_share, sqrt
from ..registry import rule, scalars_for


class AdamSettings(NamedTuple):
    """Hyper-parameters of `adam`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float


class AmsgradSettings(AdamSettings):
    """Hyper-parameters of `amsgrad`."""


class AdamScalars(NamedTuple):
    """What `adam` receives."""

    alpha: float  # learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)
    one_minus_beta_1: float
    one_minus_beta_2: float
    epsilon: float


@scalars_for(AdamSettings)
@callee
def adam_scalars(s, t):
    """Both means start at zero; alpha makes up for it."""
    learning_rate, beta_1, beta_2, epsilon = s
    alpha = learning_rate * math.sqrt(1.0 - beta_2**t) / (1.0 - beta_1**t)
    return AdamScalars(alpha, 1.0 - beta_1, 1.0 - beta_2, epsilon)


@rule(AdamScalars, slots=("momentum", "velocity"), squares=("velocity",))
@callee
def adam(param, grad, slots, s):
    """Adam: steps scaled by running means of the gradient and of its square.

    m ← m + (g − m)(1 − β₁);  v ← v + (g² − v)(1 − β₂);  p ← p − α m / (√v + ε)

    Source: Kingma & Ba 2014, https://arxiv.org/abs/1412.6980, in the form before section 2.1, whose ε ("epsilon hat")
    is not bias-corrected. So does Keras; torch divides by √(v / (1 − β₂ᵗ)) + ε, another ε early in training.
    """
    momentum, velocity = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    return param - s.alpha * momentum / (sqrt(velocity) + s.epsilon), (momentum, velocity)


class AmsgradScalars(NamedTuple):
    """What `amsgrad` receives: the same as `adam`."""

    alpha: float
    one_minus_beta_1: float
    one_minus_beta_2: float
    epsilon: float


@scalars_for(AmsgradSettings)
def amsgrad_scalars(s, t):
    """The same as `adam_scalars`."""
    return AmsgradScalars(*adam_scalars(s, t))


@rule(AmsgradScalars, slots=("momentum", "velocity", "velocity_hat"), squares=("velocity", "velocity_hat"))
@callee
def amsgrad(param, grad, slots, s):
    """Adam whose denominator never shrinks: v̂ ← max(v̂, v) takes the place of v.

    Source: Reddi et al. 2018, https://openreview.net/forum?id=ryQu7f-RZ. The maximum is over the uncorrected v, as in
    Keras and torch.
    """
    momentum, velocity, velocity_hat = slots
    momentum = momentum + (grad - momentum) * s.one_minus_beta_1
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    velocity_hat = maximum(velocity_hat, velocity)
    param = param - s.alpha * momentum / (sqrt(velocity_hat) + s.epsilon)
    return param, (momentum, velocity, velocity_hat)


class CoupledAdamSettings(NamedTuple):
    """Hyper-parameters of `coupled_adam`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    weight_decay: float


class CoupledAmsgradSettings(CoupledAdamSettings):
    """Hyper-parameters of `coupled_amsgrad`."""


class CoupledAdamScalars(NamedTuple):
    """What `coupled_adam` receives."""

    alpha: float  # learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)
    one_minus_beta_1: float
    one_minus_beta_2: float
    epsilon: float  # times sqrt(1 - beta_2**t)
    weight_decay: float


@scalars_for(CoupledAdamSettings)
@callee
def coupled_adam_scalars(s, t):
    """Compute `adam_scalars`, with torch's epsilon."""
    root = math.sqrt(1.0 - s.beta_2**t)
    alpha = s.learning_rate * root / (1.0 - s.beta_1**t)
    return CoupledAdamScalars(alpha, 1.0 - s.beta_1, 1.0 - s.beta_2, s.epsilon * root, s.weight_decay)


@rule(CoupledAdamScalars, slots=("momentum", "velocity"), squares=("velocity",))
def coupled_adam(param, grad, slots, s):
    """`adam` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html. torch's √(v / (1 − β₂ᵗ)) + ε is this
    rule's √v + ε √(1 − β₂ᵗ), over √(1 − β₂ᵗ).
    """
    return adam(param, plus_share(grad, param, s.weight_decay), slots, s)


class CoupledAmsgradScalars(CoupledAdamScalars):
    """What `coupled_amsgrad` receives."""


@scalars_for(CoupledAmsgradSettings)
def coupled_amsgrad_scalars(s, t):
    """The same as `coupled_adam_scalars`."""
    return CoupledAmsgradScalars(*coupled_adam_scalars(s, t))


@rule(CoupledAmsgradScalars, slots=("momentum", "velocity", "velocity_hat"), squares=("velocity", "velocity_hat"))
def coupled_amsgrad(param, grad, slots, s):
    """`amsgrad` with weight decay in the gradient, as in torch."""
    return amsgrad(param, plus_share(grad, param, s.weight_decay), slots, s)
