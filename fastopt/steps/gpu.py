"""Steps of an optimizer whose parameters are on a GPU: nothing waits for it.

Which steps the GPU leaves out, because a gradient is not finite, is for the GPU alone to know; the host goes on as if
none were. For every call it works out a *program*, options and scalars, from the optimizer's counters as they are
before that call, and uploads it into a ring; the GPU's own count of calls picks the program. Asked for a counter, the
host waits, hears how far the GPU has come, and takes up the counters that belong to that call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..kernels.cuda import tables
from ..kernels.layout import ACCUMULATED, ZERO
from ..schedules import LearningRateSchedule
from .host import nonfinite_message

if TYPE_CHECKING:
    from ..gradients.cuda import CudaGradients
    from ..kernels.cuda.engine import State
    from ..optimizer import Optimizer
    from ..plan import Plan

RING = 1024
"""Programs that the GPU holds at least: how far the host may be ahead of it."""


class Scaling(NamedTuple):
    """A loss scale that the GPU adapts by itself."""

    scale: float
    growth: int  # steps since it last changed
    growth_steps: int  # steps after which it doubles
    least: float
    greatest: float


class GpuSteps:
    """What `Optimizer` does per step, on a GPU.

    Parameters
    ----------
    optimizer : Optimizer
    plans : list of Plan
    gradients : CudaGradients
    before : GpuSteps or None
        Whose loss scale goes on.
    """

    def __init__(
        self, optimizer: Optimizer, plans: list[Plan], gradients: CudaGradients, before: GpuSteps | None
    ) -> None:
        from ..kernels.cuda import engine

        self._optimizer, self._plans, self._gradients = optimizer, plans, gradients
        self._place: Any = plans[0].place
        self._device = self._place.device
        self._keeps_average = bool(optimizer.use_ema)
        self._accumulates = bool(optimizer.gradient_accumulation_steps)
        self._shared = engine.Shared(self._device, [plan.table_format for plan in plans], RING)
        for number, plan in enumerate(plans):
            make = partial(engine.Work, self._shared, (number, len(plans)))
            plan.connect(gradients.table, gradients.layouts, make)
        # What moves from step to step; a learning rate that is a state of its own is the user's to set.
        self._names = [name for name in optimizer._counters().values() if name != "_learning_rate"]
        self._before: dict[int, dict[str, Any]] = {}  # call → counters before it
        self._prepared = 0  # calls below this one have programs, worked out in advance
        self._prepared_with: tuple[float, str] = (1.0, "propagate")
        self._foreign_graphs = False  # whether there may be replays that the host does not hear of
        self._scaling: Scaling | None = None
        self._stream: int | None = None
        self._own_stream: int | None = None  # for capturing
        self._captures_own = False
        self.rebase()
        if before is not None and before._scaling is not None:
            scale, growth = before.scaling()
            self.set_scaling(before._scaling._replace(scale=scale, growth=growth))

    # -- stepping ---------------------------------------------------------------------------------------------------

    def step(self, unscale: float, nonfinite: str, options: int, scaling: Scaling | None) -> None:
        """One step with the gradients that have been read; ``options`` are those of `CudaGradients.read`."""
        if self._device.is_capturing(self._callers_stream()):
            return self._capture(nonfinite, options)
        stream = self._enter_stream()
        self._before_step(unscale, nonfinite, scaling, stream)
        closing = self._write(unscale, nonfinite, stream)
        self._put_gradients(stream)
        with self._device.current():
            if self._measures(nonfinite, closing):
                self._launch_norms(stream)
                if nonfinite == "raise":
                    self._raise_if_stopped()
            self._launch(stream, options)
        self._count(closing)

    def _before_step(self, unscale: float, nonfinite: str, scaling: Scaling | None, stream: int) -> None:
        """Have the host's counters, and what it told the GPU before, fit the step that comes."""
        self._adopt(scaling)
        if self._foreign_graphs or self._optimizer._calls - self._seen() >= len(self._shared.rows) - 1:
            self.confirm()
        self._renew(unscale, nonfinite, stream)

    def _callers_stream(self) -> int:
        return self._own_stream if self._captures_own else self._place.stream()  # type: ignore[return-value]

    def _enter_stream(self) -> int:
        """The caller's stream, made to wait for what was enqueued on the last one and for the gradients' own."""
        stream = self._callers_stream()
        if self._stream not in (None, stream):
            self._device.wait(stream, self._stream)
        self._stream = stream
        for other in self._gradients.streams_to_wait_for:
            self._device.wait(stream, other)
        return stream

    def _adopt(self, scaling: Scaling | None) -> None:
        """From the first call with it the loss scale is the GPU's own."""
        if scaling is not None and self._scaling is None:
            self._scaling = scaling
            self._shared.scale(*scaling)

    def _put_gradients(self, stream: int) -> None:
        for plan in self._plans:
            plan.work.found.put(stream)

    def _measures(self, nonfinite: str, closing: bool) -> bool:
        """Whether norms must be measured, as far as the host can tell."""
        return nonfinite != "propagate" or (closing and self._optimizer._clipping()[0] != 0)

    def _launch_norms(self, stream: int) -> None:
        for plan in self._plans:
            plan.engine.norms(stream, 0)

    def _launch(self, stream: int, options: int) -> None:
        for plan in self._plans:
            last = tables.LAST if plan is self._plans[-1] else 0
            plan.engine(stream, options & ZERO | last)

    def _raise_if_stopped(self) -> None:
        state = self._read()
        if state.stopped:
            self._shared.go_on()
            sums = [plan.work.read_sums(self._stream) for plan in self._plans]
            raise FloatingPointError(nonfinite_message(self._plans, sums))

    # -- programs ---------------------------------------------------------------------------------------------------

    def _seen(self) -> int:
        """Calls that the GPU has certainly carried out."""
        return int(self._shared.progress[0])

    def _work_out(self, unscale: float, nonfinite: str) -> bool:
        """Write the program of the next call into the shared row; whether it moves the parameters."""
        optimizer, shared = self._optimizer, self._shared
        steps = optimizer.gradient_accumulation_steps or 1
        closing = steps == 1 or (optimizer._calls + 1) % steps == 0
        t = optimizer._iterations + 1
        if optimizer.use_ema > self._keeps_average or (steps > 1) > self._accumulates:
            raise RuntimeError("use_ema and gradient_accumulation_steps cannot be switched on after build()")
        optimizer._write_rows(unscale, float(steps), t if closing else 0)
        way, limit = optimizer._clipping() if closing else (0, 0.0)
        options = 0 if closing else tables.MICRO
        options |= ACCUMULATED if closing and steps > 1 else 0
        options |= tables.CHECKED if nonfinite != "propagate" else 0
        options |= tables.SCALED if self._scaling else 0
        options |= tables.MEASURED if way or nonfinite != "propagate" else 0
        options |= optimizer._ema_options(t) if closing else 0
        shared.row[tables.STAMP], shared.row[tables.OPTIONS], shared.row[tables.WAY] = optimizer._calls, options, way
        shared.limit[tables.LIMIT] = limit
        return closing

    def _write(self, unscale: float, nonfinite: str, stream: int) -> bool:
        """Upload the program of the next call; whether it moves the parameters."""
        optimizer = self._optimizer
        self._before[optimizer._calls] = self._counters()
        if len(self._before) > 4 * len(self._shared.rows):
            seen = self._seen()
            self._before = {call: counters for call, counters in self._before.items() if call >= seen}
        closing = self._work_out(unscale, nonfinite)
        self._shared.put(optimizer._calls, stream)
        return closing

    def _renew(self, unscale: float, nonfinite: str, stream: int) -> None:
        """If a setting has changed, upload anew what calls that the GPU may have left out, and comes to yet, will use.

        What a user's function says cannot be asked for again: such programs stay as they are.
        """
        optimizer = self._optimizer
        last = optimizer._calls - 1
        if nonfinite == "propagate" or last < self._seen() or last not in self._before or self._asks_user():
            return
        with self._at(last):
            self._work_out(unscale, nonfinite)
            known = self._shared.rows[last % len(self._shared.rows)]
            changed = not np.array_equal(self._shared.row, known)
        if changed:
            self._write_again(range(self._seen(), optimizer._calls), unscale, nonfinite, stream)

    def _write_again(self, calls: range, unscale: float, nonfinite: str, stream: int) -> None:
        for call in calls:
            if call in self._before:
                with self._at(call):
                    self._write(unscale, nonfinite, stream)

    def _asks_user(self) -> bool:
        optimizer = self._optimizer
        rate = optimizer._learning_rate
        return (callable(rate) and not isinstance(rate, LearningRateSchedule)) or any(
            callable(getattr(optimizer, name)) for name in optimizer._own
        )

    # -- counters ---------------------------------------------------------------------------------------------------

    def _counters(self) -> dict[str, Any]:
        own = self._optimizer.__dict__
        return {name: own[name] for name in self._names}

    def _set_counters(self, counters: dict[str, Any]) -> None:
        for name, value in counters.items():
            setattr(self._optimizer, name, value)

    @contextmanager
    def _at(self, call: int) -> Iterator[None]:
        """Inside, the counters are those before a call."""
        present = self._counters()
        self._set_counters(self._before[call])
        try:
            yield
        finally:
            self._set_counters(present)

    def _count(self, closing: bool) -> None:
        optimizer = self._optimizer
        if closing:
            optimizer._iterations += 1
            optimizer._advance(optimizer._iterations)
        optimizer._calls += 1

    def rebase(self) -> None:
        """Let the GPU go on from the optimizer's counters, after these were set."""
        self._synchronise()
        self._shared.start(self._optimizer._calls)
        self._before.clear()
        self._prepared = 0

    def confirm(self) -> None:
        """Wait for the GPU, and take up the counters that it has come to.

        Raises
        ------
        RuntimeError
            If replays of a graph went on after the programs that were prepared.
        """
        optimizer = self._optimizer
        state = self._read()
        if state.calls != optimizer._calls:
            self._before[optimizer._calls] = self._counters()
            self._set_counters(self._before[state.calls])
        optimizer._last_step_skipped, optimizer._last_grad_norm = state.skipped, state.norm
        self._before = {call: counters for call, counters in self._before.items() if call >= state.calls}
        if state.starved:
            self._shared.go_on()
            raise RuntimeError(
                f"a captured step was replayed more often than prepared for: call prepare(steps) before "
                f"replays; {state.calls} calls were carried out, later replays did nothing"
            )

    @property
    def scales(self) -> bool:
        """Whether the loss scale is the GPU's own."""
        return self._scaling is not None

    def times_scale(self, value: Any) -> Any:
        """A value times the loss scale."""
        return self._place.library.times(value, self._place.scalar(self._shared.scale_address))

    def scaling(self) -> tuple[float, int]:
        """Loss scale, and steps since it last changed; waits for the GPU."""
        state = self._read()
        return state.scale, state.growth

    def _read(self) -> State:
        """The GPU's state, once it has done all that it was told to."""
        if self._foreign_graphs:  # replays may be on any stream
            self._device.synchronise_all()
        return self._shared.read(self._stream or 0)

    def set_scaling(self, scaling: Scaling) -> None:
        """Replace the loss scale."""
        self._synchronise()
        self._scaling = scaling
        self._shared.scale(*scaling)

    def _synchronise(self) -> None:
        if self._foreign_graphs:
            self._device.synchronise_all()
        elif self._stream is not None:
            self._device.synchronise(self._stream)

    # -- graphs -----------------------------------------------------------------------------------------------------

    def prepare(self, steps: int, unscale: float, nonfinite: str, scaling: Scaling | None) -> None:
        """Upload the programs of the next calls, so that a captured step can be replayed so often without the host."""
        if self._stream is None:
            self._enter_stream()
        self.confirm()
        self._adopt(scaling)
        if steps + RING // 2 > len(self._shared.rows):
            self._synchronise()
            self._shared.resize(steps + RING)
            for plan in self._plans:
                plan.work.refresh()
        optimizer, stream, present = self._optimizer, self._enter_stream(), self._counters()
        for _ in range(steps):
            self._count(self._write(unscale, nonfinite, stream))
        self._before[optimizer._calls] = self._counters()
        self._prepared, self._prepared_with = optimizer._calls, (unscale, nonfinite)
        self._set_counters(present)

    def _capture(self, nonfinite: str, options: int) -> None:
        """Launch into a graph: with tables of their own, that later steps leave alone, and waiting for nothing."""
        stream = self._callers_stream()
        if nonfinite == "raise":
            raise RuntimeError('nonfinite="raise" waits for the GPU, which a captured step cannot: use "skip"')
        call = self._optimizer._calls
        if self._shared.rows[call % len(self._shared.rows), 0] != call:
            raise RuntimeError("call prepare(steps) before capturing: replays take the programs that it uploads")
        with self._device.current():
            clips = self._optimizer._clipping()[0] != 0
            for plan in self._plans:
                plan.work.fix()
            try:
                if clips or nonfinite != "propagate":
                    self._launch_norms(stream)
                self._launch(stream, options)
            finally:
                for plan in self._plans:
                    plan.work.unfix()
        self._foreign_graphs |= not self._captures_own

    def renew_prepared(self) -> None:
        """Work the prepared programs out anew, after a setting has changed."""
        if self._prepared > self._seen():
            self._write_again(range(self._seen(), self._prepared), *self._prepared_with, self._enter_stream())

    def captured(self, step: Callable[[], None]) -> Any:
        """The graph of what ``step`` launches."""
        self._own_stream = self._own_stream or self._device.new_stream()
        self._captures_own = True
        self._device.begin_capture(self._own_stream)
        try:
            step()
        finally:
            graph = self._device.end_capture(self._own_stream)
            self._captures_own = False
        return graph

    def replay(self, graph: Any, unscale: float, nonfinite: str, scaling: Scaling | None) -> None:
        """One step by a graph."""
        stream = self._enter_stream()
        self._before_step(unscale, nonfinite, scaling, stream)
        closing = self._write(unscale, nonfinite, stream)
        graph.launch(stream)
        self._count(closing)
