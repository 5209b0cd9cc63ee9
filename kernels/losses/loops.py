"""The loops around the losses. All have the signature ``(first, last, handle, options)`` of cpu.py.

Each *requires* the arrays of `Arrays`, C-contiguous, and that the gradient overlaps none of the others, except that it
may be the predictions themselves. It *writes* the sums, and the gradient when the options ask for it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .._jit import callee
from ..intrinsics import array_at, arrays_at, scalars_at, store, table_at
from ..maths import exp, maximum
from ..reduction import LANES, row_maximum, row_sum
from ..rowwise import BLOCK, GRADIENT, SIDE_BY_SIDE, WEIGHTED
from .elementwise import Nothing

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
def _table(handle, k, dtype):
    return table_at(handle[k, 0], handle[k, 1], handle[k, 2], dtype)


@callee
def _arrays(handle, dtype):
    """All but the targets."""
    weights = array_at(handle[3, 0], 0, handle[3, 2], dtype)
    table, sums = _table(handle, 4, dtype), _table(handle, 5, np.float64)
    return _table(handle, 1, dtype), _table(handle, 2, dtype), weights, table, sums


# -- elementwise losses ------------------------------------------------------------------------------------------------


def elements(first, last, handle, options):
    """Blocks ``first`` to ``last`` of an elementwise loss: as many short rows, or as much of one long row, as fit."""
    target = _table(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = _arrays(handle, DTYPE)
    rows, columns = prediction.shape
    pieces = sums.shape[1]
    target, prediction, gradient, sums = target.ravel(), prediction.ravel(), gradient.ravel(), sums.ravel()
    s = scalars_at(SCALARS, table, 0, OWN)
    values, lanes = np.empty(BLOCK, DTYPE), np.empty(LANES)
    spans = max(1, BLOCK // columns)
    for block in range(first, last):
        low, high = block * spans, min((block + 1) * spans, rows * pieces)
        start, stop = _start(low, columns, pieces), _start(high, columns, pieces)
        t, p, v = target[start:stop], prediction[start:stop], values[: stop - start]
        if options & GRADIENT:
            _values_and_derivatives(FORMULA, t, p, gradient[start:stop], v, s, table)
        else:
            _values(FORMULA, t, p, v, s, table)
        for span in range(low, high):
            a, b = _start(span, columns, pieces), _start(span + 1, columns, pieces)
            sums[span] = row_sum(values[a - start : b - start], lanes)
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
    target = _table(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = _arrays(handle, DTYPE)
    s = scalars_at(SCALARS, table, 0, OWN)
    scratch, lanes, best = np.empty((len(TERMS), BLOCK), DTYPE), np.empty(LANES), np.empty(SIDE_BY_SIDE, DTYPE)
    addresses = np.empty((len(TERMS), 1), np.int64)
    for term in range(len(TERMS)):
        addresses[term, 0] = scratch[term].ctypes.data
    totals = np.empty(len(TERMS))
    for row in range(first, last):
        t, p = target[row], prediction[row]
        anchor = DTYPE(FOLD(ANCHOR, t, p, scratch[0], lanes, best, s, table))
        _sum_terms(FORMULA, t, p, anchor, scratch, addresses, lanes, totals, s, table, DTYPE)
        sums[row, 0], one, two = BETWEEN(totals, anchor, s)
        if options & GRADIENT:
            scale = _row_scale(table, weights, row, options)
            _derivatives(DERIVATIVE, t, p, gradient[row], anchor, DTYPE(one), DTYPE(two), scale, s, table)


@callee
def no_anchor(formula, target, prediction, buffer, lanes, best, s, table):
    """For losses that need none."""
    return 0


@callee
def sum_anchor(formula, target, prediction, buffer, lanes, best, s, table):
    """The sum of the anchor formula over a row."""
    total = 0.0
    for start in range(0, target.size, BLOCK):
        total += row_sum(_anchors(formula, target, prediction, buffer, start, s, table), lanes)
    return total


@callee
def maximum_anchor(formula, target, prediction, buffer, lanes, best, s, table):
    """The maximum of the anchor formula over a row."""
    largest = row_maximum(_anchors(formula, target, prediction, buffer, 0, s, table), best)
    for start in range(BLOCK, target.size, BLOCK):
        block = _anchors(formula, target, prediction, buffer, start, s, table)
        largest = maximum(largest, row_maximum(block, best))
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
def _sum_terms(formula, target, prediction, anchor, scratch, addresses, lanes, totals, s, table, dtype):
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    totals[:] = 0.0
    for start in range(0, target.size, BLOCK):
        t, p = target[start : start + BLOCK], prediction[start : start + BLOCK]
        buffers = arrays_at(TERMS, addresses, 0, 0, t.size, dtype)
        for i in range(t.size):
            store(buffers, i, formula(t[i] * factor + shift, p[i], anchor, s))
        for term in range(len(TERMS)):
            totals[term] += row_sum(scratch[term, : t.size], lanes)


@callee
def _derivatives(formula, target, prediction, gradient, anchor, one, two, scale, s, table):
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for i in range(gradient.size):
        gradient[i] = formula(target[i] * factor + shift, prediction[i], anchor, one, two, s) * scale


@callee
def _row_scale(table, weights, row, options):
    """What every derivative of a row is multiplied by."""
    return table[0, SCALE] * weights[row] if options & WEIGHTED else table[0, SCALE]


# -- crossentropies that have a shorter way ----------------------------------------------------------------------------


def softmax_of_targets(first, last, handle, options):
    """Crossentropy of softmax(p) with a target per class: Σt log Σe^(p−m) − Σ t (p − m), m the row's maximum.

    Its gradient is softmax(p) Σt − t. The exponentials wait where the gradient will be.
    """
    target = _table(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = _arrays(handle, DTYPE)
    scratch, lanes, best = np.empty((len(TERMS), BLOCK), DTYPE), np.empty(LANES), np.empty(SIDE_BY_SIDE, DTYPE)
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for row in range(first, last):
        t, p, g = target[row], prediction[row], gradient[row]
        peak = row_maximum(p, best)
        total, product, mass = 0.0, 0.0, 0.0
        for start in range(0, p.size, BLOCK):
            stop = min(start + BLOCK, p.size)
            powers, products, masses = (
                scratch[0, : stop - start],
                scratch[1, : stop - start],
                scratch[2, : stop - start],
            )
            _softmax_terms(t[start:stop], p[start:stop], peak, powers, products, masses, factor, shift)
            total += row_sum(powers, lanes)
            product += row_sum(products, lanes)
            mass += row_sum(masses, lanes)
            if options & GRADIENT:
                g[start:stop] = powers
        sums[row, 0] = mass * math.log(total) - product
        if options & GRADIENT:
            _softmax_derivatives(t, g, DTYPE(mass / total), _row_scale(table, weights, row, options), factor, shift)


@callee
def _softmax_terms(target, prediction, peak, powers, products, masses, factor, shift):
    for i in range(powers.size):
        t = target[i] * factor + shift
        below = prediction[i] - peak
        powers[i] = exp(below)
        products[i] = t * below
        masses[i] = t


@callee
def _softmax_derivatives(target, gradient, share, scale, factor, shift):
    for i in range(gradient.size):
        gradient[i] = (gradient[i] * share - (target[i] * factor + shift)) * scale


def softmax_of_labels(first, last, handle, options):
    """Crossentropy of softmax(p) with one label per row, smoothed if the shift is not zero."""
    labels = array_at(handle[0, 0], 0, handle[0, 2], np.int64)
    prediction, gradient, weights, table, sums = _arrays(handle, DTYPE)
    scratch, lanes, best = np.empty(BLOCK, DTYPE), np.empty(LANES), np.empty(SIDE_BY_SIDE, DTYPE)
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for row in range(first, last):
        p, g, label = prediction[row], gradient[row], labels[row]
        if label == IGNORED:
            _ignore(g, sums, row, options)
            continue
        peak = row_maximum(p, best)
        mass = np.float64(factor) + np.float64(shift) * p.size
        value = -np.float64(factor) * (p[label] - peak)
        total = 0.0
        for start in range(0, p.size, BLOCK):
            block = p[start : start + BLOCK]
            powers = scratch[: block.size]
            if shift != 0:
                _differences(block, peak, powers)
                value -= shift * row_sum(powers, lanes)
            _powers(block, peak, powers)
            total += row_sum(powers, lanes)
            if options & GRADIENT:
                g[start : start + BLOCK] = powers
        sums[row, 0] = value + mass * math.log(total)
        if options & GRADIENT:
            scale = _row_scale(table, weights, row, options)
            _label_derivatives(g, DTYPE(mass / total), shift, scale)
            g[label] -= factor * scale


@callee
def _ignore(gradient, sums, row, options):
    sums[row, 0] = 0.0
    if options & GRADIENT:
        gradient[:] = 0


@callee
def _differences(prediction, peak, differences):
    for i in range(differences.size):
        differences[i] = prediction[i] - peak


@callee
def _powers(prediction, peak, powers):
    for i in range(powers.size):
        powers[i] = exp(prediction[i] - peak)


@callee
def _label_derivatives(gradient, share, shift, scale):
    for i in range(gradient.size):
        gradient[i] = (gradient[i] * share - shift) * scale


def probability_of_labels(first, last, handle, options):
    """Crossentropy of probabilities with one label per row: −log clip(p[label] / Σp, ε, 1 − ε)."""
    labels = array_at(handle[0, 0], 0, handle[0, 2], np.int64)
    prediction, gradient, weights, table, sums = _arrays(handle, DTYPE)
    lanes = np.empty(LANES)
    low = table[0, OWN]
    high = DTYPE(1) - low
    for row in range(first, last):
        p, g, label = prediction[row], gradient[row], labels[row]
        if label == IGNORED:
            _ignore(g, sums, row, options)
            continue
        total = DTYPE(row_sum(p, lanes))
        share = p[label] / total
        moves = not (share < low or share > high)
        sums[row, 0] = -math.log(np.float64(high if share > high else maximum(share, low)))
        if options & GRADIENT:
            scale = _row_scale(table, weights, row, options)
            g[:] = scale / total if moves else DTYPE(0)
            if moves:
                g[label] -= scale / (share * total)


# -- what follows for every loss ---------------------------------------------------------------------------------------


def finish(handle, mean, weighted):
    """Write the value of each row, its sums times ``mean``, and times its weight if ``weighted``; their total; serial.

    A row's value is rounded to the compute dtype; the total is one of rounded values, in float64.
    """
    weights, sums = array_at(handle[3, 0], 0, handle[3, 2], DTYPE), _table(handle, 5, np.float64)
    values = array_at(handle[6, 0], 0, handle[6, 2], DTYPE)
    for row in range(values.size):
        total = 0.0
        for piece in range(sums.shape[1]):
            total += sums[row, piece]
        values[row] = total * mean
    if weighted:
        for row in range(values.size):
            values[row] *= weights[row]
    return row_sum(values, np.empty(LANES))
