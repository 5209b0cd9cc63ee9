"""Sums whose bits do not depend on threads or on the width of vector registers."""

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import folded
from ..maths import maximum

LANES = 128
"""Partial sums kept side by side. A plain float64 sum is one chain of additions, and four times slower."""

ROW_LANES = 8 * LANES
"""Partial sums of several rows."""

HALF = LANES // 2
"""Lanes that rows of so many columns reach."""

NARROW = LANES // 4 - 1
"""Columns of rows that are summed side by side: too few for vectors within a row."""


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
    lanes[:LANES] = 0.0
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
    return folded(lanes, LANES)


@callee
def sums_of_rows(values, columns, sums, lanes):
    """`sum_of` each row of so many columns, into ``sums``; ``lanes``: `ROW_LANES` float64."""
    _sums_of_rows(_itself, values, columns, values.dtype.type(1), sums, lanes)


@callee
def sums_of_squared_rows(values, columns, scale, sums, lanes):
    """`sum_of_squares` of each row of so many columns, into ``sums``; ``lanes``: `ROW_LANES` float64."""
    _sums_of_rows(_square, values, columns, scale, sums, lanes)


@callee
def _sums_of_rows(term, values, columns, scale, sums, lanes):
    if columns > LANES:
        for i in range(sums.size):
            sums[i] = _sum(term, values[i * columns : (i + 1) * columns], scale, lanes)
    elif columns > NARROW:
        _sums_of_short_rows(term, values, columns, scale, sums, lanes)
    elif columns <= 4:
        _sums_of_few(term, values, columns, scale, sums)
    else:
        together = ROW_LANES // columns
        for i in range(0, sums.size, together):
            own = sums[i : i + together]
            _sums_of_narrow_rows(term, values[i * columns :], columns, scale, own, lanes)


@callee
def _sums_of_short_rows(term, values, columns, scale, sums, lanes):
    """Each row by itself; the lanes that it does not reach stay at zero."""
    lanes[:LANES] = 0.0
    for i in range(sums.size):
        for j in range(columns):  # by indices, since a slice costs as much as the sum
            lanes[j] = 0.0 + term(np.float64(values[i * columns + j] * scale))
        sums[i] = folded(lanes, HALF) if columns <= HALF else folded(lanes, LANES)


@callee
def _sums_of_few(term, values, columns, scale, sums):
    """Rows of one to four columns; constant distances make vectors of several rows."""
    if columns == 1:
        for i in range(sums.size):
            sums[i] = _term_at(term, values, i, scale)
    elif columns == 2:
        for i in range(sums.size):
            sums[i] = _term_at(term, values, 2 * i, scale) + _term_at(term, values, 2 * i + 1, scale)
    elif columns == 3:
        for i in range(sums.size):
            even = _term_at(term, values, 3 * i, scale) + _term_at(term, values, 3 * i + 2, scale)
            sums[i] = even + _term_at(term, values, 3 * i + 1, scale)
    else:
        for i in range(sums.size):
            even = _term_at(term, values, 4 * i, scale) + _term_at(term, values, 4 * i + 2, scale)
            sums[i] = even + (_term_at(term, values, 4 * i + 1, scale) + _term_at(term, values, 4 * i + 3, scale))


@inlined_callee
def _term_at(term, values, i, scale):
    return 0.0 + term(np.float64(values[i] * scale))


@callee
def _sums_of_narrow_rows(term, values, columns, scale, sums, lanes):
    """All rows together, a lane of each beside that of the next."""
    rows = sums.size
    for j in range(columns):
        for i in range(rows):
            lanes[j * rows + i] = 0.0 + term(np.float64(values[i * columns + j] * scale))
    width = LANES // 2
    while width:
        upper = lanes[width * rows : min(2 * width, columns) * rows]
        for i in range(upper.size):
            lanes[i] += upper[i]
        width //= 2
    for i in range(rows):
        sums[i] = lanes[i]


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
