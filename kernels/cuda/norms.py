"""Norms and finiteness of the gradients, and what follows from them for the step: one launch."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..clipping import EACH, common_factor, own_factor
from ..compile._jit import callee
from ..compile.tuples import numbers_at, transposed
from ..cpu.reduction import LANES as SUM_LANES
from ..layout import ACCUMULATOR, CLIP, SEGMENT
from .finish import is_last
from .gradient import is_plain, numbers_of
from .lanes import ACCUMULATES, APART, LANES, VECTOR, in_lanes, size_of
from .step import chunk_of, chunks_of, unscaled
from .sums import TERMS, Terms, how_to_load, row_sum, segment_is_done, start_of, sum_terms
from .tables import BLOCKS, CHECKED, FACTOR, MEASURED, NORM, PLANS, STOPPED, control_of, device_tables_at, program_of
from .threads import TEAM, barrier, block_barrier

# Replaced in each specialisation; at the end of this file what measures plain gradients.
DTYPE = np.float32
MEASURE: Any = None
WARPS = 4
SCRATCH = WARPS * SUM_LANES


class Squares(NamedTuple):
    """Squares of a chunk's gradient as the step will use it; ``checking``, NaN for each number that is not finite."""

    chunk: Any
    accumulator: Any
    aligned: Any
    options: Any
    control: Any
    checking: Any
    sums: Any  # one


@callee
def _load(work, i, like, how):
    element = work.chunk.first + i
    grads, accumulated = numbers_of(work.chunk.gradient, element, like, how), like
    if how & ACCUMULATES:
        accumulated = numbers_at(work.accumulator + element * size_of(like), like)
    return grads, accumulated


@callee
def _squares(work, i, columns):
    return transposed(in_lanes(work, transposed(columns)))


@callee
def _square(work, numbers):
    x = np.float64(unscaled(numbers[0], numbers[1], work.options, work.control))
    return (x - x if work.checking else x * x,)


TERMS[Squares] = Terms(_load, _squares, together=4)
LANES[Squares] = _square


def norms(handle, options):
    """Sums of squares of the gradients, and clipping factors; stops the step if the program says so.

    Writes ``sums[:, chunk]`` as `fastopt.kernels.cpu.loops.norms` does, ``factors[CLIP]``, and the state.
    """
    scratch = cuda.shared.array(SCRATCH, np.float64)
    flags = cuda.shared.array(WARPS, np.int64)
    warp, thread = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    lanes = scratch[warp * SUM_LANES : (warp + 1) * SUM_LANES]
    warps = cuda.blockDim.x // TEAM
    k = cuda.blockIdx.x * warps + warp
    while k < chunks_of(handle, DTYPE):
        _measure_chunk(handle, options, k, lanes, flags, warp, thread, MEASURE, DTYPE)
        k += cuda.gridDim.x * warps
    if is_last_block(handle, flags, DTYPE):
        _conclude(handle, options, scratch[:SUM_LANES], cuda.threadIdx.x, cuda.blockDim.x, DTYPE)


@callee
def is_last_block(handle, flags, dtype):
    """Whether this block is the last of the launch to be done, for all its threads."""
    block_barrier()
    if cuda.threadIdx.x == 0:
        flags[0] = is_last(device_tables_at(handle, dtype).state, BLOCKS, cuda.gridDim.x)
    block_barrier()
    return flags[0]


@callee
def _measure_chunk(handle, options, k, lanes, flags, warp, thread, measure_one, dtype):
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    if program.ready and program.options & MEASURED:
        segment = t.common.chunks[k, SEGMENT]
        measure_one(t, program, k, lanes, thread, dtype)
        if program.way == EACH and segment_is_done(t, segment, flags, warp, thread):
            _limit(t, program, segment, lanes, thread)


@callee
def measure_chunk(t, program, k, lanes, thread, dtype):
    """Squares and finiteness of one chunk."""
    sums, chunk = t.common.sums, chunk_of(t, k)
    if chunk.gradient.address == 0:
        if thread == 0:
            sums[0, k], sums[1, k] = 0.0, 0.0
        return
    accumulator = t.common.addresses[ACCUMULATOR, chunk.segment]
    how = how_to_load(program.options, chunk.gradient.address)
    aligned = is_plain(chunk.gradient) and (how == APART or (chunk.gradient.address | accumulator) % VECTOR == 0)
    work = Squares(chunk, accumulator, aligned, program.options, control_of(t, program, k), False, (0,))
    measure(work, how, lanes, thread, sums, k, dtype)


@callee
def measure(work, how, lanes, thread, sums, k, dtype):
    """Write a chunk's sum of squares to ``sums[0, k]``, and zero, or NaN if one is not finite, to ``sums[1, k]``."""
    if thread == 0:
        sums[1, k] = 0.0
    row, finite = 0, False
    while row < 2 and not finite:  # if the sum of squares is not finite, look whether all elements are
        own = Squares(work.chunk, work.accumulator, work.aligned, work.options, work.control, row == 1, (0,))
        sum_terms(own, how, own.chunk.size, lanes, thread, sums[row : row + 1], k, dtype)
        finite = math.isfinite(lanes[0])
        barrier(TEAM)
        row += 1


@callee
def _limit(t, program, segment, lanes, thread):
    """Clipping factor of a segment by its own norm."""
    squares = row_sum(t.common.sums[0, start_of(t, segment) : t.ends[segment]], lanes, thread, TEAM)
    if thread == 0:
        t.common.factors[CLIP, segment] = own_factor(program.limit, squares)


@callee
def _conclude(handle, options, lanes, thread, team, dtype):
    """Sums over all chunks; after the last plan's, what they mean for the step."""
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    if not program.ready or program.options & MEASURED == 0:
        return
    squares = row_sum(t.common.sums[0], lanes, thread, team)
    bad = 0.0
    if not math.isfinite(squares):  # else every element is finite
        bad = row_sum(t.common.sums[1], lanes, thread, team)
    if thread == 0:
        plan, plans = t.plan[0], t.plan[1]
        t.measures[PLANS + 2 * plan] = squares
        t.measures[PLANS + 2 * plan + 1] = bad
        if plan == plans - 1:
            decide(t, program, plans)


@callee
def decide(t, program, plans):
    """Norm and common factor by the sums of all plans; stops the step if the program says so."""
    squares, bad = 0.0, 0.0
    for plan in range(plans):
        squares += t.measures[PLANS + 2 * plan]
        bad += t.measures[PLANS + 2 * plan + 1]
    norm = math.sqrt(squares)
    t.measures[NORM] = norm
    t.measures[FACTOR] = common_factor(program.way, program.limit, norm)
    bad_norm = program.way != 0 and not math.isfinite(norm)
    t.state[STOPPED] = program.options & CHECKED != 0 and (bad != 0.0 or bad_norm)


MEASURE = measure_chunk
