"""How a rule's kernels make up one step on a GPU: a `Work` is one plan's tables, an engine launches its kernels.

Nothing here waits for the GPU but `Elementwise.take_rows`.
"""

import functools
import importlib
import weakref
from typing import Any

import numpy as np

from ..cpu.engines import first_nonfinite
from ..cpu.launch import specialisation
from ..cpu.reduction import LANES
from ..layout import SEGMENT
from ..registry import RULES
from ..tables import Tables
from . import norms, row_gradients, step, two_phase
from ._cuda_jit import cuda_program
from .row_engine import RowEngine
from .shared import GradientTables, Memory, Shared
from .tables import HANDLE, LAST
from .threads import TEAM, THREADS

WARPS = THREADS // TEAM
SHARED_MEMORY = 48 * 1024
"""Bytes that any GPU gives a block."""


class _Fixed:
    """Tables of gradients, and a handle that names them."""

    def __init__(self, tables, handle):
        self.tables, self.handle = tables, handle


class Work:
    """The tables of one plan.

    Parameters
    ----------
    shared : Shared
    plan : (int, int)
        Which plan this is, of how many.
    chunks, addresses, gradients, layouts : int64 arrays
        As of `launch.Work`; the addresses are the GPU's.
    terms : int
        Sums per chunk that the rule needs; norms need two.
    counters : int
        How many counters the kernels use; there is one for each segment at least.
    origin : Work, optional
        The work that this one is derived from: see `derived`.
    """

    def __init__(self, shared, plan, chunks, addresses, gradients, layouts, terms=0, counters=0, origin=None):
        device = self.device = shared.device
        self.shared, self.plan = shared, plan
        self.gradients, self.layouts = gradients, layouts
        self.table = shared.views[plan[0]]
        self.count = len(chunks)
        self.chunks, self.addresses = chunks, addresses
        segments = addresses.shape[1]
        self._chunks, self._addresses = Memory(device, chunks), Memory(device, addresses)
        self.factors = origin.factors if origin else Memory(device, np.ones((2, segments), self.table.dtype))
        self.sums = Memory(device, np.zeros((max(terms, 2), len(chunks))))
        ends = np.searchsorted(chunks[:, 0], np.arange(segments), side="right")
        self._ends = Memory(device, ends.astype(np.int64))
        self._counters = Memory(device, np.zeros(max(segments, counters), np.int64))
        self._plan = Memory(device, np.array(plan, np.int64))
        self.found = origin.found if origin else GradientTables(shared, gradients, layouts)
        self._derived: weakref.WeakSet[Work] = weakref.WeakSet()
        self._handle = Memory(device, self._entries(self.found))
        self.handle_address = self._handle.address
        self._fixed: weakref.WeakSet[_Fixed] = weakref.WeakSet()

    def derived(self, chunks, addresses, terms=0, counters=0):
        """Make a work over other chunks and addresses, of the same gradients: fixed with this one."""
        work = Work(
            self.shared, self.plan, chunks, addresses, self.gradients, self.layouts, terms, counters, origin=self
        )
        self._derived.add(work)
        return work

    def without(self, segments):
        """The same work less the chunks of some segments."""
        return self.derived(self.chunks[~np.isin(self.chunks[:, SEGMENT], list(segments))], self.addresses)

    def _entries(self, found):
        """Address, rows and columns of each table."""
        shared, (table, layouts) = self.shared, found.memory
        scalars = shared.ring.address + shared.offsets[self.plan[0]], *self.table.shape
        common = Tables(
            self._chunks.entry(), self._addresses.entry(), table.entry(), layouts.entry(), self.factors.entry(),
            scalars, self.sums.entry(),
        )  # fmt: skip
        own = (shared.ring, shared.state, shared.measures, self._ends, self._counters, self._plan)
        handle = np.array([*common, *(memory.entry() for memory in own)], np.int64)
        assert handle.shape == (HANDLE, 3)
        return handle

    def nonfinite(self):
        """Return a segment whose gradient is not finite, by what the norms have found; None if there is none.

        Requires that no step is under way.
        """
        sums = np.empty(self.sums.shape)
        self.device.read(sums, self.sums.address)
        return first_nonfinite(self.chunks, sums)

    def refresh(self):
        """Write the handle anew, after the ring has moved."""
        self._handle.write(self._entries(self.found))
        for fixed in self._fixed:
            fixed.handle.write(self._entries(fixed.tables))
        for work in self._derived:
            work.refresh()

    def fix(self):
        """Let launches use a copy of the gradients' tables that later steps leave alone: for a graph.

        Returns what must live as long as the graph.
        """
        return self._fix(self.found.fixed())

    def _fix(self, tables):
        fixed = _Fixed(tables, Memory(self.device, self._entries(tables)))
        self._fixed.add(fixed)
        self.handle_address = fixed.handle.address
        return [fixed, *(work._fix(tables) for work in self._derived)]

    def unfix(self):
        """Let launches use the tables of the present step again."""
        self.handle_address = self._handle.address
        for work in self._derived:
            work.unfix()

    def run_once(self, scalars, slots, table, gradients, stream):
        """Run the rule of ``scalars`` once, elementwise, with other scalars and gradients, beside all counting."""
        self.device.refuse_capture("work out averages", stream)
        shared = Shared(self.device, [(*table.shape, table.dtype)], 1)
        shared.views[0][:] = table
        shared.ring.write(shared.row)
        work = Work(shared, (0, 1), self.chunks, self.addresses, gradients, self.layouts)
        run = kernel(step.step, scalars, slots, table.dtype, self.device)
        with self.device.current():
            run.launch(run.blocks(work.count, THREADS), THREADS, stream, work.handle_address, LAST)


class Elementwise:
    """A rule that needs nothing but the element: one launch.

    Attributes
    ----------
    row_step : function or None
        The kernel for rows of a parameter; None: the rule needs whole gradients.
    rows : RowEngine or None
        What steps parameters with gradients for some rows, once there has been one.
    """

    row_step: Any = staticmethod(row_gradients.step_rows)
    rows: Any = None

    def __init__(self, plan):
        self.work = self._whole = plan.work
        self.device = self.work.device
        self.dtype = self.work.table.dtype
        self._rule = plan.scalars, len(plan.rule_slots)
        self._compile(*self._rule)

    def _compile(self, scalars, slots):
        self._step = self._compiled(step.step, scalars, slots)

    def _compiled(self, function, scalars=None, slots=0):
        return kernel(function, scalars, slots, self.dtype, self.device)

    def take_rows(self, gradients, stream):
        """Take the gradients of a step that are there for some rows only: `row_tables.Rows` by segment.

        The others are in the work's tables, where these have no address. See `RowEngine.take`.
        """
        if self.rows is None:
            if not gradients:
                return
            self.rows = RowEngine(self.work, self._compiled, self.row_step, *self._rule)
        if tuple(gradients) != self.rows.segments:
            self._leave_out(tuple(gradients))
        self.rows.take(gradients, stream)

    def _leave_out(self, segments):
        """Have whole gradients be those of all other segments."""
        self._whole = self.work.without(segments) if segments else self.work

    @property
    def _touches(self):
        """Whether any row is stepped by itself."""
        return self.rows is not None and self.rows.touched > 0

    def merge(self, stream):
        """Launch what adds up the gradients that `take_rows` has taken, before all else."""
        if self.rows is not None:
            self.rows.merge(stream)

    def __call__(self, stream, options):
        """Launch the step. With `LAST` among the options it ends the optimizer's step."""
        self._step_whole(stream, options & ~LAST if self._touches else options)
        if self._touches:
            self.rows.step(stream, options)

    def _step_whole(self, stream, options):
        self.launch(self._step, stream, options, work=self._whole)

    def norms(self, stream, options):
        """Launch what measures the gradients, and decides whether the step goes on."""
        self.launch_warps(self._measuring(), stream, options & ~LAST, work=self._whole)
        if self._touches:
            self.rows.norms(stream, options)

    def nonfinite(self):
        """Return a segment whose gradient is not finite, by what `norms` found; None if there is none.

        Requires that no step is under way.
        """
        found = self._whole.nonfinite()
        return self.rows.nonfinite() if found is None and self._touches else found

    def _measuring(self):
        return self._compiled(norms.norms)

    def prepare(self, *, norms=True, clip_each=True, accumulate=True):
        """Compile, or load, what steps will need on top of the rule itself."""
        if norms or clip_each:
            self._measuring()

    def launch(self, kernel, stream, options, per_block=1, threads=THREADS, work=None):
        """Launch a kernel over all chunks of the work, or of one derived from it, so many to a block at a time."""
        work = work or self.work
        blocks = kernel.blocks(-(-work.count // per_block), threads)
        kernel.launch(blocks, threads, stream, work.handle_address, options)

    def launch_warps(self, kernel, stream, options, most=WARPS, work=None):
        """The same for a kernel whose warps take a chunk each, so few to a block that all multiprocessors have some."""
        work = work or self.work
        warps = max(1, min(most, work.count // self.device.multiprocessors))
        self.launch(kernel, stream, options, per_block=warps, threads=32 * warps, work=work)


class TwoPhase(Elementwise):
    """A rule with sums over each parameter between two elementwise phases: two launches."""

    row_step = None

    def _compile(self, scalars, slots):
        self._warps = warps_of(scalars)
        self._first = kernel(two_phase.phase_one, scalars, slots, self.dtype, self.device)
        self._second = kernel(two_phase.phase_two, scalars, slots, self.dtype, self.device)

    def __call__(self, stream, options):
        """Launch both phases."""
        self.launch_warps(self._first, stream, options & ~LAST, most=self._warps)
        self.launch(self._second, stream, options)


def engine_for(scalars):
    """The engine class for the rule of a scalars class.

    A rule with kernels of its own, by an engine in a module of `fastopt.kernels`, has them here in a module of the
    same name, by an engine of the same name.
    """
    own = RULES[scalars].engine
    if own is not None:
        module = own.__module__.rpartition(".")[2]
        return getattr(importlib.import_module(f".{module}", __package__), own.__name__)
    return TwoPhase if RULES[scalars].first else Elementwise


@functools.cache
def kernel(function, scalars, slots, dtype, device):
    """The kernel ``function``, compiled for a rule and a dtype, and loaded on a GPU.

    Parameters
    ----------
    function : function
        Takes the address of a handle, and options.
    scalars : NamedTuple class or None
        Selects the rule; None for kernels that use no rule.
    slots : int
        Number of slots of the rule.
    dtype : numpy.dtype
        float32 or float64.
    device : Device
    """
    bindings, name, key = specialisation(scalars, slots, dtype)
    if scalars is not None and RULES[scalars].terms:
        terms, warps = RULES[scalars].terms, warps_of(scalars)
        bindings |= {"WARPS": warps, "SCRATCH": warps * terms * LANES, "TOTALS": warps * terms}
    return device.load(cuda_program(function, name, 2, bindings, device.capability, key))


def warps_of(scalars):
    """Warps of a block in the first phase of a rule: as many as its shared memory holds lanes for."""
    return max(1, min(WARPS, SHARED_MEMORY // (RULES[scalars].terms * LANES * 8) - 1))
