"""Rules with sums over each parameter between two phases: two launches."""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..compile._jit import callee
from ..compile.tuples import numbers_at, transposed
from ..cpu.reduction import LANES as SUM_LANES
from ..layout import ACCUMULATOR, EXTRA, PARAM, Control
from ..maths import decayed
from ..registry import between_phases, first_phase
from .finish import finish
from .gradient import is_plain, numbers_of
from .lanes import (
    ACCUMULATES,
    APART,
    LANES,
    VECTOR,
    cast,
    cast_each,
    column_of,
    first_of,
    in_lanes,
    load_each,
    numbers_from,
    one,
    rest_of,
    size_of,
    store_each,
    union,
)
from .step import chunk_of, chunks_of, clipped, factor_of, no_update, update_chunk
from .sums import TERMS, Terms, elements_of, how_to_load, row_sum, segment_is_done, start_of, sum_terms
from .tables import MICRO, control_of, device_tables_at, program_of, rule_scalars_of
from .threads import TEAM

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
TERM_ROWS: Any = ()
WARPS = 4
SCRATCH = WARPS * SUM_LANES
TOTALS = WARPS


class FirstPhase(NamedTuple):
    """The first phase of a rule on a chunk: new slots, and the terms to be summed."""

    chunk: Any
    param: Any
    accumulator: Any
    slots: Any
    aligned: Any  # whether the widest loads can be used
    options: Any
    control: Any
    scalars: Any
    factor: Any
    sums: Any  # a member for each term


@callee
def _load(work, i, like, how):
    element = work.chunk.first + i
    byte = element * size_of(like)
    grad, accumulated = numbers_of(work.chunk.gradient, element, like, how), like
    if how & ACCUMULATES:
        accumulated = numbers_at(work.accumulator + byte, like)
    return (numbers_from(work.param + byte, like, how), grad, accumulated, *load_each(work.slots, byte, like))


@callee
def _first(work, i, columns):
    byte = (work.chunk.first + i) * size_of(columns[0])
    columns = transposed(in_lanes(work, transposed(columns)))
    store_each(work.slots, byte, rest_of(columns, work.sums))
    return cast_each(first_of(columns, work.sums), 0.0)


@callee
def _first_in_lane(work, numbers):
    """Make terms… and slots… of param, grad, accumulated, slots…."""
    c, (param, grad, accumulated) = work.control, numbers[:3]
    g = clipped(grad, accumulated, work.options, c, work.factor)
    terms, slots = first_phase(decayed(param, c.decay), g, numbers[3:], work.scalars)
    return (*cast(terms, param), *cast(slots, param))


TERMS[FirstPhase] = Terms(_load, _first, together=1)
LANES[FirstPhase] = _first_in_lane


def phase_one(handle, options):
    """First phase of a two-phase rule. Writes slots, sums of the terms, and what the rule makes of them.

    In a micro-step, or one that is stopped, nothing.
    """
    scratch = cuda.shared.array(SCRATCH, np.float64)
    flags = cuda.shared.array(WARPS, np.int64)
    totals = cuda.shared.array(TOTALS, np.float64)
    warp, thread = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    terms = len(TERM_ROWS)
    lanes = scratch[warp * terms * SUM_LANES : (warp + 1) * terms * SUM_LANES]
    warps = cuda.blockDim.x // TEAM
    k = cuda.blockIdx.x * warps + warp
    while k < chunks_of(handle, DTYPE):
        own = totals[warp * terms : (warp + 1) * terms]
        _first_chunk(handle, options, k, lanes, flags, own, warp, thread, SCALARS, SLOT_ROWS, TERM_ROWS, DTYPE)
        k += cuda.gridDim.x * warps


@callee
def _first_chunk(handle, options, k, lanes, flags, totals, warp, thread, scalars, slot_rows, term_rows, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    chunk = chunk_of(t, k)
    idle = program.stopped or program.options & MICRO != 0
    if program.ready and not idle and chunk.gradient.address != 0:
        s = rule_scalars_of(t, program, k, scalars)
        sum_first(t, program, k, chunk, s, lanes, thread, slot_rows, term_rows, t.common.sums, k, dtype)
        if segment_is_done(t, chunk.segment, flags, warp, thread):
            _between(t, chunk.segment, s, lanes, totals, thread)


@callee
def sum_first(t, program, k, chunk, s, lanes, thread, slot_rows, term_rows, sums, column, dtype):
    """First phase of a part of chunk ``k``: slots, and into ``sums[:, column]`` the terms' sums; all of a warp."""
    addresses, segment = t.common.addresses, chunk.segment
    param, accumulator = addresses[PARAM, segment], addresses[ACCUMULATOR, segment]
    slots = column_of(slot_rows, addresses, segment)
    foreign, own = param | chunk.gradient.address, accumulator | union(slots) | chunk.first * size_of(one(dtype))
    how = how_to_load(program.options, foreign)
    aligned = is_plain(chunk.gradient) and (own if how == APART else own | foreign) % VECTOR == 0
    c, factor = control_of(t, program, k), factor_of(t, program, segment, dtype)
    work = FirstPhase(chunk, param, accumulator, slots, aligned, program.options, c, s, factor, term_rows)
    sum_terms(work, how, chunk.size, lanes, thread, sums, column, dtype)


@callee
def _between(t, segment, s, lanes, totals, thread):
    """Work out a two-phase rule's number for one segment between its phases."""
    for row in range(totals.size):
        total = row_sum(t.common.sums[row, start_of(t, segment) : t.ends[segment]], lanes, thread, TEAM)
        if thread == 0:
            totals[row] = total
    if thread == 0:
        t.common.factors[EXTRA, segment] = between_phases(totals, elements_of(t, segment), s)


def phase_two(handle, options):
    """Second phase of a two-phase rule; micro-steps and stopped ones are as in `fastopt.kernels.cuda.step.step`."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _second_chunk(handle, options, k, thread, threads, SCALARS, SLOT_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, thread, cuda.gridDim.x, DTYPE)


@callee
def _second_chunk(handle, options, k, thread, threads, scalars, slot_rows, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    chunk = chunk_of(t, k)
    if program.ready:
        if chunk.gradient.address == 0 or program.stopped or program.options & MICRO:
            no_update(t, program, k, chunk, thread, threads, dtype)
        else:
            s, extra = rule_scalars_of(t, program, k, scalars), (t.common.factors[EXTRA, chunk.segment],)
            update_chunk(t, program, k, chunk, thread, threads, slot_rows, s, extra, dtype)
