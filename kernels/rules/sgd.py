"""Gradient descent: plain, with momentum, with Nesterov's momentum."""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import plus_share
from ..registry import rule, scalars_for


class SgdScalars(NamedTuple):
    """What `sgd` receives."""

    learning_rate: float


@rule(SgdScalars)
@callee
def sgd(param, grad, slots, s):
    """Gradient descent: p ← p − η g. Source: Robbins & Monro 1951, https://doi.org/10.1214/aoms/1177729586."""
    return param - s.learning_rate * grad, slots


class MomentumScalars(NamedTuple):
    """What `momentum_sgd` receives."""

    learning_rate: float
    momentum: float


@rule(MomentumScalars, slots=("momentum",))
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


@rule(NesterovScalars, slots=("momentum",))
def nesterov_sgd(param, grad, slots, s):
    """Gradient descent with Nesterov's momentum: b ← μ b − η g;  p ← p + μ b − η g, with the new b.

    Source: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html, in the variables of Bengio et al.
    2012, https://arxiv.org/abs/1212.0901, as in Keras.
    """
    (momentum,) = slots
    descent = s.learning_rate * grad
    momentum = s.momentum * momentum - descent
    return param + s.momentum * momentum - descent, (momentum,)


class CoupledSgdSettings(NamedTuple):
    """Hyper-parameters of `coupled_sgd`."""

    learning_rate: float
    momentum: float
    dampening: float
    weight_decay: float


class CoupledMomentumSettings(CoupledSgdSettings):
    """Hyper-parameters of `coupled_momentum_sgd`."""


class CoupledNesterovSettings(CoupledSgdSettings):
    """Hyper-parameters of `coupled_nesterov_sgd`."""


class CoupledSgdScalars(NamedTuple):
    """What the SGD rules of torch receive; `coupled_sgd` ignores what is about momentum."""

    learning_rate: float
    momentum: float
    grad_weight: float  # 1 - dampening; 1 at the first update
    weight_decay: float


@scalars_for(CoupledSgdSettings)
@callee
def coupled_sgd_scalars(s, t):
    """The dampening begins at the second update."""
    return CoupledSgdScalars(s.learning_rate, s.momentum, 1.0 if t == 1 else 1.0 - s.dampening, s.weight_decay)


@rule(CoupledSgdScalars)
def coupled_sgd(param, grad, slots, s):
    """Gradient descent with weight decay in the gradient, as in torch: g ← g + λ p;  p ← p − η g."""
    return sgd(param, plus_share(grad, param, s.weight_decay), slots, s)


class CoupledMomentumScalars(CoupledSgdScalars):
    """What `coupled_momentum_sgd` receives."""


@scalars_for(CoupledMomentumSettings)
def coupled_momentum_scalars(s, t):
    """The same as `coupled_sgd_scalars`."""
    return CoupledMomentumScalars(*coupled_sgd_scalars(s, t))


@rule(CoupledMomentumScalars, slots=("momentum",))
def coupled_momentum_sgd(param, grad, slots, s):
    """Momentum as in torch, over raw gradients: g ← g + λ p;  b ← μ b + (1 − d) g;  p ← p − η b.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html. The dampening d begins at the second
    update. Keras has the learning rate inside the slot.
    """
    (momentum,) = slots
    grad = plus_share(grad, param, s.weight_decay)
    momentum = s.momentum * momentum + s.grad_weight * grad
    return param - s.learning_rate * momentum, (momentum,)


class CoupledNesterovScalars(CoupledSgdScalars):
    """What `coupled_nesterov_sgd` receives."""


@scalars_for(CoupledNesterovSettings)
def coupled_nesterov_scalars(s, t):
    """The same as `coupled_sgd_scalars`."""
    return CoupledNesterovScalars(*coupled_sgd_scalars(s, t))


@rule(CoupledNesterovScalars, slots=("momentum",))
def coupled_nesterov_sgd(param, grad, slots, s):
    """`coupled_momentum_sgd` that looks ahead: p ← p − η (g + μ b), with the new b."""
    (momentum,) = slots
    grad = plus_share(grad, param, s.weight_decay)
    momentum = s.momentum * momentum + s.grad_weight * grad
    return param - s.learning_rate * (grad + s.momentum * momentum), (momentum,)
