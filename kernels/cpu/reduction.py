"""Sums whose bits do not depend on threads or on the width of vector registers."""

import math

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.folds import LANES as LANES
from ..compile.folds import folded
from ..compile.folds import sum_of as sum_of
from ..compile.folds import sum_of_squares as sum_of_squares

ROW_LANES = 8 * LANES
"""Partial sums of several rows."""

HALF = LANES // 2
"""Lanes that rows of so many columns reach."""

NARROW = LANES // 4 - 1
"""Columns of rows that are summed side by side: too few for vectors within a row."""


@callee
def nonfinite(values, scale):
    """Zero if all ``values * scale`` are finite, else NaN."""
    for i in range(values.size):
        if not math.isfinite(values[i] * scale):
            return math.nan
    return 0.0


@callee
def _square(x):
    return x * x


@callee
def _itself(x):
    return x


@callee
def _sum_of(values, scale):
    return sum_of(values)


@callee
def sums_of_rows(values, columns, sums, lanes):
    """`sum_of` each row of so many columns, into ``sums``; ``lanes``: `ROW_LANES` float64."""
    _sums_of_rows(_itself, _sum_of, values, columns, values.dtype.type(1), sums, lanes)


@callee
def sums_of_squared_rows(values, columns, scale, sums, lanes):
    """`sum_of_squares` of each row of so many columns, into ``sums``; ``lanes``: `ROW_LANES` float64."""
    _sums_of_rows(_square, sum_of_squares, values, columns, scale, sums, lanes)


@callee
def _sums_of_rows(term, sum_row, values, columns, scale, sums, lanes):
    if columns > LANES:
        for i in range(sums.size):
            sums[i] = sum_row(values[i * columns : (i + 1) * columns], scale)
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
def row_sum(values):
    """Sum of ``values`` in float64; short rows without the cost of setting up the lanes."""
    if values.size >= LANES:
        return sum_of(values)
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i])
    return total
