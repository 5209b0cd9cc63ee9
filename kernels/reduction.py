"""Sums whose bits do not depend on threads or on the width of vector registers."""

import numpy as np

from ._jit import callee, inlined_callee
from .maths import maximum

LANES = 128
"""Partial sums kept side by side. A plain float64 sum is one chain of additions, and four times slower."""


@callee
def sum_of_squares(values, scale, lanes):
    """Sum of ``(values * scale) ** 2``, the product in the values' dtype, squares and sum in float64."""
    return _sum(_square, values, scale, lanes)


@callee
def sum_of(values, lanes):
    """Sum of ``values`` in float64."""
    return _sum(_itself, values, values.dtype.type(1), lanes)


@callee
def nonfinite(values, scale, lanes):
    """Zero if all ``values * scale`` are finite, else NaN: the sum of ``x - x``."""
    return _sum(_nothing, values, scale, lanes)


@callee
def _square(x):
    return x * x


@callee
def _itself(x):
    return x


@callee
def _nothing(x):
    return x - x


@callee
def _sum(term, values, scale, lanes):
    """Sum of ``term(values * scale)``. Four blocks at a time: lanes are loaded and stored as often as values."""
    if values.size <= LANES // 2:
        return _sum_of_few(term, values, scale, lanes)
    lanes[:] = 0.0
    step = 4 * LANES
    whole = values.size - values.size % step
    for start in range(0, whole, step):
        first, second = values[start : start + LANES], values[start + LANES : start + 2 * LANES]
        third, fourth = values[start + 2 * LANES : start + 3 * LANES], values[start + 3 * LANES : start + step]
        for j in range(LANES):
            left = term(np.float64(first[j] * scale)) + term(np.float64(second[j] * scale))
            right = term(np.float64(third[j] * scale)) + term(np.float64(fourth[j] * scale))
            lanes[j] += left + right
    for start in range(whole, values.size, LANES):
        rest = values[start : start + LANES]
        for j in range(rest.size):
            lanes[j] += term(np.float64(rest[j] * scale))
    return _folded(lanes, LANES)


@callee
def _sum_of_few(term, values, scale, lanes):
    """The same bits, without the lanes that would stay at zero."""
    return _sum_of_span(term, values, 0, values.size, scale, lanes, _lanes_for(values.size))


@callee
def _lanes_for(size):
    """The power of two that is not less."""
    used = 1
    while used < size:
        used *= 2
    return used


@inlined_callee
def _sum_of_span(term, values, first, size, scale, lanes, used):
    """Sum of a few values from ``first`` on; by indices, since a slice costs as much as the sum."""
    for j in range(size):
        lanes[j] = 0.0 + term(np.float64(values[first + j] * scale))
    for j in range(size, used):
        lanes[j] = 0.0
    return _folded(lanes, used)


@callee
def sums_of_rows(values, columns, sums, lanes):
    """`sum_of` each row of so many columns, into ``sums``."""
    _sums_of_rows(_itself, values, columns, values.dtype.type(1), sums, lanes)


@callee
def sums_of_squared_rows(values, columns, scale, sums, lanes):
    """`sum_of_squares` of each row of so many columns, into ``sums``."""
    _sums_of_rows(_square, values, columns, scale, sums, lanes)


@callee
def _sums_of_rows(term, values, columns, scale, sums, lanes):
    if columns > LANES // 2:
        for i in range(sums.size):
            sums[i] = _sum(term, values[i * columns : (i + 1) * columns], scale, lanes)
        return
    used = _lanes_for(columns)
    for i in range(sums.size):
        sums[i] = _sum_of_span(term, values, i * columns, columns, scale, lanes, used)


@inlined_callee
def _folded(lanes, used):
    """The sum of the lanes, halves added to halves: seven vector additions instead of a chain of 128."""
    width = used // 2
    while width:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]


@callee
def row_sum(values, lanes):
    """Sum of ``values`` in float64; short rows without the cost of setting up the lanes."""
    if values.size >= LANES:
        return sum_of(values, lanes)
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i])
    return total


@callee
def row_maximum(values, best):
    """The largest of ``values``; NaN if one is NaN; -inf of none.

    ``best`` is scratch for maxima kept side by side, a power of two of them: one alone is a chain that does not
    vectorise. Four blocks at a time, as in `_sum`.
    """
    best[:] = -np.inf
    width = best.size
    step = 4 * width
    whole = values.size - values.size % step
    for start in range(0, whole, step):
        first, second = values[start : start + width], values[start + width : start + 2 * width]
        third, fourth = values[start + 2 * width : start + 3 * width], values[start + 3 * width : start + step]
        for j in range(width):
            larger = maximum(maximum(first[j], second[j]), maximum(third[j], fourth[j]))
            best[j] = maximum(best[j], larger)
    for start in range(whole, values.size, width):
        rest = values[start : start + width]
        for j in range(rest.size):
            best[j] = maximum(best[j], rest[j])
    width //= 2
    while width:
        for j in range(width):
            best[j] = maximum(best[j], best[j + width])
        width //= 2
    return best[0]
