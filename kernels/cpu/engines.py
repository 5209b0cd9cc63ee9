"""How a rule's kernels make up one step: which run, in which order.

An engine is made for one plan: an object with ``work`` (`launch.Work`), ``scalars`` (the class that selects the rule),
``rule_slots`` (names), ``slots`` (name → array per parameter) and ``parameters``. It says what a step calls; its user
calls that, with what else belongs to the step, as one (`launch.one_call`).
"""

from functools import partial
from typing import Any

import numpy as np

from ..layout import ADDRESS, CLIP, SEGMENT
from ..registry import RULES
from . import launch, loops, row_gradients, threads
from .row_engine import RowEngine


class Elementwise:
    """A rule that needs nothing but the element: one launch.

    Attributes
    ----------
    alone : launch.Kernel or None
        What does the whole step, if that is one kernel, and not on threads.
    on_threads : bool
        Whether the work is large enough for threads.
    uses_numpy : bool
        Whether NumPy's functions are among the calls, so that they may warn.
    reads_tables : bool
        Whether `calls` reads gradients and scalars, so that the tables must be filled before.
    row_step : function or None
        The kernel for rows of a parameter; None: the rule needs whole gradients.
    rows : RowEngine or None
        What steps parameters with gradients for some rows, once there has been one.
    """

    alone = None
    uses_numpy = False
    reads_tables = False
    row_step: Any = staticmethod(row_gradients.step_rows)
    rows: Any = None

    def __init__(self, plan):
        self.work = self._whole = plan.work
        self._left_out = ()
        self._groups = plan.rows
        self.dtype = plan.work.table.dtype
        self.on_threads = not launch.is_serial(plan.work)
        self._rule = plan.scalars, len(plan.rule_slots)
        self._compile(*self._rule)

    def _compile(self, scalars, slots):
        self._step = launch.kernel(loops.step, scalars, slots, self.dtype)
        self.alone = None if self.on_threads else self._step

    def take_rows(self, gradients):
        """Take the gradients of a step that are there for some rows only: `row_tables.Rows` by segment.

        The others are in the work's tables, where these have no address.
        """
        if self.rows is None:
            if not gradients:
                return
            self.rows = RowEngine(self.work, self._groups, self.row_step, *self._rule)
        self.rows.take(gradients)
        if self.rows.segments != self._left_out:
            self._leave_out(self.rows.segments)

    @property
    def has_rows(self):
        """Whether there are gradients for some rows at this step."""
        return self.rows is not None and bool(self.rows.segments)

    @property
    def uses_threads(self):
        """Whether one of `calls` may use several threads at this step."""
        return self.on_threads or (self.has_rows and not launch.is_serial(self.rows.work))

    def _leave_out(self, segments):
        """Have whole gradients be those of all other segments."""
        self._left_out = segments
        self._whole = self.work.without(segments) if segments else self.work

    def calls(self, options):
        """Return what does the step that the tables describe: C functions without arguments, to be called in order."""
        if self.rows is None:
            return self._calls_for_whole(options)
        whole = np.flatnonzero(self.work.gradients[ADDRESS]).tolist()
        return [*self.rows.following(whole), *self._calls_for_whole(options), *self.rows.calls(options)]

    def _calls_for_whole(self, options):
        return [launch.call(self._step, self._whole, options)]

    def accumulating(self, options):
        """Return what adds the gradients to the accumulators, as of `calls`."""
        return [launch.call(launch.kernel(loops.accumulate, None, 0, self.dtype), self.work, options)]

    def measuring(self, options):
        """Return what measures the gradients, as of `calls`; it returns nothing that is true."""
        return [launch.one_call([launch.call(launch.kernel(loops.norms, None, 0, self.dtype), self.work, options)])]

    def norms(self, options):
        """Sum of the squares of all gradients, and whether they are finite: one launch that reads the gradients."""
        launch.launch(launch.kernel(loops.norms, None, 0, self.dtype), self._whole, options)
        squares, finite = launch.serial_function(loops.total, 0, None, 0, self.dtype)(self._whole.handle)
        if not self.has_rows:
            return squares, finite
        of_rows, all_finite = self.rows.norms()
        return squares + of_rows, finite and all_finite

    def nonfinite(self):
        """Return a segment whose gradient is not finite, by what `norms` found; None if there is none."""
        found = first_nonfinite(self._whole.chunks, self._whole.sums)
        return self.rows.nonfinite() if found is None and self.has_rows else found

    def clip_all(self, factor):
        """Have the next step multiply every gradient by ``factor``."""
        self.work.factors[CLIP] = factor

    def clip_each(self, clipnorm):
        """Have the next step limit each parameter's gradient to the norm ``clipnorm``; after `norms`."""
        clip_each = launch.serial_function(loops.clip_each, 1, None, 0, self.dtype)
        clip_each(self._whole.handle, clipnorm)
        if self.has_rows:
            self.rows.clip_each(clipnorm)

    def prepare(self, *, norms=True, clip_each=True, accumulate=True):
        """Compile, or load, what steps will need on top of the rule itself."""
        if self.on_threads and launch.get_num_threads() > 1:
            threads.prepare()
        if norms or clip_each:
            launch.kernel(loops.norms, None, 0, self.dtype)
            launch.serial_function(loops.total, 0, None, 0, self.dtype)
        if clip_each:
            launch.serial_function(loops.clip_each, 1, None, 0, self.dtype)
        if accumulate:
            launch.kernel(loops.accumulate, None, 0, self.dtype)


class TwoPhase(Elementwise):
    """A rule with sums over each parameter between two elementwise phases: two launches."""

    row_step = None

    def _compile(self, scalars, slots):
        self._first = launch.kernel(loops.phase_one, scalars, slots, self.dtype)
        self._between = launch.serial_function(loops.between, 0, scalars, slots, self.dtype)
        self._second = launch.kernel(loops.phase_two, scalars, slots, self.dtype)

    def calls(self, options):
        """See `Elementwise.calls`."""
        return [
            launch.call(self._first, self.work, options),
            partial(self._between, self.work.handle),
            launch.call(self._second, self.work, options),
        ]


def first_nonfinite(chunks, sums):
    """Return the segment of the first chunk that is not finite, by what the norms wrote; None if all are."""
    bad = chunks[np.isnan(sums[1]), SEGMENT]
    return int(bad[0]) if len(bad) else None


def engine_for(scalars):
    """The engine class for the rule of a scalars class."""
    rule = RULES[scalars]
    return rule.engine or (TwoPhase if rule.first else Elementwise)


def takes_formats(scalars):
    """Whether what a rule steps may be kept in a storage format."""
    rule = RULES[scalars]
    own = rule.update is not None and rule.engine is None
    return own and not any(slot.copies_parameter for slot in rule.slots.values())


def contiguous_chunks(sizes, groups, longest):
    """The chunk table for segments of the given sizes, each in chunks of at most ``longest`` elements.

    Parameters
    ----------
    sizes, groups : int64 array [segments]
        Elements of each segment, and its row in the scalars table.
    longest : int
        Elements of the longest chunk.

    Returns
    -------
    int64 array [chunks, 4]
    """
    sizes = np.asarray(sizes, np.int64)
    counts = -(-sizes // longest)
    segment = np.repeat(np.arange(len(sizes)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    offset = (np.arange(len(segment)) - first) * longest
    length = np.minimum(sizes[segment] - offset, longest)
    return np.ascontiguousarray(np.stack([segment, offset, length, np.asarray(groups)[segment]], axis=1), np.int64)
