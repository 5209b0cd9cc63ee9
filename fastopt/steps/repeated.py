"""Steps of an optimizer for which nothing has changed since the last one: where possible in one call."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..hyper_parameters import COMMON, HyperParameters

if TYPE_CHECKING:
    from ..gradients import BaseGradients
    from ..kernels.repeated_step import RepeatedStep
    from ..optimizer import Optimizer
    from ..plan import Plan

_NUMBERS = (float, int, bool, str, type(None))
"""Types of hyper-parameters that are the same as long as they compare equal."""

_ASKING = ("_rate", "_rate_of_step", "_value")
"""Methods that give the values of hyper-parameters."""


class RepeatedSteps:
    """Does what `HostSteps` does, for an optimizer that clips by no norm, checks and accumulates nothing.

    All hyper-parameters are compared with those of the last step, at once. As long as they are numbers and the same, so
    are the rows of scalars, or what they are worked out from.

    Parameters
    ----------
    optimizer : Optimizer
        It is not kept.
    plans : list of Plan
    gradients : Gradients
    """

    def __init__(self, optimizer: Optimizer, plans: list[Plan], gradients: BaseGradients) -> None:
        self._gradients, self._counted = gradients, optimizer._counted
        self._engines = [plan.engine for plan in plans]
        self._apart = [plan for plan in plans if not plan.shares_gradients]
        self._call = _one_call(optimizer, plans[0], gradients) if len(plans) == 1 and not self._apart else None
        self._fills = not (optimizer._keeps_scalars or (self._call is not None and self._call.writes))
        self._at_once = self._call.run if self._call is not None and self._call.watches else None
        self._launches = self._call is None or not self._call.launches
        own = optimizer.__dict__
        self._values: Any = itemgetter(*(key for key in _names(optimizer) if key in own))
        self._known: Any = None  # values of hyper-parameters at the last step
        self._size = 0  # number of attributes then
        self._is_alike = False  # whether those after it can be like it
        self._options = 0  # for the launch, beside those of the gradients

    def step(self, optimizer: Optimizer, grads: Any) -> bool:
        """One step, if it is like the last; whether it was. See `Optimizer.apply` for what is raised."""
        if not self._is_alike:
            return False
        held = tuple(grads) if type(grads) is list else grads  # another thread may empty a list
        attributes = optimizer.__dict__  # held, like the gradients, while compiled code looks at it
        if self._at_once is not None and self._at_once(id(held), id(attributes)):
            if self._launches:
                self._launch(self._options)
            return True
        return self._step_in_turn(optimizer, held, grads)

    def _step_in_turn(self, optimizer: Optimizer, held: Any, grads: Any) -> bool:
        """The same, one thing after the other; ``held`` is ``grads`` or a tuple of them."""
        attributes, t = optimizer.__dict__, optimizer._iterations + 1
        values = self._values(attributes)
        if values != self._known or t == 1 or optimizer._evaluating:  # at first averages begin
            return False
        if len(attributes) != self._size or (self._at_once is not None and not _are_numbers(values)):
            return False  # a method may have got another body; what is equal now may change where nobody looks
        if self._fills:
            optimizer._fill_rows(t)
        call = self._call
        if call is not None:
            call.watch(attributes)
        if call is None or not call.run(id(held), id(attributes)):
            self._read_and_launch(optimizer, grads, t)
        elif self._launches:
            self._launch(self._options)
        return True

    def _launch(self, options: int) -> None:
        """Run the kernels on gradients that have been read, and count the step."""
        for engine in self._engines:
            engine(options)
        self._counted[0] += 1
        self._counted[1] += 1

    def _read_and_launch(self, optimizer: Optimizer, grads: Any, t: int) -> None:
        """A step with gradients of any kind."""
        gradients = self._gradients
        try:
            options = gradients.read(grads, False) | self._options
            for plan in self._apart:
                plan.take_gradients()
            if not (self._fills or optimizer._keeps_scalars):
                optimizer._fill_rows(t)
            self._launch(options)
        finally:
            gradients.release()
        optimizer._advance(t)

    def forget(self) -> None:
        """A step of another kind writes tables that the next one must not find."""
        self._is_alike = False

    def learn(self, optimizer: Optimizer) -> None:
        """After a step of `HostSteps` with these hyper-parameters: see whether the next ones can be like it.

        Where they change at every step, nothing is looked at but whether they do.
        """
        values = self._values(optimizer.__dict__)
        changed, self._known, self._size = values != self._known, values, len(optimizer.__dict__)
        if not changed and optimizer._iterations > 1:
            self._is_alike = _are_numbers(values) and _is_repeatable(optimizer)
            self._options = optimizer._ema_options(1) if optimizer.use_ema else 0
            if self._is_alike and self._call is not None:
                _, plan, _, learning_rate, _ = optimizer._rows[0]
                follows = self._call.writes
                self._call.take(self._options, optimizer._settings(plan.branch, learning_rate) if follows else None)


def _names(optimizer: Optimizer) -> tuple[str, ...]:
    """Of the attributes that hold the hyper-parameters."""
    return ("_learning_rate", *COMMON[1:], *optimizer._own)


def _are_numbers(values: tuple[Any, ...]) -> bool:
    """Whether the values of hyper-parameters stay what they are."""
    return all(type(value) in _NUMBERS for value in values)


def _one_call(optimizer: Optimizer, plan: Plan, gradients: BaseGradients) -> RepeatedStep | None:
    """What the only plan's steps repeat, in one call, where that is possible."""
    if not _asks_for_values(optimizer):
        return None
    settings = None
    if optimizer._follows_settings and len(plan.groups) == 1:
        settings = type(optimizer._settings(plan.branch, 1.0))
    if optimizer._advances or (optimizer._running is not None and settings is None):
        return None
    sees_to_all = optimizer._keeps_scalars or settings is not None
    return gradients.repeated_step(optimizer._counted, plan.engine, settings, optimizer._running, sees_to_all)


def _asks_for_values(optimizer: Optimizer) -> bool:
    """Whether what a step does with hyper-parameters depends on nothing but their values."""
    own, kind = vars(optimizer), type(optimizer)
    return (
        all(name in own for name in _names(optimizer))
        and all(getattr(kind, name) is getattr(HyperParameters, name) for name in _ASKING)
        and not own.keys() & {"_scalars", "_settings", *_ASKING}
    )


def _is_repeatable(optimizer: Optimizer) -> bool:
    """Whether a step consists of nothing but what `RepeatedSteps.step` does."""
    return (
        _asks_for_values(optimizer)
        and optimizer.nonfinite == "propagate"
        and not optimizer._clipping()[0]
        and not optimizer.gradient_accumulation_steps
        and not (optimizer.use_ema and optimizer.ema_overwrite_frequency)
        and not optimizer._stand_ins
    )
