"""A grid of threads on the CPU: each access is checked, and threads are run in turn from one pause to the next."""

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastopt.kernels.compile import _jit
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from ptx.launch import (
    AT_BLOCK,
    AT_RANDOM,
    AT_WARP,
    BACKWARDS,
    BLOCK,
    DIVERGED,
    ENDED,
    FINE,
    FLAGS,
    GLOBAL,
    HEAD,
    IN_ORDER,
    LINE,
    LOAD,
    MISALIGNED,
    NUMBER,
    OUT_OF_BOUNDS,
    PLACE,
    RACE,
    RUNNING,
    SHARED,
    SHARED_ONLY,
    STATE,
    STORE,
    STUCK,
    THREAD,
    UNWRITTEN,
    WARP,
    fail,
    launch_at,
    memory_at,
    words_at,
)
from ptx.memory import FIRST_CELL, HIGH, LOW, WRITTEN
from ptx.races import forget, pass_atomic, pass_barrier, pass_fence, touch

# -- accesses ----------------------------------------------------------------------------------------------------------


@njit
def _range_of(launch, ranges, address, nbytes):
    """The row of the table of ranges that holds so many bytes; -1 if none does."""
    last = launch.last
    if last < len(ranges) and ranges[last, LOW] <= address and address + nbytes <= ranges[last, HIGH]:
        return last
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle, LOW] <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0 or address + nbytes > ranges[low - 1, HIGH]:
        return -1
    launch.last = low - 1
    return low - 1


@njit
def _count(launch, nbytes, kind):
    if kind == LOAD:
        launch.loads += 1
        launch.wide_loads += nbytes == 16
    elif kind == STORE:
        launch.stores += 1
        launch.wide_stores += nbytes == 16
    else:
        launch.atomics += 1


@njit
def _is_written(address, count, kind):
    """Whether a load finds what somebody wrote, by the flags at an address; a store writes."""
    flags = carray(memory_at(address), (count,), np.uint8)
    for k in range(count):
        if kind == STORE:
            flags[k] = 1
        elif not flags[k]:
            return False
    return True


@njit
def _place_of(launch, frame, address, nbytes, space):
    """Where the flags of some memory are, 0 if all of it was written; its first cell, -1 if it may not be touched.

    Flags are for four bytes, cells for as many as the narrowest access of the kernel takes.
    """
    start = frame[SHARED]
    if space != GLOBAL and start <= address and address + nbytes <= start + launch.shared_bytes:
        cell = launch.shared_cells + (address - launch.shared_start) // launch.grain
        return frame[FLAGS] + (address - start) // 4, cell
    ranges = carray(memory_at(launch.ranges), (launch.range_count, 4), np.int64)
    row = _range_of(launch, ranges, address, nbytes) if space != SHARED_ONLY else -1
    if row < 0:
        return 0, -1
    offset, written = address - ranges[row, LOW], ranges[row, WRITTEN]
    cell = ranges[row, FIRST_CELL] * (4 // launch.grain) + offset // launch.grain
    return written + offset // 4 if written else 0, cell


def check(launch_address, frame_address, line, address, nbytes, kind, space):
    """Whether a thread may access memory: 1, or 0 and the fault is noted. ``space`` is what its operation names."""
    launch, frame = launch_at(launch_address), words_at(frame_address, HEAD)
    if address % nbytes:
        fail(launch, MISALIGNED, line, frame[NUMBER], address)
        return 0
    flags, cell = _place_of(launch, frame, address, nbytes, space)
    if cell < 0:
        fail(launch, OUT_OF_BOUNDS, line, frame[NUMBER], address)
        return 0
    _count(launch, nbytes, kind)
    if flags and not _is_written(flags, max(nbytes // 4, 1), kind):
        fail(launch, UNWRITTEN, line, frame[NUMBER], address)
        return 0
    if launch.races:
        for k in range(nbytes // launch.grain):
            touch(launch, frame[NUMBER], line, cell + k, address + launch.grain * k, kind)
    return 1


def fence(launch_address, frame_address):
    """See `races.pass_fence`."""
    launch = launch_at(launch_address)
    if launch.races:
        pass_fence(launch, words_at(frame_address, HEAD)[NUMBER])
    return 0


def synchronise(launch_address, frame_address, line, address, space):
    """See `races.pass_atomic`; after the `check` of the same access."""
    launch, frame = launch_at(launch_address), words_at(frame_address, HEAD)
    if launch.races:
        pass_atomic(launch, frame[NUMBER], line, _place_of(launch, frame, address, 4, space)[1])
    return 0


# -- the order of threads ----------------------------------------------------------------------------------------------


@intrinsic
def _call(typing, function, frame, launch):
    """Run a thread to its next pause: ``void (frame, launch)``, all addresses."""

    def make(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), ir.IntType(64)])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), make


def run_grid(step, address, frames, shared, flags):
    """Run all blocks of a launch, ``resident`` of them at a time; ``step`` is the address of a thread's function.

    ``frames`` has a row for each thread that is there at a time, ``shared`` and ``flags`` one for each block.
    """
    launch = launch_at(address)
    random = np.uint64(launch.seed * 2 + 1)
    for first in range(0, launch.blocks, launch.resident):
        count = min(launch.resident, launch.blocks - first)
        begin = launch.blocks - first - count if launch.order == BACKWARDS else first
        flags[:] = 0
        if launch.races:
            forget(launch, launch.shared_cells, shared.size // launch.grain)
        for k in range(count * launch.threads):
            member = k // launch.threads
            _start(launch, frames[k], begin + member, k % launch.threads, shared[member], flags[member])
        random = _run_blocks(step, launch, address, frames[: count * launch.threads], random)
        if launch.error != FINE and launch.error != RACE:
            return


@njit
def _start(launch, frame, block, thread, shared, flags):
    frame[:] = 0x5A5A5A5A5A5A5A5A  # in registers that nobody wrote
    frame[PLACE], frame[STATE], frame[LINE] = 0, RUNNING, 0
    frame[THREAD], frame[BLOCK], frame[NUMBER] = thread, block, block * launch.threads + thread
    frame[SHARED], frame[FLAGS] = shared.ctypes.data, flags.ctypes.data


@njit
def _run_blocks(step, launch, address, frames, random):
    """Run threads that are there at the same time to their ends; the next state of what is random."""
    ready = np.arange(len(frames))
    count, alive = len(frames), len(frames)
    while alive and (launch.error == FINE or launch.error == RACE):
        if count == 0:
            count = _open_barriers(launch, frames, ready)
            if count == 0:
                _note_stuck(launch, frames)
                return random
        turns = count if launch.order == IN_ORDER else 1
        kept = 0
        for turn in range(turns):
            place = turn
            if launch.order == BACKWARDS:
                place = count - 1
            elif launch.order == AT_RANDOM:
                random ^= random << np.uint64(13)
                random ^= random >> np.uint64(7)
                random ^= random << np.uint64(17)
                place = np.int64(random % np.uint64(count))
            thread = ready[place]
            frame = frames[thread]
            _call(step, frame.ctypes.data, address)
            launch.switches += 1
            alive -= frame[STATE] == ENDED
            if launch.order == IN_ORDER:
                if frame[STATE] == RUNNING:
                    ready[kept] = thread
                    kept += 1
            elif frame[STATE] != RUNNING:
                ready[place] = ready[count - 1]
                kept = -1
        count = kept if launch.order == IN_ORDER else count + kept
        if launch.order == AT_RANDOM and kept:  # whoever is complete need not wait for all that can still run
            count = _open_barriers_of(launch, frames, thread, ready, count)
    return random


@njit
def _note_stuck(launch, frames):
    for frame in frames:
        if frame[STATE] != ENDED:
            fail(launch, STUCK, frame[LINE], frame[NUMBER], 0)


@njit
def _open_barriers(launch, frames, ready):
    """Let go on who has waited for all others that have not ended; how many these are."""
    count = 0
    for first in range(0, len(frames), launch.threads):
        before = count
        count = _open_block(launch, frames, first, ready, count)
        if count == before:
            for warp in range(first, first + launch.threads, WARP):
                count = _open_warp(launch, frames, warp, ready, count)
    return count


@njit
def _open_barriers_of(launch, frames, thread, ready, count):
    """The same for the block and the warp of one thread, after others that can go on."""
    first = thread // launch.threads * launch.threads
    if frames[thread, STATE] != AT_WARP:
        before = count
        count = _open_block(launch, frames, first, ready, count)
        if count > before:
            return count
    return _open_warp(launch, frames, first + (thread - first) // WARP * WARP, ready, count)


@njit
def _open_block(launch, frames, first, ready, count):
    block = frames[first : first + launch.threads]
    if _all_wait(block, AT_BLOCK):
        for warp in range(0, launch.threads, WARP):
            _require_one_place(launch, block[warp : warp + WARP])
        count = _let_go(launch, frames, first, first + launch.threads, ready, count)
    return count


@njit
def _open_warp(launch, frames, warp, ready, count):
    end = min(warp + WARP, (warp // launch.threads + 1) * launch.threads)
    if _all_wait(frames[warp:end], AT_WARP):
        _require_one_place(launch, frames[warp:end])
        count = _let_go(launch, frames, warp, end, ready, count)
    return count


@njit
def _all_wait(frames, state):
    waiting = False
    for frame in frames:
        waiting |= frame[STATE] == state
        if frame[STATE] != state and frame[STATE] != ENDED:
            return False
    return waiting


@njit
def _require_one_place(launch, frames):
    """Threads of a warp must come to the same barrier, not only to as many."""
    line = -1
    for frame in frames:
        if frame[STATE] != ENDED:
            if line >= 0 and frame[LINE] != line:
                fail(launch, DIVERGED, frame[LINE], frame[NUMBER], 0)
            line = frame[LINE]


@njit
def _let_go(launch, frames, first, end, ready, count):
    begin = count
    for k in range(first, end):
        if frames[k, STATE] != ENDED:
            frames[k, STATE] = RUNNING
            ready[count] = k
            count += 1
    if launch.races:
        pass_barrier(launch, frames[ready[begin:count], NUMBER])
    return count


# -- compiled ----------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """`run_grid`, and addresses of what threads call."""

    run_grid: Any
    check: int
    fence: int
    synchronise: int


@functools.cache
def machine():
    """The `Machine`, compiled as fastopt's own kernels are, and kept where they are."""
    word, words, byte = types.int64, types.Array(types.int64, 2, "C"), types.Array(types.uint8, 2, "C")
    called = (check, word(*[word] * 7)), (fence, word(word, word)), (synchronise, word(*[word] * 5))
    return Machine(
        _compiled(run_grid, types.void(word, word, words, byte, byte)),
        *(_jit.c_address(_compiled(function, signature)) for function, signature in called),
    )


def _compiled(function, signature):
    return _jit.specialise(function, "ptx", signature, {}, key=source_key())


@functools.cache
def source_key():
    """Digest of all that is here, by which what is made of it is kept."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
