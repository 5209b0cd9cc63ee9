"""How steps of touched rows are made up on a GPU: which kernels run, in which order, and on what memory."""

import numpy as np

from .row_gradients import merge_rows, norms_of_rows
from .row_sort import THREADS as SORTING
from .row_sort import fill_keys, find_firsts, program, sort
from .row_tables import MERGED, TOUCHED, Header, RowTable
from .tables import LAST
from .threads import TEAM, THREADS

TOGETHER = 4
"""Elements of a row for each thread, as far as there are threads."""


class _Room:
    """Memory of a GPU that becomes larger when more is wanted."""

    def __init__(self, device):
        self._device, self._memory = device, None

    def of(self, nbytes):
        """The address of so many bytes, which hold anything."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self._memory = self._device.allocate(2 * nbytes)
        return self._memory.address


class RowEngine:
    """Steps those parameters of a plan that have a gradient for some rows.

    Parameters
    ----------
    work : engine.Work
        The plan's.
    compiled : function
        ``(function, scalars, slots)`` gives a kernel; of the function alone one that knows no rule.
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
    touched : int
        Their touched rows.
    """

    def __init__(self, work, compiled, step, scalars, slots):
        self._plan, self._device, self._compiled = work, work.device, compiled
        self._itemsize = work.table.itemsize
        self._step = compiled(step, scalars, slots)
        names = "handle", "keys", "firsts", "found", "sums", "merged"
        self._rooms = {name: _Room(self._device) for name in names}
        self.segments, self.touched = (), 0

    def take(self, gradients, stream):
        """Sort the gradients of a step, `row_tables.Rows` by segment; waits for the GPU.

        Writes nothing but tables of its own. Raises what `Rows.refuse` does if an index is out of range.
        """
        self.segments, self.touched = tuple(gradients), 0
        places = sum(rows.places for rows in gradients.values())
        if not places:
            return
        self._tables = np.array(list(_tables_of(gradients)), np.int64)
        self._header = self._header_for(places)
        self._upload(stream)
        self._sort(stream)
        found = np.empty(1 + len(self._tables), np.int64)
        self._device.download(found, self._header.found, stream)
        if found[0]:
            for rows in gradients.values():
                rows.refuse(rows.held.copy_to_host())
            raise ValueError("the indices of a RowGradient have changed while they were being read")
        self._make_room([rows.width for rows in gradients.values()], found[1:])

    def _header_for(self, places):
        size = 1 << (places - 1).bit_length()
        nbytes = {"keys": 8 * size, "firsts": 8 * size, "found": 8 * (1 + len(self._tables))}
        where = {name: self._rooms[name].of(number) for name, number in nbytes.items()}
        return Header(self._plan.handle_address, len(self._tables), places, size, (places - 1).bit_length(), **where)

    def _upload(self, stream):
        content = np.concatenate([np.array(self._header, np.int64), self._tables.reshape(-1)])
        self._handle = self._rooms["handle"].of(content.nbytes)
        self._device.upload(self._handle, content, stream)

    def _sort(self, stream):
        device, header = self._device, self._header
        device.clear(header.found, 8 * (1 + header.tables), stream)
        with device.current():
            for function, numbers in ((fill_keys, header.keys), (find_firsts, header.firsts)):
                kernel = program(device, function, 1)
                kernel.launch(kernel.blocks(-(-header.size // SORTING), SORTING), SORTING, stream, self._handle)
                sort(device, numbers, header.size, stream)

    def _make_room(self, widths, counts):
        """Work out where the gradients of so many touched rows of each table go."""
        self.touched = int(counts.sum())
        ends = np.cumsum(counts * widths)
        merged = self._rooms["merged"].of(int(ends[-1]) * self._itemsize)
        self._tables[:, TOUCHED] = np.cumsum(counts) - counts
        self._tables[:, MERGED] = merged + (ends - counts * widths) * self._itemsize
        needed = -(-max(widths) // TOGETHER)
        team = min(THREADS, 1 << (needed - 1).bit_length())
        sums = self._rooms["sums"].of(16 * self.touched)
        self._header = self._header._replace(touched=self.touched, team=team, sums=sums)

    def merge(self, stream):
        """Launch what adds up the touched rows' values, if there are any; after `take`, before all else."""
        if self.touched:
            self._upload(stream)
            self._launch(self._compiled(merge_rows), stream, 0, self._header.team)

    def norms(self, stream, options):
        """Launch what measures them; after what measures the other gradients of the plan."""
        self._launch(self._compiled(norms_of_rows), stream, options & ~LAST, TEAM)

    def step(self, stream, options):
        """Launch their step. With `LAST` among the options it ends the optimizer's step."""
        self._launch(self._step, stream, options, self._header.team)

    def _launch(self, kernel, stream, options, team):
        blocks = kernel.blocks(-(-self.touched * team // THREADS), THREADS)
        kernel.launch(blocks, THREADS, stream, self._handle, options)

    def nonfinite(self):
        """Return a segment whose gradient is not finite, by what `norms` found; None if there is none.

        Requires that no step is under way.
        """
        sums = np.empty((2, self.touched))
        self._device.read(sums, self._header.sums)
        bad = np.flatnonzero(np.isnan(sums[1]))
        return self.segments[np.searchsorted(self._tables[:, TOUCHED], bad[0], side="right") - 1] if len(bad) else None


def _tables_of(gradients):
    """A table for each of the `Rows` by segment, less what is known when they are sorted."""
    place = row = 0
    for segment, rows in gradients.items():
        where = rows.indices, rows.index_stride, rows.index_size, rows.values, rows.record
        yield RowTable(segment, rows.width, rows.height, *where, place, row)
        place, row = place + rows.places, row + rows.height
