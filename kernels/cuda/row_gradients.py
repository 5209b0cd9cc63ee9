"""Steps of the rows of tables for which there is a gradient, on a GPU: `fastopt.kernels.cpu.row_gradients`, mirrored.

The values of each touched row are added up, in the order of their places, to a gradient that lies in memory of its own.
What follows is done as to a chunk of a whole gradient.

Kernels have the common signature; the handle is the address of `row_tables.RowTables`.
"""

from typing import Any

import numpy as np
from numba import cuda

from ..clipping import EACH, own_factor
from ..compile._jit import callee
from ..compile.tuples import put_numbers
from ..cpu.reduction import LANES as SUM_LANES
from ..layout import CHUNK, CLIP, DIRECT, Control
from .finish import finish
from .gradient import Gradient, numbers_of
from .lanes import VECTOR, one, size_of
from .norms import Squares, decide, is_last_block, measure
from .row_tables import SEGMENT, TOUCHED, row_tables_at, touched_row
from .step import Chunk, update_chunk
from .sums import row_sum, start_of
from .tables import MEASURED, PLANS, control_of, device_tables_at, program_of, rule_scalars_of
from .threads import TEAM

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
WARPS = 4
SCRATCH = WARPS * SUM_LANES


@callee
def first_row(team):
    """The touched row that a thread begins with, one of so many threads that work together."""
    return (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) // team


@callee
def rows_at_once(team):
    """How many touched rows all threads take at a time."""
    return cuda.gridDim.x * cuda.blockDim.x // team


# -- gradients ---------------------------------------------------------------------------------------------------------


def merge_rows(handle, options):
    """Add up the values of each touched row."""
    header = row_tables_at(handle).header
    u = first_row(header.team)
    while u < header.touched:
        _merge_row(row_tables_at(handle), u, cuda.threadIdx.x % header.team, DTYPE)
        u += rows_at_once(header.team)


@callee
def _merge_row(r, u, thread, dtype):
    t, like = device_tables_at(r.header.plan, dtype), one(dtype)
    own = touched_row(r, u, size_of(like))
    table, mask = own.table, (1 << r.header.bits) - 1
    values = Gradient(table.values, t.layouts + 8 * table.record if table.record != DIRECT else 0)
    for column in range(thread, table.width, r.header.team):
        start = column - table.place * table.width
        total = numbers_of(values, (r.keys[own.first] & mask) * table.width + start, like, 0)[0]
        for i in range(own.first + 1, own.end):
            total += numbers_of(values, (r.keys[i] & mask) * table.width + start, like, 0)[0]
        put_numbers(own.merged + column * size_of(like), (total,))


@callee
def _piece_of(own, column, size):
    """Elements of a touched row's gradient as a chunk that begins with the first of them."""
    length = min(CHUNK, own.table.width - column)
    return Chunk(own.table.segment, 0, length, Gradient(own.merged + column * size, 0))


# -- norms -------------------------------------------------------------------------------------------------------------


def norms_of_rows(handle, options):
    """Squares and finiteness of the touched rows' gradients; adds them to what `norms.norms` has found."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    flags = cuda.shared.array(WARPS, np.int64)
    warp, thread = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    header = row_tables_at(handle).header
    u = first_row(TEAM)
    while u < header.touched:
        _measure_row(handle, options, u, scratch[warp * SUM_LANES : (warp + 1) * SUM_LANES], thread, DTYPE)
        u += rows_at_once(TEAM)
    if is_last_block(header.plan, flags, DTYPE):
        _conclude(handle, options, scratch[:SUM_LANES], cuda.threadIdx.x, cuda.blockDim.x, DTYPE)


@callee
def _measure_row(handle, options, u, lanes, thread, dtype):
    r = row_tables_at(handle)
    t = device_tables_at(r.header.plan, dtype)
    program = program_of(t, options, dtype)
    if not program.ready or program.options & MEASURED == 0:
        return
    size = size_of(one(dtype))
    own = touched_row(r, u, size)
    c = control_of(t, program, start_of(t, own.table.segment))
    squares, bad = 0.0, 0.0
    for column in range(0, own.table.width, CHUNK):
        piece = _piece_of(own, column, size)
        aligned = piece.gradient.address % VECTOR == 0
        measure(Squares(piece, 0, aligned, program.options, c, False, (0,)), 0, lanes, thread, r.sums, u, dtype)
        if thread == 0:
            squares += r.sums[0, u]
            bad += r.sums[1, u]
    if thread == 0:
        r.sums[0, u], r.sums[1, u] = squares, bad


@callee
def _conclude(handle, options, lanes, thread, team, dtype):
    """Sums over all touched rows, each table's factor by them; after the last plan's, what they mean for the step."""
    r = row_tables_at(handle)
    t = device_tables_at(r.header.plan, dtype)
    program = program_of(t, options, dtype)
    if not program.ready or program.options & MEASURED == 0:
        return
    if program.way == EACH:
        _limit_each(r, t, program, lanes, thread, team)
    squares, bad = row_sum(r.sums[0], lanes, thread, team), row_sum(r.sums[1], lanes, thread, team)
    if thread == 0:
        plan, plans = t.plan[0], t.plan[1]
        t.measures[PLANS + 2 * plan] += squares
        t.measures[PLANS + 2 * plan + 1] += bad
        if plan == plans - 1:
            decide(t, program, plans)


@callee
def _limit_each(r, t, program, lanes, thread, team):
    """Clipping factor of each table by the norm of its own gradient."""
    end = r.header.touched
    for k in range(r.header.tables - 1, -1, -1):
        first = r.tables[k, TOUCHED]
        squares = row_sum(r.sums[0, first:end], lanes, thread, team)
        if thread == 0:
            t.common.factors[CLIP, r.tables[k, SEGMENT]] = own_factor(program.limit, squares)
        end = first


# -- steps -------------------------------------------------------------------------------------------------------------


def step_rows(handle, options):
    """One step of an elementwise rule, of the touched rows; none if the step is stopped."""
    header = row_tables_at(handle).header
    u = first_row(header.team)
    while u < header.touched:
        _step_row(handle, options, u, cuda.threadIdx.x % header.team, SCALARS, SLOT_ROWS, DTYPE)
        u += rows_at_once(header.team)
    finish(header.plan, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


@callee
def _step_row(handle, options, u, thread, scalars, slot_rows, dtype):
    r = row_tables_at(handle)
    t = device_tables_at(r.header.plan, dtype)
    program = program_of(t, options, dtype)
    if not program.ready or program.stopped:
        return
    size = size_of(one(dtype))
    own = touched_row(r, u, size)
    k = start_of(t, own.table.segment)
    s = rule_scalars_of(t, program, k, scalars)
    update_chunk(t, program, k, chunk_of_row(own, size), thread, r.header.team, slot_rows, s, (), dtype)


@callee
def chunk_of_row(own, size):
    """A touched row, of elements of so many bytes, as a chunk of its parameter."""
    first = own.row * own.table.width
    return Chunk(own.table.segment, first, own.table.width, Gradient(own.merged - first * size, 0))
