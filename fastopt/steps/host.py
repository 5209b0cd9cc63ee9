"""Steps of an optimizer whose parameters are NumPy arrays."""

from __future__ import annotations

import math
import weakref
from array import array as numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import launch
from ..kernels.clipping import EACH, common_factor
from ..kernels.layout import ACCUMULATED, ADDRESS, STAGED
from ..plan import ACCUMULATOR_SLOT

if TYPE_CHECKING:
    from ..gradients import Gradients
    from ..optimizer import Optimizer
    from ..plan import Plan
    from .gpu import Scaling

Call = Callable[[], Any]
"""Part of a step: a C function with its arguments, see `launch.one_call`."""


class HostSteps:
    """What `Optimizer` does per step, on the host.

    Everything that a step changes for good, parameters, slots, counters, is changed in one call, which signals find
    done or not begun. What comes before writes to tables that the next step writes anew.

    Parameters
    ----------
    optimizer : Optimizer
    plans : list of Plan
    gradients : Gradients
    """

    def __init__(self, optimizer: Optimizer, plans: list[Plan], gradients: Gradients) -> None:
        self._optimizer, self._plans = weakref.ref(optimizer), plans  # no cycle: memory goes with the last reference
        self._keeps_average = bool(optimizer.use_ema)
        self._accumulates = bool(optimizer.gradient_accumulation_steps)
        self._clipped = False  # whether the last step left clipping factors behind
        for plan in plans:
            plan.connect_on_host(gradients.table, gradients.layouts)
        self._apart = [plan for plan in plans if not plan.shares_gradients]

    def step(self, unscale: float, nonfinite: str, options: int, scaling: Scaling | None, ends: Sequence[Call]) -> None:
        """One step with the gradients that have been read; ``options`` are those of `Gradients.read`.

        ``ends`` is what else belongs to a step that is not left out: C functions to be called after the kernels.
        """
        optimizer: Any = self._optimizer()
        steps = optimizer.gradient_accumulation_steps or 1
        updates, calls = optimizer._counted
        t, calls = updates + 1, calls + 1
        closing = calls % steps == 0
        if closing and steps > 1:
            options |= ACCUMULATED
        if optimizer.use_ema > self._keeps_average or (steps > 1) > self._accumulates:
            raise RuntimeError("use_ema and gradient_accumulation_steps cannot be switched on after build()")
        for plan in self._apart:
            plan.take_gradients()
        optimizer._write_rows(unscale, float(steps), t if closing else 0)
        optimizer._last_step_skipped, optimizer._has_norm = False, False
        clips = closing and bool(optimizer.clipnorm or optimizer.global_clipnorm)
        ends = [*optimizer._recording(), *ends]
        if clips or nonfinite != "propagate":
            goes_on, norm = self._measure(optimizer, options, nonfinite, closing, clips)
            if not goes_on:
                optimizer._last_step_skipped = True
                return
            ends = [*optimizer._noting_norm(norm), *ends]
        if not closing:
            kernels = [call for plan in self._plans for call in plan.engine.accumulating(options)]
            run(self._plans, [*kernels, counting(optimizer, t - 1, calls), *ends])
            return
        if optimizer.use_ema:
            options |= optimizer._ema_options(t)
        if self._clipped and not clips:
            self._clip_all(1.0)
            self._clipped = False
        kernels = [call for plan in self._plans for call in plan.engine.calls(options)]
        emptied = self._unread_accumulators() if steps > 1 else ()
        empty = [partial(np.ndarray.fill, accumulator, 0) for accumulator in emptied]
        run(self._plans, [*kernels, *empty, *optimizer._advancing(t), counting(optimizer, t, calls), *ends])

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

    def _measure(
        self, optimizer: Optimizer, options: int, nonfinite: str, closing: bool, clips: bool
    ) -> tuple[bool, float | None]:
        """Have the step clip by the norm, if it ``clips``; whether it goes on, and the norm, at a ``closing`` step."""
        found = [plan.engine.norms(options & (ACCUMULATED | STAGED)) for plan in self._plans]
        if nonfinite != "propagate" and not all(finite for _, finite in found):
            sums = [plan.work.sums for plan in self._plans]
            return _refuse(nonfinite, nonfinite_message(self._plans, sums))
        if not closing:
            return True, None
        norm = math.sqrt(sum(squares for squares, _ in found))
        if clips and nonfinite != "propagate" and not math.isfinite(norm):
            return _refuse(nonfinite, OVERFLOW)
        self._clipped = True
        self._clip(norm, *optimizer._clipping())
        return True, norm

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


def run(plans: list[Plan], calls: Sequence[Call]) -> None:
    """Call what a step consists of, the plans' kernels among it, as one."""
    on_threads = uses_numpy = False
    for plan in plans:
        on_threads |= plan.engine.on_threads
        uses_numpy |= plan.engine.uses_numpy
    with np.errstate(all="ignore") if uses_numpy else nullcontext():
        launch.run(calls, on_threads)


def counting(optimizer: Any, updates: int, calls: int) -> Call:
    """What sets an optimizer's counters."""
    return partial(setitem, optimizer._counted, slice(2), numbers("q", [updates, calls]))


def _refuse(nonfinite: str, message: str) -> tuple[bool, None]:
    if nonfinite == "raise":
        raise FloatingPointError(message)
    return False, None


OVERFLOW = "the gradients' norm overflows; nothing was updated"


def nonfinite_message(plans: list[Plan], sums: list[np.ndarray]) -> str:
    """What to say of gradients that are not finite, by what the norms found: names the first of them.

    ``sums`` are the sums of each plan's chunks, [terms, chunks].
    """
    for plan, found in zip(plans, sums, strict=True):
        bad = plan.work.chunks[np.isnan(found[1]), 0]
        if len(bad):
            return f"gradient {plan.parameters[bad[0]].path} is not finite; nothing was updated"
    return OVERFLOW
