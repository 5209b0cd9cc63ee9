"""What Adafactor's kernels sum over rows, columns and vectors: loads, and what is made of them."""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.tuples import numbers_at, put_numbers, transposed
from ..cpu.adafactor import followed, size_factor, square, update_of
from ..layout import ACCUMULATED, ACCUMULATOR
from ..maths import constant
from .gradient import gradient_of, is_plain, numbers_of
from .lanes import ACCUMULATES, LANES, VECTOR, cast, first_of, in_lanes, size_of
from .step import clipped, factor_of
from .sums import TERMS, Terms
from .tables import control_of


class Source(NamedTuple):
    """Where the gradient of a tile comes from, and how it is clipped."""

    gradient: Any
    accumulator: Any  # address
    options: Any
    control: Any
    factor: Any


@callee
def source_of(t, program, k, tile, dtype):
    """The `Source` of a tile, the ``k``-th of the launch."""
    accumulator = t.common.addresses[ACCUMULATOR, tile.segment]
    factor = factor_of(t, program, tile.segment, dtype)
    return Source(
        gradient_of(t.common, t.layouts, tile.segment), accumulator, program.options, control_of(t, program, k), factor
    )


@callee
def accumulated_at(source, i, like, how):
    """Elements of the accumulator; zeros where it holds nothing."""
    return numbers_at(source.accumulator + i * size_of(like), like) if how & ACCUMULATES else like


@callee
def how_of(source):
    """Bits for `Terms.load`."""
    return ACCUMULATES if source.options & ACCUMULATED else 0


@callee
def clipped_of(source, grad, accumulated):
    """A number of the gradient as the rule takes it."""
    return clipped(grad, accumulated, source.options, source.control, source.factor)


@callee
def is_aligned(source, addresses, elements, like):
    """Whether the widest loads can begin at these addresses, and at multiples of so many elements of the gradient."""
    bytes_of = elements * size_of(like)
    gradient = source.gradient
    return is_plain(gradient) and (addresses | gradient.address | source.accumulator | bytes_of) % VECTOR == 0


class RowSquares(NamedTuple):
    """Squares of a row of the gradient, and of the decayed parameter."""

    source: Any
    scalars: Any
    param: Any  # address of the segment's
    first: Any  # element of the segment
    aligned: Any
    sums: Any  # two


@callee
def _terms(work, i, columns):
    return transposed(in_lanes(work, transposed(columns)))


@callee
def _load_row(work, i, like, how):
    element = work.first + i
    grads = numbers_of(work.source.gradient, element, like, 0)
    params = numbers_at(work.param + element * size_of(like), like)
    return params, grads, accumulated_at(work.source, element, like, how)


@callee
def _row_square(work, numbers):
    param, grad, accumulated = numbers
    q = square(clipped_of(work.source, grad, accumulated), work.scalars)
    p = np.float64(param * size_factor(work.source.control, work.scalars))
    return p * p, np.float64(q)


TERMS[RowSquares], LANES[RowSquares] = Terms(_load_row, _terms, together=2), _row_square


class ColumnSquares(NamedTuple):
    """Squares of neighbours in a row of the gradient."""

    source: Any
    scalars: Any
    sums: Any  # one


@callee
def _load_column(work, i, like, how):
    return numbers_of(work.source.gradient, i, like, 0), accumulated_at(work.source, i, like, how)


@callee
def _column_square(work, numbers):
    return (np.float64(square(clipped_of(work.source, numbers[0], numbers[1]), work.scalars)),)


TERMS[ColumnSquares], LANES[ColumnSquares] = Terms(_load_column, _terms, together=4), _column_square


class Velocities(NamedTuple):
    """New velocities of a chunk of a vector; squares of the decayed parameter and of the update."""

    source: Any
    scalars: Any
    param: Any  # address of the segment's
    velocity: Any
    first: Any
    aligned: Any
    sums: Any  # two


@callee
def _load_vector(work, i, like, how):
    element = work.first + i
    byte = element * size_of(like)
    grads = numbers_of(work.source.gradient, element, like, 0)
    params, velocities = numbers_at(work.param + byte, like), numbers_at(work.velocity + byte, like)
    return params, grads, accumulated_at(work.source, element, like, how), velocities


@callee
def _velocities(work, i, columns):
    like = columns[0]
    columns = transposed(in_lanes(work, transposed(columns)))
    put_numbers(work.velocity + (work.first + i) * size_of(like), cast(columns[2], like[0]))
    return first_of(columns, work.sums)


@callee
def _velocity(work, numbers):
    param, grad, accumulated, velocity = numbers
    g = clipped_of(work.source, grad, accumulated)
    v = followed(velocity, square(g, work.scalars), work.scalars)
    u = np.float64(update_of(g, constant(1, g), v, work.scalars))
    p = np.float64(param * size_factor(work.source.control, work.scalars))
    return p * p, u * u, np.float64(v)


TERMS[Velocities], LANES[Velocities] = Terms(_load_vector, _velocities, together=1), _velocity


class UpdateSquares(NamedTuple):
    """Squares of the update of a row."""

    source: Any
    scalars: Any
    column: Any  # address of the column slot, at the row's first element
    root: Any
    first: Any
    aligned: Any
    sums: Any  # one


@callee
def _load_update(work, i, like, how):
    element = work.first + i
    grads = numbers_of(work.source.gradient, element, like, 0)
    columns = numbers_at(work.column + i * size_of(like), like)
    return grads, accumulated_at(work.source, element, like, how), columns


@callee
def _update_square(work, numbers):
    grad, accumulated, column = numbers
    u = np.float64(update_of(clipped_of(work.source, grad, accumulated), work.root, column, work.scalars))
    return (u * u,)


TERMS[UpdateSquares], LANES[UpdateSquares] = Terms(_load_update, _terms, together=2), _update_square
