"""The loops on the CPU. Every kernel takes the same tables, so that one launch serves them all.

Each kernel *requires* tables as `layout` describes them, that outlive the launch, and *writes* what its docstring says.
Its signature is ``(first, last, handle, options)``: work on chunks ``first`` to ``last`` of the tables that the handle
points to; `threads` runs such ranges on several. One handle instead of seven arrays halves the cost of a launch.

A chunk passes through the caches once: the gradient is staged if it must be, the rule's loop runs, and what the options
ask for (moving average, emptied accumulator, zeroed gradient) follows while the chunk is still in the cache. Compared
with one loop that holds every option this costs 1 to 3 % where the average is on and nothing elsewhere, and one
specialisation per rule and dtype serves all options.

What is called for every chunk is inlined where it takes the tables. As arguments they would be written to the stack in
words and read back in vectors, for which the processor waits until the parameters written before have left for memory:
0.3 us a chunk, a fifth of what plain SGD takes.
"""

import math
from typing import Any

import numpy as np

from ..clipping import EACH, NORM, common_factor, own_factor
from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import array_at, arrays_at, load, prefetch, scalars_at, store
from ..layout import (
    ACCUMULATED,
    ACCUMULATOR,
    ADDRESS,
    AVERAGE,
    AVERAGED,
    CHUNK,
    CLIP,
    DIRECT,
    EXTRA,
    GROUP,
    LAYOUT,
    LENGTH,
    OFFSET,
    OVERWRITE,
    PARAM,
    SEGMENT,
    ZERO,
    Control,
)
from ..maths import clip, decayed, plus_share
from ..registry import between_phases, first_phase, second_phase, update
from ..tables import end_of_segment, tables_at
from .reduction import nonfinite, row_sum, sum_of, sum_of_squares
from .staging import chunk_gradient, scratch_for

CONTROLS = len(Control._fields)

LINE = 64
"""Bytes of a cache line."""

SHORT, AHEAD = 512, 2
"""Elements of a chunk that is over before the processor has seen where it leads; how many chunks ahead one is named."""

# Replaced in each specialisation (see `launch`).
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
TERM_ROWS: Any = ()


def step(first, last, handle, options):
    """One step of an elementwise rule. Writes parameters, slots and what the options name."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    for k in range(first, last):
        segment, offset = t.chunks[k, SEGMENT], t.chunks[k, OFFSET]
        if k + AHEAD < last:
            _ask_for_chunk(t, k + AHEAD)
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c, grad, scale, param, slots = _open_chunk(t, k, options, scratch, SLOT_ROWS, DTYPE)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        update_chunk(param, grad, slots, s, scale, t.factors[CLIP, segment], c.limit, c.decay)
        finish_chunk(t, segment, offset, param, c, options, DTYPE)


@inlined_callee
def _ask_for_chunk(t, k):
    """Prefetch all that a step of chunk ``k`` reads, if it is short."""
    _ask_for_gradient(t, k)
    for row in range(t.addresses.shape[0]):
        _ask_for(t, k, t.addresses[row, t.chunks[k, SEGMENT]])


@inlined_callee
def _ask_for_gradient(t, k):
    _ask_for(t, k, t.gradients[ADDRESS, t.chunks[k, SEGMENT]])


@inlined_callee
def _ask_for(t, k, address):
    """Prefetch the elements of chunk ``k`` from an array at an address, 0 for none."""
    length, itemsize = t.chunks[k, LENGTH], t.factors.itemsize
    if address != 0 and length <= SHORT:
        start = address + t.chunks[k, OFFSET] * itemsize
        for line in range(0, length * itemsize, LINE):
            prefetch(start + line)


@inlined_callee
def _open_chunk(t, k, options, scratch, slot_rows, dtype):
    """Control scalars, gradient with the factor still to be applied, parameter and slots of chunk ``k``."""
    segment, offset, length = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, LENGTH]
    c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
    grad, scale = chunk_gradient(t, segment, offset, length, c, options, scratch, dtype)
    param = array_at(t.addresses[PARAM, segment], offset, length, dtype)
    slots = arrays_at(slot_rows, t.addresses, segment, offset, length, dtype)
    return c, grad, scale, param, slots


@callee
def update_chunk(param, grad, slots, s, scale, factor, limit, decay):
    """Step a chunk by an elementwise rule: unscale, clip, decay, update."""
    for i in range(param.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        p = decayed(param[i], decay)
        p, new_slots = update(p, g, load(slots, i), s)
        param[i] = p
        store(slots, i, new_slots)


@inlined_callee
def finish_chunk(t, segment, offset, param, c, options, dtype):
    """Do what the options ask for after the step of the chunk ``param``, which is still in the cache."""
    if options & AVERAGED:
        average = array_at(t.addresses[AVERAGE, segment], offset, param.size, dtype)
        take = dtype(1) - c.keep  # rounded by itself it would make an average drift that has nothing to follow
        for i in range(param.size):
            average[i] = plus_share(take * param[i], average[i], c.keep)
        if options & OVERWRITE:
            for i in range(param.size):
                param[i] = average[i]
    if options & ACCUMULATED:
        clear(array_at(t.addresses[ACCUMULATOR, segment], offset, param.size, dtype))
    if options & ZERO and t.gradients[LAYOUT, segment] == DIRECT:
        clear(array_at(t.gradients[ADDRESS, segment], offset, param.size, dtype))


@callee
def clear(array):
    """Set every element to zero."""
    for i in range(array.size):
        array[i] = 0


def accumulate(first, last, handle, options):
    """Add the unscaled gradients to the accumulators: a step that does not move the parameters."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    for k in range(first, last):
        segment, offset, length = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, LENGTH]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        grad, scale = chunk_gradient(t, segment, offset, length, c, 0, scratch, DTYPE)
        accumulator = array_at(t.addresses[ACCUMULATOR, segment], offset, length, DTYPE)
        for i in range(grad.size):
            accumulator[i] += grad[i] * scale
        if options & ZERO and t.gradients[LAYOUT, segment] == DIRECT:
            clear(grad)


def norms(first, last, handle, options):
    """Squares and finiteness of the gradients that a step with the same options would use.

    Writes ``sums[0, chunk]``, the sum of squares in float64, and ``sums[1, chunk]``, zero or, if an element is not
    finite, NaN. Squares of float32 numbers cannot overflow float64, those of float64 numbers can.
    """
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    for k in range(first, last):
        segment = t.chunks[k, SEGMENT]
        t.sums[0, k] = 0.0
        t.sums[1, k] = 0.0
        if k + AHEAD < last:
            _ask_for_gradient(t, k + AHEAD)
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        grad, scale = chunk_gradient(t, segment, t.chunks[k, OFFSET], t.chunks[k, LENGTH], c, options, scratch, DTYPE)
        t.sums[0, k] = sum_of_squares(grad, scale)
        if not np.isfinite(t.sums[0, k]):
            t.sums[1, k] = nonfinite(grad, scale)


def phase_one(first, last, handle, options):
    """First phase of a two-phase rule. Writes slots, and ``sums[:, chunk]``, the sums of the rule's terms."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    terms = np.empty((len(TERM_ROWS), CHUNK), DTYPE)
    term_addresses = addresses_of(terms)
    for k in range(first, last):
        segment = t.chunks[k, SEGMENT]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c, grad, scale, param, slots = _open_chunk(t, k, options, scratch, SLOT_ROWS, DTYPE)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        term_arrays = arrays_at(TERM_ROWS, term_addresses, 0, 0, param.size, DTYPE)
        first_phase_chunk(param, grad, slots, term_arrays, s, scale, t.factors[CLIP, segment], c.limit, c.decay)
        for row in range(len(TERM_ROWS)):
            t.sums[row, k] = sum_of(terms[row, : param.size])


@callee
def addresses_of(terms):
    """Addresses of the rows of an array, as the address table of one segment."""
    addresses = np.empty((terms.shape[0], 1), np.int64)
    for row in range(terms.shape[0]):
        addresses[row, 0] = terms[row].ctypes.data
    return addresses


@callee
def first_phase_chunk(param, grad, slots, terms, s, scale, factor, limit, decay):
    """First phase of a rule on a chunk: new slots, and the terms to be summed."""
    for i in range(param.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        p = decayed(param[i], decay)
        new_terms, new_slots = first_phase(p, g, load(slots, i), s)
        store(terms, i, new_terms)
        store(slots, i, new_slots)


def phase_two(first, last, handle, options):
    """Second phase of a two-phase rule. Writes parameters and what the options name."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    for k in range(first, last):
        segment, offset = t.chunks[k, SEGMENT], t.chunks[k, OFFSET]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c, grad, scale, param, slots = _open_chunk(t, k, options, scratch, SLOT_ROWS, DTYPE)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        factor, extra = t.factors[CLIP, segment], t.factors[EXTRA, segment]
        second_phase_chunk(param, grad, slots, s, extra, scale, factor, c.limit, c.decay)
        finish_chunk(t, segment, offset, param, c, options, DTYPE)


@callee
def second_phase_chunk(param, grad, slots, s, extra, scale, factor, limit, decay):
    """Second phase of a rule on a chunk, with the number that came between."""
    for i in range(param.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        p = decayed(param[i], decay)
        param[i] = second_phase(p, g, load(slots, i), extra, s)


def between(handle):
    """Work out a two-phase rule's number of each segment. Reads the terms' sums, writes ``factors[EXTRA]``; serial."""
    t = tables_at(handle, DTYPE)
    totals = np.zeros(len(TERM_ROWS))
    k = 0
    while k < t.chunks.shape[0]:
        end = end_of_segment(t.chunks, k)
        for row in range(len(TERM_ROWS)):
            totals[row] = row_sum(t.sums[row, k:end])
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        n = t.chunks[end - 1, OFFSET] + t.chunks[end - 1, LENGTH]
        t.factors[EXTRA, t.chunks[k, SEGMENT]] = between_phases(totals, n, s)
        k = end


def total(handle):
    """Sum of squares over all chunks, and whether every element was finite; after `norms`, serial."""
    t = tables_at(handle, DTYPE)
    return row_sum(t.sums[0]), row_sum(t.sums[1]) == 0.0


def clip_each(handle, clipnorm):
    """Clipping factor of each segment by its own norm. Reads what `norms` wrote, writes ``factors[CLIP]``; serial."""
    _clip_each(tables_at(handle, DTYPE), clipnorm)


@callee
def _clip_each(t, clipnorm):
    k = 0
    while k < t.chunks.shape[0]:
        end = end_of_segment(t.chunks, k)
        t.factors[CLIP, t.chunks[k, SEGMENT]] = own_factor(clipnorm, row_sum(t.sums[0, k:end]))
        k = end


def clip_by_norm(handle, clipping):
    """Have the next step clip as a `Clipping`, at an address, says; 1 if it must be left out, else 0.

    Reads what `norms` wrote, writes the norm and ``factors[CLIP]``; serial.
    """
    t = tables_at(handle, DTYPE)
    told = array_at(clipping, 0, NORM + 1, np.float64)
    way, limit, checked = told[0], told[1], told[2] != 0.0
    norm = math.sqrt(row_sum(t.sums[0]))
    if checked and (row_sum(t.sums[1]) != 0.0 or (way != 0.0 and not math.isfinite(norm))):
        return 1
    told[NORM] = norm
    if way == EACH:
        _clip_each(t, limit)
    else:
        t.factors[CLIP] = common_factor(way, limit, norm)
    return 0
