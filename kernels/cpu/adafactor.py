"""Adafactor's kernels: three launches over `tiles` of matrices, so that the second moment is never stored.

The gradient is read three times: for the row and column sums, for the size of the update, for the update.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import array_at, scalars_at
from ..layout import ACCUMULATED, ADDRESS, CHUNK, CLIP, EXTRA, PARAM, SLOTS, STAGED, Control
from ..maths import clip, constant, decayed, maximum, sqrt
from ..registry import RULES, Rule
from ..rules.adafactor import STATE, AdafactorScalars
from ..tables import tables_at
from . import launch
from .engines import Elementwise
from .loops import CONTROLS, DTYPE, SCALARS, finish_chunk
from .reduction import ROW_LANES, row_sum, sum_of, sum_of_squares, sums_of_rows, sums_of_squared_rows
from .staging import chunk_gradient, scratch_for
from .tiles import BAND, Tile, Tiles, slots_in_memory_order

ROW, COLUMN, VELOCITY, COLUMN_SUMS, ROW_SUMS, ROW_SIZES, ROOTS = range(SLOTS, SLOTS + 7)
"""Rows of the address table: the slots, then scratch in float64: each tile's column sums, row sums and rows' sums of p²
or u², and per matrix 1 / √mean(row)."""

SIZES, UPDATES, MEANS = range(3)
"""Rows of the sums table: p², u², and row means, of each tile."""

BATCH = 1024
"""Elements of rows that are taken together where they are short."""


def sums_pass(first, last, handle, options):
    """Velocities and sums of vectors; sums of p², row and column sums of matrices, and slots from those complete."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    squares, sums = np.empty(CHUNK, DTYPE), np.empty((3, CHUNK))
    lanes = np.empty(ROW_LANES)
    for k in range(first, last):
        tile = scalars_at(Tile, t.chunks, k, 0)
        if t.gradients[ADDRESS, tile.segment] == 0:
            continue
        c = scalars_at(Control, t.table, tile.group, 0)
        s = scalars_at(SCALARS, t.table, tile.group, CONTROLS)
        if tile.rows == 0:
            _measure_vector(t, tile, k, c, s, options, scratch, squares, DTYPE)
            continue
        parts, rows = _own_parts_of(t, tile, sums, DTYPE), tile.matrices * tile.rows
        parts.column_sums[:] = 0.0
        step = _rows_of_batch(tile)
        for r in range(0, rows, step):
            _measure_rows(t, tile, parts, r, min(step, rows - r), c, s, options, scratch, squares, lanes, DTYPE)
        t.sums[SIZES, k] = sum_of(parts.row_sizes)
        if tile.strips == 1:
            _finish_rows(t, tile, parts, k, s, lanes, DTYPE)
            if tile.blocks == 1:
                _follow_means(parts.columns, parts.column_sums, tile.height, s)


@inlined_callee
def _measure_vector(t, tile, k, c, s, options, scratch, updates, dtype):
    grad, scale = chunk_gradient(t, tile.segment, tile.offset, tile.length, c, options, scratch, dtype)
    velocity = array_at(t.addresses[VELOCITY, tile.segment], tile.offset, tile.length, dtype)
    param = array_at(t.addresses[PARAM, tile.segment], tile.offset, tile.length, dtype)
    _follow_velocity(grad, velocity, updates, scale, t.factors[CLIP, tile.segment], c.limit, s)
    t.sums[SIZES, k] = sum_of_squares(param, size_factor(c, s))
    t.sums[UPDATES, k] = sum_of_squares(updates[: tile.length], dtype(1))


@callee
def _follow_velocity(grad, velocity, updates, scale, factor, limit, s):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        v = followed(velocity[i], square(g, s), s)
        velocity[i] = v
        updates[i] = update_of(g, constant(1, g), v, s)


@inlined_callee
def _rows_of_batch(tile):
    """Count the rows that are taken together: whole matrices; one row, where they do not lie side by side."""
    whole = tile.rows if tile.matrices > 1 else 1
    return max(1, BATCH // (whole * tile.columns)) * whole if tile.columns == tile.width else 1


@inlined_callee
def _measure_rows(t, tile, parts, r, count, c, s, options, scratch, squares, lanes, dtype):
    """Row sums, what they add to column sums, and sums of p² of ``count`` rows from row ``r`` of a tile."""
    first, length = tile.offset + r * tile.width, count * tile.columns
    grad, scale = chunk_gradient(t, tile.segment, first, length, c, options, scratch, dtype)
    column_sums = parts.column_sums[r // tile.rows * tile.columns :]
    if count == 1:
        _add_squares(grad, squares, column_sums, scale, t.factors[CLIP, tile.segment], c.limit, s)
    else:
        _square(grad, squares, scale, t.factors[CLIP, tile.segment], c.limit, s)
        _add_rows(squares, column_sums, count, tile.rows, tile.columns)
    param, factor = array_at(t.addresses[PARAM, tile.segment], first, length, dtype), size_factor(c, s)
    sums_of_rows(squares, tile.columns, parts.row_sums[r : r + count], lanes)
    sums_of_squared_rows(param, tile.columns, factor, parts.row_sizes[r : r + count], lanes)


@callee
def _square(grad, squares, scale, factor, limit, s):
    for i in range(grad.size):
        squares[i] = square(clip(grad[i] * scale * factor, -limit, limit), s)


@inlined_callee
def _add_rows(squares, sums, count, rows, columns):
    """Add so many rows, ``rows`` to a matrix, to the column sums of their matrices."""
    matrices = count // rows
    if matrices > columns:
        _add_across(squares, sums, *unsigned(matrices, rows, columns))
        return
    height = min(count, rows)
    for m in range(max(matrices, 1)):
        own = squares[m * rows * columns : (m * rows + height) * columns]
        _add_down(own, sums[m * columns : (m + 1) * columns], height)


@callee
def _add_across(squares, sums, matrices, rows, columns):
    """Add the elements in one place of each matrix, then those in the next."""
    for place in range(rows * columns):
        column = place % columns
        for m in range(matrices):
            sums[m * columns + column] += np.float64(squares[m * rows * columns + place])


@callee
def _add_down(squares, sums, rows):
    """Add the rows of one matrix, one after the other; four at a time are loaded."""
    columns = sums.size
    whole = rows - rows % 4
    for r in range(0, whole, 4):
        first, second = squares[r * columns :], squares[(r + 1) * columns :]
        third, fourth = squares[(r + 2) * columns :], squares[(r + 3) * columns :]
        for j in range(columns):
            total = sums[j] + np.float64(first[j])
            total = total + np.float64(second[j])
            total = total + np.float64(third[j])
            sums[j] = total + np.float64(fourth[j])
    for r in range(whole, rows):
        row = squares[r * columns :]
        for j in range(columns):
            sums[j] += np.float64(row[j])


@callee
def _add_squares(grad, squares, sums, scale, factor, limit, s):
    for i in range(grad.size):
        q = square(clip(grad[i] * scale * factor, -limit, limit), s)
        squares[i] = q
        sums[i] += np.float64(q)


@inlined_callee
def _finish_rows(t, tile, parts, k, s, lanes, dtype):
    """Row means into the row slot; their sum, or what follows from it where the tile has whole columns."""
    if tile.strips > 1:
        for r in range(parts.rows.size):
            parts.rows[r] = followed(parts.rows[r], row_mean(t, tile, r, dtype), s)
    else:
        _follow_means(parts.rows, parts.row_sums, tile.width, s)
    if tile.blocks > 1:
        t.sums[MEANS, k] = sum_of(parts.rows)
        return
    roots = parts.roots
    sums_of_rows(parts.rows, tile.rows, roots, lanes)
    for m in range(roots.size):
        roots[m] = root_of(roots[m], tile, s)


@callee
def _follow_means(slot, sums, count, s):
    if count == 1:
        for i in range(slot.size):
            slot[i] = followed(slot[i], constant(sums[i], slot[i]), s)
        return
    for i in range(slot.size):
        slot[i] = followed(slot[i], mean_of(sums[i], count, slot[i]), s)


def columns_pass(handle):
    """The rest of the slots of matrices of several tiles, and 1 / √mean(row); serial, after `sums_pass`."""
    t = tables_at(handle, DTYPE)
    lanes = np.empty(ROW_LANES)
    k = 0
    while k < t.chunks.shape[0]:
        tile = scalars_at(Tile, t.chunks, k, 0)
        tiles = tile.blocks * tile.strips
        if tiles > 1 and t.gradients[ADDRESS, tile.segment] != 0:
            _finish_matrix(t, tile, k, lanes, DTYPE, SCALARS)
        k += tiles


@callee
def _finish_matrix(t, tile, k, lanes, dtype, scalars):
    """Requires the first tile of a matrix that has several."""
    s = scalars_at(scalars, t.table, tile.group, CONTROLS)
    if tile.strips > 1:
        for i in range(k, k + tile.blocks):
            own = scalars_at(Tile, t.chunks, i, 0)
            _finish_rows(t, own, parts_of(t, own, dtype), i, s, lanes, dtype)
    if tile.blocks > 1:
        parts_of(t, tile, dtype).roots[0] = root_of(row_sum(t.sums[MEANS, k : k + tile.blocks]), tile, s)
    for first in range(k, k + tile.blocks * tile.strips, tile.blocks):
        strip = scalars_at(Tile, t.chunks, first, 0)
        parts = parts_of(t, strip, dtype)
        sums = parts.strip
        for i in range(0, strip.blocks, BAND):
            _add_blocks(sums, strip.columns, i, min(i + BAND, strip.blocks), 1)
        _add_blocks(sums, strip.columns, 0, strip.blocks, BAND)
        _follow_means(parts.columns, sums, strip.height, s)


@callee
def _add_blocks(sums, columns, first, end, step):
    """Add to the column sums of a strip's block ``first`` those of others."""
    total = sums[first * columns : (first + 1) * columns]
    for i in range(first + step, end, step):
        partial = sums[i * columns : (i + 1) * columns]
        for j in range(columns):
            total[j] += partial[j]


class Parts(NamedTuple):
    """What belongs to a tile, matrix by matrix where it has several."""

    rows: Any  # of the row slot
    columns: Any  # of the column slot
    roots: Any  # 1 / √mean(row), float64
    row_sums: Any  # float64
    row_sizes: Any  # p² or u² summed over rows, float64
    strip: Any  # column sums of the tiles that have the same columns, float64
    column_sums: Any  # its own part of that


@inlined_callee
def parts_of(t, tile, dtype):
    """The `Parts` of a tile."""
    segment, rows, columns = tile.segment, tile.matrices * tile.rows, tile.matrices * tile.columns
    own = tile.position % tile.blocks * columns
    strip = array_at(t.addresses[COLUMN_SUMS, segment], tile.column_sums - own, tile.blocks * columns, np.float64)
    return Parts(
        array_at(t.addresses[ROW, segment], tile.first_row, rows, dtype),
        array_at(t.addresses[COLUMN, segment], tile.first_column, columns, dtype),
        array_at(t.addresses[ROOTS, segment], tile.matrix, tile.matrices, np.float64),
        array_at(t.addresses[ROW_SUMS, segment], tile.row_sums, rows, np.float64),
        array_at(t.addresses[ROW_SIZES, segment], tile.row_sums, rows, np.float64),
        strip,
        strip[own : own + columns],
    )


@inlined_callee
def _own_parts_of(t, tile, sums, dtype):
    """The same, with sums that no other tile needs in scratch, ``sums``, that stays in the caches."""
    parts, own = parts_of(t, tile, dtype), tile.strips == 1
    row_sums = sums[0, : parts.rows.size] if own else parts.row_sums
    column_sums = sums[1, : parts.columns.size] if own and tile.blocks == 1 else parts.column_sums
    row_sizes = sums[2, : parts.rows.size]
    return Parts(parts.rows, parts.columns, parts.roots, row_sums, row_sizes, parts.strip, column_sums)


@inlined_callee
def square(g, s):
    """Return g² + ε₁, of which the means over rows and over columns are kept."""
    return g * g + s.epsilon_1


@inlined_callee
def followed(slot, value, s):
    """A slot that follows a value."""
    return s.keep * slot + s.take * value


@inlined_callee
def row_mean(t, tile, r, dtype):
    """Mean of row ``r`` of a tile, from the sums of all tiles that have the row."""
    first = tile.row_sums - tile.position // tile.blocks * tile.height + r
    total = 0.0
    for strip in range(tile.strips):
        total += array_at(t.addresses[ROW_SUMS, tile.segment], first + strip * tile.height, 1, np.float64)[0]
    return dtype(total / np.float64(tile.width))


@inlined_callee
def mean_of(total, count, like):
    """Mean from a sum, in the dtype of ``like``."""
    return constant(total / np.float64(count), like)


@inlined_callee
def root_of(total, tile, s):
    """1 / √mean(row), from the sum of the row slot of a matrix."""
    return 1.0 / sqrt(maximum(total / np.float64(tile.height), np.float64(s.least_mean)))


@callee
def size_factor(c, s):
    """Factor of the parameter whose size counts."""
    return constant(1, c.decay) - c.decay * s.decayed


@inlined_callee
def row_root(row, root):
    """√(row / mean(row)), from an element of the row slot and 1 / √mean(row)."""
    return constant(sqrt(np.float64(row)) * root, row)


@inlined_callee
def update_of(g, root, column, s):
    """The update before it is clipped; for a vector ``root`` is 1 and ``column`` its velocity."""
    return scaled(g, root * sqrt(column), s)


@inlined_callee
def scaled(g, root, s):
    """The gradient by the root of its second moment."""
    return g / maximum(root, s.least_root)


def size_pass(first, last, handle, options):
    """Sums of u² of matrices, before clipping."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    updates, roots = np.empty(CHUNK, DTYPE), _scratch_for_roots(DTYPE)
    lanes, row_sizes = np.empty(ROW_LANES), np.empty(CHUNK)
    for k in range(first, last):
        tile = scalars_at(Tile, t.chunks, k, 0)
        if t.gradients[ADDRESS, tile.segment] == 0 or tile.rows == 0:
            continue
        c = scalars_at(Control, t.table, tile.group, 0)
        s = scalars_at(SCALARS, t.table, tile.group, CONTROLS)
        parts, rows = parts_of(t, tile, DTYPE), tile.matrices * tile.rows
        _take_roots(parts, tile, roots)
        step = _rows_of_batch(tile)
        for r in range(0, rows, step):
            count = min(step, rows - r)
            _update_rows(t, tile, r, count, roots, c, s, options, scratch, updates, DTYPE)
            sums_of_squared_rows(updates, tile.columns, DTYPE(1), row_sizes[r : r + count], lanes)
        t.sums[UPDATES, k] = sum_of(row_sizes[:rows])


class Roots(NamedTuple):
    """Roots of a tile's second moments, as factors: their products are √v."""

    rows: Any
    columns: Any
    matrices: Any  # 1 / √mean(row) for each row, float64


@callee
def _scratch_for_roots(dtype):
    return Roots(np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.empty(CHUNK))


@callee
def _take_roots(parts, tile, roots):
    """Fill in the roots of a tile."""
    if tile.matrices > tile.rows:
        _repeat_across(parts.roots, roots.matrices, *unsigned(tile.matrices, tile.rows, 1))
    else:
        for m in range(tile.matrices):
            for r in range(m * tile.rows, (m + 1) * tile.rows):
                roots.matrices[r] = parts.roots[m]
    for r in range(parts.rows.size):
        roots.rows[r] = row_root(parts.rows[r], roots.matrices[r])
    for j in range(parts.columns.size):
        roots.columns[j] = sqrt(parts.columns[j])


@callee
def _repeat_across(values, repeated, matrices, rows, one):
    for r in range(rows):
        for m in range(matrices):
            repeated[m * rows + r] = values[m]


@inlined_callee
def _update_rows(t, tile, r, count, roots, c, s, options, scratch, updates, dtype):
    """The updates of ``count`` rows from row ``r`` of a tile, before they are clipped."""
    first, length = tile.offset + r * tile.width, count * tile.columns
    grad, scale = chunk_gradient(t, tile.segment, first, length, c, options, scratch, dtype)
    factor, columns = t.factors[CLIP, tile.segment], roots.columns[r // tile.rows * tile.columns :]
    if count == 1:
        _update_row(grad, roots.rows[r], columns, updates, scale, factor, c.limit, s)
    else:
        _multiply_roots(roots.rows[r : r + count], columns, tile.rows, tile.columns, updates)
        _update(grad, updates, scale, factor, c.limit, s)


@callee
def _update_row(grad, root, columns, updates, scale, factor, limit, s):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        updates[i] = scaled(g, root * columns[i], s)


@callee
def _update(grad, updates, scale, factor, limit, s):
    """Overwrite each root √v in ``updates`` by the update that it scales."""
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        updates[i] = scaled(g, updates[i], s)


@callee
def _multiply_roots(row_roots, column_roots, rows, columns, products):
    """The products of the roots of each row, ``rows`` to a matrix, with those of the columns of its matrix."""
    matrices = row_roots.size // rows
    if matrices > columns:
        _multiply_across(row_roots, column_roots, products, *unsigned(matrices, rows, columns))
        return
    height = min(row_roots.size, rows)
    for m in range(max(matrices, 1)):
        own = column_roots[m * columns : (m + 1) * columns]
        for r in range(height):
            root, row = row_roots[m * rows + r], products[(m * rows + r) * columns :]
            for j in range(columns):
                row[j] = root * own[j]


@callee
def _multiply_across(row_roots, column_roots, products, matrices, rows, columns):
    """The products in one place of each matrix, then those in the next."""
    for place in range(rows * columns):
        row, column = place // columns, place % columns
        for m in range(matrices):
            root = row_roots[m * rows + row] * column_roots[m * columns + column]
            products[m * rows * columns + place] = root


@callee
def unsigned(matrices, rows, columns):
    """Cast to unsigned numbers: an index that cannot be negative is not checked, and loops vectorise."""
    return np.uint64(matrices), np.uint64(rows), np.uint64(columns)


def lengths_pass(handle):
    """Per parameter the step's length into ``factors[EXTRA]``; serial."""
    t = tables_at(handle, DTYPE)
    k = 0
    while k < t.chunks.shape[0]:
        tile = scalars_at(Tile, t.chunks, k, 0)
        s = scalars_at(SCALARS, t.table, tile.group, CONTROLS)
        size = row_sum(t.sums[SIZES, k : tile.end_tile])
        update = row_sum(t.sums[UPDATES, k : tile.end_tile])
        t.factors[EXTRA, tile.segment] = length_of(size, update, tile, s)
        k = tile.end_tile


@callee
def length_of(size, update, tile, s):
    """max(ε₂, rms(p)) ρ / max(1, rms(u) / d), from the sums of p² and u²."""
    n = np.float64(tile.size)
    excess = maximum(1.0, sqrt(update / n) / s.clip_threshold)
    return maximum(np.float64(s.epsilon_2), sqrt(size / n)) * s.relative_step / excess


def update_pass(first, last, handle, options):
    """Move the parameters; and what the options ask for."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    updates, roots = np.empty(CHUNK, DTYPE), _scratch_for_roots(DTYPE)
    for k in range(first, last):
        tile = scalars_at(Tile, t.chunks, k, 0)
        if t.gradients[ADDRESS, tile.segment] == 0:
            continue
        c = scalars_at(Control, t.table, tile.group, 0)
        s = scalars_at(SCALARS, t.table, tile.group, CONTROLS)
        extra = t.factors[EXTRA, tile.segment]
        if tile.rows == 0:
            grad, scale = chunk_gradient(t, tile.segment, tile.offset, tile.length, c, options, scratch, DTYPE)
            velocity = array_at(t.addresses[VELOCITY, tile.segment], tile.offset, tile.length, DTYPE)
            _update_vector(grad, velocity, updates, scale, t.factors[CLIP, tile.segment], c.limit, s)
            param = array_at(t.addresses[PARAM, tile.segment], tile.offset, tile.length, DTYPE)
            _move(param, updates, extra, c.decay)
            finish_chunk(t, tile.segment, tile.offset, param, c, options, DTYPE)
            continue
        parts, rows = parts_of(t, tile, DTYPE), tile.matrices * tile.rows
        _take_roots(parts, tile, roots)
        step = _rows_of_batch(tile)
        for r in range(0, rows, step):
            count, where = min(step, rows - r), tile.offset + r * tile.width
            _update_rows(t, tile, r, count, roots, c, s, options, scratch, updates, DTYPE)
            param = array_at(t.addresses[PARAM, tile.segment], where, count * tile.columns, DTYPE)
            _move(param, updates, extra, c.decay)
            finish_chunk(t, tile.segment, where, param, c, options, DTYPE)


@callee
def _update_vector(grad, velocity, updates, scale, factor, limit, s):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        updates[i] = update_of(g, constant(1, g), velocity[i], s)


@callee
def _move(param, updates, length, decay):
    for i in range(param.size):
        param[i] = moved(param[i], updates[i], length, decay)


@inlined_callee
def moved(param, update, length, decay):
    """A parameter after its step."""
    return decayed(param, decay) - length * update


class Factored(Elementwise):
    """Adafactor's step: three launches, on a tile table of its own."""

    row_step = None

    def __init__(self, plan):
        super().__init__(plan)
        common, tiles = self.work, Tiles(plan)
        self._scratch = [np.zeros(max(n, 1)) for n in tiles.scratch]
        addresses = np.zeros((ROOTS + 1, common.addresses.shape[1]), np.int64)
        addresses[:SLOTS] = common.addresses[:SLOTS]
        for row, arrays in zip((ROW, COLUMN, VELOCITY), slots_in_memory_order(plan), strict=True):
            addresses[row] = [0 if array is None else array.ctypes.data for array in arrays]
        addresses[COLUMN_SUMS:] = [[scratch.ctypes.data] for scratch in self._scratch]
        self._tiles = launch.Work(
            tiles.table, addresses, common.gradients, common.layouts, common.table, terms=3, factors=common.factors
        )

    def _compile(self, scalars, slots):
        self._kernels = [launch.kernel(f, scalars, slots, self.dtype) for f in (sums_pass, size_pass, update_pass)]
        self._columns = launch.serial_function(columns_pass, 0, scalars, slots, self.dtype)
        self._lengths = launch.serial_function(lengths_pass, 0, scalars, slots, self.dtype)

    def calls(self, options):
        """See `Elementwise.calls`."""
        work, reading = self._tiles, options & (ACCUMULATED | STAGED)
        sums, size, update = self._kernels
        return [
            launch.call(sums, work, reading),
            partial(self._columns, work.handle),
            launch.call(size, work, reading),
            partial(self._lengths, work.handle),
            launch.call(update, work, options),
        ]


RULES[AdafactorScalars] = Rule("adafactor", engine=Factored, slots=STATE)
