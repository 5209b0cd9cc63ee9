"""Sums over chunks and segments, in the order of `fastopt.kernels.cpu.reduction`, so that their bits are the CPU's.

A *team* of threads, a warp or a block, shares the lanes of that order: each thread adds up lanes of its own, then the
team folds them. What is worked out from the sums of several chunks is worked out by whichever team comes last; the
order of additions does not depend on which one that is.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ..compile._jit import FLAGS, callee
from ..compile.tuples import added
from ..cpu.reduction import LANES
from ..layout import ACCUMULATED
from .finish import is_last
from .lanes import ACCUMULATES, APART, VECTOR, one, wide
from .threads import TEAM, barrier


class Terms(NamedTuple):
    """What a work sums. Loads are apart from what is made of them, so that several are under way at a time.

    ``load`` is a function ``(work, i, like, how)`` that returns columns: of each array the elements from ``i`` on, as
    many as the tuple ``like`` has. ``terms`` is a function ``(work, i, columns)`` that returns as many float64 for each
    quantity that is to be summed, for each member of the work's ``sums``. ``together``, 1, 2 or 4, is how often
    ``load`` is called before any of it is used: such that three loads or more are under way.
    """

    load: Any
    terms: Any
    together: int


TERMS: dict[type, Terms] = {}
"""Class of a work, a NamedTuple → its `Terms`."""


def load_of(work, i, like, how):
    """Load what ``work`` needs of the elements from ``i`` on; ``how`` are bits of `lanes`."""


@overload(load_of, jit_options=FLAGS, strict=False)
def _load_of(work, i, like, how):
    return TERMS[work.instance_class].load


def terms_of(work, i, columns):
    """Return what ``work`` sums, of the elements from ``i`` on, which are loaded."""


@overload(terms_of, jit_options=FLAGS, strict=False)
def _terms_of(work, i, columns):
    return TERMS[work.instance_class].terms


def together_of(work):
    """How many loads of ``work`` come before what is made of the first."""


@overload(together_of, jit_options=FLAGS)
def _together_of(work):
    together = TERMS[work.instance_class].together
    return lambda work: together


def no_terms(work, like):
    """Zeros in the place of `terms_of`."""


@overload(no_terms, jit_options=FLAGS)
def _no_terms(work, like):
    zeros = ((np.float64(0),) * len(like),) * len(work.types[work.fields.index("sums")])
    return lambda work, like: zeros


def with_terms(total, work, i, step, like, how):
    """A total, and in order the terms from ``i``, from ``i + step`` and so on, `together_of` times."""


@overload(with_terms, jit_options=FLAGS)
def _with_terms(total, work, i, step, like, how):
    together = TERMS[work.instance_class].together

    def by_one(total, work, i, step, like, how):
        return with_term(total, work, i, like, how)

    def by_two(total, work, i, step, like, how):
        j = i + step
        first, second = load_of(work, i, like, how), load_of(work, j, like, how)
        return added(added(total, terms_of(work, i, first)), terms_of(work, j, second))

    def by_four(total, work, i, step, like, how):
        j, k, n = i + step, i + 2 * step, i + 3 * step
        first, second = load_of(work, i, like, how), load_of(work, j, like, how)
        third, fourth = load_of(work, k, like, how), load_of(work, n, like, how)
        total = added(added(total, terms_of(work, i, first)), terms_of(work, j, second))
        return added(added(total, terms_of(work, k, third)), terms_of(work, n, fourth))

    return {1: by_one, 2: by_two, 4: by_four}[together]


@callee
def with_term(total, work, i, like, how):
    """A total, and the terms from ``i`` on."""
    return added(total, terms_of(work, i, load_of(work, i, like, how)))


@callee
def how_to_load(options, foreign):
    """Bits for `Terms.load`, by the options and by the `union` of addresses of arrays that are not our own."""
    if options & ACCUMULATED:
        return ACCUMULATES
    return APART if foreign % VECTOR else 0


@callee
def sum_terms(work, how, size, lanes, thread, sums, k, dtype):
    """Sums of the terms of ``size`` elements, into ``sums[:, k]``; all threads of a warp.

    Requires ``lanes``, scratch of the warp: `LANES` float64 for each quantity; and a work that says whether the widest
    loads can be used, ``aligned``. ``how`` may be `ACCUMULATES` or `APART`, not both.
    """
    many = wide(dtype)
    whole = size - size % len(many) if work.aligned else 0
    if how == ACCUMULATES:  # each with constants
        _sum_vectors(work, whole, lanes, thread, many, ACCUMULATES)
    elif how == APART:
        _sum_vectors(work, whole, lanes, thread, many, APART)
    else:
        _sum_vectors(work, whole, lanes, thread, many, 0)
    if whole < size:
        barrier(TEAM)
        _add_rest(work, whole, size, lanes, thread, one(dtype), how)
    for row in range(len(work.sums)):
        fold(lanes[row * LANES : (row + 1) * LANES], thread, TEAM)
        if thread == 0:
            sums[row, k] = lanes[row * LANES]


@callee
def _sum_vectors(work, size, lanes, thread, like, how):
    """Write the lanes' sums of so many elements, vector by vector; several at a time where nothing was accumulated."""
    beyond = (together_of(work) - 1) * LANES
    several = size if how != ACCUMULATES else 0
    own = thread * len(like)
    while own < LANES:
        total, i = no_terms(work, like), own
        while i + beyond < several:
            total = with_terms(total, work, i, LANES, like, how)
            i += beyond + LANES
        while i < size:
            total = with_term(total, work, i, like, how)
            i += LANES
        for row in range(len(work.sums)):
            for column in range(len(like)):
                lanes[row * LANES + own + column] = total[row][column]
        own += TEAM * len(like)


@callee
def _add_rest(work, start, size, lanes, thread, like, how):
    """Add the elements from ``start`` on to their lanes, one by one."""
    for lane in range(thread, LANES, TEAM):
        total, i = no_terms(work, like), start - start % LANES + lane
        if i < start:
            i += LANES
        while i < size:
            total = with_term(total, work, i, like, how)
            i += LANES
        for row in range(len(work.sums)):
            lanes[row * LANES + lane] += total[row][0]


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
    if values.size < LANES:  # one after the other, and yet all are loaded at once
        for i in range(thread, values.size, team):
            lanes[i] = values[i]
        barrier(team)
        total = 0.0
        for i in range(values.size):
            total += lanes[i]
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
