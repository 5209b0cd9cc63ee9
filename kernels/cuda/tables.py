"""The tables of a GPU's launch, and the *program* of a step: what the host has worked out for one call number.

The GPU counts the calls that it has carried out; a call that it skips does not count. The host does not wait to hear of
that: it writes the program of each call number into a ring, stamped with that number, and the GPU takes the one that
its own counter names. If the right one is not there the GPU does nothing, and says so (`STARVED`).
"""

from typing import Any, NamedTuple

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, scalars_at, table_at
from ..compile.tuples import number_of
from ..cpu.loops import CONTROLS
from ..layout import GROUP, Control
from ..maths import constant
from ..tables import Tables, tables_of

STAMP, OPTIONS, WAY, LIMIT, ROUNDED, HEADER = range(6)
"""Numbers of 8 bytes that a place in the ring begins with: call number, options, way to clip by a norm (0: none), as
float64, limit of the norm, and how often numbers have been rounded at random, which noise follows from. From the
`HEADER` on, the scalars tables of the plans follow."""

MICRO, CHECKED, SCALED, MEASURED = 32, 64, 128, 256
"""Further bits of options in a program: a micro-step, which only accumulates; gradients that are not finite stop the
step; the loss scale is the GPU's own; norms are measured."""

LAST = 512
"""Bit of a launch's options: it ends the step."""

CALLS, STOPPED, SKIPPED, STARVED, NORM_KNOWN, GROWTH, GROWTH_STEPS, BLOCKS, PROGRESS, STATE = range(10)
"""Numbers in the state, int64: calls carried out; whether this step is stopped; whether the last one was; whether a
program was missing; whether `NORM` is of the last step; steps since the loss scale last changed; steps after which it
grows; blocks of the present launch that are done; address of a number in the host's memory that
`CALLS` is copied to. So many they are."""

SCALE, LEAST_SCALE, GREATEST_SCALE, NORM, FACTOR, PLANS = range(6)
"""Numbers in the measures, float64: loss scale and its bounds; norm of the last step's gradients; factor for all of
them; from `PLANS` on, for each plan, sum of squares and zero, or NaN if one is not finite."""


class DeviceTables(NamedTuple):
    """What a launch works on. The scalars table of ``common`` is that of the first place in the ring."""

    common: Tables
    ring: Any  # int64 [places, numbers]
    state: Any  # int64
    measures: Any  # float64
    ends: Any  # int64 [segments]: chunk after the segment's last
    counters: Any  # int64 [segments]: chunks of the present launch that are done
    plan: Any  # int64 [2]: which plan this is, of how many
    scalars: Any  # address of the scalars table in the first place of the ring
    layouts: Any  # address of the layouts table


HANDLE = len(Tables._fields) + 6
"""Rows of a handle: address, rows and columns of each table, int64; those of `Tables` first."""


@callee
def device_tables_at(address, dtype):
    """The tables that the handle at ``address`` points to."""
    handle = table_at(address, HANDLE, 3, np.int64)
    return DeviceTables(
        tables_of(handle, dtype),
        table_at(handle[7, 0], handle[7, 1], handle[7, 2], np.int64),
        array_at(handle[8, 0], 0, handle[8, 2], np.int64),
        array_at(handle[9, 0], 0, handle[9, 2], np.float64),
        array_at(handle[10, 0], 0, handle[10, 2], np.int64),
        array_at(handle[11, 0], 0, handle[11, 2], np.int64),
        array_at(handle[12, 0], 0, handle[12, 2], np.int64),
        handle[5, 0],
        handle[3, 0],
    )


class Program(NamedTuple):
    """What one launch is to do."""

    ready: Any  # whether the ring holds this call's program
    stopped: Any  # whether the step must change nothing, because of what the norms were
    options: Any  # of the launch and of the program
    way: Any
    limit: Any
    table: Any  # scalars [groups, fields]


@callee
def program_of(t, options, dtype):
    """The program of the call that the GPU has come to."""
    place = t.state[CALLS] & (t.ring.shape[0] - 1)  # a power of two
    header = t.ring[place]
    start = place * t.ring.shape[1] * 8
    groups, fields = t.common.table.shape
    return Program(
        header[STAMP] == t.state[CALLS],
        t.state[STOPPED] != 0 and header[OPTIONS] & CHECKED != 0,
        options | header[OPTIONS],
        header[WAY],
        number_of(header[LIMIT], 0.0),
        table_at(t.scalars + start, groups, fields, dtype),
    )


@callee
def rounded_in(t):
    """How often numbers have been rounded at random, as the program of this call says."""
    return t.ring[t.state[CALLS] & (t.ring.shape[0] - 1), ROUNDED]


@callee
def without_options(p, options):
    """A program that asks for less."""
    return Program(p.ready, p.stopped, p.options & ~options, p.way, p.limit, p.table)


@callee
def control_of(t, program, k):
    """The control scalars of chunk ``k``; unscaling by the program's own factor if the loss scale is the GPU's."""
    c = scalars_at(Control, program.table, t.common.chunks[k, GROUP], 0)
    if program.options & SCALED:
        return Control(constant(1.0 / t.measures[SCALE], c.unscale), c.divisor, c.limit, c.decay, c.keep)
    return c


@callee
def rule_scalars_of(t, program, k, scalars):
    """The rule's scalars for chunk ``k``."""
    return scalars_at(scalars, program.table, t.common.chunks[k, GROUP], CONTROLS)
