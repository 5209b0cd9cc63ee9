"""Adafactor on a GPU: three launches over the tiles of `fastopt.kernels.cpu.tiles`.

A block takes a tile at a time: its warps sum over rows, its threads over columns. What several tiles share is worked
out by the block that is the last of them to be done.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..compile._jit import callee
from ..compile.intrinsics import scalars_at
from ..compile.tuples import divided, numbers_at, put_numbers, transposed
from ..cpu.adafactor import (
    COLUMN,
    COLUMN_SUMS,
    MEANS,
    ROOTS,
    ROW,
    SIZES,
    UPDATES,
    VELOCITY,
    followed,
    length_of,
    mean_of,
    moved,
    parts_of,
    root_of,
    row_mean,
    row_root,
    update_of,
)
from ..cpu.reduction import LANES as SUM_LANES
from ..cpu.tiles import BAND, Tile, Tiles, bands_of, slots_in_memory_order
from ..layout import ACCUMULATED, ADDRESS, AVERAGE, AVERAGED, EXTRA, PARAM, SLOTS, ZERO, Control
from .adafactor_terms import (
    ColumnSquares,
    RowSquares,
    UpdateSquares,
    Velocities,
    accumulated_at,
    clipped_of,
    how_of,
    is_aligned,
    source_of,
)
from .engine import Elementwise, kernel
from .finish import finish, is_last
from .gradient import clear, numbers_of
from .lanes import ACCUMULATES, LANES, in_lanes, one, size_of, wide
from .step import Chunk, averaged, chunks_of, no_update
from .sums import lane_sum, no_terms, row_sum, sum_terms, together_of, with_term, with_terms
from .tables import LAST, MICRO, device_tables_at, program_of, rule_scalars_of
from .threads import TEAM, block_barrier

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
WARPS = 4
QUANTITIES = 2
SCRATCH = WARPS * QUANTITIES * SUM_LANES


def sums(handle, options):
    """Slots, sums of p², and of u² of vectors. In a micro-step, or one that is stopped, nothing."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    totals = cuda.shared.array((QUANTITIES, WARPS), np.float64)
    flags = cuda.shared.array(1, np.int64)
    warp = cuda.threadIdx.x // TEAM
    lanes = scratch[warp * QUANTITIES * SUM_LANES : (warp + 1) * QUANTITIES * SUM_LANES]
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _sum_tile(handle, options, k, lanes, totals, flags, cuda.threadIdx.x, cuda.blockDim.x, SCALARS, DTYPE)
        k += cuda.gridDim.x


@callee
def _is_idle(t, program, tile):
    """Whether this step does not move the segment."""
    stopped = program.stopped or program.options & MICRO != 0
    return not program.ready or stopped or t.common.gradients[ADDRESS, tile.segment] == 0


@callee
def _sum_tile(handle, options, k, lanes, totals, flags, member, members, scalars, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    tile = scalars_at(Tile, t.common.chunks, k, 0)
    if _is_idle(t, program, tile):
        return
    s, source = rule_scalars_of(t, program, k, scalars), source_of(t, program, k, tile, dtype)
    if tile.rows:
        _sum_rows(t, tile, source, s, lanes, totals, member, members, dtype)
        _sum_columns(t, tile, source, s, member, members, dtype)
        _sum_sizes(t, tile, k, SIZES, lanes, member, dtype)
        _finish_tile(t, tile, k, s, lanes, flags, member, members, dtype)
        return
    if member < TEAM:
        _sum_vector(t, tile, k, source, s, lanes, member, dtype)
    if _is_last(t, tile.segment, tile.end_tile - tile.first_tile, flags, member):
        _set_length(t, tile, s, lanes, member)


@callee
def _sum_sizes(t, tile, k, row, lanes, member, dtype):
    """The sum of what the rows of a tile have been measured to be."""
    block_barrier()
    if member < TEAM:
        total = lane_sum(parts_of(t.common, tile, dtype).row_sizes, lanes, member, TEAM)
        if member == 0:
            t.common.sums[row, k] = total


@callee
def _sum_vector(t, tile, k, source, s, lanes, thread, dtype):
    param, velocity = t.common.addresses[PARAM, tile.segment], t.common.addresses[VELOCITY, tile.segment]
    aligned = is_aligned(source, param | velocity, tile.offset, one(dtype))
    work = Velocities(source, s, param, velocity, tile.offset, aligned, (0, 0))
    sum_terms(work, how_of(source), tile.length, lanes, thread, t.common.sums, k, dtype)


@callee
def _sum_rows(t, tile, source, s, lanes, totals, member, members, dtype):
    """A warp a row: row sums of the gradient's squares and of the parameter's."""
    parts, warp, thread = parts_of(t.common, tile, dtype), member // TEAM, member % TEAM
    param = t.common.addresses[PARAM, tile.segment]
    r = warp
    while r < parts.row_sums.size:
        first = tile.offset + r * tile.width
        work = RowSquares(source, s, param, first, is_aligned(source, param, first, one(dtype)), (0, 0))
        sum_terms(work, how_of(source), tile.columns, lanes, thread, totals, warp, dtype)
        if thread == 0:
            parts.row_sizes[r], parts.row_sums[r] = totals[0, warp], totals[1, warp]
        r += members // TEAM


@callee
def _sum_columns(t, tile, source, s, thread, threads, dtype):
    """A thread a column, or as many as one load brings."""
    work, sums = ColumnSquares(source, s, (0,)), parts_of(t.common, tile, dtype).column_sums
    many, how = wide(dtype), how_of(source)
    if tile.columns % len(many) or not is_aligned(source, 0, tile.offset | tile.width, many):
        _sum_columns_by(sums, tile, work, one(dtype), how, thread, threads)
    elif how:
        _sum_columns_by(sums, tile, work, many, ACCUMULATES, thread, threads)
    else:
        _sum_columns_by(sums, tile, work, many, 0, thread, threads)


@callee
def _sum_columns_by(sums, tile, work, like, how, thread, threads):
    per_matrix = tile.columns // len(like)
    group = thread
    while group < tile.matrices * per_matrix:
        m, place = divided(group, per_matrix)
        column = place * len(like)
        first = tile.offset + m * tile.rows * tile.width + column
        total = _sum_down(work, first, tile.rows, tile.width, like, how)
        for j in range(len(like)):
            sums[m * tile.columns + column + j] = total[0][j]
        group += threads


@callee
def _sum_down(work, first, rows, width, like, how):
    """Sums over the rows, one after the other; several at a time are loaded."""
    total, together = no_terms(work, like), together_of(work)
    i, r = first, 0
    while r + together <= rows:
        total = with_terms(total, work, i, width, like, how)
        i, r = i + together * width, r + together
    while r < rows:
        total = with_term(total, work, i, like, how)
        i, r = i + width, r + 1
    return total


@callee
def _is_last(t, counter, expected, flags, member):
    """Count this block in; whether all that are expected have then come, and what they have written is seen."""
    block_barrier()
    if expected == 1:
        return True
    if member == 0:
        flags[0] = is_last(t.counters, counter, expected)
    block_barrier()
    return flags[0] != 0


@callee
def _finish_tile(t, tile, k, s, lanes, flags, member, members, dtype):
    """Work out what follows from the sums of a tile, and from those of others if it is the last."""
    blocks, bands = tile.blocks, bands_of(tile.blocks)
    strip, block = divided(tile.position, blocks)
    if _is_last(t, tile.tickets + block, tile.strips, flags, member):
        _finish_rows(t, tile, k - strip * blocks, s, lanes, member, members, dtype)
        if blocks > 1 and _is_last(t, tile.tickets + blocks, blocks, flags, member):
            _finish_root(t, tile, k - tile.position, s, lanes, member, dtype)
    band, tickets = block // BAND * BAND, tile.tickets + blocks + 1 + strip * (bands + 1)
    end = min(band + BAND, blocks)
    parts = parts_of(t.common, tile, dtype)
    if _is_last(t, tickets + block // BAND, end - band, flags, member):
        _add_blocks(parts.strip, tile.columns, band, end, 1, member, members)
        if _is_last(t, tickets + bands, bands, flags, member):
            _add_blocks(parts.strip, tile.columns, 0, blocks, BAND, member, members)
            _finish_columns(parts, tile, s, member, members, dtype)


@callee
def _finish_rows(t, tile, k, s, lanes, member, members, dtype):
    """Row means into the row slot; their sum, or what follows from it where the tile has whole columns.

    ``k`` is the first tile that has these rows. The row sums have then served, and hold what is summed.
    """
    parts = parts_of(t.common, tile, dtype)
    for r in range(member, parts.rows.size, members):
        parts.rows[r] = followed(parts.rows[r], row_mean(t.common, tile, r, dtype), s)
        parts.row_sums[r] = parts.rows[r]
    block_barrier()
    thread = member % TEAM
    for m in range(member // TEAM, tile.matrices, members // TEAM):
        total = lane_sum(parts.row_sums[m * tile.rows : (m + 1) * tile.rows], lanes, thread, TEAM)
        if thread == 0 and tile.blocks == 1:
            parts.roots[m] = root_of(total, tile, s)
        elif thread == 0:
            t.common.sums[MEANS, k] = total


@callee
def _finish_root(t, tile, first, s, lanes, member, dtype):
    if member < TEAM:
        total = row_sum(t.common.sums[MEANS, first : first + tile.blocks], lanes, member, TEAM)
        if member == 0:
            parts_of(t.common, tile, dtype).roots[0] = root_of(total, tile, s)


@callee
def _add_blocks(sums, columns, first, end, step, member, members):
    """Add to the column sums of a strip's block ``first`` those of others."""
    for j in range(member, columns if end - first > step else 0, members):
        total = sums[first * columns + j]
        for i in range(first + step, end, step):
            total += sums[i * columns + j]
        sums[first * columns + j] = total


@callee
def _finish_columns(parts, tile, s, member, members, dtype):
    """Column means into the column slot, from sums over whole columns: those of the strip's first block."""
    for j in range(member, parts.columns.size, members):
        parts.columns[j] = followed(parts.columns[j], mean_of(parts.strip[j], tile.height, parts.columns[j]), s)


@callee
def _set_length(t, tile, s, lanes, member):
    """The step's length, once all tiles of a segment are done."""
    if member < TEAM:
        size = row_sum(t.common.sums[SIZES, tile.first_tile : tile.end_tile], lanes, member, TEAM)
        update = row_sum(t.common.sums[UPDATES, tile.first_tile : tile.end_tile], lanes, member, TEAM)
        if member == 0:
            t.common.factors[EXTRA, tile.segment] = length_of(size, update, tile, s)


def sizes(handle, options):
    """Sums of u² of matrices before clipping, and the step's length; micro-steps and stopped ones as in `sums`."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    totals = cuda.shared.array((QUANTITIES, WARPS), np.float64)
    flags = cuda.shared.array(1, np.int64)
    warp = cuda.threadIdx.x // TEAM
    lanes = scratch[warp * SUM_LANES : (warp + 1) * SUM_LANES]
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _size_tile(handle, options, k, lanes, totals, flags, cuda.threadIdx.x, cuda.blockDim.x, SCALARS, DTYPE)
        k += cuda.gridDim.x


@callee
def _size_tile(handle, options, k, lanes, totals, flags, member, members, scalars, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    tile = scalars_at(Tile, t.common.chunks, k, 0)
    if tile.rows == 0 or _is_idle(t, program, tile):
        return
    s, source = rule_scalars_of(t, program, k, scalars), source_of(t, program, k, tile, dtype)
    _sum_updates(t, tile, s, source, lanes, totals, member, members, dtype)
    _sum_sizes(t, tile, k, UPDATES, lanes, member, dtype)
    if _is_last(t, tile.segment, tile.end_tile - tile.first_tile, flags, member):
        _set_length(t, tile, s, lanes, member)


@callee
def _sum_updates(t, tile, s, source, lanes, totals, member, members, dtype):
    """A warp a row: sums of u² of each."""
    parts, warp, thread = parts_of(t.common, tile, dtype), member // TEAM, member % TEAM
    r = warp
    while r < parts.rows.size:
        first, column = tile.offset + r * tile.width, _column_at(t, tile, r, dtype)
        aligned = is_aligned(source, column, first, one(dtype))
        work = UpdateSquares(source, s, column, _root_of_row(parts, tile, r, dtype), first, aligned, (0,))
        sum_terms(work, how_of(source), tile.columns, lanes, thread, totals, warp, dtype)
        if thread == 0:
            parts.row_sizes[r] = totals[0, warp]
        r += members // TEAM


@callee
def _root_of_row(parts, tile, r, dtype):
    return row_root(parts.rows[r], parts.roots[divided(r, tile.rows)[0]])


@callee
def _column_at(t, tile, r, dtype):
    """Return where the column slot begins for row ``r`` of a tile, in bytes."""
    first = tile.first_column + divided(r, tile.rows)[0] * tile.columns
    return t.common.addresses[COLUMN, tile.segment] + first * size_of(one(dtype))


class Move(NamedTuple):
    """The step of neighbouring elements."""

    source: Any
    scalars: Any
    param: Any  # addresses of the segment's arrays
    average: Any
    first: Any  # element of the segment
    size: Any
    column: Any  # address of the column slot, or of a vector's velocity, at the first element
    root: Any
    length: Any


@callee
def _moved(work, numbers):
    """Make param and average of param, grad, average, accumulated, column."""
    source, (param, grad, average, accumulated, column) = work.source, numbers
    u = update_of(clipped_of(source, grad, accumulated), work.root, column, work.scalars)
    return averaged(moved(param, u, work.length, source.control.decay), average, source.options, source.control)


LANES[Move] = _moved


def update(handle, options):
    """Move the parameters; micro-steps and stopped ones are as in `fastopt.kernels.cuda.step.step`."""
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _update_tile(handle, options, k, cuda.threadIdx.x, cuda.blockDim.x, SCALARS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


@callee
def _update_tile(handle, options, k, thread, threads, scalars, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    tile = scalars_at(Tile, t.common.chunks, k, 0)
    if not program.ready:
        return
    if tile.rows == 0:
        _update_row(t, program, k, tile, 0, tile.length, thread, threads, scalars, dtype)
        return
    r = thread // TEAM
    while r < tile.matrices * tile.rows:
        _update_row(t, program, k, tile, r, tile.columns, thread % TEAM, TEAM, scalars, dtype)
        r += threads // TEAM


@callee
def _update_row(t, program, k, tile, r, size, thread, threads, scalars, dtype):
    """The step of one row of a tile, or of the chunk of a vector."""
    first, source = tile.offset + r * tile.width, source_of(t, program, k, tile, dtype)
    if _is_idle(t, program, tile):
        chunk = Chunk(tile.segment, first, size, source.gradient)
        no_update(t, program, k, chunk, thread, threads, dtype)
        return
    param, average = t.common.addresses[PARAM, tile.segment], t.common.addresses[AVERAGE, tile.segment]
    if tile.rows == 0:
        column = t.common.addresses[VELOCITY, tile.segment] + first * size_of(one(dtype))
        root = dtype(1)
    else:
        column = _column_at(t, tile, r, dtype)
        root = _root_of_row(parts_of(t.common, tile, dtype), tile, r, dtype)
    length, s = t.common.factors[EXTRA, tile.segment], rule_scalars_of(t, program, k, scalars)
    _move(Move(source, s, param, average, first, size, column, root, length), thread, threads, dtype)


@callee
def _move(work, thread, threads, dtype):
    """Vectors as far as they go, then single elements."""
    many, single = wide(dtype), one(dtype)
    aligned = is_aligned(work.source, work.param | work.average | work.column, work.first, single)
    whole = work.size - work.size % len(many) if aligned else 0
    i = thread * len(many)
    while i < whole:
        _move_at(work, i, many)
        i += threads * len(many)
    i = whole + thread
    while i < work.size:
        _move_at(work, i, single)
        i += threads


@callee
def _move_at(work, i, like):
    """The step of as many elements as the tuple ``like`` has, from ``i`` on."""
    source, element = work.source, work.first + i
    byte = element * size_of(like)
    grads, average = numbers_of(source.gradient, element, like, 0), like
    params, columns = numbers_at(work.param + byte, like), numbers_at(work.column + i * size_of(like), like)
    if source.options & AVERAGED:
        average = numbers_at(work.average + byte, like)
    streams = (params, grads, average, accumulated_at(source, element, like, how_of(source)), columns)
    params, average = transposed(in_lanes(work, transposed(streams)))
    put_numbers(work.param + byte, params)
    if source.options & AVERAGED:
        put_numbers(work.average + byte, average)
    if source.options & ACCUMULATED:
        put_numbers(source.accumulator + byte, like)
    if source.options & ZERO:
        clear(source.gradient, element, like, 0)


class Factored(Elementwise):
    """Adafactor's step: three launches, on a tile table of its own."""

    row_step = None

    def __init__(self, plan):
        super().__init__(plan)
        common, tiles = self.work, Tiles(plan)
        self._scratch = [self.device.allocate(8 * max(n, 1)) for n in tiles.scratch]
        addresses = np.zeros((ROOTS + 1, common.addresses.shape[1]), np.int64)
        addresses[:SLOTS] = common.addresses[:SLOTS]
        for row, arrays in zip((ROW, COLUMN, VELOCITY), slots_in_memory_order(plan), strict=True):
            addresses[row] = [0 if array is None else array.address for array in arrays]
        addresses[COLUMN_SUMS:] = [[scratch.address] for scratch in self._scratch]
        self._tiles = common.derived(tiles.table, addresses, terms=3, counters=tiles.tickets)

    def _compile(self, scalars, slots):
        self._kernels = [kernel(f, scalars, slots, self.dtype, self.device) for f in (sums, sizes, update)]

    def __call__(self, stream, options):
        """Launch the three passes."""
        *first, last = self._kernels
        for each in first:
            self.launch(each, stream, options & ~LAST, work=self._tiles)
        self.launch(last, stream, options, work=self._tiles)
