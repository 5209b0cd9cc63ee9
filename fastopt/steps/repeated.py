"""Steps of an optimizer for which nothing has changed since the last one: a front end of little more than two calls."""

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
        self._compiled = _compiled(optimizer, plans[0], gradients) if len(plans) == 1 and not self._apart else None
        self._fills = not (optimizer._keeps_scalars or (self._compiled is not None and self._compiled.writes))
        self._at_once = self._compiled.run if self._compiled is not None and self._compiled.watches else None
        self._launches = self._compiled is None or not self._compiled.launches
        own = optimizer.__dict__
        self._settings: Any = itemgetter(*(key for key in ("_learning_rate", *COMMON, *optimizer._own) if key in own))
        self._known: Any = None  # settings of the last step
        self._is_alike = False  # whether those after it can be like it
        self._options = 0  # for the launch, beside those of the gradients

    def step(self, optimizer: Optimizer, grads: Any) -> bool:
        """One step, if it is like the last; whether it was. See `Optimizer.apply` for what is raised."""
        if not self._is_alike:
            return False
        held = tuple(grads) if type(grads) is list else grads  # another thread may empty a list
        if self._at_once is not None and self._at_once(id(held), id(optimizer.__dict__)):
            if self._launches:
                self._launch(self._options)
            return True
        return self._step_in_turn(optimizer, held, grads)

    def _step_in_turn(self, optimizer: Optimizer, held: Any, grads: Any) -> bool:
        """The same, one thing after the other; ``held`` is ``grads`` or a tuple of them."""
        settings, t = optimizer.__dict__, optimizer._iterations + 1
        if self._settings(settings) != self._known or t == 1 or optimizer._evaluating:  # at first averages begin
            return False
        if self._fills:
            optimizer._fill_rows(t)
        compiled = self._compiled
        if compiled is not None:
            compiled.watch(settings)
        if compiled is None or not compiled.run(id(held), id(settings)):
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
        """After a step of `HostSteps` with these settings: see whether the next ones can be like it.

        Where settings change at every step, nothing is looked at but whether they do.
        """
        settings = self._settings(optimizer.__dict__)
        changed, self._known = settings != self._known, settings
        if not changed and optimizer._iterations > 1:
            self._is_alike = _is_repeatable(optimizer, settings)
            self._options = optimizer._ema_options(1) if optimizer.use_ema else 0
            if self._is_alike and self._compiled is not None:
                _, plan, _, learning_rate, _ = optimizer._rows[0]
                follows = self._compiled.writes
                self._compiled.take(self._options, optimizer._settings(plan.branch, learning_rate) if follows else None)


def _compiled(optimizer: Optimizer, plan: Plan, gradients: BaseGradients) -> RepeatedStep | None:
    """What the only plan's steps repeat, in one call, where that is possible."""
    settings = None
    if optimizer._follows_settings and len(plan.groups) == 1:
        settings = type(optimizer._settings(plan.branch, 1.0))
    if optimizer._advances or (optimizer._running is not None and settings is None):
        return None
    sees_to_all = optimizer._keeps_scalars or settings is not None
    return gradients.repeated_step(optimizer._counted, plan.engine, settings, optimizer._running, sees_to_all)


def _is_repeatable(optimizer: Optimizer, settings: tuple[Any, ...]) -> bool:
    """Whether a step consists of nothing but what `RepeatedSteps.step` does."""
    return (
        all(type(value) in _NUMBERS for value in settings)
        and type(optimizer)._rate is HyperParameters._rate
        and optimizer.nonfinite == "propagate"
        and not optimizer._clipping()[0]
        and not optimizer.gradient_accumulation_steps
        and not (optimizer.use_ema and optimizer.ema_overwrite_frequency)
        and not optimizer._stand_ins
    )
