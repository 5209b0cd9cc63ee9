"""Crossentropies that have a shorter way than loops around formulas; all else as of the loops in loops.py."""

import math

import numpy as np

from ..compile._jit import callee
from ..compile.folds import largest_of_row, sum_row
from ..cpu.rowwise import GRADIENT, row_of, table_of
from ..maths import exp_decreasing, maximum
from .elementwise import product
from .loops import FACTOR, IGNORED, OWN, SHIFT, TERMS, arrays_of, powers_of, row_scale

DTYPE = np.float32  # replaced in each specialisation (see rowwise.py)


def softmax_of_targets(first, last, handle, options):
    """Crossentropy of softmax(p) with a target per class: Σt log Σe^(p−m) − Σ t (p − m), m the row's maximum.

    Its gradient is softmax(p) Σt − t.
    """
    target = table_of(handle, 0, DTYPE)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    scratch = np.empty((len(TERMS), prediction.shape[1]), DTYPE)
    powers, products, masses = scratch[0], scratch[1], scratch[2]
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    for row in range(first, last):
        t, p = target[row], prediction[row]
        _softmax_terms(t, p, largest_of_row(p), powers, products, masses, factor, shift)
        total, mass = sum_row(powers), sum_row(masses)
        sums[row, 0] = mass * math.log(total) - sum_row(products)
        if options & GRADIENT:
            scale = row_scale(table, weights, row, options)
            _softmax_derivatives(t, powers, gradient[row], DTYPE(mass / total), scale, factor, shift)


@callee
def _softmax_terms(target, prediction, peak, powers, products, masses, factor, shift):
    for i in range(powers.size):
        t = target[i] * factor + shift
        below = prediction[i] - peak
        powers[i] = exp_decreasing(below)
        products[i] = product(t, below)
        masses[i] = t


@callee
def _softmax_derivatives(target, powers, gradient, share, scale, factor, shift):
    for i in range(gradient.size):
        gradient[i] = (powers[i] * share - (target[i] * factor + shift)) * scale


def softmax_of_labels(first, last, handle, options):
    """Crossentropy of softmax(p) with one label per row, smoothed if the shift is not zero."""
    labels = row_of(handle, 0, np.int64)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    powers = np.empty(prediction.shape[1], DTYPE)
    factor, shift = table[0, FACTOR], table[0, SHIFT]
    mass = np.float64(factor) + np.float64(shift) * powers.size
    for row in range(first, last):
        p, g, label = prediction[row], gradient[row], labels[row]
        if label == IGNORED:
            _ignore(g, sums, row, options)
            continue
        peak = largest_of_row(p)
        value = -product(np.float64(factor), np.float64(p[label] - peak))
        if shift != 0:
            _differences(p, peak, powers)
            value -= shift * sum_row(powers)
        powers_of(p, peak, powers)
        total = sum_row(powers)
        sums[row, 0] = value + mass * math.log(total)
        if options & GRADIENT:
            scale = row_scale(table, weights, row, options)
            _label_derivatives(powers, g, DTYPE(mass / total), shift, scale)
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
def _label_derivatives(powers, gradient, share, shift, scale):
    for i in range(gradient.size):
        gradient[i] = (powers[i] * share - shift) * scale


def probability_of_labels(first, last, handle, options):
    """Crossentropy of probabilities with one label per row: −log clip(p[label] / Σp, ε, 1 − ε)."""
    labels = row_of(handle, 0, np.int64)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    low = table[0, OWN]
    high = DTYPE(1) - low
    for row in range(first, last):
        p, g, label = prediction[row], gradient[row], labels[row]
        if label == IGNORED:
            _ignore(g, sums, row, options)
            continue
        total = DTYPE(sum_row(p))
        share = p[label] / total
        moves = not (share < low or share > high)
        sums[row, 0] = -math.log(np.float64(high if share > high else maximum(share, low)))
        if options & GRADIENT:
            scale = row_scale(table, weights, row, options)
            g[:] = scale / total if moves else DTYPE(0)
            if moves:
                g[label] -= scale / (share * total)


def generalized_of_labels(first, last, handle, options):
    """Generalised crossentropy of probabilities with one label per row: (1 − p[label]^q) / q."""
    labels = row_of(handle, 0, np.int64)
    prediction, gradient, weights, table, sums = arrays_of(handle, DTYPE)
    q = np.float64(table[0, OWN])
    for row in range(first, last):
        g, label = gradient[row], labels[row]
        logarithm = math.log(np.float64(prediction[row, label]))
        sums[row, 0] = -math.expm1(q * logarithm) / q
        if options & GRADIENT:
            g[:] = 0
            g[label] = -DTYPE(math.exp((q - 1.0) * logarithm)) * row_scale(table, weights, row, options)
