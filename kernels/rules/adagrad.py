"""Adagrad."""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import constant, plus_share, sqrt
from ..registry import Slot, per_row_rule, rule, scalars_for

_SLOTS = {"accumulator": Slot(starts_as="initial_accumulator_value", squares=True)}


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
@callee
def coupled_adagrad_scalars(s, t):
    """The rate decays with the number of updates."""
    return CoupledAdagradScalars(s.learning_rate / (1.0 + (t - 1) * s.lr_decay), s.epsilon, s.weight_decay)


@rule(CoupledAdagradScalars, slots=_SLOTS)
def coupled_adagrad(param, grad, slots, s):
    """`outside_adagrad` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html.
    """
    return outside_adagrad(param, plus_share(grad, param, s.weight_decay), slots, s)


class RowwiseAdagradScalars(NamedTuple):
    """What `rowwise_adagrad` receives."""

    learning_rate: float
    epsilon: float


_PER_ROW = {"accumulator": Slot(starts_as="initial_accumulator_value", per_row=True)}


@callee
def rowwise_adagrad(param, grad, slots, s):
    """Adagrad with one accumulator per row of n elements: a ← a + Σ g² / n;  p ← p − η g / (√a + ε).

    Source: Gupta, Bengio & Weston 2014, https://jmlr.org/papers/v15/gupta14a.html; as FBGEMM's exact row-wise Adagrad
    and torchrec's, https://pytorch.org/torchrec/torchrec.optim.html. Keras has none.
    """
    return (grad * grad,), ()


@callee
def _rate_of_row(sums, n, slots, s):
    (accumulator,) = slots
    accumulator = accumulator + constant(sums[0] / n, accumulator)
    return s.learning_rate / (sqrt(accumulator) + s.epsilon), (accumulator,)


@callee
def _move(param, grad, slots, rate, s):
    return param - rate * grad


per_row_rule(RowwiseAdagradScalars, rowwise_adagrad, _rate_of_row, _move, terms=1, slots=_PER_ROW)


class CoupledRowwiseAdagradSettings(CoupledAdagradSettings):
    """Hyper-parameters of `coupled_rowwise_adagrad`."""


class CoupledRowwiseAdagradScalars(CoupledAdagradScalars):
    """What `coupled_rowwise_adagrad` receives."""


@scalars_for(CoupledRowwiseAdagradSettings)
def coupled_rowwise_adagrad_scalars(s, t):
    """The same as `coupled_adagrad_scalars`."""
    return CoupledRowwiseAdagradScalars(*coupled_adagrad_scalars(s, t))


def coupled_rowwise_adagrad(param, grad, slots, s):
    """`rowwise_adagrad` with weight decay in the gradient, as in torchrec: g ← g + λ p."""
    return rowwise_adagrad(param, plus_share(grad, param, s.weight_decay), slots, s)


def _coupled_move(param, grad, slots, rate, s):
    return _move(param, plus_share(grad, param, s.weight_decay), slots, rate, s)


per_row_rule(
    CoupledRowwiseAdagradScalars, coupled_rowwise_adagrad, _rate_of_row, _coupled_move, terms=1, slots=_PER_ROW
)
