"""Activations of whole rows: softmax, its logarithm, and sparsemax; loops of the signature of cpu/loops.py."""

import math

import numpy as np

from ..compile._jit import callee
from ..compile.folds import largest_of_row, maximum_of_row, sum_row, sum_row_products
from ..cpu.rowwise import apart, copy_back, table_of
from ..maths import constant, exp_decreasing, where

DTYPE = np.float32  # replaced in each specialisation (see rowwise.py)


def softmax_forward(first, last, handle, options):
    """y ← softmax(x) for rows ``first`` to ``last``. Requires y, x [rows, columns]; y may be x. Writes y."""
    result, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE)
    powers = np.empty(given.shape[1], DTYPE)
    for row in range(first, last):
        x = given[row]
        _powers(x, largest_of_row(x), powers)  # a NaN makes its power NaN, and so the sum
        _product(powers, DTYPE(1.0 / sum_row(powers)), result[row])


@callee
def _powers(x, peak, powers):
    for i in range(powers.size):
        powers[i] = exp_decreasing(x[i] - peak)


@callee
def _product(powers, factor, y):
    for i in range(y.size):
        y[i] = powers[i] * factor


def softmax_backward(first, last, handle, options):
    """dx ← y (dy − Σ dy y). Requires dx, dy, y [rows, columns]; dx may be any of the others. Writes dx."""
    result, slopes, outputs = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE), table_of(handle, 2, DTYPE)
    for row in range(first, last):
        dx, dy, y = result[row], slopes[row], outputs[row]
        _softmax_derivative(dx, dy, y, DTYPE(sum_row_products(dy, y)))


@callee
def _softmax_derivative(dx, dy, y, along):
    for i in range(dx.size):
        dx[i] = y[i] * (dy[i] - along)


def log_softmax_forward(first, last, handle, options):
    """y ← log softmax(x) for rows ``first`` to ``last``. Requires y, x [rows, columns]; y may be x. Writes y."""
    result, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE)
    powers = np.empty(given.shape[1], DTYPE)
    for row in range(first, last):
        x = given[row]
        peak = largest_of_row(x)
        _powers(x, peak, powers)
        target = apart(result[row], x, powers)
        _logarithms(x, peak, DTYPE(math.log(sum_row(powers))), target)
        copy_back(target, result[row])


@callee
def _logarithms(x, peak, logarithm, y):
    for i in range(y.size):
        y[i] = (x[i] - peak) - logarithm


@callee
def _differences(values, subtrahend, differences):
    for i in range(differences.size):
        differences[i] = values[i] - subtrahend


def log_softmax_backward(first, last, handle, options):
    """dx ← dy − e^y Σ dy. Requires dx, dy, y [rows, columns]; dx may be any of the others. Writes dx."""
    result, slopes, outputs = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE), table_of(handle, 2, DTYPE)
    for row in range(first, last):
        _log_softmax_derivative(result[row], slopes[row], outputs[row], DTYPE(sum_row(slopes[row])))


@callee
def _log_softmax_derivative(dx, dy, y, total):
    for i in range(dx.size):
        zero = constant(0, y[i])
        dx[i] = dy[i] - exp_decreasing(where(y[i] > zero, zero, y[i])) * total


def sparsemax_forward(first, last, handle, options):
    """y ← max(x − τ, 0), Σ y = 1, for rows ``first`` to ``last``. Requires y, x [rows, columns]; y may be x. Writes y.

    Michelot's way to τ, without sorting: the mean of what is above it, less what is too much, until nothing falls out.
    """
    result, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE)
    below = np.empty(given.shape[1], DTYPE)
    for row in range(first, last):
        _differences(given[row], maximum_of_row(given[row]), below)
        _rest_above(below, _threshold(below), result[row])


@callee
def _threshold(values):
    """τ of values of which the largest is 0: as much as is above it makes 1."""
    threshold, above, before = -1.0, values.size, -1
    while above != before:
        before, above, total = above, 0, 0.0
        for i in range(values.size):
            value = np.float64(values[i])
            if value > threshold:
                above += 1
                total += value
        threshold = (total - 1.0) / above if above else threshold
    return threshold


@callee
def _rest_above(values, threshold, y):
    for i in range(y.size):
        rest = np.float64(values[i]) - threshold
        y[i] = 0.0 if rest < 0.0 else rest


def sparsemax_backward(first, last, handle, options):
    """dx ← dy less its mean, where y > 0, else 0. Requires dx, dy, y [rows, columns]; dx may be one of them."""
    result, slopes, outputs = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE), table_of(handle, 2, DTYPE)
    for row in range(first, last):
        dx, dy, y = result[row], slopes[row], outputs[row]
        total, above = 0.0, 0
        for i in range(y.size):
            if y[i] > 0:
                above += 1
                total += dy[i]
        mean = total / max(above, 1)
        for i in range(y.size):
            rest = dy[i] - mean if y[i] > 0 else np.float64(0.0)
            dx[i] = rest if y[i] == y[i] else y[i]
