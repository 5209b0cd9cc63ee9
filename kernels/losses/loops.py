"""The loops around the losses. All have the signature ``(first, last, handle, options)`` of cpu/loops.py.

Each *requires* the arrays of `Arrays`, C-contiguous, and that the gradient overlaps none of the others, except that it
may be the predictions themselves. It *writes* the sums, and the gradient when the options ask for it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.folds import largest_of_row, maximum_of_row, sum_row, sum_row_products
from ..compile.intrinsics import arrays_at, scalars_at, store
from ..cpu.rowwise import BLOCK, GRADIENT, WEIGHTED, Nothing, apart, copy_back, row_of, table_of
from ..maths import exp_decreasing, maximum

TERMS = (0, 1, 2)
"""Terms of a row loss, as rows of a table of addresses."""

SCALE, FACTOR, SHIFT, OWN = range(4)
"""Columns of the scalars table: factor on every derivative; what a target is multiplied by and what is added then; the
formula's own scalars."""

IGNORED = -1
"""The label of a row that counts for nothing."""

# Replaced in each specialisation (see rowwise.py).
DTYPE = np.float32
SCALARS = Nothing
FORMULA: Any = None
ANCHOR: Any = None
FOLD: Any = None
BETWEEN: Any = None
DERIVATIVE: Any = None


class Arrays(NamedTuple):
    """What a loss works on, in the order in which the handle lists it."""

    target: Any  # [rows, columns] in the compute dtype, or int64 [rows] for labels
    prediction: Any  # [rows, columns]
    gradient: Any  # [rows, columns]; not touched unless asked for
    weights: Any  # [rows]; not touched unless asked for
    table: Any  # [1, columns of the scalars table]
    sums: Any  # float64 [rows, pieces]: the sum of each row, in as many pieces as it has blocks
    values: Any  # [rows]; written by `finish`


@callee
def arrays_of(handle, dtype):
    """All but the targets."""
    weights = row_of(handle, 3, dtype)
    table, sums = table_of(handle, 4, dtype), table_of(handle, 5, np.float64)
    return table_of(handle, 1, dtype), table_of(handle, 2, dtype), weights, table, sums


# -- elementwise losses ------------------------------------------------------------------------------------------------


def elements(first, last, handle, options):
    """Blocks ``first`` to ``last`` of an elementwise loss: as many short rows, or as much of one long row, as fit."""
    target = table_of(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    rows, columns = prediction.shape
    pieces = sums.shape[1]
    target, prediction, gradient, sums = target.ravel(), prediction.ravel(), gradient.ravel(), sums.ravel()
    s = scalars_at(SCALARS, table, 0, OWN)
    values, scratch = np.empty(BLOCK, DTYPE), np.empty(BLOCK, DTYPE)
    spans = max(1, BLOCK // columns)
    for block in range(first, last):
        low, high = block * spans, min((block + 1) * spans, rows * pieces)
        start, stop = _start(low, columns, pieces), _start(high, columns, pieces)
        t, p, v = target[start:stop], prediction[start:stop], values[: stop - start]
        if options & GRADIENT:
            own = gradient[start:stop]
            slopes = apart(own, p, scratch)
            _values_and_derivatives(FORMULA, t, p, slopes, v, s, table)
            copy_back(slopes, own)
        else:
            _values(FORMULA, t, p, v, s, table)
        for span in range(low, high):
            a, b = _start(span, columns, pieces), _start(span + 1, columns, pieces)
            sums[span] = sum_row(values[a - start : b - start])
            if options & GRADIENT and options & WEIGHTED:
                _multiply(gradient[a:b], weights[span // pieces])


@callee
def _start(span, columns, pieces):
    """The first element of a span: a row, or a block of a row that has several."""
    return span // pieces * columns + span % pieces * BLOCK


@callee
def _values_and_derivatives(formula, target, prediction, gradient, values, s, table):
    scale, factor, shift = table[0, SCALE], table[0, FACTOR], table[0, SHIFT]
    for i in range(values.size):
        value, derivative = formula(target[i] * factor + shift, prediction[i], s)
        values[i] = value
        gradient[i] = derivative * scale


@callee
def _values(formula, target, prediction, values, s, table):
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for i in range(values.size):
        values[i] = formula(target[i] * factor + shift, prediction[i], s)[0]


@callee
def _multiply(array, factor):
    for i in range(array.size):
        array[i] *= factor


# -- losses over whole rows --------------------------------------------------------------------------------------------


def whole_rows(first, last, handle, options):
    """Rows ``first`` to ``last`` of a loss of rows.py."""
    target = table_of(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    s = scalars_at(SCALARS, table, 0, OWN)
    scratch = np.empty((len(TERMS), BLOCK), DTYPE)
    addresses = np.empty((len(TERMS), 1), np.int64)
    for term in range(len(TERMS)):
        addresses[term, 0] = scratch[term].ctypes.data
    totals = np.empty(len(TERMS))
    for row in range(first, last):
        t, p = target[row], prediction[row]
        anchor = DTYPE(FOLD(ANCHOR, t, p, scratch[0], s, table))
        _sum_terms(FORMULA, t, p, anchor, scratch, addresses, totals, s, table, DTYPE)
        sums[row, 0], one, two = BETWEEN(totals, anchor, s)
        if options & GRADIENT:
            scale = row_scale(table, weights, row, options)
            _derivatives(DERIVATIVE, t, p, gradient[row], anchor, DTYPE(one), DTYPE(two), scale, s, table)


def whole_rows_of_logits(first, last, handle, options):
    """Rows ``first`` to ``last`` of a loss of rows.py of e^p, one that any factor on it leaves the same."""
    target = table_of(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    s = scalars_at(SCALARS, table, 0, OWN)
    scratch = np.empty((len(TERMS), BLOCK), DTYPE)
    addresses = np.empty((len(TERMS), 1), np.int64)
    for term in range(len(TERMS)):
        addresses[term, 0] = scratch[term].ctypes.data
    totals, powers = np.empty(len(TERMS)), np.empty(prediction.shape[1], DTYPE)
    for row in range(first, last):
        t = target[row]
        powers_of(prediction[row], largest_of_row(prediction[row]), powers)
        anchor = DTYPE(FOLD(ANCHOR, t, powers, scratch[0], s, table))
        _sum_terms(FORMULA, t, powers, anchor, scratch, addresses, totals, s, table, DTYPE)
        sums[row, 0], one, two = BETWEEN(totals, anchor, s)
        if options & GRADIENT:
            scale, g = row_scale(table, weights, row, options), gradient[row]
            _derivatives(DERIVATIVE, t, powers, g, anchor, DTYPE(one), DTYPE(two), scale, s, table)
            _multiply_by(g, powers)


@callee
def powers_of(prediction, peak, powers):
    """e^(p − peak) into ``powers``."""
    for i in range(powers.size):
        powers[i] = exp_decreasing(prediction[i] - peak)


@callee
def _multiply_by(array, factors):
    for i in range(array.size):
        array[i] *= factors[i]


@callee
def no_anchor(formula, target, prediction, buffer, s, table):
    """Return 0, for terms that need no anchor."""
    return 0.0


@callee
def sum_anchor(formula, target, prediction, buffer, s, table):
    """The sum of the anchor formula over a row."""
    total = 0.0
    for start in range(0, target.size, BLOCK):
        total += sum_row(_anchors(formula, target, prediction, buffer, start, s, table))
    return total


@callee
def maximum_anchor(formula, target, prediction, buffer, s, table):
    """The maximum of the anchor formula over a row."""
    largest = maximum_of_row(_anchors(formula, target, prediction, buffer, 0, s, table))
    for start in range(BLOCK, target.size, BLOCK):
        block = _anchors(formula, target, prediction, buffer, start, s, table)
        largest = maximum(largest, maximum_of_row(block))
    return largest


@callee
def _anchors(formula, target, prediction, buffer, start, s, table):
    t, p = target[start : start + BLOCK], prediction[start : start + BLOCK]
    values = buffer[: t.size]
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for i in range(values.size):
        values[i] = formula(t[i] * factor + shift, p[i], s)
    return values


@callee
def _sum_terms(formula, target, prediction, anchor, scratch, addresses, totals, s, table, dtype):
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    totals[:] = 0.0
    for start in range(0, target.size, BLOCK):
        t, p = target[start : start + BLOCK], prediction[start : start + BLOCK]
        buffers = arrays_at(TERMS, addresses, 0, 0, t.size, dtype)
        for i in range(t.size):
            store(buffers, i, formula(t[i] * factor + shift, p[i], anchor, s))
        for term in range(len(TERMS)):
            totals[term] += sum_row(scratch[term, : t.size])


@callee
def _derivatives(formula, target, prediction, gradient, anchor, one, two, scale, s, table):
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for i in range(gradient.size):
        gradient[i] = formula(target[i] * factor + shift, prediction[i], anchor, one, two, s) * scale


@callee
def row_scale(table, weights, row, options):
    """Return the factor of every derivative of a row."""
    return table[0, SCALE] * weights[row] if options & WEIGHTED else table[0, SCALE]


# -- cosine similarity -------------------------------------------------------------------------------------------------


def cosine_similarity(first, last, handle, options):
    """−Σ t̂ p̂, x̂ = x / max(‖x‖, ε), and its derivative p Σ t̂ p̂ / ‖p‖² − t̂ / max(‖p‖, ε), without p where ε is larger.

    Rows are divided by their largest size first: no square overflows.
    """
    target = table_of(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    scratch = np.empty((2, prediction.shape[1]), DTYPE)
    t, p = scratch[0], scratch[1]
    epsilon = np.float64(table[0, OWN])
    for row in range(first, last):
        size_of_target = _divided_by_size(target[row], t)
        size = _divided_by_size(prediction[row], p)
        norm = math.sqrt(sum_row_products(p, p))
        of_target = 1 / maximum(math.sqrt(sum_row_products(t, t)), epsilon / size_of_target)
        similarity = of_target * sum_row_products(t, p) / maximum(norm, epsilon / size)
        sums[row, 0] = -similarity
        if options & GRADIENT:
            along = 0.0 if norm * size <= epsilon else similarity / (norm * norm) / size
            across = of_target / maximum(norm * size, epsilon)
            scale = row_scale(table, weights, row, options)
            _cosine_derivatives(t, p, gradient[row], DTYPE(along), DTYPE(across), scale)


@callee
def _divided_by_size(values, result):
    """Write values divided by the largest of their absolute values, which is returned; by 1 if that is zero."""
    for i in range(values.size):
        result[i] = abs(values[i])
    size = maximum_of_row(result)
    size = size if size != 0 else result.dtype.type(1)
    for i in range(values.size):
        result[i] = values[i] / size
    return np.float64(size)


@callee
def _cosine_derivatives(target, prediction, gradient, along, across, scale):
    for i in range(gradient.size):
        gradient[i] = (prediction[i] * along - target[i] * across) * scale


# -- what follows for every loss ---------------------------------------------------------------------------------------


def finish(handle, mean, weighted):
    """Write the value of each row, its sums times ``mean``, and times its weight if ``weighted``; their total; serial.

    A row's value is rounded to the compute dtype; the total is one of rounded values, in float64.
    """
    weights, sums = row_of(handle, 3, DTYPE), table_of(handle, 5, np.float64)
    values = row_of(handle, 6, DTYPE)
    for row in range(values.size):
        total = 0.0
        for piece in range(sums.shape[1]):
            total += sums[row, piece]
        values[row] = total * mean
    if weighted:
        for row in range(values.size):
            values[row] *= weights[row]
    return sum_row(values)
