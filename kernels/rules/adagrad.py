"""Adagrad."""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import plus_share, sqrt
from ..registry import Slot, rule, scalars_for

_SLOTS = {"accumulator": Slot(starts_as="initial_accumulator_value")}


class AdagradScalars(NamedTuple):
    """What `adagrad` receives."""

    learning_rate: float
    epsilon: float


@rule(AdagradScalars, slots=_SLOTS)
def adagrad(param, grad, slots, s):
    """Adagrad: a ← a + g²;  p ← p − η g / √(a + ε).

    Source: Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html. As in Keras ε is inside the root.
    """
    (accumulator,) = slots
    accumulator = accumulator + grad * grad
    return param - s.learning_rate * grad / sqrt(accumulator + s.epsilon), (accumulator,)


class OutsideAdagradScalars(AdagradScalars):
    """What `outside_adagrad` receives."""


@rule(OutsideAdagradScalars, slots=_SLOTS)
@callee
def outside_adagrad(param, grad, slots, s):
    """`adagrad` with ε outside the root, as in Keras 1.0.3 to 2.3: p ← p − η g / (√a + ε)."""
    (accumulator,) = slots
    accumulator = accumulator + grad * grad
    return param - s.learning_rate * grad / (sqrt(accumulator) + s.epsilon), (accumulator,)


class CoupledAdagradSettings(NamedTuple):
    """Hyper-parameters of `coupled_adagrad`."""

    learning_rate: float
    lr_decay: float
    epsilon: float
    weight_decay: float


class CoupledAdagradScalars(NamedTuple):
    """What `coupled_adagrad` receives."""

    learning_rate: float  # decayed: lr / (1 + (t - 1) lr_decay)
    epsilon: float
    weight_decay: float


@scalars_for(CoupledAdagradSettings)
def coupled_adagrad_scalars(s, t):
    """The rate decays with the number of updates."""
    return CoupledAdagradScalars(s.learning_rate / (1.0 + (t - 1) * s.lr_decay), s.epsilon, s.weight_decay)


@rule(CoupledAdagradScalars, slots=_SLOTS)
def coupled_adagrad(param, grad, slots, s):
    """`outside_adagrad` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html.
    """
    return outside_adagrad(param, plus_share(grad, param, s.weight_decay), slots, s)
