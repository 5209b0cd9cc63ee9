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
from .engine import Elementwise, kernel, warps_of
from .finish import finish
from .lanes import cast, column_of, load_each, one, size_of, store_each
from .step import Chunk, Update, chunk_of, chunks_of, factor_of, move_chunk, no_update
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
    warp, thread = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    terms = len(TERM_ROWS)
    lanes = scratch[warp * terms * SUM_LANES : (warp + 1) * terms * SUM_LANES]
    own = totals[warp * terms : (warp + 1) * terms]
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        shared = lanes, own, numbers[warp : warp + 1]
        _step_rows(handle, options, k, warp, thread, shared, SCALARS, SLOT_ROWS, TERM_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


@callee
def _step_rows(handle, options, k, warp, thread, shared, scalars, slot_rows, term_rows, dtype):
    """The rows of chunk ``k``, each warp every so many-th."""
    t = device_tables_at(handle, dtype)
    program, chunk = program_of(t, options, dtype), chunk_of(t, k)
    if program.ready:
        if chunk.gradient.address == 0 or program.stopped or program.options & MICRO:
            no_update(t, program, k, chunk, cuda.threadIdx.x, cuda.blockDim.x, dtype)
            return
        width = t.common.chunks[k, WIDTH]
        s = rule_scalars_of(t, program, k, scalars)
        row, end = chunk.first // width + warp, (chunk.first + chunk.size) // width
        while row < end:
            _sum_row(t, program, k, chunk, row, width, s, thread, shared, term_rows, dtype)
            _between(t, chunk, row, width, s, thread, shared, slot_rows, dtype)
            _move_row(t, program, k, chunk, row, width, s, shared[2][0], thread, dtype)
            barrier(TEAM)
            row += cuda.blockDim.x // TEAM


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

    def __init__(self, plan):
        super().__init__(plan)
        common = self.work
        self._rows = common.derived(chunks_of_rows(plan), common.addresses)

    def _compile(self, scalars, slots):
        self._warps = warps_of(scalars)
        self._step = kernel(step_per_row, scalars, slots, self.dtype, self.device)

    def __call__(self, stream, options):
        """See `Elementwise`."""
        self.launch(self._step, stream, options, threads=TEAM * self._warps, work=self._rows)
