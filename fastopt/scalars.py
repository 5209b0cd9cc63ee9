"""What an optimizer's steps do beside their gradients, worked out from its hyper-parameters."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from .hyper_parameters import COMMON, HyperParameters
from .kernels.clipping import Clipping
from .kernels.layout import AVERAGED, OVERWRITE
from .plan import Plan
from .steps.counts import Call
from .steps.scalars import Decision, RepeatableScalars

MANY = 8
"""So many groups are worked out together, in NumPy."""

Row = tuple[Callable[..., None], Plan, int, Any, tuple[Any, ...]]
"""A row of scalars, or all of a plan's: what writes it, the plan, its first byte, learning rate, control scalars."""

_NUMBERS = (float, int, bool, str, type(None))
"""Types of hyper-parameters that are the same as long as they compare equal."""

_ASKING = ("_rate", "_rate_of_step", "_value")
"""Methods that give the values of hyper-parameters."""


class Scalars(RepeatableScalars):
    """Those of an `Optimizer`.

    Parameters
    ----------
    optimizer : Optimizer
        Referred to weakly: memory goes with the last reference.
    plans : list of Plan
    """

    def __init__(self, optimizer: Any, plans: list[Plan]) -> None:
        self._optimizer: Any = optimizer if isinstance(optimizer, weakref.ProxyType) else weakref.proxy(optimizer)
        self._rows: list[Row] = []
        own = vars(optimizer)
        self._names = ("_learning_rate", *COMMON[1:], *optimizer._own)
        self._get_values: Any = itemgetter(*(name for name in self._names if name in own))
        super().__init__(plans, optimizer._counts)

    # -- what a step is ---------------------------------------------------------------------------------------------

    def window(self) -> int:
        """See `StepScalars.window`."""
        return self._optimizer.gradient_accumulation_steps or 1

    def averages(self, update: int) -> int:
        """See `StepScalars.averages`."""
        optimizer = self._optimizer
        if not optimizer.use_ema:
            return 0
        frequency = optimizer.ema_overwrite_frequency
        return AVERAGED | OVERWRITE if frequency and update % frequency == 0 else AVERAGED

    def clipping(self) -> tuple[int, float]:
        """See `StepScalars.clipping`."""
        return self._optimizer._clipping()

    def counters(self) -> dict[str, Any]:
        """See `StepScalars.counters`. A learning rate that is a state of its own is the user's to set."""
        optimizer = self._optimizer
        names = [name for name in optimizer._counters().values() if name != "_learning_rate"]
        return {name: getattr(optimizer, name) for name in names}

    def set_counters(self, counters: dict[str, Any]) -> None:
        """See `StepScalars.set_counters`."""
        for name, value in counters.items():
            setattr(self._optimizer, name, value)

    # -- rows -------------------------------------------------------------------------------------------------------

    def write(self, unscale: float, decision: Decision, ask: bool = True) -> None:
        """See `StepScalars.write`."""
        optimizer, t = self._optimizer, decision.update if decision.closing else 0
        if ask:
            optimizer._asked.clear()
        rate = optimizer._rate_of_step() if t else 1.0
        limit = optimizer.clipvalue if optimizer.clipvalue and optimizer.clipvalue > 0 else math.inf
        keep = optimizer.ema_momentum if t > 1 else 0.0
        self._rows = []
        for plan in self.plans:
            own_decay = optimizer._branch_decay(plan.branch) or 0.0
            settings = plan.settings
            pack: Callable[..., None] = plan.pack
            if len(settings) >= MANY and optimizer._takes_rates:
                settings, pack = [plan.settings_together(own_decay)], plan.pack_together
            for byte, multiplier, decay in settings:
                learning_rate = rate * multiplier
                decay = learning_rate * (own_decay if decay is None else decay)
                control = unscale, float(decision.window), limit, decay, keep
                self._rows.append((pack, plan, byte, learning_rate, control))
        self.refill(t or 1)

    def refill(self, update: int) -> None:
        """See `RepeatableScalars.refill`."""
        optimizer = self._optimizer
        for pack, plan, byte, learning_rate, control in self._rows:
            scalars = optimizer._scalars(plan.branch, learning_rate, update)
            if type(scalars) is not plan.scalars:
                raise RuntimeError("a hyper-parameter that selects the rule was changed after build(): make a new one")
            try:
                pack(plan.work.table, byte, *control, *scalars)
            except (OverflowError, FloatingPointError):
                raise ValueError(f"one of {scalars}, or of the options, does not fit {plan.dtype}") from None

    def advancing(self, update: int) -> list[Call]:
        """See `StepScalars.advancing`."""
        return self._optimizer._advancing(update)

    # -- steps like the last one ------------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """See `RepeatableScalars.keeps`."""
        return self._optimizer._keeps_scalars

    @property
    def running(self) -> Any:
        """See `RepeatableScalars.running`."""
        return self._optimizer._running

    def values(self) -> tuple[Any, ...]:
        """See `RepeatableScalars.values`; with the number of attributes: a method may have got another body."""
        attributes = self._optimizer.__dict__
        return self._get_values(attributes), len(attributes)

    def are_settled(self, values: tuple[Any, ...]) -> bool:
        """See `RepeatableScalars.are_settled`."""
        return all(type(value) in _NUMBERS for value in values[0]) and self._asks_for_values()

    def _asks_for_values(self) -> bool:
        own, kind = self._optimizer.__dict__, self._optimizer.__class__
        return (
            all(name in own for name in self._names)
            and all(getattr(kind, name) is getattr(HyperParameters, name) for name in _ASKING)
            and not own.keys() & {"_scalars", "_settings", *_ASKING}
        )

    def overwrites(self) -> bool:
        """See `RepeatableScalars.overwrites`."""
        return bool(self._optimizer.use_ema and self._optimizer.ema_overwrite_frequency)

    def by_norm(self) -> Clipping | None:
        """See `RepeatableScalars.by_norm`."""
        (way, limit), checked = self.clipping(), self._optimizer.nonfinite != "propagate"
        return Clipping(way, limit, checked) if way or checked else None

    def settings_class(self, plan: Plan) -> Any:
        """See `RepeatableScalars.settings_class`."""
        optimizer = self._optimizer
        if not (optimizer._follows_settings and len(plan.groups) == 1 and self._asks_for_values()):
            return None
        return type(optimizer._settings(plan.branch, 1.0))

    def settings(self, plan: Plan) -> tuple[float, ...]:
        """See `RepeatableScalars.settings`."""
        learning_rate = next(rate for _, own, _, rate, _ in self._rows if own is plan)
        return self._optimizer._settings(plan.branch, learning_rate)
