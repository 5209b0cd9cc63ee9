"""Circle loss: log(1 + Σ e^n Σ e^s) over the pairs of a row, s of the same label and n of others.

With d = max(1 − similarity, 0) and margin m: s = γ max(m + d, 0) (d − m), n = γ max(1 + m − d, 0) (1 − m − d).
"""

import math
from typing import NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import scalars_at
from ..cpu.rowwise import GRADIENT, row_of, table_of
from ..maths import constant, exp_decreasing, maximum

DTYPE = np.float32  # replaced in each specialisation (see rowwise.py)

ALL_PAIRS = 4
"""Bit of a launch's options: that a row is like the reference of the same number counts too."""


class Scalars(NamedTuple):
    """The scalars of the loss."""

    gamma: float
    margin: float


def circle(first, last, handle, options):
    """Rows ``first`` to ``last``. Requires labels [rows], labels [columns], similarities [rows, columns], the scalars,
    values [rows]. Writes the values; and their derivatives over the similarities, when the options ask for it.
    """
    labels, references = row_of(handle, 0, np.int64), row_of(handle, 1, np.int64)
    similarities, s = table_of(handle, 2, DTYPE), scalars_at(Scalars, table_of(handle, 3, DTYPE), 0, 0)
    values, exponents = row_of(handle, 4, DTYPE), np.empty(similarities.shape[1], DTYPE)
    for row in range(first, last):
        left_out = -1 if options & ALL_PAIRS else row
        similarity, label = similarities[row], labels[row]
        _exponents(similarity, references, label, exponents, s)
        peak, mass = _sum_of_powers(exponents, references, label, True, left_out)
        peak_of_others, mass_of_others = _sum_of_powers(exponents, references, label, False, left_out)
        total = peak + math.log(mass) + peak_of_others + math.log(mass_of_others)
        small = math.exp(-abs(total))
        values[row] = max(total, 0.0) + math.log1p(small) if total == total else total
        if options & GRADIENT:
            share = (1.0 if total > 0.0 else small) / (1.0 + small)
            for j in range(similarity.size):
                same = references[j] == label
                own = exponents[j] - DTYPE(peak if same else peak_of_others)
                part = np.float64(exp_decreasing(own)) / (mass if same else mass_of_others) * share
                similarity[j] = 0 if same and j == left_out else -part * _steepness(similarity[j], same, s)


@callee
def _distance(similarity):
    return maximum(constant(1, similarity) - similarity, constant(0, similarity))


@callee
def _exponents(similarity, references, label, exponents, s):
    zero, one = constant(0, s.margin), constant(1, s.margin)
    for j in range(exponents.size):
        distance = _distance(similarity[j])
        if references[j] == label:
            exponents[j] = s.gamma * maximum(s.margin + distance, zero) * (distance - s.margin)
        else:
            exponents[j] = s.gamma * maximum(one + s.margin - distance, zero) * (one - s.margin - distance)


@callee
def _steepness(similarity, same, s):
    """The derivative of an exponent by its distance; 0 at distance 0, which does not move with the similarity."""
    zero, one, two = constant(0, similarity), constant(1, similarity), constant(2, similarity)
    distance = _distance(similarity)
    weight = s.margin + distance if same else one + s.margin - distance
    if distance <= zero or weight <= zero:
        return zero
    return two * s.gamma * (distance if same else distance - one)


@callee
def _sum_of_powers(exponents, references, label, same, left_out):
    """The largest exponent of the same label, or of others, and Σ e^(exponent − largest); of none, -inf and 0."""
    peak = -np.inf
    for j in range(exponents.size):
        if (references[j] == label) == same and not (same and j == left_out):
            peak = maximum(peak, np.float64(exponents[j]))
    total = 0.0
    for j in range(exponents.size):
        if (references[j] == label) == same and not (same and j == left_out):
            total += exp_decreasing(exponents[j] - exponents.dtype.type(peak))
    return peak, total
