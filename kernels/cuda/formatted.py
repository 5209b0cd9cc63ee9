"""Steps on a GPU of parameters and slots that are kept in a storage format: `cpu.formatted`, with its bits.

A block takes a chunk at a time, a warp 256 elements of it, as many as share a scale, and each thread eight neighbours:
the widest load brings eight numbers of 16 bits. Where a chunk ends before them, or an array does not begin at a
multiple of 16 bytes, elements are loaded one by one. Between its loads and its stores an element lives in registers.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..compile._jit import callee, inlined_callee
from ..compile.fingerprints import fingerprint
from ..compile.intrinsics import array_at, scalars_at, table_at
from ..compile.tuples import transposed
from ..cpu.launch import specialisation
from ..formats import BLOCK as SCALED
from ..formats.kept import AVERAGE, PARAM, PARTS, SLOTS, column_of
from ..formats.noise import key_of, start_at
from ..layout import ACCUMULATED, ACCUMULATOR, AVERAGED, BFLOAT16, CHUNK, FLOAT16, OVERWRITE, ZERO, Control
from ..maths import constant, decayed, plus_share
from ..registry import update
from . import norms
from ._cuda_jit import cuda_program
from .eight import EIGHT, bits_apart, eight_at, put_eight
from .engine import Elementwise
from .finish import finish
from .gradient import is_plain
from .half_gradient import clear_eight, eight_of, half_chunk_of, measure_halves
from .lanes import LANES, VECTOR, cast, in_lanes, size_of
from .shared import Memory
from .step import chunk_of, chunks_of, clipped, factor_of, no_update
from .streams import ROOM, Noise, Room, stream_of, together
from .tables import MICRO, control_of, device_tables_at, program_of, rounded_in, rule_scalars_of
from .threads import TEAM, THREADS

ROOMS = THREADS // TEAM * ROOM

# Replaced in each specialisation.
DTYPE = np.float32
SCALARS = Control
STREAMS = 2
NOISY = False
CHUNK_OF: Any = chunk_of
MOVE: Any = None


class Formatted(NamedTuple):
    """What a launch works on beside its tables, int64."""

    parts: Any  # address of the table of parts, [PARTS * streams, segments]: where each starts, 0 for none
    segments: Any
    numbers: Any  # address of the number of each segment's parameter
    seed: Any


def step_formatted(handle, own, options):
    """One step of an elementwise rule, as `step.step`; ``own`` is the address of a `Formatted`."""
    rooms = cuda.shared.array(ROOMS, np.int32)
    warp, lane = cuda.threadIdx.x // TEAM, cuda.threadIdx.x % TEAM
    room = Room(rooms[warp * ROOM : (warp + 1) * ROOM], lane)
    k = cuda.blockIdx.x
    while k < chunks_of(handle, DTYPE):
        _step_chunk(handle, own, options, k, room, CHUNK_OF, MOVE, SCALARS, STREAMS, NOISY, DTYPE)
        k += cuda.gridDim.x
    finish(handle, options, cuda.threadIdx.x, cuda.gridDim.x, DTYPE)


@callee
def _step_chunk(handle, own, options, k, room, open_chunk, move, scalars, streams, noisy, dtype):
    """Do what `step_formatted` does with one chunk."""
    t = device_tables_at(handle, dtype)
    program = program_of(t, options, dtype)
    if program.ready:
        chunk = open_chunk(t, k)
        if chunk.gradient.address == 0 or program.stopped or program.options & MICRO:
            no_update(t, program, k, chunk, cuda.threadIdx.x, cuda.blockDim.x, dtype)
        else:
            f, segment, key = scalars_at(Formatted, table_at(own, 1, FIELDS, np.int64), 0, 0), chunk.segment, 0
            if noisy:
                key = key_of(f.seed, rounded_in(t), array_at(f.numbers, segment, 1, np.int64)[0])
            work = Update(
                program.options,
                control_of(t, program, k),
                rule_scalars_of(t, program, k, scalars),
                factor_of(t, program, segment, dtype),
            )
            parts = table_at(f.parts, PARTS * streams, f.segments, np.int64)
            move(parts, chunk, t.common.addresses[ACCUMULATOR, segment], key, work, room)


FIELDS = len(Formatted._fields)


class Update(NamedTuple):
    """The step of an element, but for its average."""

    options: Any
    control: Any
    scalars: Any
    factor: Any  # of clipping


@callee
def _update(work, numbers):
    """Make param, slots… of grad, accumulated, param, slots…."""
    c, param = work.control, numbers[2]
    g = clipped(numbers[0], numbers[1], work.options, c, work.factor)
    p, slots = update(decayed(param, c.decay), g, numbers[3:], work.scalars)
    return (constant(p, param), *cast(slots, param))


LANES[Update] = _update


class Eight(NamedTuple):
    """The elements of a thread."""

    first: Any  # of the segment
    count: Any  # how many are there
    whole: Any  # whether they are loaded together


def mover_of(streams, block, dtype):
    """A function ``(parts, chunk, accumulator, key, work, room)`` that does an `Update` of a chunk.

    ``streams`` are those of the parameter, the average and the slots; noise is that of blocks of ``block`` elements.
    """
    like = (dtype(0),) * EIGHT
    open_all, apart_all, get, decode, encode, put = together([streams[PARAM], *streams[SLOTS:]])
    open_average, apart_average, _, _, _, _ = streams[AVERAGE]
    follow = _follower_of(streams[PARAM], streams[AVERAGE])

    @inlined_callee
    def load(places, gradient, accumulator, own, accumulates, whole):
        stored, accumulated = get(places, own.first, own.count, whole), like
        if accumulates:
            accumulated = eight_at(accumulator + own.first * size_of(like), like, own.count, whole)
        return stored, accumulated, eight_of(gradient, own.first, like, own.count, whole)

    @inlined_callee
    def update_eight(places, average, gradient, accumulator, own, work, noise, room):
        accumulates = work.options & ACCUMULATED != 0
        if own.whole:
            stored, accumulated, grads = load(places, gradient, accumulator, own, accumulates, True)
        else:
            stored, accumulated, grads = load(places, gradient, accumulator, own, accumulates, False)
        columns = transposed(in_lanes(work, transposed((grads, accumulated, *decode(stored)))))
        new = encode(columns, own.count, noise, room)
        if own.whole:
            put(places, own.first, own.count, True, new)
        else:
            put(places, own.first, own.count, False, new)
        if work.options & AVERAGED:
            follow(places[0], average, decode(new)[0], own, work, noise, room)
        if accumulates:
            put_eight(accumulator + own.first * size_of(like), like, own.count, own.whole)
        if work.options & ZERO:
            clear_eight(gradient, own.first, like, own.count, own.whole)

    @inlined_callee
    def move(parts, chunk, accumulator, key, work, room):
        places, average = open_all(parts, chunk.segment), open_average(parts, chunk.segment)
        apart = apart_all(places) | bits_apart(accumulator, like) | chunk.gradient.address % VECTOR
        if work.options & AVERAGED:
            apart |= apart_average(average)
        whole = is_plain(chunk.gradient) and apart == 0
        base = cuda.threadIdx.x // TEAM * SCALED
        while base < chunk.size:
            i = base + room.lane * EIGHT
            first, count = chunk.first + i, min(max(chunk.size - i, 0), EIGHT)
            noise = Noise(start_at(key, first - first % block), first % block)
            own = Eight(first, count, whole and count == EIGHT)
            update_eight(places, average, chunk.gradient, accumulator, own, work, noise, room)
            base += cuda.blockDim.x // TEAM * SCALED

    return move


def _follower_of(param, average):
    """A function that has averages of eight elements follow the parameter, and take its place if that is asked for."""
    _, _, get, decode, encode, put = average
    encode_param, put_param = param.encode, param.put

    @inlined_callee
    def follow(param_places, places, params, own, work, noise, room):
        before = decode(get(places, own.first, own.count, own.whole))
        after = in_lanes(Follow(work.control.keep), transposed((params, before)))
        stored = encode(transposed(after)[0], own.count, noise, room)
        put(places, own.first, own.count, own.whole, stored)
        if work.options & OVERWRITE:
            again = encode_param(decode(stored), own.count, noise, room)
            put_param(param_places, own.first, own.count, own.whole, again)

    return follow


class Follow(NamedTuple):
    """The average of an element."""

    keep: Any


@callee
def _follow(work, numbers):
    """Make the average of param, average."""
    take = constant(1, numbers[0]) - work.keep
    return (plus_share(take * numbers[0], numbers[1], work.keep),)


LANES[Follow] = _follow


class FormattedEngine(Elementwise):
    """`Elementwise`, for a plan that has something to say of how its numbers are `kept`."""

    row_step = None

    def __init__(self, plan):
        kept = plan.kept
        names = ["", "average", *plan.rule_slots]
        self._formats = tuple(kept.format_of(name) for name in names)
        none: list[Any] = [[]] * len(plan.parameters)
        rows = [
            np.array([column_of(format, (a.address for a in arrays)) for arrays in kept.parts.get(name, none)]).T
            for name, format in zip(names, self._formats, strict=True)
        ]
        device = plan.work.device
        self._parts = Memory(device, np.ascontiguousarray(np.concatenate(rows), np.int64))
        self._numbers = Memory(device, kept.numbers)
        own = Formatted(self._parts.address, len(plan.parameters), self._numbers.address, kept.seed)
        self._own = Memory(device, np.array(own, np.int64))
        super().__init__(plan)

    def _compile(self, scalars, slots):
        self._step = compiled_step(scalars, self._formats, self.dtype, self.device)

    def _step_whole(self, stream, options):
        kernel, work = self._step, self._whole
        blocks = kernel.blocks(work.count, THREADS)
        kernel.launch(blocks, THREADS, stream, work.handle_address, self._own.address, options)

    def _measuring(self):
        format = self._formats[PARAM]
        return super()._measuring() if format is None else norms_of_halves(_half_of(format), self.device)


@functools.cache
def compiled_step(scalars, formats, dtype, device):
    """The kernel for a rule and a format, or None, of each stream: parameter, average, slots."""
    bindings, name, key = specialisation(scalars, len(formats) - SLOTS, dtype)
    used = [format for format in formats if format is not None]
    streams = [stream_of(format, number, dtype.type) for number, format in enumerate(formats)]
    block = SCALED if any(format.scaled for format in used) else CHUNK
    bindings |= {
        "STREAMS": len(formats),
        "NOISY": any(format.noisy for format in used),
        "CHUNK_OF": chunk_of if formats[PARAM] is None else half_chunk_of(_half_of(formats[PARAM])),
        "MOVE": mover_of(streams, block, dtype.type),
    }
    digest = fingerprint(*(function for format in used for function in (format.decode, format.encode)))
    names = "_".join("" if format is None else format.name.replace(" ", "-") for format in formats)
    key = key and digest and f"{key} {digest} {names}"
    return device.load(cuda_program(step_formatted, f"{name}_{names}", 3, bindings, device.capability, key))


def _half_of(format):
    """The kind of numbers of 16 bits that a parameter in a format is."""
    return BFLOAT16 if format.name.startswith("bfloat16") else FLOAT16


@functools.cache
def norms_of_halves(kind, device):
    """The kernel `norms.norms` for gradients of parameters of 16 bits, which may be like them."""
    bindings, name, key = specialisation(None, 0, np.dtype(np.float32))
    bindings["MEASURE"] = measure_halves(kind)
    name = f"{name}_{'bfloat16' if kind == BFLOAT16 else 'float16'}"
    return device.load(cuda_program(norms.norms, name, 2, bindings, device.capability, f"{key} {name}"))
