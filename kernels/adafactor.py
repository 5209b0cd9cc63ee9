"""Adafactor's kernels: three launches over blocks of rows, so that the second moment is never stored.

A *task* is a block of rows of one matrix (of one batch, where there are more than two axes), or a chunk of a vector.
The task table has the common columns and those below. The gradient is read three times: for the row and column sums,
for the size of the update, for the update.
"""

import numpy as np

from . import launch
from ._jit import callee
from .cpu import CONTROLS, DTYPE, SCALARS, finish_chunk
from .engines import Elementwise, contiguous_chunks
from .intrinsics import array_at, scalars_at
from .layout import (
    ACCUMULATED,
    ADDRESS,
    CHUNK,
    CLIP,
    EXTRA,
    GROUP,
    LENGTH,
    OFFSET,
    PARAM,
    SEGMENT,
    SLOTS,
    STAGED,
    Control,
)
from .maths import clip, maximum, sqrt
from .reduction import LANES, row_sum, sum_of, sum_of_squares
from .registry import RULES, Rule
from .rules.adafactor import AdafactorScalars
from .staging import chunk_gradient, scratch_for
from .tables import end_of_segment, tables_at

ROWS, COLUMNS, FIRST_ROW, BATCH, MATRIX, PARTIAL = range(4, 10)
"""Further columns: rows of the task (0: a vector), width of a row, number of the first row in the parameter, number of
the matrix in the parameter, and in all, first element of the task's column sums."""

ROW, COLUMN, VELOCITY, SUMS, ROOTS = range(SLOTS, SLOTS + 5)
"""Rows of the address table: the slots, then scratch in float64, the tasks' column sums and per matrix 1 /
√mean(row)."""

LEAST_ROWS = 64
"""Rows of a task, where the matrix has as many: column sums then add at most 1/64 of the parameter's size."""


def sums_pass(first, last, handle, options):
    """Row means into the row slot, column sums into scratch, velocities of vectors; sums of p² (and u² of vectors)."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    squares = np.empty(CHUNK, DTYPE)
    lanes = np.empty(LANES)
    for k in range(first, last):
        segment, offset, length = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, LENGTH]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        factor = t.factors[CLIP, segment]
        param = array_at(t.addresses[PARAM, segment], offset, length, DTYPE)
        t.sums[0, k] = 0.0
        t.sums[1, k] = 0.0
        columns = t.chunks[k, COLUMNS]
        if t.chunks[k, ROWS] == 0:
            grad, scale = chunk_gradient(t, segment, offset, length, c, options, scratch, DTYPE)
            velocity = array_at(t.addresses[VELOCITY, segment], offset, length, DTYPE)
            _vector_update(grad, velocity, squares, scale, factor, c.limit, s)
            t.sums[0, k] = _decayed_squares(param, c.decay, lanes)
            t.sums[1, k] = sum_of_squares(squares[:length], DTYPE(1), lanes)
            continue
        column_sums = array_at(t.addresses[SUMS, segment], t.chunks[k, PARTIAL], columns, np.float64)
        column_sums[:] = 0.0
        rows = array_at(t.addresses[ROW, segment], t.chunks[k, FIRST_ROW], t.chunks[k, ROWS], DTYPE)
        for r in range(rows.size):
            total = 0.0
            for start in range(0, columns, CHUNK):
                width = min(CHUNK, columns - start)
                grad, scale = chunk_gradient(
                    t,
                    segment,
                    offset + r * columns + start,
                    width,
                    c,
                    options,
                    scratch,
                    DTYPE,
                )
                _squares(grad, squares, column_sums[start : start + width], scale, factor, c.limit, s.epsilon_1)
                total += sum_of(squares[:width], lanes)
                tile = param[r * columns + start : r * columns + start + width]
                t.sums[0, k] += _decayed_squares(tile, c.decay, lanes)
            rows[r] = s.keep * rows[r] + s.take * DTYPE(total / columns)


@callee
def _vector_update(grad, velocity, updates, scale, factor, limit, s):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        v = s.keep * velocity[i] + s.take * (g * g + s.epsilon_1)
        velocity[i] = v
        updates[i] = g / sqrt(v)


@callee
def _squares(grad, squares, column_sums, scale, factor, limit, epsilon):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        q = g * g + epsilon
        squares[i] = q
        column_sums[i] += np.float64(q)


@callee
def _decayed_squares(param, decay, lanes):
    """Sum of squares after weight decay."""
    return sum_of_squares(param, param.dtype.type(1) - decay, lanes)


def columns_pass(handle):
    """Column means into the column slot, and per matrix 1 / √mean(row); serial, after `sums_pass`."""
    t = tables_at(handle, DTYPE)
    lanes = np.empty(LANES)
    k = 0
    while k < t.chunks.shape[0]:
        segment, batch, columns = t.chunks[k, SEGMENT], t.chunks[k, BATCH], t.chunks[k, COLUMNS]
        matrix = t.chunks[k, MATRIX]
        if t.chunks[k, ROWS] == 0 or t.gradients[ADDRESS, segment] == 0:
            k += 1
            continue
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        first_row = t.chunks[k, FIRST_ROW]
        totals = array_at(t.addresses[SUMS, segment], t.chunks[k, PARTIAL], columns, np.float64)
        height = t.chunks[k, ROWS]
        k += 1
        while k < t.chunks.shape[0] and t.chunks[k, SEGMENT] == segment and t.chunks[k, BATCH] == batch:
            partial = array_at(t.addresses[SUMS, segment], t.chunks[k, PARTIAL], columns, np.float64)
            for j in range(columns):
                totals[j] += partial[j]
            height += t.chunks[k, ROWS]
            k += 1
        column = array_at(t.addresses[COLUMN, segment], batch * columns, columns, DTYPE)
        for j in range(columns):
            column[j] = s.keep * column[j] + s.take * DTYPE(totals[j] / height)
        rows = array_at(t.addresses[ROW, segment], first_row, height, DTYPE)
        roots = array_at(t.addresses[ROOTS, segment], matrix, 1, np.float64)
        roots[0] = 1.0 / np.sqrt(sum_of(rows, lanes) / height)


def size_pass(first, last, handle, options):
    """Sums of u² of matrices, before clipping."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    updates = np.empty(CHUNK, DTYPE)
    lanes = np.empty(LANES)
    for k in range(first, last):
        segment, offset, columns = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, COLUMNS]
        if t.gradients[ADDRESS, segment] == 0 or t.chunks[k, ROWS] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        root = array_at(t.addresses[ROOTS, segment], t.chunks[k, MATRIX], 1, np.float64)[0]
        rows = array_at(t.addresses[ROW, segment], t.chunks[k, FIRST_ROW], t.chunks[k, ROWS], DTYPE)
        column = array_at(t.addresses[COLUMN, segment], t.chunks[k, BATCH] * columns, columns, DTYPE)
        for r in range(rows.size):
            row_root = DTYPE(np.sqrt(np.float64(rows[r])) * root)
            for start in range(0, columns, CHUNK):
                width = min(CHUNK, columns - start)
                grad, scale = chunk_gradient(
                    t,
                    segment,
                    offset + r * columns + start,
                    width,
                    c,
                    options,
                    scratch,
                    DTYPE,
                )
                tile = updates[:width]
                _matrix_update(
                    grad, column[start : start + width], tile, row_root, scale, t.factors[CLIP, segment], c.limit
                )
                t.sums[1, k] += sum_of_squares(tile, DTYPE(1), lanes)


@callee
def _matrix_update(grad, column, updates, row_root, scale, factor, limit):
    for i in range(grad.size):
        g = clip(grad[i] * scale * factor, -limit, limit)
        updates[i] = g / (row_root * sqrt(column[i]))


def lengths_pass(handle):
    """Per parameter the step's length, max(ε₂, rms(p)) ρ / max(1, rms(u) / d), into ``factors[EXTRA]``; serial."""
    t = tables_at(handle, DTYPE)
    lanes = np.empty(LANES)
    k = 0
    while k < t.chunks.shape[0]:
        end = end_of_segment(t.chunks, k)
        n = t.chunks[end - 1, OFFSET] + t.chunks[end - 1, LENGTH]
        s = scalars_at(SCALARS, t.table, t.chunks[k, GROUP], CONTROLS)
        size = maximum(np.float64(s.epsilon_2), np.sqrt(row_sum(t.sums[0, k:end], lanes) / n))
        excess = maximum(1.0, np.sqrt(row_sum(t.sums[1, k:end], lanes) / n) / s.clip_threshold)
        t.factors[EXTRA, t.chunks[k, SEGMENT]] = size * s.relative_step / excess
        k = end


def update_pass(first, last, handle, options):
    """Move the parameters; and what the options ask for."""
    t = tables_at(handle, DTYPE)
    scratch = scratch_for(options, DTYPE)
    updates = np.empty(CHUNK, DTYPE)
    for k in range(first, last):
        segment, offset, columns = t.chunks[k, SEGMENT], t.chunks[k, OFFSET], t.chunks[k, COLUMNS]
        if t.gradients[ADDRESS, segment] == 0:
            continue
        c = scalars_at(Control, t.table, t.chunks[k, GROUP], 0)
        factor, extra = t.factors[CLIP, segment], t.factors[EXTRA, segment]
        if t.chunks[k, ROWS] == 0:
            width = t.chunks[k, LENGTH]
            grad, scale = chunk_gradient(t, segment, offset, width, c, options, scratch, DTYPE)
            velocity = array_at(t.addresses[VELOCITY, segment], offset, width, DTYPE)
            _matrix_update(grad, velocity, updates[:width], DTYPE(1), scale, factor, c.limit)
            param = array_at(t.addresses[PARAM, segment], offset, width, DTYPE)
            _move(param, updates, extra, c.decay)
            finish_chunk(t, segment, offset, param, c, options, DTYPE)
            continue
        root = array_at(t.addresses[ROOTS, segment], t.chunks[k, MATRIX], 1, np.float64)[0]
        rows = array_at(t.addresses[ROW, segment], t.chunks[k, FIRST_ROW], t.chunks[k, ROWS], DTYPE)
        column = array_at(t.addresses[COLUMN, segment], t.chunks[k, BATCH] * columns, columns, DTYPE)
        for r in range(rows.size):
            row_root = DTYPE(np.sqrt(np.float64(rows[r])) * root)
            for start in range(0, columns, CHUNK):
                width = min(CHUNK, columns - start)
                where = offset + r * columns + start
                grad, scale = chunk_gradient(t, segment, where, width, c, options, scratch, DTYPE)
                _matrix_update(grad, column[start : start + width], updates[:width], row_root, scale, factor, c.limit)
                param = array_at(t.addresses[PARAM, segment], where, width, DTYPE)
                _move(param, updates, extra, c.decay)
                finish_chunk(t, segment, where, param, c, options, DTYPE)


@callee
def _move(param, updates, length, decay):
    for i in range(param.size):
        param[i] = (param[i] - param[i] * decay) - length * updates[i]


class Factored(Elementwise):
    """Adafactor's step: three launches, on a task table of its own."""

    def __init__(self, plan):
        super().__init__(plan)
        tasks, column_sums, matrices = _tasks(plan)
        self._scratch = [np.zeros(max(n, 1)) for n in (column_sums, matrices)]
        common = self.work
        addresses = np.zeros((ROOTS + 1, common.addresses.shape[1]), np.int64)
        addresses[:SLOTS] = common.addresses[:SLOTS]
        for row, arrays in zip((ROW, COLUMN, VELOCITY), _slots_in_memory_order(plan), strict=True):
            addresses[row] = [0 if array is None else array.ctypes.data for array in arrays]
        addresses[SUMS] = self._scratch[0].ctypes.data
        addresses[ROOTS] = self._scratch[1].ctypes.data
        self._tasks = launch.Work(
            tasks, addresses, common.gradients, common.layouts, common.table, factors=common.factors
        )

    def _compile(self, scalars, slots):
        self._kernels = [launch.kernel(f, scalars, slots, self.dtype) for f in (sums_pass, size_pass, update_pass)]
        self._columns = launch.serial_function(columns_pass, 0, scalars, slots, self.dtype)
        self._lengths = launch.serial_function(lengths_pass, 0, scalars, slots, self.dtype)

    def __call__(self, options):
        """Do the step that the work's tables describe."""
        work = self._tasks
        sums, size, update = self._kernels
        launch.launch(sums, work, options & (ACCUMULATED | STAGED))
        self._columns(work.handle)
        launch.launch(size, work, options & (ACCUMULATED | STAGED))
        self._lengths(work.handle)
        launch.launch(update, work, options)


def _slots_in_memory_order(plan):
    """Row, column and velocity arrays; "row" belongs to the slower of a matrix's two axes in memory.

    Requires that these are the two fastest axes of the parameter.
    """
    triples = []
    for parameter, row, column, velocity in zip(
        plan.parameters, *(plan.slots[name] for name in ("row", "column", "velocity")), strict=True
    ):
        axes = parameter.axes
        swapped = len(axes) >= 2 and axes[-1] < axes[-2]
        triples.append((column, row, velocity) if swapped else (row, column, velocity))
    return zip(*triples, strict=True)


def _tasks(plan):
    """The task table, and the elements of the two scratch arrays."""
    tables, column_sums, matrices = [], 0, 0
    for segment, parameter in enumerate(plan.parameters):
        shape, group, size = parameter.array.shape, plan.rows[segment], parameter.array.size
        if len(shape) < 2:
            chunks = contiguous_chunks([size], [group], CHUNK)
            table = np.zeros((len(chunks), PARTIAL + 1), np.int64)
            table[:, : GROUP + 1] = chunks
        elif size == 0:
            continue
        else:
            height, width = (shape[axis] for axis in parameter.axes[-2:])
            table = _matrix_tasks(size, height, width)
            table[:, GROUP] = group
            table[:, MATRIX] = table[:, BATCH] + matrices
            table[:, PARTIAL] += column_sums
            column_sums += len(table) * width
            matrices += size // (height * width)
        table[:, SEGMENT] = segment
        tables.append(table)
    empty = np.zeros((0, PARTIAL + 1), np.int64)
    return np.concatenate([empty, *tables]), column_sums, matrices


def _matrix_tasks(size, height, width):
    """Tasks of ``size / (height · width)`` matrices."""
    block = max(LEAST_ROWS, CHUNK // width)
    starts = np.arange(0, height, block)
    batches = np.arange(size // (height * width))
    table = np.zeros((len(batches), len(starts), PARTIAL + 1), np.int64)
    table[:, :, ROWS] = np.minimum(block, height - starts)
    table[:, :, FIRST_ROW] = batches[:, None] * height + starts
    table[:, :, BATCH] = batches[:, None]
    table[:, :, COLUMNS] = width
    table[:, :, OFFSET] = table[:, :, FIRST_ROW] * width
    table[:, :, LENGTH] = table[:, :, ROWS] * width
    tasks = table.reshape(-1, PARTIAL + 1)
    tasks[:, PARTIAL] = np.arange(len(tasks)) * width
    return tasks


RULES[AdafactorScalars] = Rule("adafactor", engine=Factored)
