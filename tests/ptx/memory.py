"""What kernels may touch, and what of it was written."""

import bisect
import ctypes
import itertools

import numpy as np

LOW, HIGH, WRITTEN, FIRST_CELL = range(4)
"""Columns of the table of ranges: first address, the one after the last; address of the flags, one for each four bytes,
that say whether somebody wrote it, or 0 if everything was; number of the first four bytes among those of all ranges."""

CELL = 4
"""Bytes that have one flag."""


class Memory:
    """Ranges of the host's memory."""

    def __init__(self):
        self._known = {}  # number of an `add` → first address, bytes, flags
        self._added = itertools.count()
        self._table = None

    def add(self, address, nbytes, written=True):
        """Let kernels touch so many bytes; unless they are ``written`` it is noted which are. A number for `remove`."""
        number = next(self._added)
        if nbytes:
            flags = None if written else np.zeros(-(-nbytes // CELL), np.uint8)
            self._known[number] = address, nbytes, flags
            self._table = None
        return number

    def remove(self, number):
        """Take back an `add`."""
        if self._known.pop(number, None):
            self._table = None

    def require_written(self, address, nbytes):
        """Raise unless so many bytes may be read."""
        self.require(address, nbytes)
        flags = self.flags(address, nbytes)
        if flags is not None and not flags.all():
            raise ValueError(f"nobody wrote all of the {nbytes} bytes at {address:#x}")

    def copy(self, target, source, nbytes):
        """Note that memory was copied: what nobody wrote is still that."""
        known, copied = self.flags(source, nbytes), self.flags(target, nbytes)
        if copied is not None:
            copied[:] = 1 if known is None else known

    def holds(self, address, nbytes=1):
        """Whether so many bytes may be touched."""
        return self._row(address, nbytes) is not None

    def require(self, address, nbytes):
        """Raise unless so many bytes may be touched."""
        if not self.holds(address, nbytes):
            raise ValueError(f"{nbytes} bytes at {address:#x} are out of bounds")

    def _row(self, address, nbytes):
        table = self.table()
        row = bisect.bisect_right(table[:, LOW], address) - 1
        return table[row] if row >= 0 and address + nbytes <= table[row, HIGH] else None

    def flags(self, address, nbytes):
        """The flags of some memory; None if there are none."""
        row = self._row(address, nbytes)
        if row is None or not row[WRITTEN]:
            return None
        first = (address - row[LOW]) // CELL
        count = -(-(address + nbytes - row[LOW]) // CELL) - first
        memory = (ctypes.c_uint8 * int(count)).from_address(int(row[WRITTEN] + first))
        return np.frombuffer(memory, np.uint8)

    def write(self, address, nbytes, undone=False):
        """Note that somebody wrote it; or that what was written is not to be read any more."""
        flags = self.flags(address, nbytes)
        if flags is not None:
            flags[:] = not undone

    def table(self):
        """The ranges, sorted. Those that overlap are one; what is within another is known as that is."""
        if self._table is None:
            rows, cells = [], 0
            for address, nbytes, flags in sorted(self._known.values(), key=lambda known: (known[0], -known[1])):
                end, written = address + nbytes, 0 if flags is None else flags.ctypes.data
                if not rows or address >= rows[-1][HIGH]:
                    rows.append([address, end, written, 0])
                elif end > rows[-1][HIGH]:
                    assert not written and not rows[-1][WRITTEN], "memory that overlaps what was allocated"
                    rows[-1][HIGH] = end
            for row in rows:
                row[FIRST_CELL] = cells
                cells += -(-(row[HIGH] - row[LOW]) // CELL) + 1
            self._table = np.array(rows, np.int64).reshape(-1, 4)
        return self._table

    def cells(self):
        """How many cells all ranges have."""
        table = self.table()
        return int(table[-1, FIRST_CELL] + (table[-1, HIGH] - table[-1, LOW]) // CELL + 2) if len(table) else 0
