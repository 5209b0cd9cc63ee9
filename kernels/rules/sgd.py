"""Gradient descent: plain, with momentum, with Nesterov's momentum."""

from typing import NamedTuple

from ..registry import rule


class SgdScalars(NamedTuple):
    """What `sgd` receives."""

    learning_rate: float


@rule(SgdScalars)
def sgd(param, grad, slots, s):
    """Gradient descent: p ← p − η g. Source: Robbins & Monro 1951, https://doi.org/10.1214/aoms/1177729586."""
    return param - s.learning_rate * grad, slots


class MomentumScalars(NamedTuple):
    """What `momentum_sgd` receives."""

    learning_rate: float
    momentum: float


@rule(MomentumScalars)
def momentum_sgd(param, grad, slots, s):
    """Gradient descent with momentum: b ← μ b − η g;  p ← p + b.

    Source: Polyak 1964, https://doi.org/10.1016/0041-5553(64)90137-5. As in Keras the learning rate is inside the
    slot; torch keeps raw gradients there, which differs when the rate changes.
    """
    (momentum,) = slots
    momentum = s.momentum * momentum - s.learning_rate * grad
    return param + momentum, (momentum,)


class NesterovScalars(NamedTuple):
    """What `nesterov_sgd` receives."""

    learning_rate: float
    momentum: float


@rule(NesterovScalars)
def nesterov_sgd(param, grad, slots, s):
    """Gradient descent with Nesterov's momentum: b ← μ b − η g;  p ← p + μ b − η g, with the new b.

    Source: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html, in the variables of Bengio et al.
    2012, https://arxiv.org/abs/1212.0901, as in Keras.
    """
    (momentum,) = slots
    descent = s.learning_rate * grad
    momentum = s.momentum * momentum - descent
    return param + s.momentum * momentum - descent, (momentum,)
