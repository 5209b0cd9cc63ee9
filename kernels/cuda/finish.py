"""The end of a step: the last block to be done writes down what the next one must know."""

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at
from .tables import (
    BLOCKS,
    CALLS,
    GREATEST_SCALE,
    GROWTH,
    GROWTH_STEPS,
    LAST,
    LEAST_SCALE,
    MEASURED,
    MICRO,
    NORM_KNOWN,
    PROGRESS,
    SCALE,
    SCALED,
    SKIPPED,
    STARVED,
    STOPPED,
    device_tables_at,
    program_of,
)
from .threads import block_barrier, count_in, fence


@callee
def finish(handle, options, thread, blocks, dtype):
    """Call at the end of a launch, all threads: if it ends the step, the last block counts the call."""
    block_barrier()
    if thread == 0:
        t = device_tables_at(handle, dtype)
        if is_last(t.state, BLOCKS, blocks) and options & LAST:
            _close(t, program_of(t, options, dtype))


@callee
def is_last(counters, index, expected):
    """Whether all ``expected`` callers have come, this one included; the counter then starts anew.

    What each of them wrote before is then seen by the last one, and, after a barrier, by the threads beside it.
    """
    fence()
    if count_in(counters, index, 1) + 1 < expected:
        return False
    count_in(counters, index, -expected)
    fence()
    return True


@callee
def _close(t, program):
    if not program.ready:
        t.state[STARVED] = 1
        return
    stopped = program.stopped
    if program.options & SCALED:
        _rescale(t.state, t.measures, stopped)
    t.state[SKIPPED] = stopped
    t.state[STOPPED] = 0
    t.state[NORM_KNOWN] = program.options & MEASURED != 0 and program.options & MICRO == 0 and not stopped
    if not stopped:
        t.state[CALLS] += 1
    array_at(t.state[PROGRESS], 0, 1, np.int64)[0] = t.state[CALLS]


@callee
def _rescale(state, measures, stopped):
    """Halve the loss scale after gradients that are not finite; double it after so many steps that are."""
    if stopped:
        state[GROWTH] = 0
        measures[SCALE] = max(measures[SCALE] * 0.5, measures[LEAST_SCALE])
    elif state[GROWTH] == state[GROWTH_STEPS] - 1:
        state[GROWTH] = 0
        measures[SCALE] = min(measures[SCALE] * 2.0, measures[GREATEST_SCALE])
    else:
        state[GROWTH] += 1
