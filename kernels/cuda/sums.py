"""Sums over chunks and segments, in the order of `fastopt.kernels.cpu.reduction`, so that their bits are the CPU's.

A *team* of threads, a warp or a block, shares the lanes of that order: each thread adds up lanes of its own, then the
team folds them. What is worked out from the sums of several chunks is worked out by whichever team comes last; the
order of additions does not depend on which one that is.
"""

from typing import Any

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import added, beside
from ..cpu.reduction import LANES
from .finish import is_last
from .lanes import one, wide
from .threads import TEAM, barrier

TERMS: dict[type, Any] = {}
"""Class of a work, a NamedTuple, → ``terms(work, i, like)``: for as many elements from ``i`` on as the tuple ``like``
has, a tuple of so many float64 for each quantity that is to be summed: for each member of the work's ``sums``."""


def terms_of(work, i, like):
    """Return what ``work`` sums, of the elements from ``i`` on."""


@overload(terms_of, jit_options=FLAGS, strict=False)
def _terms_of(work, i, like):
    return TERMS[work.instance_class]


def no_terms(work, like):
    """Zeros in the place of `terms_of`."""


@overload(no_terms, jit_options=FLAGS)
def _no_terms(work, like):
    zeros = ((np.float64(0),) * len(like),) * len(work.types[work.fields.index("sums")])
    return lambda work, like: zeros


@callee
def sum_terms(work, size, lanes, thread, sums, k, dtype):
    """Sums of the terms of ``size`` elements, into ``sums[:, k]``; all threads of a warp.

    Requires ``lanes``, scratch of the warp: `LANES` float64 for each quantity; and a work that says whether the widest
    loads can be used, ``aligned``.
    """
    if work.aligned:
        _sum_lanes(work, size, lanes, thread, wide(dtype))
    else:
        _sum_lanes(work, size, lanes, thread, one(dtype))
    for row in range(len(work.sums)):
        fold(lanes[row * LANES : (row + 1) * LANES], thread, TEAM)
        if thread == 0:
            sums[row, k] = lanes[row * LANES]


@callee
def _sum_lanes(work, size, lanes, thread, like):
    whole = size - size % (4 * LANES)
    own = thread * len(like)
    while own < LANES:
        total = no_terms(work, like)
        start = own
        while start < whole:
            first, second = terms_of(work, start, like), terms_of(work, start + LANES, like)
            third, fourth = terms_of(work, start + 2 * LANES, like), terms_of(work, start + 3 * LANES, like)
            total = added(added(added(added(total, first), second), third), fourth)
            start += 4 * LANES
        while start < size:
            if start + len(like) <= size:
                total = added(total, terms_of(work, start, like))
            else:
                total = added(total, _terms_below(work, start, size, like))
            start += LANES
        for row in range(len(work.sums)):
            for column in range(len(like)):
                lanes[row * LANES + own + column] = total[row][column]
        own += TEAM * len(like)


def _terms_below(work, i, size, like):
    """`terms_of` the elements below ``size``; zeros in the place of the others."""


@overload(_terms_below, jit_options=FLAGS)
def _terms_below_overload(work, i, size, like):
    if len(like) == 1:
        return lambda work, i, size, like: terms_of(work, i, like) if i < size else no_terms(work, like)
    half = len(like) // 2

    def halves(work, i, size, like):
        return beside(_terms_below(work, i, size, like[:half]), _terms_below(work, i + half, size, like[half:]))

    return halves


@callee
def fold(lanes, thread, team):
    """Add halves to halves until the sum of the lanes is in the first; all threads of the team."""
    barrier(team)
    width = LANES // 2
    while width:
        for j in range(thread, width, team):
            lanes[j] += lanes[j + width]
        barrier(team)
        width //= 2


@callee
def row_sum(values, lanes, thread, team):
    """Sum of a row of float64, the bits of `reduction.row_sum`, for all threads of the team."""
    if values.size < LANES:
        if thread == 0:
            total = 0.0
            for i in range(values.size):
                total += values[i]
            lanes[0] = total
        barrier(team)
        total = lanes[0]
        barrier(team)
        return total
    return lane_sum(values, lanes, thread, team)


@callee
def lane_sum(values, lanes, thread, team):
    """Sum of a row of float64, the bits of `reduction.sum_of`, for all threads of the team."""
    for lane in range(thread, LANES, team):
        lanes[lane] = _sum_of_lane(values, lane)
    fold(lanes, thread, team)
    total = lanes[0]
    barrier(team)
    return total


@callee
def _sum_of_lane(values, lane):
    total = 0.0
    whole = values.size - values.size % (4 * LANES)
    i = lane
    while i + 12 * LANES < whole:  # sixteen loads under way at a time
        first, second = _four(values, i), _four(values, i + 4 * LANES)
        third, fourth = _four(values, i + 8 * LANES), _four(values, i + 12 * LANES)
        total = _with_four(_with_four(_with_four(_with_four(total, first), second), third), fourth)
        i += 16 * LANES
    while i < whole:
        total = _with_four(total, _four(values, i))
        i += 4 * LANES
    while i < values.size:
        total += values[i]
        i += LANES
    return total


@callee
def _four(values, i):
    return values[i], values[i + LANES], values[i + 2 * LANES], values[i + 3 * LANES]


@callee
def _with_four(total, values):
    return (((total + values[0]) + values[1]) + values[2]) + values[3]


@callee
def segment_is_done(t, segment, flags, warp, thread):
    """Count one chunk of a segment; whether it was the last one of the launch, for all threads of the warp."""
    if thread == 0:
        flags[warp] = is_last(t.counters, segment, t.ends[segment] - start_of(t, segment))
    barrier(TEAM)
    done = flags[warp]
    barrier(TEAM)  # before another chunk's answer takes its place
    return done


@callee
def start_of(t, segment):
    """The first chunk of a segment."""
    return t.ends[segment - 1] if segment > 0 else 0


@callee
def elements_of(t, segment):
    """Count the elements of a segment."""
    from_last = t.ends[segment] - 1
    return t.common.chunks[from_last, 1] + t.common.chunks[from_last, 2]
