"""Steps of parameters and slots that are kept in a storage format.

A number is decoded where the rule's loop reads it, and encoded where it writes it. Only formats with scales need a
block of numbers before the first can be encoded: these go through one that stays in a core's first cache.

Nothing depends on the number of threads, or on what lies before a segment in memory: scales are those of blocks counted
from a segment's first element, and noise follows from a seed, the number of updates, the number of the parameter and
the element's.
"""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, scalars_at, table_at
from ..formats import BLOCK as SCALED
from ..formats import FORMATS
from ..layout import (
    ACCUMULATED,
    ACCUMULATOR,
    ADDRESS,
    AVERAGED,
    CHUNK,
    CLIP,
    DIRECT,
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
from .streams import AVERAGE, PARAM, PARTS, SLOTS, addresses_of, stream_of, together

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
        segment, start = t.chunks[k, SEGMENT], t.chunks[k, OFFSET]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        whole, scale = chunk_gradient(t, segment, start, t.chunks[k, LENGTH], c, options, scratch, DTYPE)
        for begin in range(0, whole.size, BLOCK):
            offset, size = start + begin, min(BLOCK, whole.size - begin)
            if NOISY:
                noise = _noise_of(f, segment, offset)
            streams, grad = OPEN(parts, segment, offset, size, staged), whole[begin : begin + size]
            _update(streams, grad, s, scale, t.factors[CLIP, segment], c.limit, c.decay, noise, LOAD, STORE)
            CLOSE(streams)
            if options & AVERAGED:
                average = OPEN_AVERAGE(parts, segment, offset, size, staged)
                take = DTYPE(1) - c.keep
                _follow(streams, average, size, take, c.keep, noise, LOAD, LOAD_AVERAGE, STORE_AVERAGE)
                if options & OVERWRITE:
                    _overwrite(streams[0], average, size, noise, LOAD_AVERAGE, STORE_PARAM)
        if options & ACCUMULATED:
            clear(array_at(t.addresses[ACCUMULATOR, segment], start, whole.size, DTYPE))
        if options & ZERO and t.gradients[LAYOUT, segment] == DIRECT:
            clear(array_at(t.gradients[ADDRESS, segment], start, whole.size, DTYPE))


@callee
def _update(streams, grad, s, scale, factor, limit, decay, noise, load, store):
    """`loops.update_chunk`, of a parameter and its slots: the first of the streams, and the others."""
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        numbers = load(streams, i)
        p, slots = update(decayed(numbers[0], decay), g, numbers[1:], s)
        store(streams, i, (p, *slots), noise)


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
    updates = array_at(f.counters, 0, 1, np.int64)[0]
    key = _mixed(_mixed(_mixed(f.seed) + updates) + array_at(f.numbers, segment, 1, np.int64)[0])
    return np.uint32(_mixed(key + offset))


@callee
def _mixed(number):
    """Spread the bits of an int64 over all 64: the finaliser of splitmix64."""
    bits = np.uint64(number) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(bits ^ (bits >> np.uint64(31)))


def compiled_step(scalars, formats, dtype):
    """The kernel for a rule and a format, or None, of each stream: parameter, average, slots."""
    bindings, name, key = launch.specialisation(scalars, len(formats) - SLOTS, dtype)
    streams = [stream_of(format, number, dtype.type) for number, format in enumerate(formats)]
    stepped = together([streams[PARAM], *streams[SLOTS:]])
    used = [format for format in formats if format is not None]
    bindings |= {
        "STREAMS": len(formats),
        "BLOCK": SCALED if any(format.scaled for format in used) else CHUNK,
        "NOISY": any(format.noisy for format in used),
        **{key.upper(): function for key, function in stepped._asdict().items()},
        **{f"{key.upper()}_AVERAGE": function for key, function in streams[AVERAGE]._asdict().items()},
        "STORE_PARAM": streams[PARAM].store,
    }
    digest = fingerprint(*(function for format in used for function in (format.decode, format.encode)))
    names = "_".join("" if format is None else format.name.replace(" ", "-") for format in formats)
    return launch.compiled(step_formatted, bindings, f"{name}_{names}", key and digest and f"{key} {digest} {names}")


class Kept(NamedTuple):
    """How a plan's numbers are kept, if not all of them are as they are worked with."""

    formats: dict[str, str]  # format, by name, of what has one: "" for the parameter, "average", slots by their names
    parts: dict[str, list[list[Any]]]  # of each of these, for each parameter, the format's arrays, scales last
    numbers: Any  # int64 array: the parameters' numbers
    counters: Any  # array.array whose first number counts the updates
    seed: int

    @property
    def scaled(self):
        """Whether some format has scales."""
        return any(FORMATS[kind].scaled for kind in self.formats.values())

    def format_of(self, name):
        """The format of something; None if it is kept as it is worked with."""
        return FORMATS[self.formats[name]] if name in self.formats else None


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
