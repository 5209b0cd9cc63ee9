"""What the plans of one optimizer have in common on a GPU: the state, the ring of programs, where gradients lie.

Nothing here waits for the GPU but what reads it.
"""

from typing import NamedTuple

import numpy as np

from . import tables
from .outbox import Outbox
from .tables import HEADER, PLANS, PROGRESS, SCALE, STAMP, STATE


class Memory:
    """An array on the GPU, of the shape and dtype that it was made with."""

    def __init__(self, device, array):
        self._device = device
        self._memory = device.allocate(array.nbytes)
        self.shape = array.shape if array.ndim == 2 else (1, array.size)
        self.write(array)

    @property
    def address(self):
        """Return where it starts."""
        return self._memory.address

    def write(self, array):
        """Replace the content at once; nothing that is still to run may need the old one."""
        self._device.write(self.address, array)

    def entry(self):
        """Its row in a handle."""
        return self.address, *self.shape


class State(NamedTuple):
    """What the GPU tells of its steps."""

    calls: int
    stopped: bool
    skipped: bool
    starved: bool
    norm: float | None
    scale: float
    growth: int


class Shared:
    """State and programs of all plans of an optimizer.

    Parameters
    ----------
    device : Device
    formats : list of (rows, columns, dtype)
        Of each plan's table of scalars.
    places : int
        Least length of the ring.
    """

    def __init__(self, device, formats, places):
        self.device = device
        self.progress = device.word()
        self.starts = np.zeros(1, np.int64)  # how often counting was begun anew
        state = np.zeros(STATE, np.int64)
        state[PROGRESS] = self.progress.ctypes.data
        measures = np.zeros(PLANS + 2 * len(formats))
        measures[SCALE] = 1.0
        self.state, self.measures = Memory(device, state), Memory(device, measures)
        self.offsets, numbers = [], HEADER
        for rows, columns, dtype in formats:
            self.offsets.append(8 * numbers)
            numbers += -(-rows * columns * dtype.itemsize // 8)
        self.row = np.zeros(numbers, np.int64)
        self.views = [
            self.row.view(np.uint8)[start : start + rows * columns * dtype.itemsize].view(dtype).reshape(rows, columns)
            for start, (rows, columns, dtype) in zip(self.offsets, formats, strict=True)
        ]
        self.limit = self.row[:HEADER].view(np.float64)
        self.resize(places)

    def resize(self, places):
        """Make a new, empty ring of at least so many places. Each work's handle must then be written anew."""
        self.rows = np.zeros((1 << (places - 1).bit_length(), self.row.size), np.int64)  # see `program_of`
        self.rows[:, STAMP] = -1
        self.ring = Memory(self.device, self.rows)
        # With a row for each place of the ring: a program that is written anew goes where it was, and comes after it.
        self._outbox = Outbox(self.device, len(self.rows), self.row.nbytes, self.progress, self.starts)

    def start(self, calls, skipped, norm):
        """Count calls from here on; tell that of the last step. Requires that no step is under way.

        So do the other methods that write.
        """
        self._set(calls=calls, stopped=0, skipped=int(skipped), starved=0, norm_known=int(norm is not None))
        self.device.write(self.measures.address + 8 * tables.NORM, np.array([norm or 0.0]))
        self.progress[0] = calls
        self.rows[:, STAMP] = -1
        self.ring.write(self.rows)
        self.starts[0] += 1

    def go_on(self):
        """Take back that programs were missing."""
        self._set(starved=0)

    def forget_step(self):
        """Take back that a step was stopped, and what is told of the last one."""
        self._set(stopped=0, skipped=0, norm_known=0)

    def _set(self, **numbers):
        for name, value in numbers.items():
            self.device.write(self.address_of(name), np.array([value], np.int64))

    def address_of(self, name):
        """Return the address of a number in the state, an int64."""
        return self.state.address + 8 * getattr(tables, name.upper())

    def scale(self, scale, growth, growth_steps, least, greatest):
        """Set the loss scale, and how it is to change."""
        self._set(growth=growth, growth_steps=growth_steps)
        self.device.write(self.scale_address, np.array([scale, least, greatest]))

    @property
    def scale_address(self):
        """Return the address of the loss scale, a float64."""
        return self.measures.address + 8 * tables.SCALE

    def read(self):
        """The `State` as it is. Requires that no step is under way."""
        state, measures = np.empty(STATE, np.int64), np.empty(PLANS)
        self.device.read(state, self.state.address)
        self.device.read(measures, self.measures.address)
        return State(
            int(state[tables.CALLS]),
            bool(state[tables.STOPPED]),
            bool(state[tables.SKIPPED]),
            bool(state[tables.STARVED]),
            float(measures[tables.NORM]) if state[tables.NORM_KNOWN] else None,
            float(measures[tables.SCALE]),
            int(state[tables.GROWTH]),
        )

    def put(self, call, stream):
        """Upload ``row``, the program of a call, if it is not there already."""
        place = call % len(self.rows)
        if not np.array_equal(self.rows[place], self.row):
            self._outbox.send(call, self.row, self.ring.address + place * self.row.nbytes, stream)
            self.rows[place] = self.row


class GradientTables:
    """Where a plan's gradients lie: the tables, on the host and on the GPU."""

    AHEAD = 16
    """Steps that the host may be ahead of the GPU before uploads of tables cost more."""

    def __init__(self, shared, table, layouts):
        self._shared = shared
        self.table, self.layouts = table, layouts
        self._known = table.copy(), layouts.copy()
        self.memory = Memory(shared.device, table), Memory(shared.device, layouts)
        self._outboxes = [
            Outbox(shared.device, self.AHEAD, array.nbytes, shared.progress, shared.starts)
            for array in (table, layouts)
        ]

    def put(self, call, stream):
        """Upload what has changed, for a call."""
        hosts = self.table, self.layouts
        for host, known, memory, outbox in zip(hosts, self._known, self.memory, self._outboxes, strict=True):
            if not np.array_equal(host, known):
                outbox.send(call, host, memory.address, stream)
                known[:] = host

    def fixed(self):
        """A copy on the GPU that later steps leave alone: for a graph."""
        return GradientTables(self._shared, self.table.copy(), self.layouts.copy())
