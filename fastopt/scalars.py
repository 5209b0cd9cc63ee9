"""What an optimizer's steps do beside their gradients, worked out from its hyper-parameters."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from .counts import Call
from .hyper_parameters import HyperParameters
from .kernels.clipping import Clipping
from .kernels.layout import ACCUMULATED, AVERAGED, OVERWRITE
from .kernels.registry import are_constant
from .plan import Plan
from .signatures import COMMON

MANY = 8
"""So many groups are worked out together, in NumPy."""

Row = tuple[Callable[..., None], Plan, int, Any, tuple[Any, ...]]
"""A row of scalars, or all of a plan's: what writes it, the plan, its first byte, learning rate, control scalars."""

_NUMBERS = (float, int, bool, str, type(None))
"""Types of hyper-parameters that are the same as long as they compare equal."""

_ASKING = ("_rate", "_rate_of_step", "_value")
"""Methods that give the values of hyper-parameters."""


class Scaling(NamedTuple):
    """A loss scale that a GPU adapts by itself."""

    scale: float
    growth: int  # steps since it last changed
    growth_steps: int  # steps after which it doubles
    least: float
    greatest: float


class Decision(NamedTuple):
    """What the next step is."""

    update: int  # number of the update that it is, or leads to, from 1
    call: int  # its own number, from 1
    closing: bool  # whether it updates the parameters; otherwise it accumulates gradients
    window: int  # gradients that an update takes
    way: int  # to clip by the norm of the gradients, 0 for none
    limit: float
    options: int  # of the launch


class Scalars:
    """Decides what a step of an `Optimizer` is, on whatever device, and fills the plans' rows of scalars.

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
        self.plans, self.counts = plans, optimizer._counts
        self._follows = optimizer._follows_settings()
        self._keeps = self._follows and are_constant(optimizer._settings_class)
        self._keeps_average, self._accumulates = self.averages(1) != 0, self.window() > 1

    # -- what a step is ---------------------------------------------------------------------------------------------

    def window(self) -> int:
        """Return how many gradients an update takes."""
        return self._optimizer.gradient_accumulation_steps or 1

    def averages(self, update: int) -> int:
        """Options of a launch by which averages follow an update; 0 if none are kept."""
        optimizer = self._optimizer
        if not optimizer.use_ema:
            return 0
        frequency = optimizer.ema_overwrite_frequency
        return AVERAGED | OVERWRITE if frequency and update % frequency == 0 else AVERAGED

    def clipping(self) -> tuple[int, float]:
        """The way to clip by a norm, of `kernels.clipping`, 0 for none; and the limit."""
        return self._optimizer._clipping()

    def counters(self) -> dict[str, Any]:
        """All that moves from step to step; a learning rate that is a state of its own is the user's to set."""
        optimizer = self._optimizer
        names = [name for name in optimizer._counters().values() if name != "_learning_rate"]
        return {name: getattr(optimizer, name) for name in names}

    def set_counters(self, counters: dict[str, Any]) -> None:
        """Go on from what `counters` gave."""
        for name, value in counters.items():
            setattr(self._optimizer, name, value)

    def rounded(self) -> int:
        """Return how often numbers have been rounded at random, which noise follows from."""
        return self.counts.updates

    def decide(self) -> Decision:
        """Decide what the next step is.

        Raises
        ------
        RuntimeError
            If averages or accumulation have been switched on since the optimizer was built.
        """
        updates, calls = self.counts.numbers
        update, call, window = updates + 1, calls + 1, self.window()
        averages = self.averages(update)
        if (averages and not self._keeps_average) or (window > 1 and not self._accumulates):
            raise RuntimeError("use_ema and gradient_accumulation_steps cannot be switched on after build()")
        if call % window:
            return Decision(update, call, False, window, 0, 0.0, 0)
        return Decision(update, call, True, window, *self.clipping(), averages | (ACCUMULATED if window > 1 else 0))

    # -- rows -------------------------------------------------------------------------------------------------------

    def write(self, unscale: float, decision: Decision, ask: bool = True) -> None:
        """Fill the rows of scalars for a step.

        Parameters
        ----------
        unscale : float
            Factor on every gradient.
        decision : Decision
        ask : bool
            Whether users' functions are asked anew; otherwise they are taken to say what they said last.
        """
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
            if len(settings) >= MANY and optimizer._takes_rates(plan.branch):
                settings, pack = [plan.settings_together(own_decay)], plan.pack_together
            for byte, multiplier, decay in settings:
                learning_rate = rate * multiplier
                decay = learning_rate * (own_decay if decay is None else decay)
                control = unscale, float(decision.window), limit, decay, keep
                self._rows.append((pack, plan, byte, learning_rate, control))
        self.refill(t or 1)

    def refill(self, update: int) -> None:
        """Fill the rows as for the last step, but for another update."""
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
        """Return what notes, beside the counters, that an update has been done."""
        return self._optimizer._advancing(update)

    def recording(self) -> list[Call]:
        """Return what else a step on the host that is not left out says of itself."""
        return []

    # -- steps like the last one ------------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """Whether rows are the same for every update, as long as hyper-parameters are."""
        return self._keeps

    @property
    def running(self) -> Any:
        """Number that every update changes, an array.array of one float64; or None."""
        return self._optimizer._running

    def values(self) -> tuple[Any, ...]:
        """Return what scalars depend on beside counters, to be compared with what it was.

        With the number of attributes: a method may have got another body.
        """
        attributes = self._optimizer.__dict__
        return self._get_values(attributes), len(attributes)

    def are_settled(self, values: tuple[Any, ...]) -> bool:
        """Whether scalars depend on nothing but these values, and these stay what they are while they are equal."""
        return all(type(value) in _NUMBERS for value in values[0]) and self._asks_for_values()

    def _asks_for_values(self) -> bool:
        own, kind = self._optimizer.__dict__, self._optimizer.__class__
        return (
            all(name in own for name in self._names)
            and all(getattr(kind, name) is getattr(HyperParameters, name) for name in _ASKING)
            and not any(hasattr(getattr(kind, name, None), "__get__") for name in self._names)
            and not own.keys() & {"_scalars", "_settings", *_ASKING}
        )

    def overwrites(self) -> bool:
        """Whether averages replace the parameters now and then."""
        return bool(self._optimizer.use_ema and self._optimizer.ema_overwrite_frequency)

    def by_norm(self) -> Clipping | None:
        """Return how steps go by the norm of the gradients; None if they do not."""
        (way, limit), checked = self.clipping(), self._optimizer.nonfinite != "propagate"
        return Clipping(way, limit, checked) if way or checked else None

    def settings_class(self, plan: Plan) -> Any:
        """Return what a plan's row follows from, with the update's number; None if it is not one row, or does not."""
        optimizer = self._optimizer
        if self._keeps or not (self._follows and len(plan.groups) == 1 and self._asks_for_values()):
            return None
        return type(optimizer._settings(plan.branch, 1.0))

    def settings(self, plan: Plan) -> tuple[float, ...]:
        """That, as of the last step."""
        learning_rate = next(rate for _, own, _, rate, _ in self._rows if own is plan)
        return self._optimizer._settings(plan.branch, learning_rate)
