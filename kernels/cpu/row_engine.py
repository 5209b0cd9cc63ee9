"""How steps of touched rows are made up: which kernels run, in which order."""

import itertools

import numpy as np

from ..layout import AVERAGE, AVERAGED, OVERWRITE, Control
from . import launch, row_gradients
from .row_averages import RowAverage
from .row_tables import Memory, RowTable, RowWork, Sorting, address_of

KEEP = Control._fields.index("keep")

PARTED_FROM = 32_768
"""Places from which the rows of one parameter are sorted in parts, a thread each."""

SAMPLE = 256
"""Places that tell where parts of about as many places end."""

SORTING = 16
"""Elements whose update takes about as long as the sorting of one place."""


class RowEngine:
    """Steps those parameters of a plan that have a gradient for some rows.

    Parameters
    ----------
    work : launch.Work
        The plan's.
    groups : list of int
        The row in the scalars table of each parameter.
    step : function
        The kernel that does a step, such as `row_gradients.step_rows`.
    scalars : NamedTuple class
        Selects the rule.
    slots : int
        Number of slots of the rule.

    Attributes
    ----------
    segments : tuple of int
        The parameters that have such a gradient at this step.
    work : RowWork
        Their touched rows.
    """

    def __init__(self, work, groups, step, scalars, slots):
        self._plan, self._groups, self._dtype = work, groups, work.table.dtype
        self._step = self._kernel(step, scalars, slots)
        self._streams = 2.0 * (1 + slots)
        self._merge, self._arrange = self._kernel(row_gradients.merge), self._serial(row_gradients.arrange, 2)
        self._averages, self._keeps_averages = {}, bool(np.any(work.addresses[AVERAGE]))
        self._memory = Memory(0)
        self.segments = ()

    def _kernel(self, function, scalars=None, slots=0):
        return launch.kernel(function, scalars, slots, self._dtype)

    def _serial(self, function, numbers=0):
        return launch.serial_function(function, numbers, None, 0, self._dtype)

    def take(self, gradients):
        """Sort the gradients of a step: `Rows` by segment. Writes nothing but tables of its own.

        Raises what `Rows.refuse` does if an index is out of range.
        """
        self.segments = ()
        if not gradients:
            return
        threads = launch.get_num_threads()
        if threads > 1:
            gradients = {segment: _owned(rows) for segment, rows in gradients.items()}
        places = sum(rows.places for rows in gradients.values())
        if places > self._memory.places:
            self._memory = Memory(2 * places)
        tables, start, elements = [], 0, 0
        for segment, rows in gradients.items():
            tables += parts_of(self._table_of(segment, rows, start), rows, threads)
            start += rows.places
            elements += rows.places * rows.width
        self.work = work = RowWork(self._plan.handle, tables, self._memory, elements, threads)
        is_one = len(tables) == 1
        if not is_one:
            launch.launch(self._merge, Sorting(work, len(tables), SORTING * places), 0)
        work.count = self._arrange(work.handle, is_one, self._streams)
        if work.count < 0:
            refused = gradients[tables[-1 - work.count].segment]
            refused.refuse(refused.indices)
            raise ValueError("the indices of a gradient for rows have been changed during the step: pass a copy")
        self.segments = tuple(gradients)

    def _table_of(self, segment, rows, start):
        average = self._average_of(segment, rows)
        return RowTable(
            segment, self._groups[segment], rows.width, rows.places, address_of(rows.indices), rows.values, rows.stride,
            self._memory.keys + 8 * start, self._memory.spare + 8 * start,
            max(rows.places - 1, 0).bit_length(), start, average.handle if average else 0, rows.height,
        )  # fmt: skip

    def _average_of(self, segment, rows):
        if self._keeps_averages and segment not in self._averages:
            addresses = self._plan.addresses[:, segment]
            self._averages[segment] = RowAverage(addresses, rows.height, rows.width, self._dtype)
        return self._averages.get(segment)

    def calls(self, options):
        """Return what steps the touched rows, as of `engines.Elementwise.calls`; after the scalars are written."""
        if not self.segments:
            return []
        calls = [launch.call(self._step, self.work, options)]
        if options & AVERAGED:
            averages = [(self._averages[k], self._plan.table[self._groups[k], KEEP]) for k in self.segments]
            calls += [call for average, keep in averages for call in average.stepping(float(keep))]
            if options & OVERWRITE:
                calls += [call for average, _ in averages for call in average.following(OVERWRITE)]
        return calls

    def following(self, segments=None):
        """Return what has averages of some parameters, or of all, follow the steps that left rows alone."""
        chosen = self._averages if segments is None else self._averages.keys() & segments
        return [call for segment in chosen for call in self._averages[segment].following()]

    def norms(self):
        """Sum of the squares of the touched rows' gradients, and whether they are finite."""
        launch.launch(self._kernel(row_gradients.norms_of_rows), self.work, 0)
        return self._serial(row_gradients.total_of_rows, 1)(self.work.handle, self.work.count)

    def clip_each(self, limit):
        """Limit each parameter's gradient to a norm, in the next step; after `norms`."""
        self._serial(row_gradients.clip_each_by_rows, 2)(self.work.handle, self.work.count, limit)

    def nonfinite(self):
        """Return a segment whose gradient is not finite, by what `norms` found; None if there is none."""
        segment = self._serial(row_gradients.nonfinite_segment, 1)(self.work.handle, self.work.count)
        return None if segment < 0 else segment


def _owned(rows):
    """The rows with indices that nobody else writes to, if they are to be sorted in parts."""
    if rows.places < PARTED_FROM:
        return rows
    rows = rows._replace(indices=rows.indices.copy())
    rows.refuse(rows.indices)
    return rows


def parts_of(table, rows, threads):
    """The table of a parameter, or one for each of several parts of its rows, in order."""
    if rows.places < PARTED_FROM or threads == 1:
        return [table]
    sample = np.sort(rows.indices[:: rows.places // SAMPLE])
    ends = np.unique(sample[np.arange(1, threads) * len(sample) // threads]).tolist()
    bounds = [0, *ends, table.end]
    return [table._replace(lowest=low, end=end, is_part=1) for low, end in itertools.pairwise(bounds) if low < end]
