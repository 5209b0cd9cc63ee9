"""Steps of an optimizer for which nothing has changed since the last one: where possible in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..hyper_parameters import COMMON, HyperParameters
from ..kernels import launch
from ..kernels.clipping import Clipping
from .alone import refuse_while
from .host import Call, counting, run

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
    """Does what `HostSteps` does, for an optimizer that accumulates nothing.

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
        self._gradients, self._plans = gradients, plans
        self._apart = [plan for plan in plans if not plan.shares_gradients]
        self._call = _one_call(optimizer, plans[0], gradients) if len(plans) == 1 and not self._apart else None
        self._fills = not (optimizer._keeps_scalars or (self._call is not None and self._call.writes))
        self._count = len(gradients.parameters)
        own = optimizer.__dict__
        self._values: Any = itemgetter(*(key for key in _names(optimizer) if key in own))
        self._known: Any = None  # values of hyper-parameters at the last step
        self._size = 0  # number of attributes then
        self._may_be_alike: bool | None = None  # whether steps with these values can be; None: it was not looked at
        self._is_alike = False  # whether those after it can be like it,
        self._goes_by_norm = False  # and go by the norm of the gradients
        self._options = 0  # for the launch, beside those of the gradients

    @property
    def is_running(self) -> bool:
        """Whether a step is under way in compiled code, which lets other threads run."""
        return self._call is not None and self._call.is_running

    def step(self, optimizer: Optimizer, grads: Any, ends: Sequence[Call] = ()) -> bool:
        """One step, if it is like the last; whether it was. See `Optimizer.apply` for what is raised.

        ``ends`` are as of `HostSteps.step`.
        """
        attributes = optimizer.__dict__
        if not self._is_alike or self._values(attributes) != self._known or len(attributes) != self._size:
            return False  # an attribute more: a method may have got another body
        if optimizer._evaluating:
            return False
        held = tuple(grads) if type(grads) is list else grads  # another thread may empty a list
        if not self._fills and self._run(held, ends):
            return True
        return not (self._goes_by_norm and not self._fills) and self._step_in_turn(optimizer, held, grads, ends)

    def _step_in_turn(self, optimizer: Optimizer, held: Any, grads: Any, ends: Sequence[Call]) -> bool:
        """The same, one thing after the other; ``held`` is ``grads`` or a tuple of them."""
        if optimizer._iterations == 0:  # averages begin
            return False
        with optimizer._one_at_a_time():
            if not self._is_alike:  # another thread has taken a step of another kind meanwhile
                return False
            t = optimizer._iterations + 1
            if self._fills:
                optimizer._fill_rows(t)
            if self._fills and self._run(held, ends):
                return True
            if self._goes_by_norm:
                return False
            self._read_and_launch(optimizer, grads, t, ends)
        return True

    def _run(self, held: Any, ends: Sequence[Call]) -> bool:
        """Do a step with gradients that are as usual, in one call; whether that was possible."""
        call = self._call
        if call is None or type(held) is not tuple or len(held) != self._count:
            return False
        if call.launches and not ends:
            return not call.begin(id(held))
        (plan,) = self._plans
        calls: list[Call] = [partial(call.begin, id(held))]
        if call.launches:
            calls.append(launch.one_call(ends))
        else:
            if self._goes_by_norm:
                calls += [*plan.engine.measuring(0), call.check]
            calls.append(launch.one_call((*plan.engine.calls(self._options), call.end, *ends)))
        try:
            return launch.run_while(calls, plan.engine.on_threads)
        except MemoryError:
            call.give_up()
            raise

    def _read_and_launch(self, optimizer: Optimizer, grads: Any, t: int, ends: Sequence[Call]) -> None:
        """A step with gradients of any kind."""
        gradients = self._gradients
        self._let_steps_begin(False)
        refuse_while(self.is_running)  # another thread's may have begun before that
        try:
            options = gradients.read(grads, False) | self._options
            for plan in self._apart:
                plan.take_gradients()
            if not (self._fills or optimizer._keeps_scalars):
                optimizer._fill_rows(t)
            kernels = [call for plan in self._plans for call in plan.engine.calls(options)]
            counted = counting(optimizer, t, optimizer._calls + 1)
            run(self._plans, [*kernels, *optimizer._advancing(t), counted, *ends])
            self._let_steps_begin(True)
        finally:
            gradients.release()

    def _let_steps_begin(self, usual: bool) -> None:
        """Whether compiled code may begin a step by itself, also in other threads: it finds tables of the last one."""
        if self._call is not None:
            self._call.is_usual = usual

    def forget(self) -> None:
        """A step of another kind writes tables that the next one must not find."""
        self._is_alike = False
        self._let_steps_begin(False)

    def learn(self, optimizer: Optimizer) -> None:
        """After a step of `HostSteps` with these hyper-parameters: see whether the next ones can be like it.

        Where they change at every step, nothing is looked at but whether they do.
        """
        values, size = self._values(optimizer.__dict__), len(optimizer.__dict__)
        if values != self._known or size != self._size:
            self._known, self._size, self._may_be_alike = values, size, None
            return
        if optimizer._iterations <= 1 or optimizer._last_step_skipped:
            return
        if self._may_be_alike is None:
            self._may_be_alike = _are_numbers(values) and self._is_repeatable(optimizer)
        if self._may_be_alike:
            self._take(optimizer)

    def _is_repeatable(self, optimizer: Optimizer) -> bool:
        """Whether a step consists of nothing but what `step` does."""
        return (
            not optimizer.gradient_accumulation_steps
            and not (optimizer.use_ema and optimizer.ema_overwrite_frequency)
            and not optimizer._stand_ins
            and (self._call is not None or _clipping(optimizer) is None)
            and _asks_for_values(optimizer)
        )

    def _take(self, optimizer: Optimizer) -> None:
        """Do the next steps as the last one was done."""
        self._options = optimizer._ema_options(1) if optimizer.use_ema else 0
        if self._call is not None:
            _, plan, _, learning_rate, _ = optimizer._rows[0]
            settings = optimizer._settings(plan.branch, learning_rate) if self._call.writes else None
            clipping = _clipping(optimizer)
            self._goes_by_norm = clipping is not None
            self._call.take(self._options, settings, clipping)
        self._let_steps_begin(True)
        self._is_alike = True


def _clipping(optimizer: Optimizer) -> Clipping | None:
    """How steps go by the norm of the gradients; None if they do not."""
    (way, limit), checked = optimizer._clipping(), optimizer.nonfinite != "propagate"
    return Clipping(way, limit, checked) if way or checked else None


def _names(optimizer: Optimizer) -> tuple[str, ...]:
    """Of the attributes that hold the hyper-parameters."""
    return ("_learning_rate", *COMMON[1:], *optimizer._own)


def _are_numbers(values: tuple[Any, ...]) -> bool:
    """Whether the values of hyper-parameters stay what they are."""
    return all(type(value) in _NUMBERS for value in values)


def _one_call(optimizer: Optimizer, plan: Plan, gradients: BaseGradients) -> RepeatedStep | None:
    """What the only plan's steps repeat, in one call, where that is possible."""
    if plan.engine.reads_tables or not _asks_for_values(optimizer):
        return None
    settings = None
    if optimizer._follows_settings and len(plan.groups) == 1:
        settings = type(optimizer._settings(plan.branch, 1.0))
    if optimizer._running is not None and settings is None:
        return None
    measures = _clipping(optimizer) is not None
    what = settings, optimizer._running, optimizer._told, measures
    return gradients.repeated_step(optimizer._counted, plan.engine, *what)


def _asks_for_values(optimizer: Optimizer) -> bool:
    """Whether what a step does with hyper-parameters depends on nothing but their values."""
    own, kind = vars(optimizer), type(optimizer)
    return (
        all(name in own for name in _names(optimizer))
        and all(getattr(kind, name) is getattr(HyperParameters, name) for name in _ASKING)
        and not own.keys() & {"_scalars", "_settings", *_ASKING}
    )
