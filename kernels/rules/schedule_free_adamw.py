"""Schedule-free AdamW."""

from typing import NamedTuple

from ..maths import mean_square, sqrt
from ..registry import Slot, rule, scalars_for

_SLOTS = {"momentum": Slot(copies_parameter=True), "velocity": Slot(squares=True)}


class ScheduleFreeSettings(NamedTuple):
    """Hyper-parameters of `schedule_free_adamw`."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    warmup_steps: float


class ScheduleFreeScalars(NamedTuple):
    """What `schedule_free_adamw` receives."""

    learning_rate: float  # warmed up
    beta_1: float
    one_minus_beta_1: float
    one_over_beta_1: float
    one_minus_beta_2: float
    velocity_weight: float  # 1 / (1 − β₂ᵗ)
    average_weight: float  # 1 / t
    epsilon: float


@scalars_for(ScheduleFreeSettings)
def schedule_free_scalars(s, t):
    """The rate grows for some steps; the mean of squares starts at zero, and its weight makes up for it."""
    learning_rate, beta_1, beta_2, epsilon, warmup_steps = s
    warmth = min(t / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return ScheduleFreeScalars(
        learning_rate * warmth,
        beta_1,
        1.0 - beta_1,
        1.0 / beta_1,
        1.0 - beta_2,
        1.0 / (1.0 - beta_2**t),
        1.0 / t,
        epsilon,
    )


@rule(ScheduleFreeScalars, slots=_SLOTS)
def schedule_free_adamw(param, grad, slots, s):
    """Adam without a schedule: gradients are taken at y, between the fast iterate z and the average x of all z.

    v as Adam;  x = (y − (1 − β₁) z) / β₁;  z ← z − η g / (√(v / (1 − β₂ᵗ)) + ε);
    x ← x + (z − x) / t;  y ← (1 − β₁) z + β₁ x

    The parameter holds y, slot ``momentum`` holds z (it starts as a copy of the parameter); x is what to evaluate with.

    Source: Defazio et al. 2024, https://arxiv.org/abs/2405.15682. As in Keras the average weighs each step by 1/t; the
    authors' code weighs by the square of the learning rate.
    """
    momentum, velocity = slots
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    average = (param - s.one_minus_beta_1 * momentum) * s.one_over_beta_1
    momentum = momentum - s.learning_rate * grad / (sqrt(velocity * s.velocity_weight) + s.epsilon)
    average = average + (momentum - average) * s.average_weight
    return s.one_minus_beta_1 * momentum + s.beta_1 * average, (momentum, velocity)


class ScheduleFreeAverageScalars(NamedTuple):
    """What `schedule_free_average` receives."""

    one_minus_beta_1: float
    one_over_beta_1: float


@rule(ScheduleFreeAverageScalars, slots=_SLOTS)
def schedule_free_average(param, grad, slots, s):
    """The average x = (y − (1 − β₁) z) / β₁ from the parameter y and slot z: the weights to evaluate with."""
    momentum, velocity = slots
    return (param - s.one_minus_beta_1 * momentum) * s.one_over_beta_1, (momentum, velocity)


class AuthorsScheduleFreeScalars(NamedTuple):
    """What `authors_schedule_free_adamw` receives."""

    learning_rate: float  # η, warmed up
    one_minus_beta_2: float
    velocity_weight: float  # 1 / (1 − β₂ᵗ)
    average_weight: float  # c, the share of this step in the average
    descent: float  # η (1 − β₁ (1 − c))
    epsilon: float
    weight_decay: float


@rule(AuthorsScheduleFreeScalars, slots=_SLOTS)
def authors_schedule_free_adamw(param, grad, slots, s):
    """`schedule_free_adamw` as its authors publish it for PyTorch: x is never formed.

    v as Adam;  u = g / (√(v / (1 − β₂ᵗ)) + ε) + λ y;  y ← y + (z − y) c − η (1 − β₁ (1 − c)) u;  z ← z − η u

    Source: https://github.com/facebookresearch/schedule_free, AdamWScheduleFreeReference and AdamWScheduleFree.
    """
    momentum, velocity = slots
    velocity = mean_square(velocity, grad, s.one_minus_beta_2)
    direction = grad / (sqrt(velocity * s.velocity_weight) + s.epsilon) + s.weight_decay * param
    param = param + (momentum - param) * s.average_weight - s.descent * direction
    return param, (momentum - s.learning_rate * direction, velocity)
