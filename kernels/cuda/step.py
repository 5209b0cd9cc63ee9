"""One step of an elementwise rule: load, unscale, accumulate, clip, decay, rule, average, store, zero; one launch.

A block takes a chunk at a time, and each of its threads as many neighbouring elements as one 16-byte load brings; those
of a parameter or a gradient that does not begin at a multiple of 16 bytes are loaded one by one, and all are where the
gradient is strided. Between its loads and its stores an element lives in registers.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.extending import overload

from ..clipping import EACH
from ..compile._jit import FLAGS, callee
from ..compile.tuples import numbers_at, put_numbers, transposed
from ..layout import (
    ACCUMULATED,
    ACCUMULATOR,
    AVERAGE,
    AVERAGED,
    CLIP,
    LENGTH,
    OFFSET,
    OVERWRITE,
    PARAM,
    SEGMENT,
    ZERO,
    Control,
)
from ..maths import clip, constant, decayed, plus_share
from ..registry import second_phase, update
from .finish import finish
from .gradient import clear, gradient_of, is_plain, numbers_of
from .lanes import (
    APART,
    LANES,
    VECTOR,
    cast,
    column_of,
    in_lanes,
    load_each,
    numbers_from,
    one,
    put_numbers_to,
    size_of,
    store_each,
    union,
    wide,
)
from .tables import FACTOR, MICRO, control_of, device_tables_at, program_of, rule_scalars_of, without_options

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()


def step(handle, options):
    """Carry out what the program of this call says: a full step, a micro-step, or none."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        step_chunk(handle, options, 0, k, thread, threads, SCALARS, SLOT_ROWS, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, thread, cuda.gridDim.x, DTYPE)


@callee
def chunks_of(handle, dtype):
    """Count the chunks."""
    return device_tables_at(handle, dtype).common.chunks.shape[0]


@callee
def step_chunk(handle, options, without, k, thread, threads, scalars, slot_rows, dtype):
    """Do what `step` does with one chunk, but for what the program's options ``without`` ask for."""
    # The tables are opened for each chunk: kept over the loop they would take half of the registers.
    t = device_tables_at(handle, dtype)
    program = without_options(program_of(t, options, dtype), without)
    chunk = chunk_of(t, k)
    if program.ready:
        if chunk.gradient.address == 0 or program.stopped or program.options & MICRO:
            no_update(t, program, k, chunk, thread, threads, dtype)
        else:
            s = rule_scalars_of(t, program, k, scalars)
            update_chunk(t, program, k, chunk, thread, threads, slot_rows, s, (), dtype)


class Chunk(NamedTuple):
    """What a chunk is made of."""

    segment: Any
    first: Any  # element of the segment
    size: Any
    gradient: Any


@callee
def chunk_of(t, k):
    """Chunk ``k``."""
    chunks, segment = t.common.chunks, t.common.chunks[k, SEGMENT]
    return Chunk(segment, chunks[k, OFFSET], chunks[k, LENGTH], gradient_of(t.common, t.layouts, segment))


@callee
def no_update(t, program, k, chunk, thread, threads, dtype):
    """A chunk that the step does not move: it has no gradient, the step is stopped, or a micro-step, which accumulates.

    The end of a window of micro-steps forgets what was accumulated for a parameter that then has no gradient.
    """
    c, like = control_of(t, program, k), one(dtype)
    accumulator = t.common.addresses[ACCUMULATOR, chunk.segment]
    i = chunk.first + thread
    while i < chunk.first + chunk.size:
        where = accumulator + i * size_of(like)
        if chunk.gradient.address == 0:
            if program.options & ACCUMULATED and not program.stopped:
                put_numbers(where, like)
        else:
            if program.options & MICRO and not program.stopped:
                grad = numbers_of(chunk.gradient, i, like, 0)[0]
                put_numbers(where, (numbers_at(where, like)[0] + grad * c.unscale,))
            if program.options & ZERO:
                clear(chunk.gradient, i, like, 0)
        i += threads


@callee
def update_chunk(t, program, k, chunk, thread, threads, slot_rows, s, extra, dtype):
    """The step of a chunk."""
    factor = factor_of(t, program, chunk.segment, dtype)
    work = Update(program.options, control_of(t, program, k), s, factor, extra)
    move_chunk(t, chunk, work, thread, threads, slot_rows, dtype)


@callee
def move_chunk(t, chunk, work, thread, threads, slot_rows, dtype):
    """An `Update` of a chunk: vectors as far as they go, then single elements."""
    addresses, segment = t.common.addresses, chunk.segment
    arrays = (addresses[PARAM, segment], addresses[AVERAGE, segment], addresses[ACCUMULATOR, segment])
    slots = column_of(slot_rows, addresses, segment)
    many, single = wide(dtype), one(dtype)
    aligned = (union(arrays[1:]) | union(slots) | chunk.first * size_of(single)) % VECTOR == 0
    vectors = is_plain(chunk.gradient) and aligned
    whole = chunk.size - chunk.size % len(many) if vectors else 0
    gradient, start = chunk.gradient, chunk.first
    middle, end = start + whole, start + chunk.size
    if (arrays[0] | gradient.address) % VECTOR == 0:
        _update_from(arrays, slots, gradient, start, middle, many, work, thread, threads, 0)
    else:
        _update_from(arrays, slots, gradient, start, middle, many, work, thread, threads, APART)
    _update_from(arrays, slots, gradient, middle, end, single, work, thread, threads, 0)


@callee
def _update_from(arrays, slots, gradient, start, end, like, work, thread, threads, how):
    """The step of elements up to ``end``, each thread's as many at a time as the tuple ``like`` has."""
    i = start + thread * len(like)
    while i < end:
        _update_at(arrays, slots, gradient, i, like, work, how)
        i += threads * len(like)


@callee
def factor_of(t, program, segment, dtype):
    """The clipping factor."""
    if program.way == 0:
        return dtype(1)
    if program.way == EACH:
        return t.common.factors[CLIP, segment]
    return dtype(t.measures[FACTOR])


@callee
def _update_at(arrays, slot_arrays, gradient, i, like, work, how):
    """The step of as many elements as the tuple ``like`` has, from ``i`` on."""
    byte = i * size_of(like)
    grad = numbers_of(gradient, i, like, how)
    param = numbers_from(arrays[0] + byte, like, how)
    average, accumulated = like, like
    if work.options & AVERAGED:
        average = numbers_at(arrays[1] + byte, like)
    if work.options & ACCUMULATED:
        accumulated = numbers_at(arrays[2] + byte, like)
    streams = (param, grad, average, accumulated, *load_each(slot_arrays, byte, like))
    columns = transposed(in_lanes(work, transposed(streams)))
    put_numbers_to(arrays[0] + byte, columns[0], how)
    store_each(slot_arrays, byte, columns[2:])
    if work.options & AVERAGED:
        put_numbers(arrays[1] + byte, columns[1])
    if work.options & ACCUMULATED:
        put_numbers(arrays[2] + byte, like)
    if work.options & ZERO:
        clear(gradient, i, like, how)


class Update(NamedTuple):
    """The whole step of an element."""

    options: Any
    control: Any
    scalars: Any
    factor: Any  # of clipping
    extra: Any  # (number,) in the second of two phases, else ()


@callee
def _update(work, numbers):
    """Make param, average, slots… of param, grad, average, accumulated, slots…."""
    c, (param, grad, average, accumulated) = work.control, numbers[:4]
    g = clipped(grad, accumulated, work.options, c, work.factor)
    p, slots = _moved(decayed(param, c.decay), g, numbers[4:], work.scalars, work.extra)
    return (*averaged(constant(p, param), average, work.options, c), *cast(slots, param))


LANES[Update] = _update


@callee
def averaged(param, average, options, c):
    """A parameter after its step and its average, as the options ask for them."""
    if options & AVERAGED:
        take = constant(1, param) - c.keep
        average = plus_share(take * param, average, c.keep)
        if options & OVERWRITE:
            param = average
    return param, average


@callee
def unscaled(grad, accumulated, options, c):
    """The gradient, unscaled; with earlier ones in the accumulator, the mean over all."""
    g = grad * c.unscale
    return (g + accumulated) / c.divisor if options & ACCUMULATED else g


@callee
def clipped(grad, accumulated, options, c, factor):
    """The gradient as a rule takes it."""
    return clip(unscaled(grad, accumulated, options, c) * factor, -c.limit, c.limit)


def _moved(param, grad, slots, s, extra):
    """The rule: the only phase, or the second of two, which takes one number more and leaves the slots as they are."""


@overload(_moved, jit_options=FLAGS)
def _moved_overload(param, grad, slots, s, extra):
    if len(extra):
        return lambda param, grad, slots, s, extra: (second_phase(param, grad, slots, extra[0], s), slots)
    return lambda param, grad, slots, s, extra: update(param, grad, slots, s)
