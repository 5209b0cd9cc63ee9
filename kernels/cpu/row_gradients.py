"""Steps of the rows of tables for which there is a gradient: a list of row numbers, and a row of values for each.

`merge` sorts the places in the list by row, so that all values of a row follow each other, in the order of the list.
What is then done goes through the *touched* rows, in ascending order: it adds up a row's values, in the caches, and
does what `loops.step` does to a chunk. Nothing depends on the number of rows that a table has.

Kernels have the common signature of `loops`; the handle is that of `row_tables.RowTables`.
"""

import math
from typing import Any

import numpy as np

from ..clipping import own_factor
from ..compile._jit import callee, inlined_callee
from ..compile.intrinsics import array_at, arrays_at, prefetch, scalars_at
from ..layout import AVERAGE, AVERAGED, CHUNK, CLIP, OVERWRITE, PARAM, Control
from ..tables import tables_at
from .loops import CONTROLS, LINE, finish_chunk, update_chunk
from .reduction import nonfinite, row_sum, sum_of_squares
from .row_averages import NOW, follow_row, note_followed, share_at
from .row_tables import (
    FIRST,
    KEYS,
    LAST,
    OWN,
    ROW,
    SEGMENT,
    START,
    TABLE,
    TOUCHED,
    WIDTH,
    RowTable,
    row_tables_at,
)

AHEAD = 6
"""How many values, and rows, ahead of its turn one is asked for."""

MOST_BYTES = 8 * LINE
"""Of a row that is asked for ahead of its turn; the processor sees by itself how a longer one goes on."""

INSERTED = 48
"""Places that are sorted by insertion."""

DIGIT = 12
"""Bits by which places are sorted at once: the counters of so many fit the first cache."""

# Replaced in each specialisation (see `launch`).
DTYPE = np.float32
SCALARS = Control
SLOT_ROWS: Any = ()


# -- sorting -----------------------------------------------------------------------------------------------------------


def merge(first, last, handle, options):
    """Sort the places of each table's rows, and note the rows: the tables ``first`` to ``last``."""
    r = row_tables_at(handle)
    for k in range(first, last):
        _merge_one(r, k)


@callee
def _merge_one(r, k):
    """`merge` of table ``k``.

    Of one that is no part, an index out of range leaves ``-1 - place`` in the place of the number of rows found. Each
    index is read once: what another thread writes there later does not matter.
    """
    table = scalars_at(RowTable, r.tables, k, 0)
    indices = array_at(table.indices, 0, table.places, np.int64)
    before, own = 0, table.places
    if table.is_part:
        before, own = _count_places(indices, table.lowest, table.end)
    keys, spare = array_at(table.keys, before, own, np.int64), array_at(table.spare, before, own, np.int64)
    if table.is_part:
        _fill_part(indices, table.lowest, table.end, table.bits, keys)
    elif not _fill_keys(indices, table.end, table.bits, keys):
        r.tables[k, TOUCHED] = -1 - _first_out_of_range(indices, table.end)
        return
    _sort(keys, table.bits, table.end - table.lowest - 1, spare)
    start = table.start + before
    r.tables[k, KEYS], r.tables[k, START], r.tables[k, OWN] = table.keys + 8 * before, start, own
    r.tables[k, TOUCHED] = _note_rows(keys, table.bits, table.lowest, k, start, r.touched)


@callee
def _count_places(indices, lowest, end):
    """Count the places of rows below ``lowest``, and from there to ``end``."""
    before, own = 0, 0
    for i in range(indices.size):
        before += indices[i] < lowest
        own += (indices[i] >= lowest) & (indices[i] < end)
    return before, own


@callee
def _fill_keys(indices, end, bits, keys):
    """Write ``row << bits | place`` for each place, in order; whether all rows are below ``end``, from 0."""
    outside = 0
    for i in range(keys.size):
        row = indices[i]
        keys[i] = (row << bits) | i
        outside |= (row < 0) | (row >= end)
    return outside == 0


@callee
def _first_out_of_range(indices, end):
    """Return the first place of a row that is not below ``end``; of all of them the last one where it is gone."""
    place = 0
    while place < indices.size - 1 and 0 <= indices[place] < end:
        place += 1
    return place


@callee
def _fill_part(indices, lowest, end, bits, keys):
    """Write ``row - lowest << bits | place`` for each place of the rows from ``lowest`` to ``end``, in order."""
    i, k = 0, 0
    while k < keys.size:  # what is written for another row is written over: a branch would be guessed wrong
        keys[k] = ((indices[i] - lowest) << bits) | i
        k += (indices[i] >= lowest) & (indices[i] < end)
        i += 1


@callee
def _sort(keys, bits, highest, spare):
    """Sort keys, the highest of whose rows is ``highest``, ascending."""
    if keys.size <= INSERTED:
        _insert_each(keys)
        return
    width = 1
    while highest >> width:
        width += 1
    pairs = -(-width // (2 * DIGIT))
    digit = -(-width // (2 * pairs))
    for pair in range(pairs):
        _sort_by_two_digits(keys, spare, bits + 2 * pair * digit, digit)


@callee
def _insert_each(keys):
    for i in range(1, keys.size):
        key, k = keys[i], i
        while k > 0 and keys[k - 1] > key:
            keys[k] = keys[k - 1]
            k -= 1
        keys[k] = key


@callee
def _sort_by_two_digits(keys, spare, shift, digit):
    """Two passes of a radix sort, by so many bits each from bit ``shift`` on; equal keys keep their order."""
    mask = (1 << digit) - 1
    ends, later_ends = np.zeros(mask + 1, np.int32), np.zeros(mask + 1, np.int32)
    for i in range(keys.size):
        ends[(keys[i] >> shift) & mask] += 1
        later_ends[(keys[i] >> (shift + digit)) & mask] += 1
    _begin_each(ends)
    _begin_each(later_ends)
    _scatter(keys, spare, shift, ends)
    _scatter(spare, keys, shift + digit, later_ends)


@callee
def _begin_each(counts):
    """Replace counts by the sum of those before."""
    begin = 0
    for k in range(counts.size):
        count = counts[k]
        counts[k] = begin
        begin += count


@callee
def _scatter(keys, result, shift, places):
    """Write each key to the place of its digit, which the next one with that digit follows."""
    mask = places.size - 1
    for i in range(keys.size):
        key = keys[i]
        digit = (key >> shift) & mask
        place = places[digit]
        places[digit] = place + 1
        result[place] = key


@callee
def _note_rows(keys, bits, lowest, k, start, touched):
    """Write a line of ``touched``, from line ``start`` on, for each row among sorted keys; returns how many."""
    found, row = start - 1, np.int64(-1)
    for i in range(keys.size):
        own = keys[i] >> bits
        if own != row:
            found += 1
            row = own
            touched[found, TABLE], touched[found, ROW], touched[found, FIRST] = k, lowest + row, i
        touched[found, LAST] = i
    return found + 1 - start


def arrange(handle, sorts, streams):
    """Count the touched rows, moved together, and write the boundaries of as many ranges of them as there are bins.

    Returns ``-1 - k`` where an index of table ``k`` is out of range. Serial, after `merge`, or with it if ``sorts``.
    """
    r = row_tables_at(handle)
    count = 0
    for k in range(r.tables.shape[0]):
        if sorts:
            _merge_one(r, k)
        table = scalars_at(RowTable, r.tables, k, 0)
        if table.touched < 0:
            return -1 - k
        if count != table.start:
            for i in range(table.touched):
                r.touched[count + i] = r.touched[table.start + i]
        count += table.touched
    _share(r, count, r.bins.size - 1, streams)
    return count


@callee
def _share(r, count, threads, streams):
    """Split so many touched rows into ranges of nearly equal work.

    A row weighs as much as it has values, and ``streams`` more for what a step reads and writes of the parameter.
    """
    weight = 0.0
    for k in range(r.tables.shape[0]):
        table = scalars_at(RowTable, r.tables, k, 0)
        weight += (table.own + streams * table.touched) * table.width
    done, cut = 0.0, 0
    for u in range(count):
        while done * threads >= weight * cut:
            r.bins[cut] = u
            cut += 1
        places = r.touched[u, LAST] + 1 - r.touched[u, FIRST]
        done += (places + streams) * r.tables[r.touched[u, TABLE], WIDTH]
    r.bins[cut:] = count


# -- gradients ---------------------------------------------------------------------------------------------------------


@inlined_callee
def gradient_of_row(table, touched, u, column, length, scratch, dtype):
    """Elements of the gradient of touched row ``u``: where they lie if that is possible, else added up in scratch."""
    first, last = touched[u, FIRST], touched[u, LAST]
    keys = array_at(table.keys, 0, table.own, np.int64)
    mask, values = (1 << table.bits) - 1, table.values + column * scratch.itemsize
    one = array_at(values + (keys[first] & mask) * table.stride, 0, length, dtype)
    _ask_for_values(table, keys, first + AHEAD, column, length, scratch.itemsize)
    if first == last:
        return one
    other = array_at(values + (keys[first + 1] & mask) * table.stride, 0, length, dtype)
    _ask_for_values(table, keys, first + 1 + AHEAD, column, length, scratch.itemsize)
    merged = scratch[:length]
    _add_up(merged, one, other)
    for i in range(first + 2, last + 1):
        _ask_for_values(table, keys, i + AHEAD, column, length, scratch.itemsize)
        _add(merged, array_at(values + (keys[i] & mask) * table.stride, 0, length, dtype))
    return merged


@callee
def _add_up(result, one, other):
    for i in range(result.size):
        result[i] = one[i] + other[i]


@callee
def _add(result, values):
    for i in range(result.size):
        result[i] += values[i]


@inlined_callee
def _ask_for_values(table, keys, i, column, length, itemsize):
    """Prefetch the values of place ``i`` of the sorted list."""
    if i < keys.size:
        place = keys[i] & ((1 << table.bits) - 1)
        _ask_for(table.values + place * table.stride + column * itemsize, length * itemsize)


@inlined_callee
def _ask_for(address, nbytes):
    for line in range(0, min(nbytes, MOST_BYTES), LINE):
        prefetch(address + line)


@inlined_callee
def ask_for_row(t, r, u, last, itemsize):
    """Prefetch, some rows before its turn, a touched row of the parameter and of all that a step changes with it."""
    if u + AHEAD < last:
        k, row = r.touched[u + AHEAD, TABLE], r.touched[u + AHEAD, ROW]
        segment, width = r.tables[k, SEGMENT], r.tables[k, WIDTH]
        for stream in range(t.addresses.shape[0]):
            address = t.addresses[stream, segment]
            if address != 0:
                _ask_for(address + row * width * itemsize, width * itemsize)


# -- norms -------------------------------------------------------------------------------------------------------------


def norms_of_rows(first, last, handle, options):
    """Squares and finiteness of the gradients of the touched rows ``first`` to ``last``, as of `loops.norms`."""
    r = row_tables_at(handle)
    t = tables_at(r.plan, DTYPE)
    scratch = np.empty(CHUNK, DTYPE)
    for u in range(first, last):
        table = scalars_at(RowTable, r.tables, r.touched[u, TABLE], 0)
        c = scalars_at(Control, t.table, table.group, 0)
        squares, bad = 0.0, 0.0
        for column in range(0, table.width, CHUNK):
            length = min(CHUNK, table.width - column)
            grad = gradient_of_row(table, r.touched, u, column, length, scratch, DTYPE)
            own = sum_of_squares(grad, c.unscale)
            squares += own
            if not math.isfinite(own):
                bad += nonfinite(grad, c.unscale)
        r.sums[0, u] = squares
        r.sums[1, u] = bad


def total_of_rows(handle, count):
    """Sum of squares over so many touched rows, and whether every element was finite; after `norms_of_rows`, serial."""
    r = row_tables_at(handle)
    return row_sum(r.sums[0, : int(count)]), row_sum(r.sums[1, : int(count)]) == 0.0


def clip_each_by_rows(handle, count, limit):
    """Clipping factor of each table by the norm of its own gradient; after `norms_of_rows`, serial."""
    r = row_tables_at(handle)
    t = tables_at(r.plan, DTYPE)
    first = 0
    for u in range(int(count)):
        segment = r.tables[r.touched[u, TABLE], SEGMENT]
        if u + 1 == int(count) or r.tables[r.touched[u + 1, TABLE], SEGMENT] != segment:
            t.factors[CLIP, segment] = own_factor(limit, row_sum(r.sums[0, first : u + 1]))
            first = u + 1


def nonfinite_segment(handle, count):
    """Return the first segment whose gradient is not finite, -1 if there is none; after `norms_of_rows`, serial."""
    r = row_tables_at(handle)
    for u in range(int(count)):
        if r.sums[1, u] != 0.0:
            return r.tables[r.touched[u, TABLE], SEGMENT]
    return -1


# -- steps -------------------------------------------------------------------------------------------------------------


def step_rows(first, last, handle, options):
    """One step of an elementwise rule, of the touched rows ``first`` to ``last``; options as of `loops.step`."""
    r = row_tables_at(handle)
    t = tables_at(r.plan, DTYPE)
    scratch = np.empty(CHUNK, DTYPE)
    for u in range(first, last):
        ask_for_row(t, r, u, last, scratch.itemsize)
        table, row = scalars_at(RowTable, r.tables, r.touched[u, TABLE], 0), r.touched[u, ROW]
        c = scalars_at(Control, t.table, table.group, 0)
        s = scalars_at(SCALARS, t.table, table.group, CONTROLS)
        follow_touched(t, table, row, options, DTYPE)
        for column in range(0, table.width, CHUNK):
            offset, length = row * table.width + column, min(CHUNK, table.width - column)
            grad = gradient_of_row(table, r.touched, u, column, length, scratch, DTYPE)
            param = array_at(t.addresses[PARAM, table.segment], offset, length, DTYPE)
            slots = arrays_at(SLOT_ROWS, t.addresses, table.segment, offset, length, DTYPE)
            update_chunk(param, grad, slots, s, c.unscale, t.factors[CLIP, table.segment], c.limit, c.decay)
            finish_chunk(t, table.segment, offset, param, c, options & (AVERAGED | OVERWRITE), DTYPE)


@inlined_callee
def follow_touched(t, table, row, options, dtype):
    """Have a row's average follow the steps that left the row alone; the present one comes after the row's step."""
    if options & AVERAGED:
        share = share_at(table.averaging, row)
        if share != 1.0:
            param = array_at(t.addresses[PARAM, table.segment], row * table.width, table.width, dtype)
            average = array_at(t.addresses[AVERAGE, table.segment], row * table.width, table.width, dtype)
            follow_row(average, param, dtype(share))
        note_followed(table.averaging, row, NOW)
