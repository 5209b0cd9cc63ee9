"""Steps of an optimizer whose parameters are NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from ..counts import Call
from ..gradients import BaseGradients
from ..kernels.clipping import EACH, common_factor
from ..kernels.cpu import launch
from ..kernels.layout import ACCUMULATED, ADDRESS, STAGED
from ..plan import ACCUMULATOR_SLOT, Plan
from ..scalars import Decision, Scalars

Agree = Callable[[list[tuple[float, bool]]], tuple[float, bool]]


class HostSteps:
    """What `Optimizer` does per step, on the host.

    Everything that a step changes for good, parameters, slots, counters, is changed in one call, which signals find
    done or not begun. What comes before writes to tables that the next step writes anew.

    Parameters
    ----------
    plans : list of Plan
    gradients : Gradients
    scalars : Scalars

    Attributes
    ----------
    agree : function or None
        Where the plans have parts of parameters, whose other parts are elsewhere: what makes of the sum of squares and
        the finiteness that each plan has found those of all gradients.
    """

    def __init__(self, plans: list[Plan], gradients: BaseGradients, scalars: Scalars) -> None:
        self._plans, self._gradients, self._scalars = plans, gradients, scalars
        self.agree: Agree | None = None
        self._clipped = False  # whether the last step left clipping factors behind
        for plan in plans:
            plan.connect_on_host(gradients.table, gradients.layouts)
        self._apart = [plan for plan in plans if not plan.shares_gradients]

    def step(self, unscale: float, nonfinite: str, options: int, ends: Sequence[Call] = ()) -> None:
        """One step with the gradients that have been read; ``options`` are those of `Gradients.read`.

        ``ends`` is what else belongs to a step that is not left out: C functions to be called after the kernels.
        """
        scalars, counts = self._scalars, self._scalars.counts
        decision = scalars.decide()
        options |= decision.options
        for plan in self._apart:
            plan.take_gradients()
        if self._gradients.rows and decision.window > 1:
            raise ValueError(
                "a RowGradient cannot be accumulated (gradient_accumulation_steps): join the indices and the values of "
                "several batches in one RowGradient"
            )
        take_rows(self._plans, self._gradients)
        scalars.write(unscale, decision)
        counts.skipped = counts.has_norm = False
        norm = None
        if decision.way or nonfinite != "propagate":
            goes_on, norm = self._measure(decision, options, nonfinite)
            if not goes_on:
                counts.skipped = True
                return
        ends = [*scalars.recording(), *(counts.noting(norm) if norm is not None else ()), *ends]
        update, call = decision.update, decision.call
        if not decision.closing:
            kernels = [each for plan in self._plans for each in plan.engine.accumulating(options)]
            return run(self._plans, [*kernels, counts.counting(update - 1, call), *ends])
        if self._clipped and not decision.way:
            self._clip_all(1.0)
            self._clipped = False
        kernels = [each for plan in self._plans for each in plan.engine.calls(options)]
        if decision.window > 1:
            kernels += [partial(np.ndarray.fill, each, 0) for each in self._unread_accumulators()]
        run(self._plans, [*kernels, *scalars.advancing(update), counts.counting(update, call), *ends])

    def in_order(self, gradients: bool = False) -> AbstractContextManager[None]:
        """See `GpuSteps.in_order`: here everything has happened when a call returns."""
        return nullcontext()

    def _unread_accumulators(self) -> Iterator[Any]:
        """The accumulators that the kernels leave alone: those of parameters without a gradient at this step.

        The end of a window forgets what they had accumulated, as in Keras.
        """
        for plan in self._plans:
            for k in np.flatnonzero(plan.work.gradients[ADDRESS] == 0):
                yield plan.slots[ACCUMULATOR_SLOT][k]

    def _measure(self, decision: Decision, options: int, nonfinite: str) -> tuple[bool, float | None]:
        """Measure the gradients, and have the step clip by their norm; whether it goes on, and the norm.

        A step that only accumulates has no norm.
        """
        found = [plan.engine.norms(options & (ACCUMULATED | STAGED)) for plan in self._plans]
        squares, finite = (self.agree or _together)(found)
        if nonfinite != "propagate" and not finite:
            return _refuse(nonfinite, self._nonfinite_message(found))
        if not decision.closing:
            return True, None
        norm = math.sqrt(squares)
        if decision.way and nonfinite != "propagate" and not math.isfinite(norm):
            return _refuse(nonfinite, OVERFLOW)
        self._clipped = True
        self._clip(norm, decision.way, decision.limit)
        return True, norm

    def _nonfinite_message(self, found: Sequence[tuple[float, bool]]) -> str:
        if all(finite for _, finite in found):
            return ELSEWHERE
        return nonfinite_message(self._plans, [each.engine.nonfinite() for each in self._plans])

    def _clip(self, norm: float, way: int, limit: float) -> None:
        """Have the step clip gradients whose norm, over all of them, is ``norm``."""
        if way == EACH:
            for plan in self._plans:
                plan.engine.clip_each(limit)
        else:
            self._clip_all(common_factor(way, limit, norm))

    def _clip_all(self, factor: float) -> None:
        for plan in self._plans:
            plan.engine.clip_all(factor)


def take_rows(plans: list[Plan], gradients: BaseGradients, *stream: int) -> None:
    """Give plans what `gradients` has read for some rows only; see `Plan.take_rows`."""
    for plan in plans:
        plan.take_rows(gradients.rows, *stream)


def run(plans: list[Plan], calls: Sequence[Call]) -> None:
    """Call what a step consists of, the plans' kernels among it, as one."""
    on_threads = uses_numpy = False
    for plan in plans:
        on_threads |= plan.engine.uses_threads
        uses_numpy |= plan.engine.uses_numpy
    with np.errstate(all="ignore") if uses_numpy else nullcontext():
        launch.run(calls, on_threads)


def _refuse(nonfinite: str, message: str) -> tuple[bool, None]:
    if nonfinite == "raise":
        raise FloatingPointError(message)
    return False, None


def _together(found: Sequence[tuple[float, bool]]) -> tuple[float, bool]:
    return sum(squares for squares, _ in found), all(finite for _, finite in found)


ELSEWHERE = "a gradient is not finite in another process; nothing was updated"
OVERFLOW = "the gradients' norm overflows; nothing was updated"


def nonfinite_message(plans: list[Plan], segments: list[int | None]) -> str:
    """Say what is wrong with gradients that are not finite: a segment of each plan has such a one, None: none has."""
    for plan, segment in zip(plans, segments, strict=True):
        if segment is not None:
            return f"gradient {plan.parameters[segment].path} is not finite; nothing was updated"
    return OVERFLOW
