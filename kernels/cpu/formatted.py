"""Steps of parameters and slots that are kept in a storage format.

A number is decoded where the rule's loop reads it, and encoded where it writes it. Only formats with scales need a
block of numbers before the first can be encoded: these go through one that stays in a core's first cache.

Nothing depends on the number of threads, or on what lies before a segment in memory: scales are those of blocks counted
from a segment's first element, and noise follows from a seed, the number of updates, the number of the parameter and
the element's.
"""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee, inlined_callee
from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, scalars_at, table_at
from ..formats import BLOCK as SCALED
from ..formats.half import float_of_bfloat16, float_of_float16
from ..formats.kept import AVERAGE, PARAM, PARTS, SLOTS
from ..formats.noise import key_of, start_at
from ..layout import (
    ACCUMULATED,
    ACCUMULATOR,
    ADDRESS,
    AVERAGED,
    BFLOAT16,
    CHUNK,
    CLIP,
    DIRECT,
    FLOAT16,
    GROUP,
    LAYOUT,
    LENGTH,
    OFFSET,
    OVERWRITE,
    SEGMENT,
    ZERO,
    Control,
)
from ..maths import clip, decayed, plus_share
from ..registry import update
from ..tables import tables_at
from . import launch
from .engines import Elementwise
from .loops import CONTROLS, clear
from .staging import chunk_gradient, scratch_for
from .streams import addresses_of, stream_of, together

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
STREAMS = 2
BLOCK = CHUNK
NOISY = False
OPEN: Any = None
LOAD: Any = None
STORE: Any = None
CLOSE: Any = None
OPEN_AVERAGE: Any = None
LOAD_AVERAGE: Any = None
STORE_AVERAGE: Any = None
STORE_PARAM: Any = None
HALF = NONE = -1
NUMBER_OF: Any = None
UPDATE: Any = None
UPDATE_IN_HALF: Any = None


class Formatted(NamedTuple):
    """What a launch works on, int64."""

    plan: int  # handle of the plan's `Tables`
    parts: int  # address of the table of parts, [PARTS * streams, segments]: where each starts, 0 for none
    segments: int
    numbers: int  # address of the number of each segment's parameter
    counters: int  # address of the number of updates so far
    seed: int


FIELDS = len(Formatted._fields)


def step_formatted(first, last, handle, options):
    """One step of an elementwise rule, as `loops.step`."""
    f = scalars_at(Formatted, table_at(handle, 1, FIELDS, np.int64), 0, 0)
    t, parts = tables_at(f.plan, DTYPE), table_at(f.parts, PARTS * STREAMS, f.segments, np.int64)
    scratch, staged, noise = scratch_for(options, DTYPE), np.empty((STREAMS, SCALED), np.float32), np.uint32(0)
    for k in range(first, last):
        segment, start, length = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, LENGTH]
        address = t.gradients[ADDRESS, segment]
        if address == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        in_half = HALF != NONE and options & ACCUMULATED == 0 and _lies_in(HALF, t, segment)
        if in_half:
            half, whole, scale = array_at(address, start, length, np.uint16), scratch, c.unscale
        else:
            half = array_at(0, 0, 0, np.uint16)
            whole, scale = chunk_gradient(t, segment, start, length, c, options, scratch, DTYPE)
        given = scale, t.factors[CLIP, segment], c.limit
        for begin in range(0, length, BLOCK):
            offset, size = start + begin, min(BLOCK, length - begin)
            if NOISY:
                noise = _noise_of(f, segment, offset)
            streams = OPEN(parts, segment, offset, size, staged)
            if in_half:
                UPDATE_IN_HALF(streams, half[begin : begin + size], s, given, c.decay, noise, LOAD, STORE, NUMBER_OF)
            else:
                UPDATE(streams, whole[begin : begin + size], s, given, c.decay, noise, LOAD, STORE, _as_it_is)
            CLOSE(streams)
            if options & AVERAGED:
                average = OPEN_AVERAGE(parts, segment, offset, size, staged)
                take = DTYPE(1) - c.keep
                _follow(streams, average, size, take, c.keep, noise, LOAD, LOAD_AVERAGE, STORE_AVERAGE)
                if options & OVERWRITE:
                    _overwrite(streams[0], average, size, noise, LOAD_AVERAGE, STORE_PARAM)
        if options & ACCUMULATED:
            clear(array_at(t.addresses[ACCUMULATOR, segment], start, length, DTYPE))
        if options & ZERO and t.gradients[LAYOUT, segment] == DIRECT:
            clear(array_at(address, start, length, DTYPE))


@inlined_callee
def _lies_in(kind, t, segment):
    """Whether a gradient is of such 16 bits, and lies as its parameter does: it is decoded where it is read, too."""
    record = t.gradients[LAYOUT, segment]
    axes, stride = record + 1, record + 3
    return record != DIRECT and t.layouts[record] == kind and t.layouts[axes] == 1 and t.layouts[stride] == 2


@callee
def _update(streams, grad, s, given, decay, noise, load, store, number_of):
    """`loops.update_chunk`, of a parameter and its slots: the first of the streams, and the others.

    A loop each for what is common: arithmetic is the limit here, not memory, and what does nothing costs a tenth.
    """
    scale, factor, limit = given
    if scale != 1 or factor != 1 or limit != np.inf:
        _each(streams, grad, s, given, decay, noise, load, store, number_of, _clipped, decayed)
    elif decay != 0:
        _each(streams, grad, s, given, decay, noise, load, store, number_of, _as_it_is, decayed)
    else:
        _each(streams, grad, s, given, decay, noise, load, store, number_of, _as_it_is, _as_it_is)


@callee
def _update_rarely(streams, grad, s, given, decay, noise, load, store, number_of):
    """`_update` in one loop: each costs a second to compile."""
    _each(streams, grad, s, given, decay, noise, load, store, number_of, _clipped, decayed)


@callee
def _update_never(streams, grad, s, given, decay, noise, load, store, number_of):
    """Do nothing."""


@callee
def _each(streams, grad, s, given, decay, noise, load, store, number_of, gradient, parameter):
    for i in range(grad.size):
        numbers = load(streams, i)
        g = gradient(number_of(grad[i]), given)
        p, slots = update(parameter(numbers[0], decay), g, numbers[1:], s)
        store(streams, i, (p, *slots), noise)


@callee
def _clipped(gradient, given):
    scale, factor, limit = given
    return clip(gradient * scale * factor, -limit, limit)


@callee
def _as_it_is(number, given=None):
    return number


@callee
def _follow(streams, average, size, take, keep, noise, load, load_average, store_average):
    """Have an average follow the parameter, the first of the streams."""
    for i in range(size):
        followed = plus_share(take * load(streams, i)[0], load_average(average, i), keep)
        store_average(average, i, followed, noise)


@callee
def _overwrite(param, average, size, noise, load_average, store_param):
    for i in range(size):
        store_param(param, i, load_average(average, i), noise)


@callee
def _noise_of(f, segment, offset):
    """What the noise of a block begins with that starts at element ``offset``."""
    updates, number = array_at(f.counters, 0, 1, np.int64)[0], array_at(f.numbers, segment, 1, np.int64)[0]
    return start_at(key_of(f.seed, updates, number), offset)


def compiled_step(scalars, formats, dtype):
    """The kernel for a rule and a format, or None, of each stream: parameter, average, slots."""
    bindings, name, key = launch.specialisation(scalars, len(formats) - SLOTS, dtype)
    streams = [stream_of(format, number, dtype.type) for number, format in enumerate(formats)]
    stepped, half = together([streams[PARAM], *streams[SLOTS:]]), _half_of(formats[PARAM])
    used = [format for format in formats if format is not None]
    bindings |= {
        "STREAMS": len(formats),
        "BLOCK": SCALED if any(format.scaled for format in used) else CHUNK,
        "NOISY": any(format.noisy for format in used),
        **{key.upper(): function for key, function in stepped._asdict().items()},
        **{f"{key.upper()}_AVERAGE": function for key, function in streams[AVERAGE]._asdict().items()},
        "STORE_PARAM": streams[PARAM].store,
        "HALF": half,
        "NUMBER_OF": float_of_float16 if half == FLOAT16 else float_of_bfloat16,
        "UPDATE": _update if half == NONE else _update_rarely,
        "UPDATE_IN_HALF": _update_never if half == NONE else _update,
    }
    digest = fingerprint(*(function for format in used for function in (format.decode, format.encode)))
    names = "_".join("" if format is None else format.name.replace(" ", "-") for format in formats)
    return launch.compiled(step_formatted, bindings, f"{name}_{names}", key and digest and f"{key} {digest} {names}")


def _half_of(format):
    """The kind of the 16 bits that a parameter is kept in, and mostly its gradients, too; else ``NONE``."""
    name = "" if format is None else format.name
    return BFLOAT16 if name.startswith("bfloat16") else FLOAT16 if name.startswith("float16") else NONE


class FormattedEngine(Elementwise):
    """`Elementwise`, for a plan that has something to say of how its numbers are `kept`."""

    row_step = None

    def __init__(self, plan):
        self._kept = kept = plan.kept
        names = ["", "average", *plan.rule_slots]
        self._formats = [kept.format_of(name) for name in names]
        rows = [
            np.array([addresses_of(format, each) for each in kept.parts.get(name, [[]] * len(plan.parameters))]).T
            for name, format in zip(names, self._formats, strict=True)
        ]
        self._parts = np.ascontiguousarray(np.concatenate(rows), np.int64)
        counters, _ = kept.counters.buffer_info()
        own = plan.work.handle, self._parts.ctypes.data, self._parts.shape[1], kept.numbers.ctypes.data, counters
        self._own = np.array([*own, kept.seed], np.int64)
        super().__init__(plan)
        self._launched = FormattedWork(plan.work, self._own.ctypes.data)

    def _compile(self, scalars, slots):
        self._step = compiled_step(scalars, self._formats, self.dtype)

    def _calls_for_whole(self, options):
        return [launch.call(self._step, self._launched, options)]


class FormattedWork:
    """A plan's `launch.Work` with the table of parts."""

    def __init__(self, work, handle):
        self.handle, self.elements, self.count, self.bins = handle, work.elements, work.count, work.bins
