"""Steps of an optimizer whose parameters are on a GPU: nothing waits for it, but for gradients for some rows.

Which steps the GPU leaves out, because a gradient is not finite, is for the GPU alone to know; the host goes on as if
none were. For every call it works out a *program*, options and scalars, from the optimizer's counters as they are
before that call, and uploads it into a ring; the GPU's own count of calls picks the program. Asked for a counter, the
host waits, hears how far the GPU has come, and takes up the counters that belong to that call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..kernels.cuda import tables
from ..kernels.layout import ZERO
from ..plan import ACCUMULATOR_SLOT, AVERAGE_SLOT, Plan
from ..scalars import Scalars, Scaling
from .host import nonfinite_message, take_rows

if TYPE_CHECKING:
    from ..device import CudaArray
    from ..gradients.cuda import CudaGradients
    from ..kernels.cuda.shared import State

DEFAULT = 0
"""The legacy default stream."""

RING = 1024
"""Programs that the GPU holds at least: how far the host may be ahead of it."""

_WHOLE = {AVERAGE_SLOT: "a moving average (use_ema)", ACCUMULATOR_SLOT: "gradient_accumulation_steps"}
"""State that needs whole gradients."""


class Setting(NamedTuple):
    """What a call says beside its gradients."""

    unscale: float
    nonfinite: str  # or "told": left out if `GpuSteps.tell` has the GPU do so, whatever the gradients are
    scaled: bool = False  # whether the loss scale is the GPU's own

    @property
    def checks(self) -> bool:
        """Whether gradients that are not finite stop a step."""
        return self.nonfinite in ("skip", "raise")


class Captured(NamedTuple):
    """A step in a graph of fastopt's own."""

    graph: Any
    streams: list[int]  # in which the gradients that it reads are worked on
    kept: Any  # what else it reads
    measures: bool  # whether it measures norms


class GpuSteps:
    """What `Optimizer` does per step, on a GPU.

    Parameters
    ----------
    plans : list of Plan
    gradients : CudaGradients
    scalars : Scalars
    before : GpuSteps or None
        Whose loss scale goes on.

    Attributes
    ----------
    tell : function or None
        Enqueues what may set `stopped`, after the gradients have been looked at and before anything is changed.
    """

    tell: Callable[[], None] | None = None

    def __init__(self, plans: list[Plan], gradients: CudaGradients, scalars: Scalars, before: GpuSteps | None) -> None:
        from ..kernels.cuda import engine, shared

        self._plans, self._gradients = plans, gradients
        self._scalars, self._counts = scalars, scalars.counts
        self._place = plans[0].place
        self._device = self._place.device
        self._shared = shared.Shared(self._device, [plan.table_format for plan in plans], RING)
        for number, plan in enumerate(plans):
            make = partial(engine.Work, self._shared, (number, len(plans)))
            plan.connect(gradients.table, gradients.layouts, make)
        self._before: dict[int, dict[str, Any]] = {}  # call → counters before it
        self._prepared = 0  # calls below this one have programs, worked out in advance
        self._last = Setting(1.0, "propagate")
        self._graphs: list[Any] = []  # what captures by others need, as long as there may be replays
        self._graphs_measure = True  # whether all of these measure norms
        self._scaling: Scaling | None = None
        self._own_stream: int | None = None  # for capturing
        self._cut_short = False  # whether a step was interrupted: the GPU alone knows whether it has been done
        self._done = self._device.mark()
        self._marked: tuple[int, int] | None = None  # the stream that it was last recorded in, and by which thread
        self.rebase()
        if before is not None:
            self._go_on_from(before)

    def _go_on_from(self, before: GpuSteps) -> None:
        self._graphs += [before] if before._graphs else []
        if before._scaling is not None:
            scale, growth = before.scaling()
            self.set_scaling(before._scaling._replace(scale=scale, growth=growth))

    # -- stepping ---------------------------------------------------------------------------------------------------

    def step(self, unscale: float, nonfinite: str, options: int, scaling: Scaling | None) -> None:
        """One step with the gradients that have been read; ``options`` are those of `CudaGradients.read`."""
        setting = Setting(unscale, nonfinite, scaling is not None)
        stream = self._place.stream()
        if self._gradients.rows:
            self._refuse_rows(stream)
        if self._device.is_capturing(stream):
            return self._capture(setting, options, stream)
        others = self._gradients.streams_to_wait_for
        self._before_step(setting, scaling, stream, others)
        take_rows(self._plans, self._gradients, stream)
        closing = self._tell(setting, stream)
        with self._device.current(), self._counted(closing, stream, others):
            for plan in self._plans:
                plan.work.found.put(self._counts.calls, stream)
                plan.engine.merge(stream)
            if self._measures(setting, closing):
                self._launch_norms(stream)
                if nonfinite == "raise":
                    self._raise_if_stopped(stream)
            if self.tell is not None:
                self.tell()
            self._launch(stream, options)
            self._gradients.lend(stream)

    def _refuse_rows(self, stream: int) -> None:
        """Refuse gradients for some rows where a GPU cannot go by them."""
        if self._device.is_capturing(stream):
            raise RuntimeError("a step with a RowGradient waits for the GPU, so it cannot be captured: call apply")
        for name, what in _WHOLE.items():
            if any(name in plan.slots for plan in self._plans):
                raise ValueError(
                    f"a RowGradient on a GPU cannot be stepped with {what}: pass a whole gradient, or make the "
                    "optimizer without it"
                )

    def _before_step(self, setting: Setting, scaling: Scaling | None, stream: int, others: list[int]) -> None:
        """Have the host's counters, and what it told the GPU before, fit the step that comes."""
        self._follow(stream, others)
        self._adopt(scaling)
        ahead = self._counts.calls - self._seen()
        # A program of old that the GPU comes to late would want norms that a step of now does not measure.
        lost = ahead > 0 and self._last.nonfinite != "propagate" and setting.nonfinite == "propagate"
        if self._graphs or lost or self._cut_short or ahead >= len(self._shared.rows) - 1:
            self.confirm()
        self._last = setting

    @contextmanager
    def _counted(self, closing: bool, stream: int, others: list[int]) -> Iterator[None]:
        """Count the call that is launched inside. If that is interrupted, the GPU is asked what has become of it."""
        self._cut_short = True
        try:
            yield
            self._lead(stream, others)
            self._count(closing)
            self._cut_short = False
        except BaseException:
            self._mark(stream)
            present = self._scalars.counters()
            self._count(closing)
            self._before[self._counts.calls] = self._scalars.counters()
            self._scalars.set_counters(present)
            raise

    def _follow(self, stream: int, others: list[int]) -> None:
        """Let a stream wait for the last step, and for other streams: those of the gradients."""
        # In the default stream all is in order anyway, and it never ends. It may be one for each thread.
        if stream != DEFAULT or self._marked != (DEFAULT, get_ident()):
            self._done.hold(stream)
        for other in others:
            self._device.wait(stream, other)

    def _lead(self, stream: int, others: list[int]) -> None:
        """Let the next step wait for a stream, and others too: there the gradients' memory is written anew."""
        for other in others:
            self._device.wait(other, stream)
        self._mark(stream)

    def _mark(self, stream: int) -> None:
        """Let what comes wait for all that is enqueued on a stream."""
        self._done.record(stream)
        self._marked = stream, get_ident()

    @contextmanager
    def in_order(self, gradients: bool = False) -> Iterator[None]:
        """Have what is enqueued inside come after the last step and before the next, in whatever streams these are.

        The same holds for what their own streams do to ``gradients``.
        """
        stream = self._place.stream()
        if self._device.is_capturing(stream):
            yield
            return
        others = self._gradients.streams_to_wait_for if gradients else []
        self._follow(stream, others)
        try:
            yield
        finally:
            self._lead(stream, others)

    def _adopt(self, scaling: Scaling | None) -> None:
        """Have the GPU adapt the loss scale from now on, or otherwise than before."""
        if scaling is None:
            return
        if self._scaling is None:
            self.set_scaling(scaling)
        elif scaling[2:] != self._scaling[2:]:
            scale, growth = self.scaling()
            self.set_scaling(scaling._replace(scale=scale, growth=growth))

    def _measures(self, setting: Setting, closing: bool) -> bool:
        """Whether norms must be measured, as far as the host can tell."""
        return setting.checks or (closing and self._scalars.clipping()[0] != 0)

    def _launch_norms(self, stream: int) -> None:
        for plan in self._plans:
            plan.engine.norms(stream, 0)

    def _launch(self, stream: int, options: int) -> None:
        for plan in self._plans:
            last = tables.LAST if plan is self._plans[-1] else 0
            plan.engine(stream, options & ZERO | last)

    def _raise_if_stopped(self, stream: int) -> None:
        self._mark(stream)
        if self._read().stopped:
            self._shared.forget_step()
            raise FloatingPointError(nonfinite_message(self._plans, [plan.engine.nonfinite() for plan in self._plans]))

    # -- programs ---------------------------------------------------------------------------------------------------

    def _seen(self) -> int:
        """Calls that the GPU has certainly carried out."""
        return int(self._shared.progress[0])

    def _work_out(self, setting: Setting, ask: bool = True) -> bool:
        """Write the program of the next call into the shared row; whether it moves the parameters.

        Unless it is to ``ask`` them, users' functions are taken to say what they said last.
        """
        scalars, shared = self._scalars, self._shared
        decision = scalars.decide()
        for plan in self._plans:
            plan.take_gradients()
        scalars.write(setting.unscale, decision, ask)
        options = decision.options if decision.closing else tables.MICRO
        options |= tables.CHECKED if setting.nonfinite != "propagate" else 0
        options |= tables.SCALED if setting.scaled else 0
        options |= tables.MEASURED if decision.way or setting.checks else 0
        shared.row[tables.STAMP], shared.row[tables.OPTIONS] = decision.call - 1, options
        shared.row[tables.WAY], shared.row[tables.ROUNDED] = decision.way, scalars.rounded()
        shared.limit[tables.LIMIT] = decision.limit
        return decision.closing

    def _write(self, setting: Setting, stream: int, ask: bool = True) -> bool:
        """Upload the program of the next call; whether it moves the parameters."""
        self._before[self._counts.calls] = self._scalars.counters()
        if len(self._before) > 4 * len(self._shared.rows):
            seen = self._seen()
            self._before = {call: counters for call, counters in self._before.items() if call >= seen}
        closing = self._work_out(setting, ask)
        self._shared.put(self._counts.calls, stream)
        return closing

    def _tell(self, setting: Setting, stream: int) -> bool:
        """Upload the program of the coming call, and those that GPU may come to late; whether it moves the parameters.

        What the GPU comes to late, because it left steps out, is done by what is set now, as on the host.
        """
        closing = self._write(setting, stream)
        if setting.nonfinite == "propagate" or self._renew(setting, stream):
            return closing
        self.confirm()  # counters hang on the setting too: how far the GPU came with the old one must be known
        return self._write(setting, stream, ask=False)

    def _renew(self, setting: Setting, stream: int) -> bool:
        """Work earlier programs out anew if a setting has changed; whether the counters after them are as they were."""
        present = self._counts.calls
        steps = self._scalars.window()
        # A micro-step's program holds next to no settings: look at the last closing one too.
        if not any(self._has_changed(call, setting) for call in {present - 1, present - 1 - present % steps}):
            return True
        calls = [call for call in range(self._seen(), present) if call in self._before]
        return all(self._rewrite(call, setting, stream) for call in calls)

    def _has_changed(self, call: int, setting: Setting) -> bool:
        """Whether the program of a call that the GPU may come to yet would be another one now."""
        if call < self._seen() or call not in self._before:
            return False
        with self._at(call):
            self._work_out(setting, ask=False)
        return not np.array_equal(self._shared.row, self._shared.rows[call % len(self._shared.rows)])

    def _rewrite(self, call: int, setting: Setting, stream: int) -> bool:
        """Upload the program of an earlier call anew; whether the counters after it are as they were."""
        known = self._before.get(call + 1) or self._scalars.counters()
        with self._at(call):
            self._count(self._write(setting, stream, ask=False))
            return self._scalars.counters() == known

    # -- counters ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _at(self, call: int) -> Iterator[None]:
        """Inside, the counters are those before a call."""
        present = self._scalars.counters()
        self._scalars.set_counters(self._before[call])
        try:
            yield
        finally:
            self._scalars.set_counters(present)

    def _count(self, closing: bool) -> None:
        counts = self._counts
        update = counts.updates + closing
        for advance in self._scalars.advancing(update) if closing else ():
            advance()
        counts.counting(update, counts.calls + 1)()

    def rebase(self) -> None:
        """Let the GPU go on from the optimizer's counters and slots, after these were set."""
        self._mark(self._place.stream())
        self._synchronise()
        counts = self._counts
        self._shared.start(counts.calls, counts.skipped, counts.norm)
        self._before.clear()
        self._prepared = 0

    def confirm(self) -> None:
        """Wait for the GPU, and take up the counters that it has come to.

        Raises
        ------
        RuntimeError
            If replays of a graph went on after the programs that were prepared.
        """
        state = self._read()
        self._cut_short = False
        if state.calls != self._counts.calls:
            self._before[self._counts.calls] = self._scalars.counters()
            self._scalars.set_counters(self._before[state.calls])
        self._counts.take_over(state.norm, state.skipped)
        self._before = {call: counters for call, counters in self._before.items() if call >= state.calls}
        if state.starved:
            self._shared.go_on()
            raise RuntimeError(
                f"a captured step was replayed more often than prepared for: call prepare(steps) before "
                f"replays; {state.calls} calls were carried out, later replays did nothing"
            )

    @property
    def stopped(self) -> CudaArray:
        """The number on the GPU that stops the present step, if it is not zero."""
        return self._place.scalar(self._shared.address_of("stopped"), np.int64)

    @property
    def skipped(self) -> CudaArray:
        """The number on the GPU that says whether the last step was left out."""
        return self._place.scalar(self._shared.address_of("skipped"), np.int64)

    @property
    def scales(self) -> bool:
        """Whether the loss scale is the GPU's own."""
        return self._scaling is not None

    def times_scale(self, value: Any) -> Any:
        """A value times the loss scale."""
        with self.in_order():
            return self._place.library.times(value, self._place.scalar(self._shared.scale_address))

    def scaling(self) -> tuple[float, int]:
        """Loss scale, and steps since it last changed; waits for the GPU."""
        state = self._read()
        return state.scale, state.growth

    def _read(self) -> State:
        """The GPU's state, once it has done all that it was told to."""
        self._synchronise()
        return self._shared.read()

    def set_scaling(self, scaling: Scaling) -> None:
        """Replace the loss scale."""
        self._synchronise()
        self._scaling = scaling
        self._shared.scale(*scaling)

    def _synchronise(self) -> None:
        if self._graphs:  # replays may be on any stream
            self._device.synchronise_all()
        self._done.wait()

    # -- graphs -----------------------------------------------------------------------------------------------------

    def prepare(self, steps: int, unscale: float, nonfinite: str, scaling: Scaling | None) -> None:
        """Upload the programs of the next calls, so that a captured step can be replayed so often without the host."""
        setting, stream = Setting(unscale, nonfinite, scaling is not None), self._place.stream()
        if self._device.is_capturing(stream):
            raise RuntimeError("prepare() must come before a capture")
        self._require_norms(setting, self._graphs_measure)
        self._adopt(scaling)
        self.confirm()
        if steps + RING // 2 > len(self._shared.rows):
            self._shared.resize(steps + RING)
            for plan in self._plans:
                plan.work.refresh()
        present = self._scalars.counters()
        self._done.hold(stream)
        try:
            for _ in range(steps):
                self._count(self._write(setting, stream))
            self._before[self._counts.calls] = self._scalars.counters()
            self._prepared, self._last = self._counts.calls, setting
        finally:
            self._scalars.set_counters(present)
            self._mark(stream)

    def renew_prepared(self) -> None:
        """Work the prepared programs out anew, after a setting has changed."""
        if self._prepared > self._seen():
            stream = self._place.stream()
            if self._device.is_capturing(stream):
                raise RuntimeError("a setting cannot be changed while a step is being captured: change it before")
            self._done.hold(stream)
            for call in range(self._seen(), self._prepared):
                if call in self._before:
                    self._rewrite(call, self._last, stream)
            self._mark(stream)

    def _require_norms(self, setting: Setting, measured: bool) -> None:
        """Refuse a setting that needs norms which a captured step does not measure."""
        if not measured and (setting.nonfinite != "propagate" or self._scalars.clipping()[0] != 0):
            raise RuntimeError(
                "clipping by a norm, or nonfinite, was switched on after a step was captured: capture it again"
            )

    def _capture(self, setting: Setting, options: int, stream: int) -> None:
        """Launch into a graph: with tables of their own, that later steps leave alone, and waiting for nothing."""
        if setting.nonfinite == "raise":
            raise RuntimeError('nonfinite="raise" waits for the GPU, which a captured step cannot: use "skip"')
        call = self._counts.calls
        if self._shared.rows[call % len(self._shared.rows), tables.STAMP] != call:
            raise RuntimeError("call prepare(steps) before capturing: replays take the programs that it uploads")
        measures = setting.nonfinite != "propagate" or self._scalars.clipping()[0] != 0
        kept = []
        take_rows(self._plans, self._gradients, stream)
        with self._device.current():
            try:
                for plan in self._plans:
                    if not plan.shares_gradients:
                        plan.take_gradients()
                    kept.append(plan.work.fix())
                if measures:
                    self._launch_norms(stream)
                self._launch(stream, options)
            finally:
                for plan in self._plans:
                    plan.work.unfix()
        if self._place.capturing is None:
            self._graphs.append(kept)
            self._graphs_measure &= measures
        else:
            self._captured = kept, measures

    def captured(self, step: Callable[[], None]) -> Captured:
        """The graph of what ``step`` launches, for `replay`."""
        self._own_stream = self._own_stream or self._device.new_stream()
        self._device.begin_capture(self._own_stream)
        self._place.capturing = self._own_stream
        try:
            step()
        except BaseException:
            with suppress(RuntimeError):  # what went wrong has broken the capture too
                self._device.end_capture(self._own_stream)
            raise
        finally:
            self._place.capturing = None
        streams = self._gradients.streams_to_wait_for
        return Captured(self._device.end_capture(self._own_stream), streams, *self._captured)

    def replay(self, captured: Captured, unscale: float, nonfinite: str, scaling: Scaling | None) -> None:
        """One step by a graph."""
        setting, stream = Setting(unscale, nonfinite, scaling is not None), self._place.stream()
        self._require_norms(setting, captured.measures)
        self._before_step(setting, scaling, stream, captured.streams)
        closing = self._tell(setting, stream)
        with self._counted(closing, stream, captured.streams):
            captured.graph.launch(stream)
