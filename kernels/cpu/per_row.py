"""Rules that need the sum of a row's squared gradients before they can move the row: all rows, or those touched.

A row goes through the caches once where it is no longer than a chunk; of a longer one the gradient is read twice.
"""

from typing import Any

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, arrays_at, load, scalars_at, store
from ..layout import ADDRESS, AVERAGE, AVERAGED, CHUNK, CLIP, GROUP, LENGTH, OFFSET, OVERWRITE, PARAM, SEGMENT, Control
from ..maths import clip, decayed
from ..registry import RULES, between_row, move_in_row, row_gradient
from ..rules import adagrad  # noqa: F401  # registers its rules
from ..tables import tables_at
from . import launch
from .engines import Elementwise, contiguous_chunks
from .loops import CONTROLS, finish_chunk
from .reduction import sum_of_squares
from .row_averages import NOW, follow_row, note_followed, share_at
from .row_gradients import gradient_of_row
from .row_tables import ROW, TABLE, RowTable, row_tables_at
from .staging import chunk_gradient, scratch_for

WIDTH = GROUP + 1
"""Further column of the chunk table: elements of a row. Chunks are whole rows, a long row one by itself."""

# Replaced in each specialisation (see `launch`).
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()


def step_per_row(first, last, handle, options):
    """One step of a rule per row, of the chunks ``first`` to ``last``. Writes what `loops.step` does."""
    t = tables_at(handle, DTYPE)
    scratch, own = scratch_for(options, DTYPE), np.empty(CHUNK, DTYPE)
    for k in range(first, last):
        segment, start, width = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, WIDTH]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        for row in range(start // width, (start + t.chunks[k, LENGTH]) // width):
            squares, number = 0.0, DTYPE(0)
            for move in range(2):
                for column in range(0, width, CHUNK):
                    offset, length = row * width + column, min(CHUNK, width - column)
                    param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
                    if move == 0 or width > CHUNK:
                        grad, scale = chunk_gradient(t, segment, offset, length, c, options, scratch, DTYPE)
                        squares += _measure(own[:length], param, grad, s, scale, t.factors[CLIP, segment], c)
                    if move == 1:
                        _move(param, own[:length], number, s, c.decay)
                        finish_chunk(t, segment, offset, param, c, options, DTYPE)
                if move == 0:
                    number = _between(arrays_at(SLOT_ROWS, t.addresses, segment, row, 1, DTYPE), squares, width, s)


def step_touched_per_row(first, last, handle, options):
    """The same of the touched rows ``first`` to ``last``, as `row_gradients.step_rows`."""
    r = row_tables_at(handle)
    t = tables_at(r.plan, DTYPE)
    scratch, own = np.empty(CHUNK, DTYPE), np.empty(CHUNK, DTYPE)
    for u in range(first, last):
        table, row = scalars_at(RowTable, r.tables, r.touched[u, TABLE], 0), r.touched[u, ROW]
        c = scalars_at(Control, t.table, table.group, 0)
        s = scalars_at(SCALARS, t.table, table.group, CONTROLS)
        segment, share = table.segment, share_at(table.averaging, row) if options & AVERAGED else 1.0
        squares, number = 0.0, DTYPE(0)
        for move in range(2):
            for column in range(0, table.width, CHUNK):
                offset, length = row * table.width + column, min(CHUNK, table.width - column)
                param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
                if move == 0 or table.width > CHUNK:
                    grad = gradient_of_row(table, r.touched, u, column, length, scratch, DTYPE)
                    squares += _measure(own[:length], param, grad, s, c.unscale, t.factors[CLIP, segment], c)
                if move == 1:
                    if share != 1.0:
                        follow_row(array_at(t.addresses[AVERAGE, segment], offset, length, DTYPE), param, DTYPE(share))
                    _move(param, own[:length], number, s, c.decay)
                    finish_chunk(t, segment, offset, param, c, options & (AVERAGED | OVERWRITE), DTYPE)
            if move == 0:
                number = _between(arrays_at(SLOT_ROWS, t.addresses, segment, row, 1, DTYPE), squares, table.width, s)
        if options & AVERAGED:
            note_followed(table.averaging, row, NOW)


@callee
def _measure(own, param, grad, s, scale, factor, c):
    """Fill ``own`` with the gradients that count; returns the sum of their squares."""
    for i in range(own.size):
        g = clip(grad[i] * scale * factor, -c.limit, c.limit)
        own[i] = row_gradient(decayed(param[i], c.decay), g, s)
    return sum_of_squares(own, own.dtype.type(1))


@callee
def _between(slots, squares, width, s):
    number, new_slots = between_row(squares, width, load(slots, 0), s)
    store(slots, 0, new_slots)
    return number


@callee
def _move(param, own, number, s, decay):
    for i in range(param.size):
        param[i] = move_in_row(decayed(param[i], decay), own[i], number, s)


class PerRow(Elementwise):
    """The engine of a rule per row: one launch, over chunks of whole rows."""

    row_step = staticmethod(step_touched_per_row)

    def __init__(self, plan):
        super().__init__(plan)
        chunks, own = chunks_of_rows(plan), self.work
        tables = own.addresses, own.gradients, own.layouts, own.table
        self._row_work = self._whole_rows = launch.Work(chunks, *tables, factors=own.factors)

    def _compile(self, scalars, slots):
        self._step = launch.kernel(step_per_row, scalars, slots, self.dtype)

    def _leave_out(self, segments):
        super()._leave_out(segments)
        self._whole_rows = self._row_work.without(segments) if segments else self._row_work

    def _calls_for_whole(self, options):
        return [launch.call(self._step, self._whole_rows, options)]


def chunks_of_rows(plan):
    """The chunk table of a plan's rows, with `WIDTH`; a parameter without axes is one row."""
    tables = [np.empty((0, WIDTH + 1), np.int64)]
    for segment, (parameter, group) in enumerate(zip(plan.parameters, plan.rows, strict=True)):
        size, height = parameter.array.size, (parameter.array.shape or (1,))[0]
        if size:
            width = size // height
            chunks = contiguous_chunks([height], [group], max(1, CHUNK // width))
            chunks[:, [OFFSET, LENGTH]] *= width
            chunks[:, SEGMENT] = segment
            tables.append(np.column_stack([chunks, np.full(len(chunks), width)]))
    return np.ascontiguousarray(np.concatenate(tables), np.int64)


for _scalars, _rule in RULES.items():
    if any(slot.per_row for slot in _rule.slots.values()):
        RULES[_scalars] = _rule._replace(engine=PerRow)
