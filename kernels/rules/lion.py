"""Lion."""

from typing import NamedTuple

from ..maths import sign
from ..registry import rule


class LionScalars(NamedTuple):
    """What `lion` receives."""

    learning_rate: float
    beta_1: float
    one_minus_beta_1: float
    beta_2: float
    one_minus_beta_2: float


@rule(LionScalars, slots=("momentum",))
def lion(param, grad, slots, s):
    """Lion: steps of one size, in the direction of an interpolated momentum.

    p ← p − η sign(β₁ m + (1 − β₁) g);  then m ← β₂ m + (1 − β₂) g

    Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2; sign(0) = 0.
    """
    (momentum,) = slots
    direction = sign(s.beta_1 * momentum + s.one_minus_beta_1 * grad)
    momentum = s.beta_2 * momentum + s.one_minus_beta_2 * grad
    return param - s.learning_rate * direction, (momentum,)
