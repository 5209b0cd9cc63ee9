"""Losses whose elements depend on the whole row: anchor, terms, what follows from their sums, derivative.

- ``anchor(target, prediction, s)``: elementwise; the row's sum or maximum of it is the *anchor*, 0 if there is none;
- ``terms(target, prediction, anchor, s) -> (term, term, term)``: elementwise, to be summed over the row in float64;
- ``between(sums, anchor, s) -> (value, first, second)``: once per row, in float64;
- ``derivative(target, prediction, anchor, first, second, s)``: elementwise, by the prediction.
"""

from typing import Any, NamedTuple

from ..compile._jit import inlined_callee
from ..maths import constant, log, maximum
from .elementwise import product, zero_or_nan


class RowLoss(NamedTuple):
    """The functions that make up a loss."""

    terms: Any
    between: Any
    derivative: Any
    anchor: Any = None
    fold: str = "sum"  # or "maximum", or "none" where there is no anchor


# -- categorical crossentropy of probabilities: p = clip(q / Σq, ε, 1 − ε), −Σ t log p ---------------------------------


@inlined_callee
def prediction_itself(target, prediction, s):
    """Anchor: the sum of the predictions."""
    return prediction


@inlined_callee
def crossentropy_terms(target, prediction, anchor, s):
    """−t log p, and t where p was not clipped. No logarithm where the target is zero, as in most of a one-hot row."""
    zero = constant(0, prediction)
    share = prediction / anchor
    if target == zero:
        return zero, zero, zero
    low, high = s.epsilon, constant(1, prediction) - s.epsilon
    p = high if share > high else maximum(share, low)
    return -target * log(p), zero if share < low or share > high else target, zero


@inlined_callee
def crossentropy_between(sums, anchor, s):
    """The value, and the targets whose share of the sum moves."""
    return sums[0], sums[1], 0.0


@inlined_callee
def crossentropy_derivative(target, prediction, anchor, moving, unused, s):
    """(moving − t / p) / Σq, the second part only where p was not clipped."""
    zero = constant(0, prediction)
    share = prediction / anchor
    clipped = target == zero or share < s.epsilon or share > constant(1, prediction) - s.epsilon
    return (moving - (zero_or_nan(target) if clipped else target / share)) / anchor


categorical_crossentropy = RowLoss(
    crossentropy_terms, crossentropy_between, crossentropy_derivative, anchor=prediction_itself
)


# -- categorical hinge: max(max (1 − t) q − Σ t q + 1, 0) --------------------------------------------------------------


@inlined_callee
def wrong_score(target, prediction, s):
    """Anchor: the largest score of a wrong class."""
    return product(constant(1, prediction) - target, prediction)


@inlined_callee
def hinge_terms(target, prediction, anchor, s):
    """t q, and 1 where the largest wrong score is."""
    zero, one = constant(0, prediction), constant(1, prediction)
    return product(target, prediction), one if product(one - target, prediction) == anchor else zero, zero


@inlined_callee
def hinge_between(sums, anchor, s):
    """The value, whether there is one, and the share of each of the largest wrong scores."""
    margin = anchor - sums[0] + 1.0
    if margin <= 0.0:
        return 0.0, 0.0, 0.0
    active = 1.0 if margin == margin else margin
    return margin, active, active / sums[1]


@inlined_callee
def hinge_derivative(target, prediction, anchor, active, share, s):
    """(1 − t) / ties at the largest wrong score, − t everywhere."""
    wrong = constant(1, prediction) - target
    tied = product(wrong, prediction) == anchor
    return (wrong * share if tied else constant(0, prediction)) - active * target


categorical_hinge = RowLoss(hinge_terms, hinge_between, hinge_derivative, anchor=wrong_score, fold="maximum")
