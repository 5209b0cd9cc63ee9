"""RMSprop: plain, with momentum, centered, both.

(1 − ρ) g² is ((1 − ρ) g) g, as in torch: it may be finite where g² is not.
"""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import plus_share, sqrt, where
from ..registry import rule


class RMSpropScalars(NamedTuple):
    """What the RMSprop rules receive; those without momentum ignore it."""

    learning_rate: float
    rho: float
    one_minus_rho: float
    momentum: float
    epsilon: float


@rule(RMSpropScalars, slots=("velocity",), squares=("velocity",))
def rmsprop(param, grad, slots, s):
    """RMSprop: v ← ρ v + (1 − ρ) g²;  p ← p − η g / √(v + ε).

    Source: Tieleman & Hinton 2012, lecture 6.5, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf.
    As in Keras ε is inside the root; torch has it outside.
    """
    (velocity,) = slots
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    return param - s.learning_rate * grad / sqrt(velocity + s.epsilon), (velocity,)


class OutsideRMSpropScalars(RMSpropScalars):
    """What `outside_rmsprop` receives."""


@rule(OutsideRMSpropScalars, slots=("velocity",), squares=("velocity",))
@callee
def outside_rmsprop(param, grad, slots, s):
    """`rmsprop` with ε outside the root, as in Keras 1.0.3 to 2.3: p ← p − η g / (√v + ε)."""
    (velocity,) = slots
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    return param - s.learning_rate * grad / (sqrt(velocity) + s.epsilon), (velocity,)


class MomentumRMSpropScalars(RMSpropScalars):
    """What `momentum_rmsprop` receives."""


@rule(MomentumRMSpropScalars, slots=("velocity", "momentum"), squares=("velocity",))
def momentum_rmsprop(param, grad, slots, s):
    """RMSprop with momentum over the scaled steps: b ← μ b + η g / √(v + ε);  p ← p − b."""
    velocity, momentum = slots
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    momentum = s.momentum * momentum + s.learning_rate * grad / sqrt(velocity + s.epsilon)
    return param - momentum, (velocity, momentum)


@callee
def _variance(velocity, average):
    """The mean of squares less the square of the mean; infinite where the mean of squares is."""
    variance = velocity - average * average
    return where(variance == variance, variance, velocity)


class CenteredRMSpropScalars(RMSpropScalars):
    """What `centered_rmsprop` receives."""


@rule(CenteredRMSpropScalars, slots=("velocity", "average_gradient"), squares=("velocity",))
def centered_rmsprop(param, grad, slots, s):
    """RMSprop by the estimated variance: a ← ρ a + (1 − ρ) g;  p ← p − η g / √(v − a² + ε).

    Source: Graves 2013, https://arxiv.org/abs/1308.0850, equations 38 to 45.
    """
    velocity, average = slots
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    average = s.rho * average + s.one_minus_rho * grad
    return param - s.learning_rate * grad / sqrt(_variance(velocity, average) + s.epsilon), (velocity, average)


class CenteredMomentumRMSpropScalars(RMSpropScalars):
    """What `centered_momentum_rmsprop` receives."""


@rule(CenteredMomentumRMSpropScalars, slots=("velocity", "momentum", "average_gradient"), squares=("velocity",))
def centered_momentum_rmsprop(param, grad, slots, s):
    """`centered_rmsprop` with momentum over the scaled steps."""
    velocity, momentum, average = slots
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    average = s.rho * average + s.one_minus_rho * grad
    step = s.learning_rate * grad / sqrt(_variance(velocity, average) + s.epsilon)
    momentum = s.momentum * momentum + step
    return param - momentum, (velocity, momentum, average)


class CoupledRMSpropScalars(NamedTuple):
    """What the RMSprop rules of torch receive; those without momentum ignore it."""

    learning_rate: float
    rho: float
    one_minus_rho: float
    momentum: float
    epsilon: float
    weight_decay: float


@rule(CoupledRMSpropScalars, slots=("velocity",), squares=("velocity",))
def coupled_rmsprop(param, grad, slots, s):
    """`outside_rmsprop` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html.
    """
    return outside_rmsprop(param, plus_share(grad, param, s.weight_decay), slots, s)


class CoupledMomentumRMSpropScalars(CoupledRMSpropScalars):
    """What `coupled_momentum_rmsprop` receives."""


@rule(CoupledMomentumRMSpropScalars, slots=("velocity", "momentum"), squares=("velocity",))
def coupled_momentum_rmsprop(param, grad, slots, s):
    """Move by a momentum, the rate outside of it: b ← μ b + g / (√v + ε);  p ← p − η b."""
    velocity, momentum = slots
    grad = plus_share(grad, param, s.weight_decay)
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    momentum = s.momentum * momentum + grad / (sqrt(velocity) + s.epsilon)
    return param - s.learning_rate * momentum, (velocity, momentum)


class CoupledCenteredRMSpropScalars(CoupledRMSpropScalars):
    """What `coupled_centered_rmsprop` receives."""


@rule(CoupledCenteredRMSpropScalars, slots=("velocity", "average_gradient"), squares=("velocity",))
def coupled_centered_rmsprop(param, grad, slots, s):
    """Divide by the estimated deviation: a ← a + (g − a)(1 − ρ);  p ← p − η g / (√(v − a²) + ε)."""
    velocity, average = slots
    grad = plus_share(grad, param, s.weight_decay)
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    average = average + (grad - average) * s.one_minus_rho
    return param - s.learning_rate * grad / (sqrt(_variance(velocity, average)) + s.epsilon), (velocity, average)


class CoupledCenteredMomentumRMSpropScalars(CoupledRMSpropScalars):
    """What `coupled_centered_momentum_rmsprop` receives."""


@rule(CoupledCenteredMomentumRMSpropScalars, slots=("velocity", "momentum", "average_gradient"), squares=("velocity",))
def coupled_centered_momentum_rmsprop(param, grad, slots, s):
    """`coupled_centered_rmsprop` with momentum, the rate outside of it."""
    velocity, momentum, average = slots
    grad = plus_share(grad, param, s.weight_decay)
    velocity = s.rho * velocity + s.one_minus_rho * grad * grad
    average = average + (grad - average) * s.one_minus_rho
    momentum = s.momentum * momentum + grad / (sqrt(_variance(velocity, average)) + s.epsilon)
    return param - s.learning_rate * momentum, (velocity, momentum, average)
