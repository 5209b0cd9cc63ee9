"""Which rule belongs to which scalars.

A rule is a plain function of scalars. The type of its scalars, a NamedTuple, stands for it: kernels call the stubs
below, and the compiler replaces each by the rule that was registered for the type it sees. Plain Python does the same
at run time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba.extending import overload

from ._jit import FLAGS


class Rule(NamedTuple):
    """The mathematics of one optimizer: ``update`` alone, or ``first``, ``between`` and ``second`` (two phases)."""

    name: str
    update: Any = None
    first: Any = None
    between: Any = None
    second: Any = None
    terms: int = 0
    engine: type | None = None  # for rules with kernels of their own

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that it is made of."""
        return tuple(part for part in self[1:5] if part is not None)


RULES: dict[type, Rule] = {}
"""Scalars class → rule."""


def rule(scalars):
    """Decorator: register an elementwise rule ``(param, grad, slots, s) -> (param, slots)`` for a scalars class."""

    def register(update):
        RULES[scalars] = Rule(update.__name__, update=update)
        return update

    return register


def two_phase_rule(scalars, first, between, second, terms):
    """Register a rule that needs sums over each parameter before it can move it.

    - ``first(param, grad, slots, s) -> (terms, slots)``, elementwise: new slots and ``terms`` numbers to sum;
    - ``between(sums, n, s) -> number``, once per parameter of ``n`` elements: ``sums`` are the terms' sums in float64;
    - ``second(param, grad, slots, extra, s) -> param``, elementwise, with the new slots and that number.
    """
    RULES[scalars] = Rule(first.__name__, first=first, between=between, second=second, terms=terms)


SCALARS: dict[type, Callable[..., Any]] = {}
"""Settings class → function ``(settings, t)``."""

RUNNING: dict[type, Callable[..., Any]] = {}
"""Settings class whose last field is a number that runs → function ``(settings, t)``."""


def scalars_for(settings, running=None):
    """Decorator: register what gives a rule's scalars for update number ``t``, from 1, and a class of its settings.

    Settings are numbers: the hyper-parameters, and, if there is a function ``running``, last one that every update
    changes. That function gives it, like the scalars, from settings and ``t``, as it is after the update. In plain
    Python settings may be arrays of one number per group.
    """

    def register(function):
        SCALARS[settings] = function
        if running is not None:
            RUNNING[settings] = running
        return function

    return register


def scalars_of(settings, t):
    """A rule's scalars for update number ``t``."""
    return SCALARS[type(settings)](settings, t)


def running_after(settings, t):
    """The number that runs, after update number ``t``."""
    return RUNNING.get(type(settings), _unchanged)(settings, t)


def _unchanged(settings, t):
    return settings[-1]


def update(param, grad, slots, s):
    """One element's step under the rule that belongs to the type of ``s``."""
    return RULES[type(s)].update(param, grad, slots, s)


def first_phase(param, grad, slots, s):
    """First phase for one element."""
    return RULES[type(s)].first(param, grad, slots, s)


def between_phases(sums, n, s):
    """What a two-phase rule works out for one parameter between its phases."""
    return RULES[type(s)].between(sums, n, s)


def second_phase(param, grad, slots, extra, s):
    """Second phase for one element."""
    return RULES[type(s)].second(param, grad, slots, extra, s)


@overload(scalars_of, jit_options=FLAGS, strict=False)
def _scalars_of(settings, t):
    return SCALARS[settings.instance_class]


@overload(running_after, jit_options=FLAGS, strict=False)
def _running_after(settings, t):
    return RUNNING.get(settings.instance_class, _unchanged)


@overload(update, jit_options=FLAGS, strict=False)
def _update(param, grad, slots, s):
    return RULES[s.instance_class].update


@overload(first_phase, jit_options=FLAGS, strict=False)
def _first_phase(param, grad, slots, s):
    return RULES[s.instance_class].first


@overload(between_phases, jit_options=FLAGS, strict=False)
def _between_phases(sums, n, s):
    return RULES[s.instance_class].between


@overload(second_phase, jit_options=FLAGS, strict=False)
def _second_phase(param, grad, slots, extra, s):
    return RULES[s.instance_class].second
