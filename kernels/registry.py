"""Which rule belongs to which scalars, which slots it has, and what its scalars follow from.

A rule is a plain function of scalars. The type of its scalars, a NamedTuple, stands for it: kernels call the stubs
below, and the compiler replaces each by the rule that was registered for the type it sees. Plain Python does the same
at run time.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from .compile._jit import FLAGS


class Slot(NamedTuple):
    """A state array per parameter: what it starts as, and which of the parameter's axes it has."""

    start: float = 0.0
    starts_as: str = ""  # the hyper-parameter that it starts as, instead
    copies_parameter: bool = False
    without: int | None = None  # an axis that it lacks, counted from the end
    per_row: bool = False  # whether it has the first axis only
    squares: bool = False  # whether its numbers are means of squares, or such: never negative, over many powers of ten
    dtype: str = ""  # of its array, if that is not the parameter's compute dtype
    scales: bool = False  # whether it has one number per block of a storage format instead
    axes: range = range(65)  # numbers of axes of a parameter that has such a slot

    def axes_of(self, count: int) -> list[int]:
        """Which axes it has of a parameter's ``count``."""
        if self.per_row:
            return list(range(min(count, 1)))
        missing = None if self.without is None else count + self.without
        return [axis for axis in range(count) if axis != missing]


class Rule(NamedTuple):
    """The mathematics of one optimizer: ``update`` alone, or ``first``, ``between`` and ``second``; see `rule`,
    `two_phase_rule`, `per_row_rule`."""

    name: str
    update: Any = None
    first: Any = None
    between: Any = None
    second: Any = None
    terms: int = 0
    engine: type | None = None  # for rules with kernels of their own
    slots: Mapping[str, Slot] = {}

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions that it is made of."""
        return tuple(part for part in self[1:5] if part is not None)


RULES: dict[type, Rule] = {}
"""Scalars class → rule."""


def rule(scalars, slots=(), squares=()):
    """Decorator: register an elementwise rule ``(param, grad, slots, s) -> (param, slots)`` for a scalars class.

    ``slots`` are their names, in the rule's order: those that start at zero; or a dict of them and what they are.
    ``squares`` are the names of those whose numbers are never negative: `Slot.squares`.
    """

    def register(update):
        RULES[scalars] = Rule(update.__name__, update=update, slots=_described(slots, squares))
        return update

    return register


def two_phase_rule(scalars, first, between, second, terms, slots=(), squares=()):
    """Register a rule that needs sums over each parameter before it can move it; ``slots``, ``squares`` as in `rule`.

    - ``first(param, grad, slots, s) -> (terms, slots)``, elementwise: new slots and ``terms`` numbers to sum;
    - ``between(sums, n, s) -> number``, once per parameter of ``n`` elements: ``sums`` are the terms' sums in float64;
    - ``second(param, grad, slots, extra, s) -> param``, elementwise, with the new slots and that number.
    """
    RULES[scalars] = Rule(
        first.__name__, first=first, between=between, second=second, terms=terms, slots=_described(slots, squares)
    )


def per_row_rule(scalars, first, between, second, terms, slots):
    """Register a rule that needs sums over each row of a parameter before it can move the row.

    A row is all that has one index along the first axis. Slots have a number per row (`Slot.per_row`). ``first`` and
    ``second`` are those of `two_phase_rule`, without slots; and
    ``between(sums, n, slots, s) -> (number, slots)``, once per row of ``n`` elements, has the row's slots, too.

    Its engine is `kernels.cpu.per_row.PerRow`, which takes charge of such rules when it is imported: register before.
    """
    RULES[scalars] = Rule(first.__name__, first=first, between=between, second=second, terms=terms, slots=slots)


def _described(slots: Mapping[str, Slot] | Iterable[str], squares: Iterable[str]) -> Mapping[str, Slot]:
    if isinstance(slots, Mapping):
        return slots
    return {name: Slot(squares=name in squares) for name in slots}


SCALARS: dict[type, Callable[..., Any]] = {}
"""Settings class → function ``(settings, t)``; scalars without an entry are their own settings."""

CONSTANT: set[type] = set()
"""Settings classes whose scalars do not depend on the update's number."""

RUNNING: dict[type, Callable[..., Any]] = {}
"""Settings class whose last field is a number that runs → function ``(settings, t)``."""


def scalars_for(settings, running=None):
    """Decorator: register what gives a rule's scalars for update number ``t``, from 1, and a class of its settings.

    Settings are numbers: hyper-parameters by their names, ``one_minus_…`` for 1 minus one, and, if there is a function
    ``running``, last a number that every update changes, with its start as default. That function gives it, like the
    scalars, from settings and ``t``, as it is after the update. In plain Python ``learning_rate`` may be an array of
    one number per group. A function of settings alone gives scalars that are the same for every update.
    """

    def register(function):
        SCALARS[settings] = function
        if len(inspect.signature(function).parameters) == 1:
            CONSTANT.add(settings)
            SCALARS[settings] = lambda settings, t: function(settings)
        if running is not None:
            RUNNING[settings] = running
        return function

    return register


def scalars_of(settings, t):
    """A rule's scalars for update number ``t``."""
    return SCALARS.get(type(settings), _the_same)(settings, t)


def are_constant(settings):
    """Whether scalars that follow from a class of settings are the same for every update."""
    return settings in CONSTANT or settings not in SCALARS


@functools.cache
def take_rates(settings):
    """Whether scalars may be worked out for an array of learning rates at once: it is tried, on made-up settings."""
    rates = np.array([0.25, 0.5])
    own = dict.fromkeys(settings._fields, 0.75)
    apart = [scalars_of(settings(**own | {"learning_rate": rate}), 3) for rate in rates.tolist()]
    try:
        together = scalars_of(settings(**own | {"learning_rate": rates}), 3)
    except (TypeError, ValueError):
        return False
    return all(
        np.array_equal(np.broadcast_to(a, 2), b) for a, b in zip(together, zip(*apart, strict=True), strict=True)
    )


def running_after(settings, t):
    """The number that runs, after update number ``t``."""
    return RUNNING.get(type(settings), _unchanged)(settings, t)


def _unchanged(settings, t):
    return settings[-1]


def _the_same(settings, t):
    return settings


def update(param, grad, slots, s):
    """One element's step under the rule that belongs to the type of ``s``."""
    return RULES[type(s)].update(param, grad, slots, s)


def first_phase(param, grad, slots, s):
    """First phase for one element."""
    return RULES[type(s)].first(param, grad, slots, s)


def between_phases(sums, n, s):
    """Return what a two-phase rule works out for one parameter between its phases."""
    return RULES[type(s)].between(sums, n, s)


def second_phase(param, grad, slots, extra, s):
    """Second phase for one element."""
    return RULES[type(s)].second(param, grad, slots, extra, s)


def between_row(sums, n, slots, s):
    """Return what a rule per row works out for one row between its phases, and the row's new slots."""
    return RULES[type(s)].between(sums, n, slots, s)


@overload(scalars_of, jit_options=FLAGS, strict=False)
def _scalars_of(settings, t):
    return SCALARS.get(settings.instance_class, _the_same)


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


@overload(between_row, jit_options=FLAGS, strict=False)
def _between_row(sums, n, slots, s):
    return RULES[s.instance_class].between
