"""Muon's matrix products for small matrices, compiled: a BLAS spends as much on its calls as on these.

A matrix is worked on as its taller form T, ``[longer side, shorter side]``: A = TᵀT, T ← a T + T (b A + c A²). Sums run
in the order of the elements, whatever the tiles, so that no result depends on threads or on the width of registers.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..compile._jit import callee, specialise
from ..compile.intrinsics import multiply_tile, scalars_at, table_at
from ..compile.vectors import REGISTER_BYTES, TILE_ROWS
from ..layout import ADDRESS, CLIP, EXTRA
from ..maths import sqrt
from ..tables import tables_at
from . import loops

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS: Any = None

SHORTER, LONGER = 128, 512
"""Sides of the largest matrix that counts as small: more does not stay in the caches."""

FULL = 16
"""Sides are filled up with zeros to a multiple of this: any tile fits."""


def is_small(shape):
    """Whether a matrix of this shape is better off without a BLAS."""
    return 0 < min(shape) <= SHORTER and max(shape) <= LONGER


class Matrix(NamedTuple):
    """A row of the matrix table, int64. The first four are the common columns of a chunk table."""

    segment: int
    offset: int
    length: int  # multiplications of a product, of which threads get equal shares
    group: int
    rows: int
    columns: int


def table_of(shapes, groups):
    """The matrix table of those shapes that are small."""
    rows = [
        Matrix(k, 0, shape[0] * shape[1] * min(shape), groups[k], *shape)
        for k, shape in enumerate(shapes)
        if is_small(shape)
    ]
    return np.array(rows, np.int64).reshape(-1, len(Matrix._fields))


class Scratch(NamedTuple):
    """Of one matrix after the other, with zeros where its sides do not fill tiles."""

    tall: Any
    product: Any
    gram: Any
    square: Any


def orthogonal_pass(first, last, handle, options):
    """Make small directions orthogonal; their factors into ``factors[CLIP]``. Requires ``factors[EXTRA]``."""
    t = tables_at(handle, DTYPE)
    elements = shorter = 0
    for k in range(first, last):
        matrix = scalars_at(Matrix, t.chunks, k, 0)
        elements = max(elements, _filled(matrix.rows) * _filled(matrix.columns))
        shorter = max(shorter, _filled(min(matrix.rows, matrix.columns)))
    scratch = _scratch_for(elements, shorter, DTYPE)
    for k in range(first, last):
        matrix = scalars_at(Matrix, t.chunks, k, 0)
        address = t.gradients[ADDRESS, matrix.segment]
        if address == 0:
            continue
        s = scalars_at(SCALARS, t.table, matrix.group, loops.CONTROLS)
        direction = table_at(address, matrix.rows, matrix.columns, DTYPE)
        _orthogonalise(direction, t.factors[EXTRA, matrix.segment], s.a, s.b, s.c, s.steps, scratch)
        t.factors[CLIP, matrix.segment] = factor_of(max(matrix.rows, matrix.columns), s.rms_rate)


def orthogonalise(direction, divisor, a, b, c, steps):
    """The same for one matrix."""
    rows, columns = direction.shape
    scratch = _scratch_for(_filled(rows) * _filled(columns), _filled(min(rows, columns)), DTYPE)
    _orthogonalise(direction, divisor, a, b, c, steps, scratch)


@functools.cache
def compiled(dtype):
    """`orthogonalise` for a dtype."""
    number = types.float32 if dtype == np.float32 else types.float64
    signature = types.void(types.Array(number, 2, "C"), *[number] * 5)
    return specialise(orthogonalise, dtype.name, signature, {"DTYPE": dtype.type}, key="no rule")


@callee
def factor_of(extent, rms_rate):
    """Factor of the orthogonal matrix, whose longer side has ``extent`` elements."""
    return 1.0 if rms_rate < 0 else sqrt(np.float64(extent)) * np.float64(rms_rate)


@callee
def _filled(side):
    return -(-side // FULL) * FULL


@callee
def _scratch_for(elements, shorter, dtype):
    gram, square = np.empty(shorter * shorter, dtype), np.empty(shorter * shorter, dtype)
    return Scratch(np.empty(elements, dtype), np.empty(elements, dtype), gram, square)


@callee
def _orthogonalise(direction, divisor, a, b, c, steps, scratch):
    longer, shorter = max(direction.shape), min(direction.shape)
    rows, columns = _filled(longer), _filled(shorter)
    tall, product = scratch.tall[: rows * columns], scratch.product[: rows * columns]
    gram, square = scratch.gram[: columns * columns], scratch.square[: columns * columns]
    _load(direction, divisor, tall, columns)
    for _ in range(np.int64(steps)):
        _multiply(tall, 1, columns, tall, gram, columns, columns, longer)
        _multiply(gram, columns, 1, gram, square, columns, columns, shorter)
        for i in range(gram.size):
            gram[i] = b * gram[i] + c * square[i]
        _multiply(tall, columns, 1, gram, product, rows, columns, shorter)
        for i in range(tall.size):
            tall[i] = a * tall[i] + product[i]
    _store(tall, columns, direction)


@callee
def _load(direction, divisor, tall, columns):
    """Divided, as its taller form."""
    tall[:] = 0
    for i in range(direction.shape[0]):
        row, (start, step) = direction[i], _place_of_row(direction, i, columns)
        if step == 1:
            target = tall[start : start + row.size]
            for j in range(row.size):
                target[j] = row[j] / divisor
        else:
            for j in range(row.size):
                tall[start + j * step] = row[j] / divisor


@callee
def _store(tall, columns, direction):
    for i in range(direction.shape[0]):
        row, (start, step) = direction[i], _place_of_row(direction, i, columns)
        for j in range(row.size):
            row[j] = tall[start + j * step]


@callee
def _place_of_row(direction, i, columns):
    """Find where a row begins in the taller form, and the elements from one to the next."""
    rows, width = direction.shape
    return (i * columns, 1) if rows >= width else (i, columns)


@callee
def _multiply(left, left_row, left_step, right, product, rows, columns, depth):
    """``product[rows, columns]``, tile by tile; ``right`` has as many columns."""
    width = REGISTER_BYTES // left.itemsize
    j = 0
    while j + 2 * width <= columns:
        for i in range(0, rows, TILE_ROWS):
            above, below = left[i * left_row :], product[i * columns + j :]
            multiply_tile(2, above, left_row, left_step, right[j:], columns, below, columns, depth)
        j += 2 * width
    for i in range(0, rows if j < columns else 0, TILE_ROWS):
        above, below = left[i * left_row :], product[i * columns + j :]
        multiply_tile(1, above, left_row, left_step, right[j:], columns, below, columns, depth)
