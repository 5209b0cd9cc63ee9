"""Rules that need the sum of a row's squared gradients before they can move the row: all rows, or those touched.

A row goes through the caches once where it is no longer than a chunk; of a longer one the gradient is read twice.
"""

from typing import Any

import numpy as np

from ..compile._jit import callee
from ..compile.intrinsics import array_at, arrays_at, load, scalars_at, store
from ..layout import ADDRESS, AVERAGED, CHUNK, CLIP, GROUP, LENGTH, OFFSET, OVERWRITE, PARAM, SEGMENT, Control
from ..registry import RULES, between_row
from ..rules import adagrad  # noqa: F401  # registers its rules
from ..tables import tables_at
from . import launch
from .engines import Elementwise, contiguous_chunks
from .loops import CONTROLS, addresses_of, finish_chunk, first_phase_chunk, second_phase_chunk
from .reduction import sum_of
from .row_gradients import ask_for_row, follow_touched, gradient_of_row
from .row_tables import ROW, TABLE, RowTable, row_tables_at
from .staging import chunk_gradient, scratch_for

WIDTH = GROUP + 1
"""Further column of the chunk table: elements of a row. Chunks are whole rows, a long row one by itself."""

# Replaced in each specialisation (see `launch`).
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()
TERM_ROWS: Any = ()


def step_per_row(first, last, handle, options):
    """One step of a rule per row, of the chunks ``first`` to ``last``. Writes what `loops.step` does."""
    t = tables_at(handle, DTYPE)
    scratch, terms = scratch_for(options, DTYPE), np.empty((len(TERM_ROWS), CHUNK), DTYPE)
    sums, term_addresses = np.empty(len(TERM_ROWS)), addresses_of(terms)
    for k in range(first, last):
        segment, start, width = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, WIDTH]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        factor = t.factors[CLIP, segment]
        for row in range(start // width, (start + t.chunks[k, LENGTH]) // width):
            sums[:] = 0.0
            for column in range(0, width, CHUNK):
                offset, length = row * width + column, min(CHUNK, width - column)
                grad, scale = chunk_gradient(t, segment, offset, length, c, options, scratch, DTYPE)
                param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
                arrays = arrays_at(TERM_ROWS, term_addresses, 0, 0, length, DTYPE)
                first_phase_chunk(param, grad, (), arrays, s, scale, factor, c.limit, c.decay)
                _add_sums(sums, terms, length)
            number = _between(arrays_at(SLOT_ROWS, t.addresses, segment, row, 1, DTYPE), sums, width, s)
            for column in range(0, width, CHUNK):
                offset, length = row * width + column, min(CHUNK, width - column)
                grad, scale = chunk_gradient(t, segment, offset, length, c, options, scratch, DTYPE)
                param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
                second_phase_chunk(param, grad, (), s, number, scale, factor, c.limit, c.decay)
                finish_chunk(t, segment, offset, param, c, options, DTYPE)


def step_touched_per_row(first, last, handle, options):
    """The same of the touched rows ``first`` to ``last``, as `row_gradients.step_rows`."""
    r = row_tables_at(handle)
    t = tables_at(r.plan, DTYPE)
    scratch, terms = np.empty(CHUNK, DTYPE), np.empty((len(TERM_ROWS), CHUNK), DTYPE)
    sums, term_addresses = np.empty(len(TERM_ROWS)), addresses_of(terms)
    for u in range(first, last):
        ask_for_row(t, r, u, last, scratch.itemsize)
        table, row = scalars_at(RowTable, r.tables, r.touched[u, TABLE], 0), r.touched[u, ROW]
        c = scalars_at(Control, t.table, table.group, 0)
        s = scalars_at(SCALARS, t.table, table.group, CONTROLS)
        segment, width, factor = table.segment, table.width, t.factors[CLIP, table.segment]
        grad = scratch
        sums[:] = 0.0
        for column in range(0, width, CHUNK):
            offset, length = row * width + column, min(CHUNK, width - column)
            grad = gradient_of_row(table, r.touched, u, column, length, scratch, DTYPE)
            param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
            arrays = arrays_at(TERM_ROWS, term_addresses, 0, 0, length, DTYPE)
            first_phase_chunk(param, grad, (), arrays, s, c.unscale, factor, c.limit, c.decay)
            _add_sums(sums, terms, length)
        number = _between(arrays_at(SLOT_ROWS, t.addresses, segment, row, 1, DTYPE), sums, width, s)
        follow_touched(t, table, row, options, DTYPE)
        for column in range(0, width, CHUNK):
            offset, length = row * width + column, min(CHUNK, width - column)
            if width > CHUNK:
                grad = gradient_of_row(table, r.touched, u, column, length, scratch, DTYPE)
            param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
            second_phase_chunk(param, grad, (), s, number, c.unscale, factor, c.limit, c.decay)
            finish_chunk(t, segment, offset, param, c, options & (AVERAGED | OVERWRITE), DTYPE)


@callee
def _add_sums(sums, terms, length):
    for row in range(sums.size):
        sums[row] += sum_of(terms[row, :length])


@callee
def _between(slots, sums, width, s):
    number, new_slots = between_row(sums, width, load(slots, 0), s)
    store(slots, 0, new_slots)
    return number


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
