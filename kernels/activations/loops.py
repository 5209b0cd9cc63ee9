"""Activations of single elements: what makes one up, and the loops around it, of the signature of cpu/loops.py."""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import scalars_at
from ..cpu.rowwise import BLOCK, Nothing, apart, copy_back, elements_of, table_of
from ..maths import constant, exp_decreasing, sigmoid


class Activation(NamedTuple):
    """A pair of formulas, ``forward(x, s) -> y`` and ``derivative(x, y, s)``.

    ``reads`` says which of x and y the derivative reads: backward gets along without the other.
    """

    forward: Any
    derivative: Any
    scalars: type = Nothing
    reads: str = "y"  # "x", "y" or "xy"


# Replaced in each specialisation (see rowwise.py).
DTYPE = np.float32
SCALARS: type = Nothing
FORMULA: Any = None


@callee
def _block(handle, k, block, dtype):
    return elements_of(handle, k, dtype)[block * BLOCK : (block + 1) * BLOCK]


def forward(first, last, handle, options):
    """y ← f(x) for blocks ``first`` to ``last``. Requires y, x of one size and the scalars; y may be x. Writes y."""
    s = scalars_at(SCALARS, table_of(handle, 2, DTYPE), 0, 0)
    scratch = np.empty(BLOCK, DTYPE)
    for block in range(first, last):
        y, x = _block(handle, 0, block, DTYPE), _block(handle, 1, block, DTYPE)
        target = apart(y, x, scratch)
        _forward_block(FORMULA, target, x, s)
        copy_back(target, y)


@callee
def _forward_block(formula, y, x, s):
    for i in range(y.size):
        y[i] = formula(x[i], s)


def backward(first, last, handle, options):
    """dx ← dy f'(x). Requires dx, dy, x, y of one size and the scalars; dx may be any of the others. Writes dx."""
    s = scalars_at(SCALARS, table_of(handle, 4, DTYPE), 0, 0)
    scratch = np.empty(BLOCK, DTYPE)
    for block in range(first, last):
        dx, dy = _block(handle, 0, block, DTYPE), _block(handle, 1, block, DTYPE)
        x, y = _block(handle, 2, block, DTYPE), _block(handle, 3, block, DTYPE)
        target = apart(apart(apart(dx, dy, scratch), x, scratch), y, scratch)
        _backward_block(FORMULA, target, dy, x, y, s)
        copy_back(target, dx)


@callee
def _backward_block(formula, dx, dy, x, y, s):
    for i in range(dx.size):
        dx[i] = dy[i] * formula(x[i], y[i], s)


# -- gates -------------------------------------------------------------------------------------------------------------


def gated_forward(first, last, handle, options):
    """y ← a σ(b), the halves of each row of x, for items ``first`` to ``last``: the blocks of a half, row after row.

    Requires y [rows, columns] and x [rows, 2 columns], which do not overlap. Writes y.
    """
    result, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE)
    for item in range(first, last):
        row, start, stop = _place(item, result.shape[1])
        a, b = _halves(given[row], start, stop)
        _gate(result[row, start:stop], a, b)


@callee
def _place(item, columns):
    blocks = -(-columns // BLOCK)
    start = item % blocks * BLOCK
    return item // blocks, start, min(start + BLOCK, columns)


@callee
def _halves(row, start, stop):
    half = row.size // 2
    return row[start:stop], row[half + start : half + stop]


@callee
def _gate(y, a, b):
    for i in range(y.size):
        y[i] = a[i] * sigmoid(b[i])


def gated_backward(first, last, handle, options):
    """dx ← dy σ(b) and dy a σ(b) (1 − σ(b)), items as of `gated_forward`.

    Requires dx [rows, 2 columns], dy [rows, columns] and x [rows, 2 columns]; dx may be x. Writes dx.
    """
    result, slopes, given = table_of(handle, 0, DTYPE), table_of(handle, 1, DTYPE), table_of(handle, 2, DTYPE)
    scratch = np.empty((2, BLOCK), DTYPE)
    for item in range(first, last):
        row, start, stop = _place(item, slopes.shape[1])
        a, b = _halves(given[row], start, stop)
        da, db = _halves(result[row], start, stop)
        to_a, to_b = apart(da, a, scratch[0]), apart(db, b, scratch[1])
        _gate_derivatives(slopes[row, start:stop], a, b, to_a, to_b)
        copy_back(to_a, da)
        copy_back(to_b, db)


@callee
def _gate_derivatives(dy, a, b, da, db):
    for i in range(dy.size):
        one = constant(1, b[i])
        small = exp_decreasing(-abs(b[i]))
        inverse = one / (one + small)
        da[i] = dy[i] * sigmoid(b[i])
        db[i] = dy[i] * a[i] * (small * inverse * inverse)
