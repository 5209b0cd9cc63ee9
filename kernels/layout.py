"""The tables that a launch reads: what their columns, rows and bits mean.

A *segment* is one parameter. A *chunk* is at most `CHUNK` consecutive elements of one segment, in memory order. Chunks
are fixed when the optimizer is built, so no result depends on the number of threads.
"""

from typing import NamedTuple

CHUNK = 4096
"""Elements of the longest chunk: what one chunk streams through stays within a core's caches."""

SEGMENT, OFFSET, LENGTH, GROUP = range(4)
"""Columns of the chunk table, int64: segment number, first element, elements, row of the scalars table."""

PARAM, AVERAGE, ACCUMULATOR, SLOTS = range(4)
"""Rows of the address table, int64 ``[SLOTS + slots, segments]``: where each segment's arrays start, in bytes."""

ADDRESS, LAYOUT = range(2)
"""Rows of the gradient table, int64 ``[2, segments]``: address in bytes (0: no gradient, leave the segment alone) and
start of the gradient's record in the layouts table (`DIRECT`: read it as it lies)."""

DIRECT = -1

GATHER = 0
"""Where the layouts table holds the address of `staging.gather`, on the host; records follow from `FIRST_RECORD` on."""

FIRST_RECORD = 1

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)
"""First number of a record in the layouts table: the dtype of the gradient. The number of axes follows, then the
gradient's extents and then its strides in bytes, axes in the order in which the parameter lies in memory."""

CLIP, EXTRA = range(2)
"""Rows of the factors table, in the compute dtype, ``[2, segments]``: the clipping factor, and what a two-phase rule
worked out between its phases."""

ACCUMULATED, AVERAGED, OVERWRITE, ZERO, STAGED = 1, 2, 4, 8, 16
"""Bits of a launch's options: the accumulators hold earlier gradients and are emptied; the averages follow the
parameters; the averages then replace the parameters; the gradients are zeroed; some gradient is not `DIRECT`."""


class Control(NamedTuple):
    """The first columns of the scalars table; the rule's own scalars follow."""

    unscale: float  # factor on every gradient: 1 / loss scale
    divisor: float  # gradients in the accumulators, this one included
    limit: float  # clip by value, inf for none
    decay: float  # weight decay times learning rate
    keep: float  # share of itself that the average keeps
