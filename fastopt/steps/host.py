"""Steps of an optimizer whose parameters are NumPy arrays."""

from __future__ import annotations

import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.clipping import EACH, common_factor
from ..kernels.layout import ACCUMULATED, ADDRESS, STAGED
from ..plan import ACCUMULATOR_SLOT

if TYPE_CHECKING:
    from ..gradients import Gradients
    from ..optimizer import Optimizer
    from ..plan import Plan
    from .gpu import Scaling


class HostSteps:
    """What `Optimizer` does per step, on the host.

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

    def step(self, unscale: float, nonfinite: str, options: int, scaling: Scaling | None) -> None:
        """One step with the gradients that have been read; ``options`` are those of `Gradients.read`."""
        optimizer: Any = self._optimizer()
        steps = optimizer.gradient_accumulation_steps or 1
        closing = steps == 1 or (optimizer._calls + 1) % steps == 0
        t = optimizer._iterations + 1
        if closing and steps > 1:
            options |= ACCUMULATED
        if optimizer.use_ema > self._keeps_average or (steps > 1) > self._accumulates:
            raise RuntimeError("use_ema and gradient_accumulation_steps cannot be switched on after build()")
        for plan in self._plans:
            plan.take_gradients()
        optimizer._write_rows(unscale, float(steps), t if closing else 0)
        optimizer._last_step_skipped, optimizer._last_grad_norm = False, None
        clips = closing and bool(optimizer.clipnorm or optimizer.global_clipnorm)
        if (clips or nonfinite != "propagate") and not self._measure(optimizer, options, nonfinite, closing, clips):
            return
        if not closing:
            for plan in self._plans:
                plan.engine.accumulate(options)
        else:
            if optimizer.use_ema:
                options |= optimizer._ema_options(t)
            if self._clipped and not clips:
                self._clip_all(1.0)
                self._clipped = False
            for plan in self._plans:
                plan.engine(options)
            if steps > 1:
                self._empty_unread_accumulators()
            optimizer._iterations = t
            optimizer._advance(t)
        optimizer._calls += 1

    def in_order(self, gradients: bool = False) -> AbstractContextManager[None]:
        """See `GpuSteps.in_order`: here everything has happened when a call returns."""
        return nullcontext()

    def _empty_unread_accumulators(self) -> None:
        """The end of a window forgets what parameters without a gradient at that step had accumulated, as in Keras."""
        for plan in self._plans:
            for k in np.flatnonzero(plan.work.gradients[ADDRESS] == 0):
                plan.slots[ACCUMULATOR_SLOT][k].fill(0)  # type: ignore[union-attr]

    def _measure(self, optimizer: Optimizer, options: int, nonfinite: str, closing: bool, clips: bool) -> bool:
        """Norm, finiteness and clipping factors; whether the step goes on."""
        found = [plan.engine.norms(options & (ACCUMULATED | STAGED)) for plan in self._plans]
        if nonfinite != "propagate" and not all(finite for _, finite in found):
            sums = [plan.work.sums for plan in self._plans]
            return _refuse(optimizer, nonfinite, nonfinite_message(self._plans, sums))
        if not closing:
            return True
        norm = math.sqrt(sum(squares for squares, _ in found))
        if clips and nonfinite != "propagate" and not math.isfinite(norm):
            return _refuse(optimizer, nonfinite, OVERFLOW)
        optimizer._last_grad_norm = norm
        self._clip(norm, *optimizer._clipping())
        self._clipped = True
        return True

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


def _refuse(optimizer: Optimizer, nonfinite: str, message: str) -> bool:
    if nonfinite == "raise":
        raise FloatingPointError(message)
    optimizer._last_step_skipped = True
    return False


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
