"""Steps of an optimizer for which nothing has changed since the last one: where possible in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..counts import Call
from ..gradients import BaseGradients
from ..kernels.cpu import launch
from ..kernels.cpu.repeated_step import RepeatedStep
from ..kernels.locks import Lock
from ..plan import Plan
from ..scalars import Scalars
from .alone import alone, refuse_while
from .host import run, take_rows


class RepeatedSteps:
    """Does what `HostSteps` does, for an optimizer that accumulates nothing.

    All hyper-parameters are compared with those of the last step, at once. As long as they are numbers and the same, so
    are the rows of scalars, or what they are worked out from.

    Parameters
    ----------
    plans : list of Plan
    gradients : Gradients
    scalars : Scalars
    stepping : Lock
        Held by steps of any kind, see `alone`.
    """

    def __init__(self, plans: list[Plan], gradients: BaseGradients, scalars: Scalars, stepping: Lock) -> None:
        self._gradients, self._plans, self._scalars, self._stepping = gradients, plans, scalars, stepping
        self._apart = [plan for plan in plans if not plan.shares_gradients]
        self._call = self._one_call(plans[0]) if len(plans) == 1 and not self._apart else None
        self._fills = not (scalars.keeps or (self._call is not None and self._call.writes))
        self._count = len(gradients.parameters)
        self._known: Any = None  # what scalars depended on at the last step
        self._may_be_alike: bool | None = None  # whether steps with these values can be; None: it was not looked at
        self._is_alike = False  # whether the next ones are,
        self._goes_by_norm = False  # and go by the norm of the gradients
        self._options = 0  # for the launch, beside those of the gradients

    def _one_call(self, plan: Plan) -> RepeatedStep | None:
        """Return what the only plan's steps repeat, in one call, where that is possible."""
        scalars = self._scalars
        settings = scalars.settings_class(plan)
        if plan.engine.reads_tables or (scalars.running is not None and settings is None):
            return None
        counts, measures = scalars.counts, scalars.by_norm() is not None
        what = settings, scalars.running, counts.told, measures
        return self._gradients.repeated_step(counts.numbers, plan.engine, *what)

    @property
    def is_running(self) -> bool:
        """Whether a step is under way in compiled code, which lets other threads run."""
        return self._call is not None and self._call.is_running

    def step(self, grads: Any, ends: Sequence[Call] = ()) -> bool:
        """One step, if it is like the last; whether it was. See `Optimizer.apply` for what is raised.

        ``ends`` are as of `HostSteps.step`.
        """
        if not self._is_alike or self._scalars.values() != self._known:
            return False
        held = tuple(grads) if type(grads) is list else grads  # another thread may empty a list
        if not self._fills and self._run(held, ends):
            return True
        return (self._fills or not self._goes_by_norm) and self._step_in_turn(held, grads, ends)

    def _step_in_turn(self, held: Any, grads: Any, ends: Sequence[Call]) -> bool:
        """The same, one thing after the other; ``held`` is ``grads`` or a tuple of them."""
        if self._scalars.counts.updates == 0:  # averages begin
            return False
        with self.alone():
            if not self._is_alike:  # another thread has taken a step of another kind meanwhile
                return False
            if self._fills:
                self._scalars.refill(self._scalars.counts.updates + 1)
                if self._run(held, ends):
                    return True
            if self._goes_by_norm:
                return False
            self._read_and_launch(grads, ends)
        return True

    def alone(self) -> Lock:
        """See `alone.alone`."""
        return alone(self._stepping, self.is_running)

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

    def _read_and_launch(self, grads: Any, ends: Sequence[Call]) -> None:
        """A step with gradients of any kind."""
        gradients, scalars, counts = self._gradients, self._scalars, self._scalars.counts
        self._let_steps_begin(False)
        refuse_while(self.is_running)  # another thread's may have begun before that
        update = counts.updates + 1
        try:
            options = gradients.read(grads, False) | self._options
            for plan in self._apart:
                plan.take_gradients()
            take_rows(self._plans, gradients)
            if not (self._fills or scalars.keeps):
                scalars.refill(update)
            kernels = [each for plan in self._plans for each in plan.engine.calls(options)]
            counted = counts.counting(update, counts.calls + 1)
            run(self._plans, [*kernels, *scalars.advancing(update), counted, *ends])
            if gradients.rows:
                self.forget()
            else:
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

    def learn(self) -> None:
        """After a step of `HostSteps`: see whether the next ones can be like it.

        Where hyper-parameters change at every step, nothing is looked at but whether they do.
        """
        scalars = self._scalars
        values = scalars.values()
        if values != self._known:
            self._known, self._may_be_alike = values, None
            return
        if scalars.counts.updates <= 1 or scalars.counts.skipped or any(plan.engine.has_rows for plan in self._plans):
            return
        if self._may_be_alike is None:
            self._may_be_alike = scalars.are_settled(values) and self._can_repeat()
        if self._may_be_alike:
            self._take()

    def _can_repeat(self) -> bool:
        """Whether a step consists of nothing but what `step` does."""
        scalars = self._scalars
        return (
            scalars.window() == 1 and not scalars.overwrites() and (self._call is not None or scalars.by_norm() is None)
        )

    def _take(self) -> None:
        """Do the next steps as the last one was done."""
        scalars, call = self._scalars, self._call
        for plan in self._plans:
            plan.follow_averages()  # compiled code knows nothing of rows that have yet to be followed
        self._options = scalars.averages(1)
        if call is not None:
            clipping = scalars.by_norm()
            self._goes_by_norm = clipping is not None
            call.take(self._options, scalars.settings(self._plans[0]) if call.writes else None, clipping)
        self._let_steps_begin(True)
        self._is_alike = True
