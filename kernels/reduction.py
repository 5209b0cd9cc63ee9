"""Sums whose bits do not depend on threads or on the width of vector registers."""

import numpy as np

from ._jit import callee

LANES = 128
"""Partial sums kept side by side. A plain float64 sum is one chain of additions and four times slower."""


@callee
def sum_of_squares(values, scale, lanes):
    """Sum of ``(values * scale) ** 2``, the product in the values' dtype, squares and sum in float64."""
    lanes[:] = 0.0
    whole = values.size - values.size % LANES
    for start in range(0, whole, LANES):
        block = values[start : start + LANES]
        for j in range(LANES):
            x = np.float64(block[j] * scale)
            lanes[j] += x * x
    rest = values[whole:]
    for j in range(rest.size):
        x = np.float64(rest[j] * scale)
        lanes[j] += x * x
    return _in_order(lanes)


@callee
def sum_of(values, lanes):
    """Sum of ``values`` in float64."""
    lanes[:] = 0.0
    whole = values.size - values.size % LANES
    for start in range(0, whole, LANES):
        block = values[start : start + LANES]
        for j in range(LANES):
            lanes[j] += np.float64(block[j])
    rest = values[whole:]
    for j in range(rest.size):
        lanes[j] += np.float64(rest[j])
    return _in_order(lanes)


@callee
def nonfinite(values, scale, lanes):
    """Zero if all ``values * scale`` are finite, else NaN: the sum of ``x - x``."""
    lanes[:] = 0.0
    whole = values.size - values.size % LANES
    for start in range(0, whole, LANES):
        block = values[start : start + LANES]
        for j in range(LANES):
            x = np.float64(block[j] * scale)
            lanes[j] += x - x
    rest = values[whole:]
    for j in range(rest.size):
        x = np.float64(rest[j] * scale)
        lanes[j] += x - x
    return _in_order(lanes)


@callee
def _in_order(lanes):
    total = 0.0
    for j in range(lanes.size):
        total += lanes[j]
    return total
