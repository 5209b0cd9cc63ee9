"""Adadelta. (1 − ρ) g² is ((1 − ρ) g) g, as in torch: it may be finite where g² is not."""

from typing import NamedTuple

from ..compile._jit import callee
from ..maths import plus_share, sqrt
from ..registry import rule

_SLOTS = "accumulated_grad", "accumulated_delta_var"


class AdadeltaScalars(NamedTuple):
    """What `adadelta` receives."""

    learning_rate: float
    rho: float
    one_minus_rho: float
    epsilon: float


@rule(AdadeltaScalars, slots=_SLOTS, squares=_SLOTS)
@callee
def adadelta(param, grad, slots, s):
    """Adadelta: steps in the unit of the parameter.

    a ← ρ a + (1 − ρ) g²;  d = √(x + ε) g / √(a + ε);  x ← ρ x + (1 − ρ) d²;  p ← p − η d

    Source: Zeiler 2012, https://arxiv.org/abs/1212.5701 (η = 1 there). Slot x holds steps before the factor η.
    """
    accumulated_grad, accumulated_delta_var = slots
    accumulated_grad = s.rho * accumulated_grad + s.one_minus_rho * grad * grad
    delta = sqrt(accumulated_delta_var + s.epsilon) * grad / sqrt(accumulated_grad + s.epsilon)
    accumulated_delta_var = s.rho * accumulated_delta_var + s.one_minus_rho * (delta * delta)
    return param - s.learning_rate * delta, (accumulated_grad, accumulated_delta_var)


class CoupledAdadeltaScalars(NamedTuple):
    """What `coupled_adadelta` receives."""

    learning_rate: float
    rho: float
    one_minus_rho: float
    epsilon: float
    weight_decay: float


@rule(CoupledAdadeltaScalars, slots=_SLOTS, squares=_SLOTS)
def coupled_adadelta(param, grad, slots, s):
    """`adadelta` with weight decay in the gradient, as in torch: g ← g + λ p.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html.
    """
    return adadelta(param, plus_share(grad, param, s.weight_decay), slots, s)
