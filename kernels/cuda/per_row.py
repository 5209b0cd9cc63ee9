"""Rules with sums over each row between two phases, on a GPU: one launch, a row to a warp at a time."""

from typing import Any

import numpy as np
from numba import cuda

from ..compile._jit import callee
from ..compile.tuples import transposed
from ..cpu.per_row import WIDTH, chunks_of_rows
from ..cpu.reduction import LANES as SUM_LANES
from ..layout import CHUNK, Control
from ..registry import between_row
from .engine import Elementwise, warps_of
from .finish import finish
from .lanes import cast, column_of, load_each, one, size_of, store_each
from .row_gradients import chunk_of_row, first_row, rows_at_once
from .row_tables import row_tables_at, touched_row
from .step import Chunk, Update, chunk_of, chunks_of, factor_of, move_chunk, no_update
from .sums import start_of
from .tables import MICRO, control_of, device_tables_at, program_of, rule_scalars_of
from .threads import TEAM, barrier
from .two_phase import sum_first

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
TERM_ROWS: Any = ()
WARPS = 4
SCRATCH = WARPS * SUM_LANES
TOTALS = WARPS


def step_per_row(handle, options):
    """One step of a rule per row; micro-steps and stopped ones are as in `fastopt.kernels.cuda.step.step`."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    totals = cuda.shared.array((TOTALS, 2), np.float64)
    numbers = cuda.shared.array(WARPS, DTYPE)
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        shared = _own(scratch, totals, numbers, len(TERM_ROWS))
        _step_rows(handle, options, k, shared, SCALARS, SLOT_ROWS, TERM_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


def step_touched_per_row(handle, options):
    """The same of touched rows, as `row_gradients.step_rows`."""
    scratch = cuda.shared.array(SCRATCH, np.float64)
    totals = cuda.shared.array((TOTALS, 2), np.float64)
    numbers = cuda.shared.array(WARPS, DTYPE)
    header, u = row_tables_at(handle).header, first_row(TEAM)
    while u < header.touched:
        shared = _own(scratch, totals, numbers, len(TERM_ROWS))
        _step_touched(handle, options, u, shared, SCALARS, SLOT_ROWS, TERM_ROWS, DTYPE)
        u += rows_at_once(TEAM)
    finish(header.plan, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


@callee
def _own(scratch, totals, numbers, terms):
    """What is a warp's own of what its block shares: lanes, totals of the terms, and a row's number."""
    warp = cuda.threadIdx.x // TEAM
    lanes = scratch[warp * terms * SUM_LANES : (warp + 1) * terms * SUM_LANES]
    return lanes, totals[warp * terms : (warp + 1) * terms], numbers[warp : warp + 1]


@callee
def _step_rows(handle, options, k, shared, scalars, slot_rows, term_rows, dtype):
    """The rows of chunk ``k``, each warp every so many-th."""
    t = device_tables_at(handle, dtype)
    program, chunk = program_of(t, options, dtype), chunk_of(t, k)
    if program.ready:
        if chunk.gradient.address == 0 or program.stopped or program.options & MICRO:
            no_update(t, program, k, chunk, cuda.threadIdx.x, cuda.blockDim.x, dtype)
            return
        width = t.common.chunks[k, WIDTH]
        s = rule_scalars_of(t, program, k, scalars)
        row, end = chunk.first // width + cuda.threadIdx.x // TEAM, (chunk.first + chunk.size) // width
        while row < end:
            _step_row(t, program, k, chunk, row, width, s, shared, slot_rows, term_rows, dtype)
            row += cuda.blockDim.x // TEAM


@callee
def _step_touched(handle, options, u, shared, scalars, slot_rows, term_rows, dtype):
    """Touched row ``u``."""
    r = row_tables_at(handle)
    t = device_tables_at(r.header.plan, dtype)
    program = program_of(t, options, dtype)
    if program.ready and not program.stopped:
        size = size_of(one(dtype))
        own = touched_row(r, u, size)
        k = start_of(t, own.table.segment)
        s, width = rule_scalars_of(t, program, k, scalars), own.table.width
        _step_row(t, program, k, chunk_of_row(own, size), own.row, width, s, shared, slot_rows, term_rows, dtype)


@callee
def _step_row(t, program, k, chunk, row, width, s, shared, slot_rows, term_rows, dtype):
    """A row of chunk ``k``, or of one like it; all threads of a warp."""
    thread = cuda.threadIdx.x % TEAM
    _sum_row(t, program, k, chunk, row, width, s, thread, shared, term_rows, dtype)
    _between(t, chunk, row, width, s, thread, shared, slot_rows, dtype)
    _move_row(t, program, k, chunk, row, width, s, shared[2][0], thread, dtype)
    barrier(TEAM)


@callee
def _piece(chunk, row, width, column):
    """At most `CHUNK` elements of a row."""
    return Chunk(chunk.segment, row * width + column, min(CHUNK, width - column), chunk.gradient)


@callee
def _sum_row(t, program, k, chunk, row, width, s, thread, shared, term_rows, dtype):
    """Sums of the terms over a row, the pieces' one after the other."""
    lanes, totals, _ = shared
    column = 0
    while column < width:
        piece = _piece(chunk, row, width, column)
        sum_first(t, program, k, piece, s, lanes, thread, (), term_rows, totals, 1, dtype)
        if thread == 0:
            for term in range(len(term_rows)):
                totals[term, 0] = totals[term, 1] + (totals[term, 0] if column else 0.0)
        barrier(TEAM)
        column += CHUNK


@callee
def _between(t, chunk, row, width, s, thread, shared, slot_rows, dtype):
    """Work out the row's number, and its slots."""
    _, totals, number = shared
    if thread == 0:
        like, slots = one(dtype), column_of(slot_rows, t.common.addresses, chunk.segment)
        byte = row * size_of(like)
        found, new = between_row(totals[:, 0], width, transposed(load_each(slots, byte, like))[0], s)
        number[0] = found
        store_each(slots, byte, transposed((cast(new, like[0]),)))
    barrier(TEAM)


@callee
def _move_row(t, program, k, chunk, row, width, s, number, thread, dtype):
    """Second phase of a row."""
    factor = factor_of(t, program, chunk.segment, dtype)
    work = Update(program.options, control_of(t, program, k), s, factor, (number,))
    column = 0
    while column < width:
        move_chunk(t, _piece(chunk, row, width, column), work, thread, TEAM, (), dtype)
        column += CHUNK


class PerRow(Elementwise):
    """The engine of a rule per row: one launch, over chunks of whole rows."""

    row_step = staticmethod(step_touched_per_row)

    def __init__(self, plan):
        super().__init__(plan)
        common = self.work
        self._row_work = self._whole_rows = common.derived(chunks_of_rows(plan), common.addresses)

    def _compile(self, scalars, slots):
        self._warps = warps_of(scalars)
        self._step = self._compiled(step_per_row, scalars, slots)

    def _leave_out(self, segments):
        super()._leave_out(segments)
        self._whole_rows = self._row_work.without(segments) if segments else self._row_work

    def _step_whole(self, stream, options):
        self.launch(self._step, stream, options, threads=TEAM * self._warps, work=self._whole_rows)
